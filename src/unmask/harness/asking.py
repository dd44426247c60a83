"""What an evaluation was asked to do, made definite.

In:  the groups of flags of `unmask eval`.  Out: which kind of model, how it is asked, and a record of all of it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import UserError
from unmask.harness import arguments, flags
from unmask.harness.arguments import Asked
from unmask.harness.flags import ResultArguments, TaskArguments
from unmask.reader import ReaderArguments

if TYPE_CHECKING:
    from unmask.harness.presets import Preset


@dataclasses.dataclass
class Evaluation:
    """The command's settings."""

    reader: ReaderArguments
    tasks: TaskArguments
    scoring: arguments.ScoringArguments
    output: ResultArguments
    decoding: dict[str, Any]
    argv: list[str]

    @property
    def kind(self) -> str:
        """lm-eval's kind of model; `unmask` where --model is a folder or a name on the hub."""
        name = self.reader.model
        if name is None or name in arguments.OURS:
            return name or "unmask"
        import lm_eval.models  # registers its own
        from lm_eval.api.registry import model_registry

        del lm_eval
        known = "/" not in name and not Path(name).exists() and name in model_registry
        return name if known else "unmask"

    def asked(self, more: dict[str, Any] | None = None) -> Asked:
        """How our model is asked: by --model_args and flags; `more` (a preset) where neither says anything."""
        given = changed(self.reader) | changed(self.scoring) | self.decoding
        if given.get("model") in arguments.OURS:
            del given["model"]
        if self.tasks.batch_size is not None:
            given["batch_size"] = self.tasks.batch_size
        words = arguments.parse_model_args(self.tasks.model_args)
        named = next((words[name] for name in words if arguments.SPELLINGS.get(name) == "model"), None)
        if named is not None and given.get("model") not in (None, named):
            raise UserError(
                f"--model is {given['model']!r}, and --model_args name {named!r}; beside that, --model takes a kind: "
                f"{', '.join(arguments.OURS)}, or lm-eval's own, such as hf."
            )
        found = arguments.asked(words, given)
        if more:
            own = arguments.own_names(words) | set(given)
            found = arguments.asked(words, given | {k: v for k, v in more.items() if k not in own})
        most = self.tasks.max_batch_size
        if most and (found.batch_size or most) >= most:
            found.batch_size = most
        if not found.model.model:
            raise UserError("no model given; type --model FOLDER, or --model_args pretrained=FOLDER.")
        return found


def changed(group: Any) -> dict[str, Any]:
    """The settings that are not as they are by default."""
    default = type(group)()
    return {
        f.name: getattr(group, f.name)
        for f in dataclasses.fields(group)
        if getattr(group, f.name) != getattr(default, f.name)
    }


def record(wanted: Evaluation, preset: Preset | None) -> dict[str, Any]:
    """All settings that the answers and scores hang on."""
    tasks = dataclasses.asdict(wanted.tasks)
    for name in ("batch_size", "max_batch_size"):
        tasks.pop(name)
    ours = wanted.kind in arguments.OURS
    asked = wanted.asked().record() if ours else {"model_args": flags.loose(wanted.tasks.model_args)}
    asked.pop("batch_size", None)
    return {
        "kind": wanted.kind,
        "asked": asked,
        "tasks": tasks,
        "likelihood": asked["scoring"]["likelihood"] if ours else "exact",
        "preset": dataclasses.asdict(preset) if preset else None,
        "num_fewshot": wanted.tasks.num_fewshot,
        "apply_chat_template": None if preset else flags.template_asked(wanted.tasks.apply_chat_template) or False,
        "limit": wanted.tasks.limit,
        "seeds": list(flags.seeds(wanted.tasks.harness_seed)),
        "system_instruction": wanted.tasks.system_instruction,
    }
