"""Grades follow from the figures; runs that are missing make them undecided and are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import study_made

from unmask.studies.claims import NO, UNDECIDED, YES, Claim, Roles, grade, missing, roles_of
from unmask.studies.cross import EQUAL, crossing, fit_critical
from unmask.studies.results import Results, read

AR, DROPOUT, MASKED = study_made.STUDY
BOTH = (100_000, 300_000)


def claims(
    tmp_path: Path,
    *arms: study_made.Arm,
    uniques: tuple[int, ...] = (100_000,),
    roles: Roles | None = None,
    noise: float = 0.004,
    **settings: Any,
) -> dict[str, Claim]:
    """The claims by name, of a study of these arms."""
    results = read(study_made.write(tmp_path / "results.csv", arms or study_made.STUDY, uniques, noise))
    roles = roles or roles_of(results, settings)
    found = [crossing(results, unique, roles.masked, [roles.baseline], EQUAL, 100) for unique in results.uniques]
    crossings = [one for one in found if one]
    return {one.name: one for one in grade(results, roles, crossings, fit_critical(crossings))}


def grades(found: dict[str, Claim]) -> dict[str, str]:
    return {name: one.grade for name, one in found.items()}


def test_a_study_as_the_papers_grades_yes(tmp_path: Path) -> None:
    found = claims(tmp_path, uniques=BOTH)
    assert grades(found) == dict.fromkeys(("T1", "T2", "T3", "T4", "T5"), YES)
    assert "10 epochs" in found["T1"].parts[0].reason
    assert "C_crit" in found["T5"].reason


def test_the_other_way_round_it_grades_no(tmp_path: Path) -> None:
    """An AR arm that never over-fits; a masked arm that does, and whose bound is far above."""
    ar = replace(AR, overfit=0.0, repeats=100.0)
    masked = replace(MASKED, overfit=0.3, turn=30.0, floor=4.5)
    dropout = replace(DROPOUT, overfit=0.0, repeats=100.0)
    found = claims(tmp_path, ar, dropout, masked)
    assert [found[name].grade for name in ("T1", "T3", "T4")] == [NO, NO, NO]
    assert "no rise" in found["T1"].reason
    assert "slack" in found["T3"].reason  # a bound above an exact loss is no proof that the loss is
    assert found["T5"].grade == UNDECIDED


def test_an_exact_loss_above_has_no_slack(tmp_path: Path) -> None:
    other = study_made.Arm("permuted", (50, 100), (1, 2), "permuted", 100.0, 4.5, overfit=0.0)
    found = claims(tmp_path, AR, other, roles=Roles("ar", "permuted"))
    assert found["T3"].grade == NO
    assert "slack" not in found["T3"].reason


def test_a_late_minimum_is_not_the_papers(tmp_path: Path) -> None:
    late = replace(AR, epochs=(50, 100, 200), turn=150.0, repeats=500.0, overfit=2.0)
    found = claims(tmp_path, late, MASKED)
    assert found["T1"].grade == NO


def test_a_short_search_decides_nothing_about_a_rise(tmp_path: Path) -> None:
    found = claims(tmp_path, replace(AR, epochs=(4, 10), overfit=0.0), MASKED)
    assert found["T1"].grade == UNDECIDED
    assert "not trained beyond" in found["T1"].reason


def test_a_masked_arm_that_turned_before_ten_times_is_a_no(tmp_path: Path) -> None:
    masked = replace(MASKED, epochs=(10, 20, 50), overfit=0.5, turn=20.0, repeats=20.0)
    found = claims(tmp_path, AR, masked)
    assert found["T2"].grade == NO
    assert "risen" in found["T2"].reason


def test_a_masked_arm_that_was_not_trained_so_long_is_undecided(tmp_path: Path) -> None:
    found = claims(tmp_path, AR, replace(MASKED, epochs=(10, 25, 50)))
    assert found["T2"].grade == UNDECIDED
    assert "50 epochs" in found["T2"].reason


def test_a_masked_arm_that_rises_after_ten_times_is_a_no(tmp_path: Path) -> None:
    masked = replace(MASKED, epochs=(50, 90, 400), overfit=0.5, turn=60.0, repeats=40.0)
    assert claims(tmp_path, replace(AR, epochs=(4, 10, 100)), masked)["T2"].grade == NO


def test_a_tie_is_undecided(tmp_path: Path) -> None:
    twin = study_made.Arm("masked", (10, 20, 50, 100), (1, 2, 3), "masked")
    found = claims(tmp_path, AR, twin, noise=0.05)
    assert found["T3"].grade == UNDECIDED
    assert "holds 0" in found["T3"].reason


def test_tuned_ar_may_win_where_ar_loses(tmp_path: Path) -> None:
    strong = replace(DROPOUT, floor=2.3)
    found = claims(tmp_path, AR, strong, MASKED)
    assert (found["T3"].grade, found["T4"].grade) == (YES, NO)
    assert "ar-dropout" in found["T4"].reason


def test_one_amount_of_text_says_nothing_of_growth(tmp_path: Path) -> None:
    found = claims(tmp_path)
    assert found["T5"].grade == UNDECIDED
    assert "two amounts" in found["T5"].reason


def test_a_crossing_that_comes_earlier_with_more_text_is_a_no(tmp_path: Path) -> None:
    found = claims(tmp_path, AR, replace(MASKED, later=-0.1), uniques=BOTH)
    assert found["T5"].grade == NO
    assert "epochs" in found["T5"].reason


def test_no_crossing_beyond_the_others_is_growth_without_an_exponent(tmp_path: Path) -> None:
    found = claims(tmp_path, AR, replace(MASKED, later=1.1), uniques=BOTH)
    assert "none up to 400 epochs" in found["T5"].reason
    assert found["T5"].grade == YES
    assert "no exponent" in found["T5"].reason


def test_amounts_of_text_that_disagree_are_undecided(tmp_path: Path) -> None:
    found = claims(tmp_path, AR, replace(MASKED, later=1.1), uniques=BOTH)
    assert found["T3"].grade == UNDECIDED
    assert [part.grade for part in found["T3"].parts] == [YES, NO]
    assert "yes at U = 100k, no at U = 300k" in found["T3"].reason


# ---------------------------------------------------------------------------------------------------------------------
# Runs that are missing

LONGER = ("masked-u100000-e800-s1", "ar-u100000-e8-s1")


def planned(*more: str, uniques: tuple[int, ...] = (100_000,)) -> list[str]:
    arms = study_made.STUDY
    return [f"{a.name}-u{u}-e{e}-s{s}" for a in arms for u in uniques for e in a.epochs for s in a.seeds] + list(more)


def test_a_run_that_could_overturn_a_grade_makes_it_undecided(tmp_path: Path) -> None:
    """A better AR budget could beat the masked arm; a longer masked run only be further below."""
    found = claims(tmp_path, planned=planned(*LONGER))
    assert found["T3"].grade == UNDECIDED
    assert "ar-u100000-e8-s1" in found["T3"].reason
    assert "masked-u100000-e800" not in found["T3"].reason
    assert claims(tmp_path, planned=planned(LONGER[0]))["T3"].grade == YES
    above = (AR, DROPOUT, replace(MASKED, floor=4.5))
    assert claims(tmp_path, *above, planned=planned(LONGER[1]))["T3"].grade == NO
    assert claims(tmp_path, *above, planned=planned(LONGER[0]))["T3"].grade == UNDECIDED


def test_a_missing_seed_overturns_nothing(tmp_path: Path) -> None:
    assert grades(claims(tmp_path, planned=planned("ar-u100000-e10-s9")))["T3"] == YES


def test_a_tuned_arm_that_was_not_run_leaves_t4_undecided(tmp_path: Path) -> None:
    known = {"baseline": "ar", "masked": "masked", "tuned": ["ar-dropout", "ar-wd"]}
    found = claims(tmp_path, claims=known)
    assert (found["T3"].grade, found["T4"].grade) == (YES, UNDECIDED)
    assert "every run of ar-wd" in found["T4"].reason


def test_nothing_but_ar_leaves_the_rest_undecided(tmp_path: Path) -> None:
    found = claims(tmp_path, AR)
    assert found["T1"].grade == YES
    assert {found[name].grade for name in ("T2", "T3", "T4", "T5")} == {UNDECIDED}


def test_an_amount_of_text_that_was_only_planned_is_undecided(tmp_path: Path) -> None:
    found = claims(tmp_path, planned=planned(uniques=BOTH))
    assert [part.grade for part in found["T1"].parts] == [YES, UNDECIDED]
    assert "ar-u300000-e4-s1" in found["T1"].parts[1].reason


def test_what_was_never_meant_to_run_is_not_asked_for(tmp_path: Path) -> None:
    """Tuned arms at one amount of text only: T4 is about that one."""
    path = study_made.write(tmp_path / "a.csv", [AR, MASKED], BOTH)
    other = study_made.write(tmp_path / "b.csv", [DROPOUT], (100_000,))
    path.write_text(path.read_text() + other.read_text().partition("\n")[2])
    results = read(path)
    roles = roles_of(results, {"planned": [run.name for run in results.runs]})
    found = {one.name: one for one in grade(results, roles, [], fit_critical([]))}
    assert [part.unique for part in found["T4"].parts] == [100_000]
    assert found["T4"].grade == YES
    without = {one.name: one for one in grade(results, replace(roles, planned=()), [], fit_critical([]))}
    assert [part.unique for part in without["T4"].parts] == list(BOTH)


def test_missing_runs_are_those_planned_and_not_there(tmp_path: Path) -> None:
    results = read(study_made.write(tmp_path / "results.csv", uniques=(100_000,)))
    roles = roles_of(results, {"planned": planned(*LONGER, "ar-u100000-e10-s9")})
    assert missing(results, roles, ["ar"], 100_000) == ["ar-u100000-e8-s1", "ar-u100000-e10-s9"]
    assert missing(results, roles, ["ar"], 100_000, budgets=True) == ["ar-u100000-e8-s1"]
    assert missing(results, roles, ["ar"], 300_000) == []


@pytest.mark.parametrize("known", [{}, {"claims": None}, {"claims": {}}, {"claims": {"tuned": None}}])
def test_roles_go_by_name_and_kind_where_nothing_is_said(tmp_path: Path, known: dict[str, Any]) -> None:
    results = read(study_made.write(tmp_path / "results.csv"))
    assert roles_of(results, known) == Roles("ar", "masked", ("ar-dropout",))
    other = [replace(AR, name="llama"), replace(MASKED, name="llada")]
    results = read(study_made.write(tmp_path / "other.csv", other))
    assert roles_of(results, known) == Roles("llama", "llada")


def test_what_is_said_of_roles_holds(tmp_path: Path) -> None:
    results: Results = read(study_made.write(tmp_path / "results.csv"))
    known = {"baseline": "ar-dropout", "masked": "masked", "tuned": "ar"}
    assert roles_of(results, {"claims": known}) == Roles("ar-dropout", "masked", ("ar",))
    assert roles_of(results, {"claims": {"tuned": []}}).tuned == ()
