"""Each picture is drawn, of whole studies and of their beginnings, the same each time, and says exact or bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import study_made

from unmask.studies import plot as study_plot
from unmask.studies.claims import Roles
from unmask.studies.cross import EQUAL, crossing, fit_critical
from unmask.studies.fit import Repeats, fit_repeats
from unmask.studies.results import Results, read

AR, DROPOUT, MASKED = study_made.STUDY
ROLES = Roles("ar", "masked", ("ar-dropout",))
Draw = Callable[[Path, Results, Any], None]


def draw_all(folder: Path, results: Results) -> dict[str, Path]:
    """Those that these results allow."""
    found = [crossing(results, unique, "masked", ["ar"], EQUAL, 20) for unique in results.uniques]
    crossings = [one for one in found if one]
    fits = [fit_repeats(results, arm, 5) for arm in ("ar", "masked")]
    study_plot.draw_epochs(folder / "epochs.png", results, ROLES)
    study_plot.draw_compute(folder / "compute.png", results, ROLES, crossings)
    study_plot.draw_arms(folder / "arms.png", results, ROLES)
    study_plot.draw_repeats(folder / "repeats.png", results, fits)
    if crossings:
        study_plot.draw_critical(folder / "critical.png", crossings, fit_critical(crossings))
    return {path.stem: path for path in folder.glob("*.png")}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts of the figures that are drawn."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    seen: list[str] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: Any, **known: Any) -> None:
        save(self, *args, **known)
        seen.extend(one.get_text() for one in self.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def test_a_whole_study_is_drawn_and_named(tmp_path: Path, words: list[str]) -> None:
    results = read(study_made.write(tmp_path / "results.csv", noise=0.01))
    assert set(draw_all(tmp_path / "a", results)) == {"epochs", "compute", "arms", "repeats", "critical"}
    for word in ("ar (exact)", "masked (bound)", "ar-dropout (exact)", "100k unique tokens", "300k unique tokens"):
        assert word in words
    assert any("nats/token" in word for word in words)
    assert any("FLOPs" in word for word in words)
    assert any("paper" in word and "extrapolated" in word for word in words)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    results = read(study_made.write(tmp_path / "results.csv", uniques=(100_000,)))
    for name in ("a", "b"):
        study_plot.draw_arms(tmp_path / name / "arms.png", results, ROLES)
        study_plot.draw_epochs(tmp_path / name / "epochs.png", results, ROLES)
    for name in ("arms.png", "epochs.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert b"matplotlib" not in (tmp_path / "a" / name).read_bytes().lower()  # nor its version


@pytest.mark.parametrize(
    "arms",
    [
        [study_made.Arm("ar", (10,), (1,))],
        [study_made.Arm("ar", (10,), (1,)), study_made.Arm("masked", (20,), (1,), "masked")],
        [MASKED],
        [AR, study_made.Arm("masked", (25, 50), (1,), "masked", 100.0, 4.0, overfit=0.0)],
    ],
)
def test_the_beginning_of_a_study_is_drawn_too(tmp_path: Path, arms: list[study_made.Arm]) -> None:
    results = read(study_made.write(tmp_path / "results.csv", arms, (100_000,)))
    found = draw_all(tmp_path / "a", results)
    assert {"epochs", "compute", "arms", "repeats"} <= set(found)
    assert all(path.stat().st_size > 2000 for path in found.values())


def test_no_colour_stands_for_two_of_the_first_seven_arms(tmp_path: Path) -> None:
    arms = [AR, MASKED, *(study_made.Arm(f"ar-{i}", (10,), (1,)) for i in range(5))]
    results = read(study_made.write(tmp_path / "results.csv", arms, (100_000,)))
    assert len(set(study_plot.colours(results, ROLES).values())) == len({*results.arms, "ar-dropout"}) - 1


def test_a_fit_that_failed_says_so() -> None:
    assert study_plot.in_words(Repeats("ar", 3, why="too few points")) == "no fit"
