"""A study's report has its figures, is whole in two forms, and is made again to the same bytes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import study_made

from unmask.studies import cross as study_cross
from unmask.studies import fit as study_fit
from unmask.studies import report as study_report
from unmask.studies.results import read

SETTINGS: dict[str, Any] = {
    "name": "made-up",
    "title": "A made-up study",
    "claims": {"baseline": "ar", "masked": "masked", "tuned": ["ar-dropout"]},
    "notes": ["Nothing was trained for this."],
    "text": "a made-up text",
}


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, cross = study_fit.fit_repeats, study_cross.crossing
    monkeypatch.setattr(study_report, "fit_repeats", lambda *known: fit(*known, draws=5))
    monkeypatch.setattr(study_report, "crossing", lambda *known: cross(*known, draws=40))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def made(*arms: study_made.Arm, name: str = "report", uniques: Any = (100_000, 300_000), **settings: Any) -> Path:
        results = study_made.write(tmp_path / "results.csv", arms or study_made.STUDY, uniques)
        study_report.write(tmp_path / name, results, {**SETTINGS, **settings})
        return tmp_path / name

    return made


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Path]) -> Callable[..., str]:
    """report.md of a report without its pictures, which take most of the time."""
    monkeypatch.setattr(study_report, "draw", lambda folder, study: set())
    return lambda *arms, **settings: (make(*arms, **settings) / "report.md").read_text(encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_the_report_is_whole(make: Callable[..., Path]) -> None:
    folder = make()
    plots = {f"plots/{name}.png" for name in ("arms", "compute", "critical", "epochs", "repeats")}
    assert set(files(folder)) == {"report.md", "report.html", *plots}
    text, page = ((folder / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    assert set(re.findall(r"\]\((plots/[^)]+)\)", text)) == plots
    assert page.count("data:image/png;base64,") == len(plots)
    assert "<script" not in page
    assert text.startswith("# A made-up study\n")
    for part in (text, page):
        assert all(name in part for name in ("T1", "T2", "T3", "T4", "T5"))
        assert "Nothing was trained for this." in part
        assert "unmask study configs/study/made-up.yaml" in part


def test_the_figures_are_the_results(words: Callable[..., str], tmp_path: Path) -> None:
    text = words()
    results = read(tmp_path / "results.csv")
    for unique in results.uniques:
        for arm in results.arms:
            cell = results.best(arm, unique)
            assert cell is not None
            sign = "≤ " if arm == "masked" else ""
            assert f"| {arm} | {cell.kind} | {sign}{cell.best.value:.3f} ± {cell.best.half:.3f} |" in text


def test_a_bound_is_called_one_wherever_it_stands_beside_an_exact_loss(words: Callable[..., str]) -> None:
    """T3 and T4 at two amounts of text."""
    lines = [line for line in words().splitlines() if re.match(r"\| T\d .* against ", line) and " ± " in line]
    assert len(lines) == 4
    assert all("bound)" in line and "exact)" in line and "≤" in line for line in lines)


def test_it_is_made_again_to_the_same_bytes_and_what_no_longer_holds_is_gone(make: Callable[..., Path]) -> None:
    few = study_made.Arm("ar", (4, 20), (1, 2)), study_made.Arm("masked", (20, 80), (1, 2), "masked", 150.0, 2.6)
    one, two = (make(*few, name=name, uniques=(100_000,)) for name in ("one", "two"))
    assert files(one) == files(two)
    assert "plots/critical.png" in files(two)
    make(few[0], name="two", uniques=(100_000,))
    assert "plots/critical.png" not in files(two)
    assert "critical.png" not in (two / "report.md").read_text(encoding="utf-8")


def test_settings_may_be_absent(words: Callable[..., str], tmp_path: Path) -> None:
    words()
    study_report.write(tmp_path / "bare", tmp_path / "results.csv", {})
    text = (tmp_path / "bare" / "report.md").read_text(encoding="utf-8")
    assert "Beats Autoregressive" in text
    assert "T5" in text


def test_what_is_not_known_is_said(words: Callable[..., str]) -> None:
    text = words(study_made.Arm("ar", (10,), (1,)))
    assert "**undecided**" in text
    assert "too few points" in text
    assert "No crossing was sought" in text
    assert "nan" not in text


def test_no_crossing_is_told_with_gap_slope_and_guess(words: Callable[..., str]) -> None:
    masked = study_made.Arm("masked", (25, 50, 100), (1, 2), "masked", 150.0, 3.2, overfit=0.0, delay=2.0)
    text = words(study_made.AR, masked)
    assert text.count("none up to 100 |") == 4  # two amounts of text, two bars; epochs
    assert "No law of the crossing's compute" in text


def test_missing_runs_are_named(words: Callable[..., str]) -> None:
    assert "Missing: masked-u100000-e800-s1." in words(planned=["masked-u100000-e800-s1"])


def test_costs_are_summed_by_machine(words: Callable[..., str], tmp_path: Path) -> None:
    lines = [
        "run,seconds,cpu,threads,machine,versions",
        "a,3600,7200,2,one,torch 2",
        "b,1800,3600,2,one,torch 2",
    ]
    lines += ["b,900,1700,1,two,torch 2"]
    (tmp_path / "costs.csv").write_text("\n".join(lines) + "\n")
    text = words()
    assert "| one | 2 | torch 2 | 2 | 1.50 | 3.00 |" in text
    assert "| two | 1 | torch 2 | 1 | 0.25 | 0.47 |" in text
    assert "In all 1.75 hours" in text


def test_reading_a_study_needs_no_torch() -> None:
    code = "import sys, unmask.studies.report as r; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_arms_are_compared_after_the_same_budget_and_with_their_kind(words: Callable[..., str]) -> None:
    """The arm with the lowest loss of those that were trained as long stands first; a bound is beside bounds alone."""
    text = words()
    lines = [line for line in text.splitlines() if line.startswith("| ") and ", ar" in line and "exact" in line]
    assert lines
    for line in lines:
        told = line.rsplit("| ", 1)[1].removesuffix(" |")
        losses = [float(part.split()[1]) for part in told.split(", ")]
        assert losses == sorted(losses)
        assert "masked" not in line
