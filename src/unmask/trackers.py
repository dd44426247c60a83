"""Trackers: where a run's curves go besides its own folder. None ever asks for a login.

In:  names (`--report_to`).  Out: the same names, checked, with the environment set so that they run here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from unmask import report
from unmask.config import UserError, nearest


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


def start(names: list[str], run_name: str | None, resumed: bool) -> None:
    """Begin a swanlab run; the other trackers begin by themselves.

    The callback of transformers 5.23 begins one if `swanlab.get_run()` is None, but that raises in swanlab 0.10.3 when
    there is none yet. Project, id and the like stay what the user's SWANLAB_… variables say.
    """
    if "swanlab" not in names or int(os.environ.get("RANK", "0")):
        return
    import swanlab

    if not swanlab.has_run():
        resume = os.environ.get("SWANLAB_RESUME") or ("allow" if resumed else None)
        swanlab.init(
            mode=os.environ.get("SWANLAB_MODE"),
            project=os.environ.get("SWANLAB_PROJECT"),
            name=run_name,
            id=os.environ.get("SWANLAB_RUN_ID"),
            resume=resume,
        )
