"""An evaluation: tasks and their data loaded, the model asked, its answers scored, everything written down.

In:  the settings of `unmask eval`.
Out: results as lm-eval has them and what made them; a table; the results folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import report
from unmask.adapter_folder import fingerprint as fingerprint_of_weights
from unmask.config import UserError, nearest
from unmask.harness import arguments, asking, flags, identity, results, telling, workers
from unmask.harness.asking import Evaluation

if TYPE_CHECKING:
    from unmask.evaluate import Unmask
    from unmask.harness.arguments import Asked
    from unmask.harness.presets import Preset

FURTHER = [str(Path(__file__).parent / "harness" / "tasks")]
"""Folders of tasks beside lm-eval's."""
BOOTSTRAPS = 1000
"""Resamplings for the standard error of what is no mean; lm-eval's 100,000 take minutes and say no more."""


@dataclasses.dataclass
class Run:
    """Tasks that are evaluated with the same settings.

    Attributes:
        tasks: lm-eval's tasks and groups. asked: how the model is asked; None for a model of lm-eval's own.
    """

    tasks: list[Any]
    asked: Asked | None
    num_fewshot: int | None
    chat: bool | str

    def record(self) -> dict[str, Any]:
        """Its settings as they were resolved, for the results."""
        names = [getattr(task, "task_name", None) or task.name for task in self.tasks]
        asked = self.asked.record() if self.asked else None
        return {"tasks": names, "asked": asked, "num_fewshot": self.num_fewshot, "apply_chat_template": self.chat}


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def manager(wanted: Evaluation) -> Any:
    """lm-eval's index of tasks, ours and the user's with it; without lm-eval's own where only --data are asked."""
    from lm_eval.tasks import TaskManager

    mine = wanted.output.include_path
    if mine and not Path(mine).is_dir():
        raise UserError(f"--include_path {mine} is no folder.")
    return TaskManager(
        include_path=[*FURTHER, *([mine] if mine else [])],
        include_defaults=not wanted.tasks.data,
        metadata=flags.loose(wanted.output.metadata),
    )


def specs(wanted: Evaluation, index: Any) -> list[Any]:
    """What --tasks and --data name, in lm-eval's words; UserError for a name that there is not, with the nearest."""
    if wanted.tasks.data:
        from unmask.harness import questions, texts

        if wanted.tasks.metric == "perplexity":
            return [texts.task(wanted.tasks.data)]
        length = None if wanted.tasks.metric == "choice" else wanted.scoring.max_new_tokens
        return [questions.task(wanted.tasks.data, str(wanted.tasks.metric), max_new_tokens=length)]
    found: list[Any] = []
    for name in (part.strip() for word in wanted.tasks.tasks for part in word.split(",")):
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise UserError(f"no task file {name!r}.")
            found.append(str(Path(name).absolute()))
            continue
        matches = index.match_tasks([name])
        if not matches:
            raise UserError(f"no task {name!r}.{nearest(name, index.all_tasks)} `lm-eval ls tasks` lists them.")
        found += [match for match in matches if match not in found]
    return found


def load(wanted: Evaluation, index: Any, some: Sequence[Any]) -> dict[str, Any]:
    """The tasks with their data, as `TaskManager.load` gives them."""
    try:
        return dict(index.load(list(some)))
    except UserError:
        raise
    except (KeyError, ValueError, OSError, ModuleNotFoundError, AttributeError) as error:
        names = ", ".join(str(one.get("task") if isinstance(one, dict) else one) for one in some)
        hint = ""
        if "code_eval" in str(error):  # lm-eval 0.4.13 fetches it from the hub when the task is loaded
            hint = " Without the hub: humaneval_local, humaneval_instruct_llada, mbpp_local, mbpp_instruct_llada."
        raise UserError(f"cannot load the task {names}: {type(error).__name__}: {error}.{hint}") from None


def tops(loaded: dict[str, Any]) -> list[Any]:
    """The groups that are in no group, and the tasks that are in none."""
    inside = {name for names in loaded["group_map"].values() for name in names}
    held = {task for group in loaded["groups"].values() for task in (t.task_name for t in group.get_all_tasks())}
    groups = [group for name, group in loaded["groups"].items() if name not in inside]
    return groups + [task for name, task in loaded["tasks"].items() if name not in held]


def runs(wanted: Evaluation, loaded: dict[str, Any], preset: Preset | None) -> list[Run]:
    """Tasks with the same settings together; without a preset there is one run."""
    ours = wanted.kind in arguments.OURS
    chat = flags.template_asked(wanted.tasks.apply_chat_template)
    if preset is None:
        asked = wanted.asked() if ours else None
        return [Run(tops(loaded), asked, wanted.tasks.num_fewshot, chat or False)]
    found: list[Run] = []
    for top in tops(loaded):
        name = getattr(top, "task_name", None) or top.name
        settings = preset.settings(name)
        shots, template = settings.pop("num_fewshot", None), settings.pop("apply_chat_template", False)
        run = Run(
            [top],
            wanted.asked(settings),
            shots if wanted.tasks.num_fewshot is None else wanted.tasks.num_fewshot,
            template if chat is None else chat,
        )
        same = next((r for r in found if dataclasses.replace(r, tasks=[]) == dataclasses.replace(run, tasks=[])), None)
        if same:
            same.tasks += run.tasks
        else:
            found.append(run)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation


@contextlib.contextmanager
def quiet(verbosity: str | None, bars: bool) -> Iterator[None]:
    """lm-eval says nothing that is not asked for: what matters is said here.

    Args:
        bars: show its bars, for models of its own, where somebody watches.
    """
    from lm_eval import evaluator
    from tqdm import tqdm

    def silent(self: Any, *words: Any, **how: Any) -> None:
        made(self, *words, **{**how, "disable": True})

    logging.getLogger("lm_eval").setLevel(verbosity.upper() if verbosity else logging.ERROR)
    made, commit = tqdm.__init__, evaluator.get_git_commit_hash
    if not (bars and sys.stderr.isatty()):
        tqdm.__init__ = silent
    # lm-eval 0.4.13 asks git in the folder one stands in, and git complains where that is no repository
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        tqdm.__init__, evaluator.get_git_commit_hash = made, commit


def evaluate(wanted: Evaluation, model: Any = None) -> dict[str, Any] | None:
    """Everything from the tasks' data to the table; the results, in the first process.

    Args:
        model: what `make` gave for an evaluation of the same model before; loaded here if left out.
    """
    from unmask.harness import local, presets

    tasks, output, began = wanted.tasks, wanted.output, time.time()
    ours = wanted.kind in arguments.OURS
    preset = presets.load(tasks.preset) if tasks.preset else None
    if not ours and (preset or wanted.decoding or asking.changed(wanted.scoring)):
        raise UserError(
            f"--model {wanted.kind} is lm-eval's own and takes --model_args alone; presets and decoding are not for it."
        )
    settings = asking.record(wanted, preset)
    report.quiet()
    data = local.LocalData(tasks.local_data) if tasks.local_data else None
    with quiet(output.verbosity, not ours), local.active(data):
        index, loaded = ready(wanted)
        report.say(*(data.remarks if data else ()))
        on = bool(output.output_path) and results.check(Path(str(output.output_path)), settings, output.overwrite)
        model = model or make(wanted)
        keep(wanted, model, settings, on)
        if ours:
            advise(model, loaded["tasks"], preset, flags.template_asked(tasks.apply_chat_template))
        done = runs(wanted, loaded, preset)
        with results.nothing_left(output.output_path):
            found = [one for run in done if (one := simple(wanted, model, run, index))]
    details: dict[Any, dict[str, Any]] = {}
    if ours:
        for line, count in model.remarks.items():
            report.say(f"{count:,} {line}")
        details = {k: v for part in model.gather_object(model.details) or () for k, v in part.items()}
        model.store.close()
    if not found:
        return None
    whole = merged(found)
    samples = whole.pop("samples", {}) or {}
    results.add_details(samples, details)
    whole |= {
        "settings": settings,
        "runs": [run.record() for run in done],
        "argv": wanted.argv,
        "model": described(wanted, model),
        "commit": results.commit(),
        "packages": report.versions() | {"lm_eval": whole.get("lm_eval_version")},
        "decoding": results.decoding(details),
        "texts": results.texts(details),
        "local_data": data.used if data else {},
        "seconds": time.time() - began,
        "processes": getattr(model, "world_size", 1),
    }
    telling.tell(wanted, whole, samples, preset)
    if output.output_path:
        results.write(Path(output.output_path), whole, samples if output.log_samples or output.predict_only else {})
        report.say(f"scores, prompts and answers are in {output.output_path}")
    telling.trackers(output, whole, samples)
    return whole


def ready(wanted: Evaluation) -> tuple[Any, dict[str, Any]]:
    """(lm-eval's index, the tasks with their data), checked as far as that is possible without a model."""
    from unmask.harness import code, local

    if wanted.kind in arguments.OURS:
        wanted.asked()
    index = manager(wanted)
    loaded = load(wanted, index, specs(wanted, index))
    local.enough_examples(loaded["tasks"], wanted.tasks.num_fewshot)
    if wanted.output.confirm_run_unsafe_code:
        os.environ[code.LEAVE] = "1"
    code.check_allowed([name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)])
    return index, loaded


def keep(wanted: Evaluation, model: Any, settings: dict[str, Any], on: bool) -> None:
    """Give a model its store of answers, in the results folder if there is one.

    Args:
        settings: what the answers hang on. on: a run that was stopped is gone on with.
    """
    from unmask.harness.store import Store

    rank, _ = workers.processes()
    folder = Path(wanted.output.output_path) if wanted.output.output_path else None
    if folder and rank == 0 and not on:
        results.begin(folder, settings)
    if wanted.kind not in arguments.OURS:
        return
    model.barrier()
    model.details, model.remarks = {}, {}
    model.store = Store(folder, rank, settings | {"model": identity.fingerprint(model.wanted)})
    if on:
        report.say(f"going on with the run in {folder}: {model.store.found:,} answers are there already")


