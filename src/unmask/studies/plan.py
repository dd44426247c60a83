"""What a study is: a YAML file of arms × unique tokens × epochs × seeds, read and laid out as runs.

In:  the file.  Out: a `Study`; each `Run` of it with the settings of `unmask pretrain` that it means.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from unmask import report
from unmask.config import UserError, build, nearest, read_yaml

FILE_NAME = r"[\w.-]+"
CLAIMS = ("baseline", "tuned", "masked")
EXAMPLE = "`unmask study configs/study/data-constrained-pilot.yaml`"
# Keys of training that the study itself sets for each run.
OWN = {
    *("model_name_or_path", "dataset_args", "output_dir", "overwrite_output_dir", "resume_from_checkpoint"),
    *("objective", "objective_args", "num_train_epochs", "max_steps", "seed", "eval_steps", "eval_strategy"),
    *("eval_draws", "eval_on_start", "logging_steps", "save_strategy", "save_steps", "save_total_limit"),
}


@dataclasses.dataclass
class Text:
    """Where the text comes from, and what is held out."""

    file: list[str] = dataclasses.field(default_factory=list)
    """Places where the text file may lie; the first that is there is taken. `dataset_args` instead: a dataset spec."""
    dataset_args: str | None = None
    text_field: str = "text"
    url: str | None = None
    """Where it is fetched from, to the first place of `file`, when it is in none of them."""
    sha256: str | None = None
    """Of the file: another text would make other results."""
    piece: int = 10_000
    """Characters of a piece at least; a piece is whole paragraphs of the file, or whole documents, in their order."""
    held_out: int = 10
    """Each piece with a number divisible by so much is held out for validation; the rest are put in a random order."""
    insert_eos: bool = True


@dataclasses.dataclass
class Arm:
    """One way to train, beside others."""

    objective: str = "masked"
    objective_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the model's config that differ from the study's."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of `unmask pretrain` that differ from the study's."""
    about: str = ""


@dataclasses.dataclass
class Grid:
    """Arms × unique tokens × epochs × seeds. Grids run in the order in which they stand."""

    arms: list[str]
    unique_tokens: list[int]
    epochs: list[int]
    seeds: list[int] = dataclasses.field(default_factory=lambda: [1])


@dataclasses.dataclass
class Run:
    """One training.  name: what its files are called.  rows: of training."""

    name: str
    arm: str
    how: Arm
    unique_tokens: int
    epochs: int
    seed: int
    rows: int
    digest: str = ""

    @property
    def tokens(self) -> int:
        return self.unique_tokens * self.epochs


