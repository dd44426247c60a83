"""Trackers: where a run's curves and samples go besides its own folder. None asks for a login, none can end a run.

In:  names (`--report_to`); then the Trainer's events, and samples.
Out: curves and texts in SwanLab, TensorBoard, Weights & Biases, trackio, …, each fed by the integration that
`transformers` has for it. `trackers.json` in the run's folder knows which run of a tracker it is, so that a resumed run
goes on in it. What the user's environment says of project, name or id is heeded before our settings, never changed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers

from unmask import report
from unmask.config import UserError, nearest

Sample = dict[str, Any]
"""A line of samples.jsonl: step, prompt, text, tokens, finish_reason."""


def set_up(names: list[str]) -> list[str]:
    """Trackers by name, checked: a missing one prints its install command, none ever asks for a login."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = [name for given in names for name in given.split(",") if name]
    if "all" in names:
        names = get_available_reporting_integrations()
    for name in names:
        if name == "none":
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = [*INTEGRATION_TO_CALLBACK, "none"]
            raise UserError(f"no tracker called {name!r}; there are {', '.join(sorted(known))}.{nearest(name, known)}")
        module = {"azure_ml": "azureml", "flyte": "flytekit"}.get(name, name)
        if importlib.util.find_spec(module) is None:
            package = {"azureml": "azureml-core"}.get(module, module.replace("_", "-"))
            raise UserError(f"--report_to {name}: {module} is not installed; type `pip install {package}`.")
    if "swanlab" in names and not swanlab_login() and "SWANLAB_MODE" not in os.environ:
        # swanlab 0.10 asks for a key at init unless told otherwise before; its local mode needs an extra, offline none.
        board = importlib.util.find_spec("swanboard") is not None
        os.environ["SWANLAB_MODE"] = "local" if board else "offline"
        report.say(f"swanlab: no key found, so it runs in {os.environ['SWANLAB_MODE']} mode, on this machine alone.")
    if "wandb" in names and not os.environ.get("WANDB_API_KEY") and "WANDB_MODE" not in os.environ:
        netrc = Path.home() / ".netrc"
        if not (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")):
            os.environ["WANDB_MODE"] = "offline"
            report.say("wandb: no key found, so it runs in offline mode, on this machine alone.")
    return names


def swanlab_login() -> bool:
    """Whether swanlab 0.10 finds a key by itself: in the environment, this folder's settings or the user's."""
    root = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab"
    saved = Path(".swanlab/.netrc").is_file() or Path(root, ".netrc").is_file()
    return saved or bool(os.environ.get("SWANLAB_API_KEY"))


def said(*names: str) -> str | None:
    """What the first of these environment variables that is set says."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


# ---------------------------------------------------------------------------------------------------------------------
# All trackers of a run


class Trackers(transformers.TrainerCallback):
    """Hands on what happens in a run. A tracker that fails is named in one line and left out from there on.

    Args:
        names: as `set_up` gives them. folder: the run's.
        run_name, project: what the user gave; without a name it is the folder's, without a project the tracker's usual.
        more: (what the Trainer logs, its state) → what is to be seen besides.
    """

    def __init__(
        self,
        names: list[str],
        folder: Path,
        run_name: str | None = None,
        project: str | None = None,
        more: Callable[[dict[str, Any], Any], dict[str, float]] | None = None,
    ) -> None:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        self.folder, self.project, self.more = folder, project, more
        self.name = run_name or folder.absolute().name
        self.members: dict[str, Any] = {}
        self.own: set[str] = set()  # those whose run was begun here, and is ended here
        self.begun = False
        self.last: tuple[Any, Any, Any, dict[str, Any]] | None = None  # what the end of training is told with
        for name in names if not int(os.environ.get("RANK", "0")) else []:
            with self.guarded(name):
                self.members[name] = INTEGRATION_TO_CALLBACK[name]()

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Inside, a tracker may fail, in whatever way: it is left out then, and the training goes on."""
        try:
            with contextlib.redirect_stdout(sys.stderr) if name == "trackio" else contextlib.nullcontext():
                yield  # trackio 0.43 prints what it does, and standard output is for results
        except (Exception, SystemExit) as error:
            self.members.pop(name, None)
            lines = str(error).strip().splitlines() or [""]
            report.remark(
                f"{name} failed and is left out from here on; training goes on ({type(error).__name__}: {lines[0]})."
            )

    def tell(self, event: str, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Hand an event on; before the first one of the training, begin."""
        if event not in ("on_init_end", "on_train_begin") and not self.begun:
            self.tell("on_train_begin", args, state, control, **known)  # a finished run that is only validated again
        if event == "on_train_begin":
            self.begun, self.last = True, (args, state, control, known)
        for name, member in list(self.members.items()):
            with self.guarded(name):
                if event == "on_train_begin" and name in BEGIN:
                    BEGIN[name](self, member, state)
                getattr(member, event)(args, state, control, **known)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **known: Any) -> None:
        """A line of training, with `more`; a line of validation, as it is."""
        logs = dict(logs or {})
        if "loss" in logs and self.more:
            logs |= self.more(logs, state)
        self.tell("on_log", args, state, control, logs=logs, **known)

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Nothing yet: the last validation comes after it, and `finish` after that."""
        self.last = (args, state, control, known)

    def samples(self, step: int, found: list[Sample]) -> None:
        """Show what a model wrote at a step, in each tracker that has a place for text."""
        for name, member in list(self.members.items()):
            if name in SHOW:
                with self.guarded(name):
                    SHOW[name](member, step, found)

    def finish(self) -> None:
        """End all runs that were begun here, so that another in this process begins its own."""
        if self.last:
            args, state, control, known = self.last
            self.tell("on_train_end", args, state, control, **known)
        for name in list(self.own & self.members.keys()):
            with self.guarded(name):
                importlib.import_module(name).finish()

    def known(self, name: str, value: str | None = None) -> str | None:
        """What is known of the tracker's run: as it was left in the run's folder, or `value` from now on."""
        path = self.folder / report.TRACKERS
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if value is not None:
            report.write_json(path, found | {name: value})
            return value
        return found.get(name)


def finish(trainer: transformers.Trainer) -> None:
    """End what the trackers among a Trainer's callbacks have begun."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Trackers):
            callback.finish()


def _handing_on(event: str) -> Callable[..., None]:
    def hand_on(self: Trackers, args: Any, state: Any, control: Any, **known: Any) -> None:
        self.tell(event, args, state, control, **known)

    return hand_on


for _event in vars(transformers.TrainerCallback):
    if _event.startswith("on_") and _event not in vars(Trackers):
        setattr(Trackers, _event, _handing_on(_event))


# ---------------------------------------------------------------------------------------------------------------------
# How each begins: with the user's names, in the run it had before


def _begin_swanlab(ours: Trackers, member: Any, state: Any) -> None:
    """Begin a swanlab run.

    The callback of transformers 5.23 begins one if `swanlab.get_run()` is None, but that raises in swanlab 0.10.3 when
    there is none yet. A run is continued online alone; elsewhere its id tells which runs belong together.
    """
    import swanlab

    if swanlab.has_run():
        return
    before = said("SWANLAB_RUN_ID") or ours.known("swanlab")
    how = {
        "mode": os.environ.get("SWANLAB_MODE"),
        "project": said("SWANLAB_PROJECT", "SWANLAB_PROJ_NAME", "SWANLAB_PROJECT_NAME") or ours.project,
        "name": said("SWANLAB_EXP_NAME", "SWANLAB_EXPERIMENT_NAME") or ours.name,
        "id": before,
        "resume": said("SWANLAB_RESUME") or ("allow" if before else None),
    }
    # swanlab 0.10.3 takes this variable, which transformers reads, for JSON with all settings of a project, and fails
    mine = os.environ.pop("SWANLAB_PROJECT", None)
    try:
        run = swanlab.init(**how)
    finally:
        if mine is not None:
            os.environ["SWANLAB_PROJECT"] = mine
    ours.own.add("swanlab")
    ours.known("swanlab", run.id)


def _begin_wandb(ours: Trackers, member: Any, state: Any) -> None:
    """Begin a run of Weights & Biases, which only online can be the one from before: offline its id is the same."""
    import wandb

    if wandb.run is not None:
        return
    before = said("WANDB_RUN_ID") or ours.known("wandb")
    again: dict[str, Any] = (
        {"resume": "allow"} if before and not said("WANDB_RESUME") and said("WANDB_MODE") != "offline" else {}
    )
    run = wandb.init(
        project=said("WANDB_PROJECT") or ours.project or "huggingface",  # as transformers calls it
        name=said("WANDB_NAME") or ours.name,
        id=before,
        **again,
    )
    ours.own.add("wandb")
    ours.known("wandb", run.id)


class _Trackio:
    """trackio as its callback sees it: lines stand at the optimiser's step, and a new run is not an old one's rest.

    The callback of transformers 5.23 counts calls, two at each validation, and goes on with any run of that name.
    """

    def __init__(self, real: Any, ours: Trackers) -> None:
        self._real, self._ours = real, ours

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def init(self, **how: Any) -> Any:
        before = self._ours.known("trackio")
        names = {"name": before or self._ours.name, "project": self._ours.project or how["project"]}
        run = self._real.init(**how | names | {"resume": "allow" if before else "never"})
        self._ours.known("trackio", run.name)
        return run

    def log(self, metrics: dict[str, Any]) -> None:
        self._real.log(metrics, step=metrics.get("train/global_step"))


def _begin_trackio(ours: Trackers, member: Any, state: Any) -> None:
    member._trackio = _Trackio(member._trackio, ours)


def _begin_tensorboard(ours: Trackers, member: Any, state: Any) -> None:
    """One folder for a run and its resumptions; what was written after the step it goes on from is forgotten."""
    if member.logging_dir is None:  # TENSORBOARD_LOGGING_DIR is not set
        member.logging_dir = str(ours.folder / report.TENSORBOARD)
    # in a new run, too: TensorBoard 2.21 takes the first such mark for the run's beginning and heeds those after it
    member.tb_writer = member._SummaryWriter(log_dir=member.logging_dir, purge_step=state.global_step + 1)


BEGIN: dict[str, Callable[[Trackers, Any, Any], None]] = {
    "swanlab": _begin_swanlab,
    "wandb": _begin_wandb,
    "trackio": _begin_trackio,
    "tensorboard": _begin_tensorboard,
}


# ---------------------------------------------------------------------------------------------------------------------
# How each shows a text


MARKS = "&<>\"'\\`*_{}[]()#+-.!|~:"


def _plain_markdown(text: str) -> str:
    """Text as Markdown that shows it as it is: TensorBoard renders what it is given."""
    return text.translate({ord(mark): f"&#{ord(mark)};" for mark in MARKS}).replace("\n", "<br>")


def _show_tensorboard(member: Any, step: int, found: list[Sample]) -> None:
    for number, one in enumerate(found, 1):
        prompt, text = (_plain_markdown(one[key]) for key in ("prompt", "text"))
        member.tb_writer.add_text(f"samples/{number}", f"**{prompt}**<br>{text}" if prompt else text, step)
    member.tb_writer.flush()


def _show_swanlab(member: Any, step: int, found: list[Sample]) -> None:
    import swanlab

    for number, one in enumerate(found, 1):
        # swanboard 0.1.10b2 draws nothing, and says nothing, where a text has no caption
        shown = swanlab.Text(one["text"] or NOTHING, caption=one["prompt"] or NOTHING)
        swanlab.log({f"samples/{number}": shown}, step=step)


NOTHING = "(nothing)"


def _rows(found: list[Sample]) -> dict[str, Any]:
    columns = ["step", "prompt", "text"]
    return {"columns": columns, "data": [[one[name] for name in columns] for one in found]}


def _show_wandb(member: Any, step: int, found: list[Sample]) -> None:
    import wandb

    wandb.log({"samples": wandb.Table(**_rows(found)), "train/global_step": step})


def _show_trackio(member: Any, step: int, found: list[Sample]) -> None:
    import trackio

    trackio.log({"samples": trackio.Table(**_rows(found))}, step=step)


SHOW: dict[str, Callable[[Any, int, list[Sample]], None]] = {
    "tensorboard": _show_tensorboard,
    "swanlab": _show_swanlab,
    "wandb": _show_wandb,
    "trackio": _show_trackio,
}
