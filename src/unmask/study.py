"""The command `unmask study`: many runs laid out in one file, made one after another or side by side, and a report.

In:  a YAML file (`studies/plan.py`).
Out: --results_dir: runs/NAME.csv for each run that is done, results.csv with all of them, costs.csv, the report with
     its plots. --output_dir: text, tokenizer, rows and each run's folder.

What is done is not done again: a study that was stopped, or killed, goes on where it was, on this machine or another
that has its results.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from unmask import report
from unmask.config import UserError, option, parse
from unmask.studies import plan, text
from unmask.studies.plan import EXAMPLE, Run, Study

MADE = "made"  # the file that says that a model folder is whole
POLL = 0.5  # seconds between two looks at the processes


@dataclasses.dataclass
class StudyArguments:
    """Study"""

    study: str | None = option(None, "The study's YAML file.")
    output_dir: str | None = option(None, "Folder for text, tokenizer and runs. [output/studies/NAME]")
    results_dir: str | None = option(None, "Folder for CSV files and report; those that are there are gone on with.")
    jobs: int | None = option(None, "Runs side by side. As many as there are GPUs, or cores for their threads.")
    only: list[str] = option([], "Arms or runs to make now, by name; the report is of all that are done.")
    show: bool = option(False, "List the runs, and which of them are done; train nothing.")
    report_only: bool = option(False, "Make the report anew from what is done; train nothing.")


def main(argv: list[str]) -> int:
    """`unmask study FILE`"""
    about = "Train many models laid out in one file, and report what came of them. A study that was stopped goes on."
    arguments = parse(
        "unmask study", about, [StudyArguments], argv, positional=("study", "The study's YAML file.")
    ).groups[0]
    if not arguments.study:
        raise UserError(f"no study given; type {EXAMPLE}.")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}; it must be at least 1.")
    study = plan.read(arguments.study)
    home = Path(arguments.output_dir or f"output/studies/{study.name}")
    results = Path(arguments.results_dir or home / "results")
    runs = study.runs()
    wanted = _chosen(runs, arguments.only, study)
    done = {run.name for run in runs if _done(run, results)}
    if arguments.show:
        for run in runs:
            print(f"{'done' if run.name in done else '    '}  {run.name:<40}{report.amount(run.tokens):>8} tokens")
        left = sum(run.tokens for run in runs if run.name not in done)
        print(f"{len(done)} of {len(runs)} runs are done; {report.amount(left)} tokens are left.")
        return 0
    code = 0
    if not arguments.report_only:
        todo = [run for run in wanted if run.name not in done]
        code = _make(study, todo, home, results, arguments.jobs, shlex.join(["unmask", "study", *argv]))
    if code in (0, 2) and any(_done(run, results) for run in runs):  # 2: some failed, and the others are told of
        _report(study, runs, results, arguments)
    elif not code:
        raise UserError(f"no run of {study.name} is done in {results}; run the study without --report_only first.")
    return code


def _chosen(runs: list[Run], only: list[str], study: Study) -> list[Run]:
    known = {*study.arms, *(run.name for run in runs)}
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no such arm or run; `unmask study FILE --show` shows them.")
    return [run for run in runs if not only or {run.name, run.arm} & set(only)]


def _done(run: Run, results: Path) -> bool:
    """Whether a run's CSV is there; UserError when other settings made it."""
    about = results / "runs" / f"{run.name}.json"
    if not about.with_suffix(".csv").is_file() or not about.is_file():
        return False
    if json.loads(about.read_text(encoding="utf-8"))["digest"] != run.digest:
        raise UserError(
            f"{about} was made by other settings than the study's now; name another --results_dir, or delete "
            f"{run.name}.csv to make it anew."
        )
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Making runs


def _make(study: Study, todo: list[Run], home: Path, results: Path, jobs: int | None, command: str) -> int:
    """Make the runs; returns the exit code."""
    if not todo:
        return 0
    for folder in (home, results):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(home), _alone(results):
        known = text.prepare(study, home)
        text.check_same(known, results)
        models = {run.arm: _model(study, run, home, known["tokenizer"]) for run in todo}
        return _Making(study, todo, home, results, jobs, models).all(command)