@dataclasses.dataclass
class Study:
    name: str
    title: str = ""
    question: str = ""
    text: Text = dataclasses.field(default_factory=Text)
    tokenizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of `unmask tokenizer`, such as vocab_size; or {from: FOLDER}."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`preset` (or a config's path), and keys of its config."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of `unmask pretrain` for all runs."""
    looks: int = 20
    """Validations in a run, besides the one before the first step; no more than there are epochs or steps."""
    draws: int = 2
    """Noise draws for each validation row, where there is noise; and at the end of a run `final_draws`."""
    final_draws: int = 32
    threads: int = 1
    """Threads of a run on a CPU. As many runs go side by side as there are cores for."""
    arms: dict[str, Arm] = dataclasses.field(default_factory=dict)
    grid: list[Grid] = dataclasses.field(default_factory=list)
    claims: dict[str, Any] = dataclasses.field(default_factory=dict)
    """baseline, tuned, masked: which arms the claims are about."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What readers of the report should know."""

    @property
    def length(self) -> int:
        return int(self.training.get("max_length", 128))

    def runs(self) -> list[Run]:
        """All runs, in the order of the grids; one that stands in two grids runs once."""
        found: dict[str, Run] = {}
        for grid in self.grid:
            for seed in grid.seeds:
                for unique in grid.unique_tokens:
                    for epochs in grid.epochs:
                        for arm in grid.arms:
                            run = self._run(arm, unique, epochs, seed)
                            found.setdefault(run.name, run)
        return list(found.values())

    def _run(self, arm: str, unique: int, epochs: int, seed: int) -> Run:
        how = self.arms[arm]
        run = Run(f"{arm}-u{unique}-e{epochs}-s{seed}", arm, how, unique, epochs, seed, unique // self.length)
        text = {k: v for k, v in dataclasses.asdict(self.text).items() if k not in ("file", "url")}
        same = (text, self.tokenizer, self.looks, self.draws, self.final_draws)
        mine = (how.objective, how.objective_args, self.model | how.model, self.training | how.training)
        run.digest = report.digest([same, mine, unique, epochs, seed])
        return run

    def steps(self, run: Run) -> int:
        """Optimiser steps of a run."""
        settings = self.training | run.how.training
        size = int(settings.get("per_device_train_batch_size", 2)) * int(settings.get("gradient_accumulation_steps", 1))
        return run.epochs * -(-run.rows // size)

    def training_of(self, run: Run, folder: Path, model: Path, rows: Path) -> dict[str, Any]:
        """The settings of `unmask pretrain` that a run means."""
        steps = self.steps(run)
        every = -(-steps // max(1, min(self.looks, run.epochs, steps)))
        own = {
            "model_name_or_path": model.as_posix(),
            "dataset_args": rows.as_posix(),
            "output_dir": folder.as_posix(),
            "objective": run.how.objective,
            "objective_args": run.how.objective_args,
            "num_train_epochs": run.epochs,
            "seed": run.seed,
            "eval_on_start": True,
            "eval_draws": self.draws,
            "eval_steps": every,
            # each step by itself: what lies between two looks is averaged afterwards, so that a run that was stopped
            # between them and went on gives the same numbers
            "logging_steps": 1,
            "save_steps": min(steps, 2 * every),
            "save_total_limit": 1,
        }
        usual = {"gradient_accumulation_steps": 1, "random_length_ratio": 0.0, "bf16": False}
        return usual | self.training | run.how.training | own


def read(path: str) -> Study:
    """The study of a YAML file; UserError for what is missing, unknown or contradictory in it."""
    given = read_yaml(path)
    fields = {f.name for f in dataclasses.fields(Study)}
    for key in given:
        if key not in fields:
            raise UserError(
                f"{path}: unknown key {key!r}; there are {', '.join(sorted(fields))}.{nearest(key, fields)}"
            )
    for key in ("name", "text", "arms", "grid"):
        if not given.get(key):
            raise UserError(f"{path}: no {key}; see configs/study for whole files.")
    if not re.fullmatch(FILE_NAME, str(given["name"])):
        raise UserError(f"{path}: name {given['name']!r}; use letters, digits, dots, - and _: it names a folder.")

    def part(kind: type, values: Any, where: str) -> Any:
        if not isinstance(values, dict):
            raise UserError(f"{path}: {where} is {values!r}; keys and values are wanted.")
        needed = [f.name for f in dataclasses.fields(kind) if _needed(f)]
        if missing := [name for name in needed if name not in values]:
            raise UserError(f"{path}: {where} has no {missing[0]}.")
        values = {k: [v] if isinstance(v, (str, int)) and _listed(kind, k) else v for k, v in values.items()}
        try:
            return build(kind, values)
        except UserError as error:
            raise UserError(f"{path}: {where}: {error}") from None

    if not isinstance(given["arms"], dict) or not isinstance(given["grid"], list):
        raise UserError(f"{path}: `arms` is a table of names and settings, `grid` a list; see configs/study.")
    kept = {"text": part(Text, given["text"], "text")}
    kept["arms"] = {str(name): part(Arm, arm or {}, f"arm {name}") for name, arm in given["arms"].items()}
    kept["grid"] = [part(Grid, grid, f"grid {i}") for i, grid in enumerate(given["grid"], 1)]
    study: Study = build(Study, {k: v for k, v in given.items() if k not in kept})
    study = dataclasses.replace(study, **kept)
    _check(study, path)
    return study


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _listed(kind: type, key: str) -> bool:
    return any(f.name == key and str(f.type).startswith("list") for f in dataclasses.fields(kind))


def _check(study: Study, path: str) -> None:
    def wrong(what: str) -> UserError:
        return UserError(f"{path}: {what}")

    if bool(study.text.file) == bool(study.text.dataset_args):
        raise wrong("text has `file` or `dataset_args`, one of them.")
    if study.text.piece < 1:
        raise wrong(f"text piece is {study.text.piece}; it must be at least 1.")
    if study.text.held_out < 2:
        raise wrong(f"text held_out is {study.text.held_out}; each so-manieth piece is held out: 2 or more.")
    for key in ("looks", "draws", "final_draws", "threads"):
        if getattr(study, key) < 1:
            raise wrong(f"{key} is {getattr(study, key)}; it must be at least 1.")
    for where, settings in [("training", study.training), *((f"arm {n}", a.training) for n, a in study.arms.items())]:
        for key in settings:
            if key in OWN:
                raise wrong(f"{where} sets {key}, which the study sets for each run.")
        for key in ("max_length", "per_device_train_batch_size", "gradient_accumulation_steps"):
            if key in settings and (not isinstance(settings[key], int) or settings[key] < 1):
                raise wrong(f"{where}: {key} is {settings[key]!r}; a whole number above 0 is wanted.")
    for name in study.arms:
        if not re.fullmatch(FILE_NAME, name):
            raise wrong(f"arm {name!r}; use letters, digits, dots, - and _: it names files.")
    for grid in study.grid:
        for key in ("arms", "unique_tokens", "epochs", "seeds"):
            if not getattr(grid, key):
                raise wrong(f"a grid has no {key}; name at least one.")
        for arm in grid.arms:
            if arm not in study.arms:
                raise wrong(f"no arm {arm!r}; there are {', '.join(study.arms)}.{nearest(arm, study.arms)}")
        for least, key in ((study.length, "unique_tokens"), (1, "epochs"), (0, "seeds")):
            if bad := [n for n in getattr(grid, key) if n < least]:
                raise wrong(f"{key} {bad[0]}; it must be at least {least}.")
    for name, arms in study.claims.items():
        if name not in CLAIMS:
            raise wrong(f"claims: no key {name!r}; there are {', '.join(CLAIMS)}.{nearest(name, CLAIMS)}")
        for arm in [arms] if isinstance(arms, str) else arms or []:
            if arm not in study.arms:
                raise wrong(f"claims {name}: no arm {arm!r}; there are {', '.join(study.arms)}.")