def make(wanted: Evaluation) -> Any:
    """The model, as lm-eval takes it."""
    if wanted.kind in arguments.OURS:
        from unmask.evaluate import Unmask

        return Unmask.load(wanted.asked())
    from lm_eval.api.registry import get_model

    more = {"batch_size": wanted.tasks.batch_size or 1, "max_batch_size": wanted.tasks.max_batch_size}
    more["device"] = wanted.reader.device
    return get_model(wanted.kind).create_from_arg_obj(flags.loose(wanted.tasks.model_args), more)


def simple(wanted: Evaluation, model: Any, run: Run, index: Any) -> dict[str, Any] | None:
    """lm-eval's own `simple_evaluate`, which asks the model and scores its answers."""
    import lm_eval

    tasks, output = wanted.tasks, wanted.output
    if run.asked is not None:
        model.wanted = run.asked
    chosen = flags.seeds(tasks.harness_seed or (str(wanted.decoding["seed"]) if "seed" in wanted.decoding else None))
    multiturn = bool(run.chat) if tasks.fewshot_as_multiturn is None else tasks.fewshot_as_multiturn
    cache = output.cache_requests
    try:
        return lm_eval.simple_evaluate(
            model=model,
            tasks=run.tasks,
            num_fewshot=run.num_fewshot,
            batch_size=tasks.batch_size,
            device=wanted.reader.device,
            use_cache=output.use_cache,
            cache_requests=cache in ("true", "refresh"),
            rewrite_requests_cache=cache == "refresh",
            delete_requests_cache=cache == "delete",
            limit=int(tasks.limit) if tasks.limit is not None and tasks.limit >= 1 else tasks.limit,
            samples=flags.chosen(tasks.samples),
            bootstrap_iters=BOOTSTRAPS,
            check_integrity=output.check_integrity,
            write_out=output.write_out,
            log_samples=True,
            system_instruction=tasks.system_instruction,
            apply_chat_template=run.chat,
            fewshot_as_multiturn=multiturn,
            gen_kwargs=flags.loose(tasks.gen_kwargs) or None,
            task_manager=index,
            predict_only=output.predict_only,
            random_seed=chosen[0],
            numpy_random_seed=chosen[1],
            torch_random_seed=chosen[2],
            fewshot_random_seed=chosen[3],
            confirm_run_unsafe_code=True,  # `code.check_allowed` asked
        )
    except ValueError as error:
        if "did not find any docs" in str(error):
            raise UserError("a task has fewer questions than there are processes; start fewer of them.") from None
        raise
    finally:
        for task in run.tasks:
            for one in getattr(task, "get_all_tasks", lambda task=task: [task])():
                one._instances = None  # thousands of prompts


def merged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of several runs as one."""
    whole = dict(found[0])
    for other in found[1:]:
        for key, value in other.items():
            if isinstance(value, dict) and key != "config":
                whole[key] = {**(whole.get(key) or {}), **value}
    return whole


# ---------------------------------------------------------------------------------------------------------------------
# What is said


def advise(model: Unmask, tasks: dict[str, Any], preset: Preset | None, chat: bool | str | None) -> None:
    """Remarks on models and tasks that do not suit each other."""
    name = str(model.wanted.model.model)
    instruct = identity.instruct(model.wanted)
    if preset:
        preset.check(model.loaded.family.name, instruct, name)
    if chat and not model.tokenizer.chat_template:
        raise UserError(
            f"--apply_chat_template: {name} has no chat template; leave it out, or put one into its folder."
        )
    likely = [task for task, one in tasks.items() if one.OUTPUT_TYPE != "generate_until"]
    written = [task for task, one in tasks.items() if one.OUTPUT_TYPE == "generate_until"]
    if likely and instruct and not model.causal and not preset:
        report.say(
            f"{name} is tuned on instructions, and {several(likely)} by likelihood: the published numbers of that kind "
            "are of base models (LLaDA, arXiv:2502.09992, table 1)."
        )
    if written and instruct and chat is None and not preset:
        report.say(f"{name} is tuned on instructions, and asked without its chat template; type --apply_chat_template.")


def several(names: Sequence[str]) -> str:
    return f"{names[0]} is scored" if len(names) == 1 else f"{len(names)} tasks are scored"


def described(wanted: Evaluation, model: Any) -> dict[str, Any]:
    """Which model it was."""
    if wanted.kind in arguments.OURS:
        return identity.described(model.wanted, model.loaded)
    name = str(flags.loose(wanted.tasks.model_args).get("pretrained", ""))
    found = fingerprint_of_weights(name) if Path(name).is_dir() else None
    return {"name": name, "objective": "autoregressive", "fingerprint": found}