def _alone(home: Path) -> Any:
    """A lock that ends with this process; UserError when another study works in the folder."""
    import filelock

    lock = filelock.FileLock(str(home / ".lock"), timeout=0)
    try:
        return lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another `unmask study` works in {home}; wait for it, or name another --output_dir.") from None


def _model(study: Study, run: Run, home: Path, tokenizer_is: str) -> Path:
    """The model folder of a run's arm, made if it is not there whole. tokenizer_is: its fingerprint."""
    from unmask import init

    values = study.model | run.how.model
    folder = home / "models" / report.digest([values, tokenizer_is])
    if not (folder / MADE).is_file():
        preset = str(values.get("preset", "llada-200k"))
        given = {key: value for key, value in values.items() if key != "preset"}
        tokenizer = str(study.tokenizer.get("from") or home / "tokenizer")
        arguments = init.InitArguments(
            source=preset, output_dir=str(folder), tokenizer=tokenizer, set=given, overwrite=True
        )
        init.make_folder(arguments)
        (folder / MADE).touch()
    return folder


@dataclasses.dataclass
class _Going:
    """A run under way, and the GPU it has."""

    run: Run
    process: subprocess.Popen[bytes]
    gpu: int | None

    def stop(self) -> None:
        """Let it save a checkpoint and end: it watches its input. (A signal would end it unsaved on Windows.)"""
        assert self.process.stdin is not None
        self.process.stdin.close()


class _Making:
    """Makes runs, some side by side."""

    def __init__(
        self,
        study: Study,
        todo: list[Run],
        home: Path,
        results: Path,
        jobs: int | None,
        models: dict[str, Path],
    ) -> None:
        self.study, self.todo, self.home, self.results, self.models = study, list(todo), home, results, models
        from unmask.tokens import cores

        self.gpus = _gpus()
        self.jobs = jobs or (self.gpus or max(1, cores() // study.threads))
        self.going: list[_Going] = []
        self.failed: list[str] = []
        self.finished = 0
        self.caught: int | None = None

    def all(self, command: str) -> int:
        total = sum(run.tokens for run in self.todo)
        if not total:
            return 0
        report.say(
            f"{len(self.todo)} runs, {report.amount(total)} tokens, {self.jobs} at a time; "
            f"each run's output is in {self.home / 'runs'}."
        )
        before = {n: signal.signal(n, self._catch) for n in (signal.SIGINT, signal.SIGTERM)}
        bar = report.Bar("tokens", total)
        try:
            while self.going or (self.todo and self.caught is None):
                while self.todo and len(self.going) < self.jobs and self.caught is None:
                    self._start(self.todo.pop(0))
                time.sleep(POLL)
                for going in [going for going in self.going if going.process.poll() is not None]:
                    self._ended(going, bar)
                names = ", ".join(going.run.name for going in self.going)
                if bar.shown:
                    bar.to(self.finished + sum(self._so_far(going.run) for going in self.going), names)
        finally:
            bar.close()
            for going in self.going:  # an error here: let them save and stop
                going.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.caught is not None:
            report.say(f"stopped; what was under way has saved a checkpoint. To go on:\n  {command}")
            return 128 + self.caught
        if self.failed:
            report.say(
                f"unmask: {len(self.failed)} runs failed: {', '.join(self.failed)}; their .log in "
                f"{self.home / 'runs'} says why. The others are done, and the same command tries these again."
            )
        return 2 if self.failed else 0

    def _catch(self, number: int, frame: Any) -> None:
        if self.caught is None:
            report.say("\nstopping; runs under way save a checkpoint.")
        self.caught = number
        for going in self.going:
            going.stop()

    def _start(self, run: Run) -> None:
        from unmask.studies.run import told_of

        folder = self.home / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        environment, gpu = dict(os.environ), None
        if self.gpus:
            gpu = min(range(self.gpus), key=[going.gpu for going in self.going].count)
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu)
        else:
            environment["OMP_NUM_THREADS"] = str(self.study.threads)
        with Path(f"{folder}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "unmask.studies.run"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C goes to the study alone, which stops its runs
            )
        assert process.stdin is not None
        told = told_of(self.study, run, self.home, self.results, self.models[run.arm], not self.gpus)
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()  # and left open: its end tells the run that the study is gone
        self.going.append(_Going(run, process, gpu))
        if self.caught is not None:  # while it was being started
            self.going[-1].stop()

    def _ended(self, going: _Going, bar: report.Bar) -> None:
        self.going.remove(going)
        name, code = going.run.name, going.process.returncode
        going.stop()
        self.finished += going.run.tokens
        if code == 0:
            bar.line(f"{name}: {_line(self.results / 'runs' / f'{name}.csv')}")
            gather(self.study.runs(), self.results)
        elif self.caught is None:
            self.failed.append(name)
            bar.line(f"{name}: failed with code {code}; see {self.home / 'runs' / name}.log")

    def _so_far(self, run: Run) -> int:
        path = self.home / "runs" / run.name / report.METRICS
        if not path.is_file():
            return 0
        with path.open("rb") as file:  # its end alone: it may have tens of thousands of lines
            file.seek(max(0, path.stat().st_size - 2000))
            found = re.findall(rb'"tokens": (\d+)', file.read())
        return int(found[-1]) if found else 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


# ---------------------------------------------------------------------------------------------------------------------
# Results


def _line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["loss"]))
    sign = "≤" if rows[-1]["kind"] == "bound" else "="
    return f"{sign} {rows[-1]['loss']} nats/token at the end, {best['loss']} best, at epoch {float(best['epoch']):.4g}"


