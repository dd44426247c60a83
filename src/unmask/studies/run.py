"""One run of a study, in a process of its own: `python -m unmask.studies.run`, which `study.py` starts.

In:  a line of JSON on standard input: the run's settings. The input stays open as long as the study lives.
Out: the run's folder, as `unmask pretrain` leaves it; then one small CSV and what it cost, in the study's results.

When the input ends the study is gone, however it went: the run then saves a checkpoint and stops, so that no run goes
on unseen beside the same run of a study that was started again.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from unmask import checkpoint, report, train
from unmask.config import UserError
from unmask.pretrain import parse_pretrain, prepare_pretrain
from unmask.studies.plan import Run, Study
from unmask.studies.results import COLUMNS

SPENT = "spent.json"
PATHS = ("model_name_or_path", "dataset_args", "output_dir")  # of this machine


def looks(metrics: list[dict[str, Any]], about: dict[str, Any], parameters: int, draws: int) -> list[dict[str, Any]]:
    """Lines of the CSV from those of metrics.jsonl.

    The training loss is the mean over the steps since the look before. flops: 6 · parameters · tokens, as
    arXiv:2507.15857 counts them, the embedding included, which is the head as well.
    """
    found, since = [], []
    for line in metrics:
        if "loss" in line:
            since.append(line["loss"])
        if "eval_loss" in line:
            found.append(
                about
                | {
                    "parameters": parameters,
                    "step": line["step"],
                    "epoch": round(line["epoch"], 4),
                    "tokens": line["tokens"],
                    "flops": f"{6 * parameters * line['tokens']:.6g}",
                    "train_loss": f"{sum(since) / len(since):.6f}" if since else "",
                    **_measured(line, "eval_"),
                    "draws": draws,
                    "final": 0,
                }
            )
            since = []
    return found


def _measured(line: dict[str, float], prefix: str = "") -> dict[str, str]:
    names = ("loss", "loss_se", "bits_per_byte", "bits_per_byte_se")
    return {name: f"{line[prefix + name]:.6f}" if prefix + name in line else "" for name in names}


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """A CSV that is whole or not there."""
    with report.written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(lines)


def go(told: dict[str, Any]) -> int:
    """Train, from where it was left; measure; write the CSV. Returns the exit code."""
    began, cpu = time.monotonic(), time.process_time()
    folder, results = Path(told["folder"]), Path(told["results"])
    asked = folder.with_name(f"{told['run']}.yaml")
    with report.written_aside(asked) as aside:
        aside.write_text(yaml.safe_dump(told["settings"], allow_unicode=True), encoding="utf-8")
    words = ["--config", str(asked)]
    checkpoint.tidy(folder)
    mark = folder / "digest"  # of the settings that what lies here was trained by
    same = mark.is_file() and mark.read_text(encoding="utf-8") == told["digest"]
    goes_on = same and checkpoint.newest_whole(checkpoint.numbered(folder)) is not None
    if not goes_on:
        (folder / SPENT).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(told["digest"], encoding="utf-8")
    words += ["--resume_from_checkpoint", "auto"] if goes_on else ["--overwrite_output_dir", "true"]
    run = prepare_pretrain(parse_pretrain(words), words)
    if code := train.go(run):
        _spent(folder, time.monotonic() - began, time.process_time() - cpu)
        return code
    trainer = run.trainer
    exact = trainer.objective.bound == "exact"
    kind = {"objective": told["settings"]["objective"], "kind": trainer.objective.bound}
    about = {key: told[key] for key in ("run", "arm", "unique_tokens", "epochs", "seed")} | kind
    lines = looks(report.read_metrics(folder), about, run.manifest["parameters"], 1 if exact else told["draws"])
    last = lines[-1]
    if not exact:
        trainer.eval_draws = told["final_draws"]
        last = last | _measured(trainer.measured(trainer.eval_dataset)) | {"draws": told["final_draws"]}
    seconds, used = _spent(folder, time.monotonic() - began, time.process_time() - cpu)
    cost = {"digest": told["digest"], "seconds": round(seconds, 1), "cpu_seconds": round(used, 1)}
    cost |= {"threads": told["threads"], "machine": _machine(trainer.args.device)}
    settings = {key: value for key, value in told["settings"].items() if key not in PATHS}
    cost |= {"versions": report.versions(), "settings": settings}
    results.mkdir(parents=True, exist_ok=True)
    report.write_json(results / f"{told['run']}.json", cost)
    write(results / f"{told['run']}.csv", [*lines, last | {"final": 1}])  # last: it says that the run is done
    for path in checkpoint.numbered(folder):
        shutil.rmtree(path, ignore_errors=True)
    return 0


def _machine(device: torch.device) -> str:
    """The GPU's name, or the processor's where its system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")[1].split("\n")[0]
    except (OSError, IndexError):
        told = platform.processor() or platform.machine()
    return f"{told.replace(',', ' ')}; {os.cpu_count()} cores"


def _spent(folder: Path, seconds: float, cpu: float) -> tuple[float, float]:
    """(seconds, seconds of processor) of a run so far, those before it was stopped included; not those before it was
    killed, which nobody could write down."""
    path = folder / SPENT
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else [0.0, 0.0]
    now = before[0] + seconds, before[1] + cpu
    report.write_json(path, now)
    return now


def _watch() -> None:
    """SIGTERM for this process when its input ends: see above."""
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held when this process ends
        pass
    if os.name == "nt":  # where os.kill ends the process at once, and nothing would be saved
        signal.raise_signal(signal.SIGTERM)
    else:  # to the process and not to this thread, so that the main one leaves what it waits in
        os.kill(os.getpid(), signal.SIGTERM)


def told_of(study: Study, run: Run, home: Path, results: Path, model: Path, use_cpu: bool) -> dict[str, Any]:
    """The line that a run's process is told. use_cpu: also where something else than CUDA could be taken."""
    folder = home / "runs" / run.name
    settings = study.training_of(run, folder, model, home / "rows" / str(run.unique_tokens))
    settings |= {"use_cpu": True} if use_cpu else {}
    about = {k: v for k, v in dataclasses.asdict(run).items() if k in ("arm", "unique_tokens", "epochs", "seed")}
    more = {"draws": study.draws, "final_draws": study.final_draws, "threads": study.threads, "digest": run.digest}
    where = {"folder": str(folder), "results": str(results / "runs")}
    return {"run": run.name, **about, **more, **where, "settings": {k: v for k, v in settings.items() if v != {}}}


def main() -> int:
    told = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_watch, daemon=True).start()
    import filelock

    try:
        # of a study that was killed a run may still be saving its checkpoint
        with filelock.FileLock(f"{told['folder']}.lock", timeout=300):
            return go(told)
    except UserError as error:
        report.say(f"unmask: {error}")
        return error.code
    except filelock.Timeout:
        report.say(f"unmask: another process trains {told['run']} in {told['folder']}; end it, and try again.")
        return 2


if __name__ == "__main__":
    sys.exit(main())