def gather(runs: list[Run], results: Path) -> Path:
    """results.csv and costs.csv from the runs that are done, in the order of the plan; returns the first."""
    from unmask.studies.results import COLUMNS

    done = [run for run in runs if _done(run, results)]
    path = results / "results.csv"
    how: dict[str, Any] = {"encoding": "utf-8", "newline": ""}  # the same bytes on every system
    with report.written_aside(path) as aside, aside.open("w", **how) as file:
        file.write(",".join(COLUMNS) + "\n")
        for run in done:
            lines = (results / "runs" / f"{run.name}.csv").read_text(encoding="utf-8")
            file.write(lines.split("\n", 1)[1])
    with report.written_aside(results / "costs.csv") as aside, aside.open("w", **how) as file:
        file.write("run,seconds,cpu,threads,machine,versions\n")
        for run in done:
            cost = json.loads((results / "runs" / f"{run.name}.json").read_text(encoding="utf-8"))
            words = [cost[key] for key in ("seconds", "cpu_seconds", "threads", "machine")]
            file.write(",".join(map(str, [run.name, *words, f"torch {cost['versions']['torch']}"])) + "\n")
    return path


def _told(study: Study, results: Path) -> str:
    """The text of a study in a line."""
    name = study.text.dataset_args or study.text.file[0]
    if not (results / text.DATA).is_file():  # results that were copied without it
        return name
    known = json.loads((results / text.DATA).read_text(encoding="utf-8"))
    return (
        f"{name}, in pieces of {study.text.piece:,} characters of which each {study.text.held_out}th is held out: "
        f"{known['training_tokens']:,} tokens to train on, {known['validation_tokens']:,} to validate on"
    )


def _report(study: Study, runs: list[Run], results: Path, arguments: StudyArguments) -> None:
    from unmask.studies import report as study_report

    path = gather(runs, results)
    where = f" --results_dir {arguments.results_dir}" if arguments.results_dir else ""
    settings = dataclasses.asdict(study) | {"command": f"unmask study {arguments.study}{where}"}
    settings["text"] = _told(study, results)
    settings["planned"] = [run.name for run in runs]
    study_report.write(results, path, settings)
    report.say(f"report: {results / 'report.md'}", f"page: {results / 'report.html'}")
