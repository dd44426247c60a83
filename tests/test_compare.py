"""`unmask compare`: its p values are the textbook's, its pairs are the same questions, and it says what differs."""

import itertools
import json
import math
import random
import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask import compare_runs
from unmask.compare import main
from unmask.compare_stats import DRAWS, figures, holm, mcnemar, shares, sign_flips
from unmask.config import UserError

numbers = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))
marks = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)

# ---------------------------------------------------------------------------------------------------------------------
# Tests and intervals


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_two_sided_binomial_test_on_the_discordant_pairs(gained, lost):
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_of_many_questions_is_a_number():
    assert mcnemar(6_300, 5_700) == pytest.approx(stats.binomtest(6_300, 12_000).pvalue, rel=1e-6)
    assert 0 <= mcnemar(11_000, 1_000) < 1e-300


@given(st.lists(numbers, min_size=1, max_size=10))
@settings(max_examples=50)
def test_few_pairs_are_flipped_in_every_way(differences):
    """Zeros may be flipped, too: that changes no share."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    assert sign_flips(differences) == pytest.approx(sum(s >= seen - 1e-9 for s in sums) / len(sums))


def test_drawn_flips_agree_with_scipys_permutation_test():
    draw = random.Random(1)
    some = [draw.gauss(0.3, 1) for _ in range(30)]
    wanted = stats.permutation_test(
        (some,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=40_000, rng=3
    ).pvalue
    assert abs(sign_flips(some) - wanted) < 4 * math.sqrt(wanted / DRAWS)
    assert sign_flips(some) == sign_flips(some)


def test_drawn_flips_never_give_a_p_of_zero():
    assert sign_flips([1.0] * 100) == 1 / (DRAWS + 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(values):
    """A test is rejected at a level where all with smaller p are, and p ≤ level / (tests not yet rejected)."""
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.3):
        rejected, left = set(), len(values)
        for i in sorted(range(len(values)), key=lambda i: values[i]):
            if values[i] * left > level:
                break
            rejected.add(i)
            left -= 1
        assert rejected == {i for i, p in enumerate(adjusted) if p <= level}


@given(st.lists(st.tuples(numbers, st.integers(1, 50)), min_size=2, max_size=20))
def test_shares_have_the_ratio_as_their_mean(pairs):
    values, weights = zip(*pairs, strict=True)
    found = shares(values, weights)
    assert statistics.fmean(found) == pytest.approx(sum(values) / sum(weights), abs=1e-9)
    assert shares(values, [1.0] * len(values)) == pytest.approx(list(values), abs=1e-9)


@given(marks)
def test_right_and_wrong_are_counted_and_tested(pairs):
    first, second = ([float(mark) for mark in column] for column in zip(*pairs, strict=True))
    known = figures(first, second)
    assert known["gained"] == pairs.count((False, True))
    assert known["lost"] == pairs.count((True, False))
    assert known["difference"] == pytest.approx(known["second"] - known["first"])
    assert (known["gained"] - known["lost"]) / len(pairs) == pytest.approx(known["difference"])
    low, high = known["first_interval"]
    wanted = stats.binomtest(int(sum(first)), len(first)).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@given(st.one_of(marks, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)), st.booleans())
@settings(max_examples=60)
def test_swapping_two_runs_negates_the_difference_and_keeps_p(pairs, weighted):
    first, second = ([float(value) for value in column] for column in zip(*pairs, strict=True))
    weights = [float(1 + i % 5) for i in range(len(pairs))] if weighted else None
    one, two = figures(first, second, weights), figures(second, first, weights)
    assert one["difference"] == pytest.approx(-two["difference"], abs=1e-9)
    assert one["p"] == two["p"]
    assert (one["gained"], one["lost"]) == (two["lost"], two["gained"])
    if one["difference_interval"]:
        low, high = two["difference_interval"]
        assert one["difference_interval"] == pytest.approx((-high, -low), abs=1e-9)


def test_of_a_loss_the_lower_is_the_better():
    known = figures([2.0, 2.0, 2.5], [1.0, 1.5, 3.0], higher=False)
    assert (known["gained"], known["lost"]) == (2, 1)
    assert known["test"] == "sign flips"


def test_one_question_has_no_interval_of_its_difference():
    assert figures([0.0], [1.0])["difference_interval"] is None
    assert figures([0.2], [0.7])["first_interval"] is None


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def sample(task, doc, right, **more):
    """A line as lm-eval writes it, for one of four choices."""
    scores = [[-1.0 if (i == doc % 4) == bool(right) else -2.0, False] for i in range(4)]
    return {
        **{"doc_id": doc, "doc": {"q": doc}, "target": doc % 4, "filter": "none", "metrics": ["acc"]},
        **{"arguments": [[f"question {doc} of {task}\nanswer:", f" {c}"] for c in "ABCD"], "resps": [scores]},
        **{"filtered_resps": scores, "doc_hash": f"{task}-{doc}", "prompt_hash": f"{doc}", "target_hash": f"{doc}"},
        **{"acc": float(right), **more},
    }


def run_of(folder, tasks, *, lines=None, name="results.json", tail="", **more):
    """A results folder. tasks: task → whether each question was answered rightly."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {task: {"alias": task, "acc,none": sum(some) / max(1, len(some))} for task, some in tasks.items()}
    known = {"results": results, "settings": {"objective": "masked"}, "versions": {"lm_eval": "0.4.13"}, **more}
    (folder / name).write_text(json.dumps(known), encoding="utf-8")
    for task, some in tasks.items():
        rows = (lines or {}).get(task) or [sample(task, i, right) for i, right in enumerate(some)]
        path = folder / f"samples_{task.replace('/', '_')}{tail}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def compared(tmp_path, *words):
    """What `unmask compare` writes of its table's lines: (task, metric, letter) → figures; and the whole file."""
    file = tmp_path / f"out{len(list(tmp_path.glob('out*')))}.json"
    assert main([*words, "--output", str(file)]) == 0
    told = json.loads(file.read_text(encoding="utf-8"))
    return {(line["task"], line["metric"], line["letter"]): line for line in told["lines"]}, told


def test_a_run_beside_itself_has_no_difference(tmp_path):
    one = run_of(tmp_path / "a", {"x": [1, 0, 1, 1], "y/z": [0, 0, 1]})
    lines, told = compared(tmp_path, one, one)
    assert {key[0] for key in lines} == {"x", "y/z", "all"}
    for line in lines.values():
        assert (line["difference"], line["p"], line["gained"], line["lost"]) == (0, 1, 0, 0)
    assert told["remarks"] == []


def test_questions_are_paired_by_number_whatever_their_order(tmp_path):
    one = run_of(tmp_path / "a", {"x": [1, 1, 0, 0]})
    turned = [sample("x", i, right) for i, right in reversed(list(enumerate([1, 0, 1, 1])))]
    two = run_of(tmp_path / "b", {"x": [1, 0, 1, 1]}, lines={"x": turned})
    lines, _ = compared(tmp_path, one, two)
    line = lines["x", "acc", "B"]
    assert (line["gained"], line["lost"], line["questions"]) == (2, 1, 4)
    assert line["p_holm"] is None
    assert len(lines) == 1  # nothing to pool


def test_another_question_under_the_same_number_is_refused(tmp_path):
    one = run_of(tmp_path / "a", {"x": [1, 0]})
    rows = [sample("x", 0, 1), sample("x", 1, 1, doc_hash="another")]
    two = run_of(tmp_path / "b", {"x": [1, 1]}, lines={"x": rows})
    with pytest.raises(UserError, match=r"question 1 of x is not the same in .*a and .*b"):
        main([one, two])


def test_questions_that_only_one_has_are_left_out_and_counted(tmp_path):
    one, two = run_of(tmp_path / "a", {"x": [1, 0, 1]}), run_of(tmp_path / "b", {"x": [1, 1, 0, 1, 1], "y": [1]})
    lines, told = compared(tmp_path, one, two)
    assert lines["x", "acc", "B"]["questions"] == 3
    assert "left out: 2 questions that only B has, of x." in told["remarks"]
    assert "left out: tasks that only B has: y." in told["remarks"]


def test_groups_and_all_tasks_are_pooled_question_by_question(tmp_path):
    tasks = {"m_a": [1, 0, 1], "m_b": [0] * 7, "z": [1, 1]}
    told = {"group_subtasks": {"m": ["m_all"], "m_all": ["m_a", "m_b"]}}
    one = run_of(tmp_path / "a", tasks, **told)
    two = run_of(tmp_path / "b", {"m_a": [1, 1, 1], "m_b": [1] * 7, "z": [1, 0]}, **told)
    lines, _ = compared(tmp_path, one, two)
    assert lines["m", "acc", "B"]["questions"] == 10
    assert lines["m", "acc", "B"]["difference"] == pytest.approx(0.8)  # not the mean of the tasks' 1/3 and 1
    assert lines["all", "acc", "B"]["questions"] == 12
    assert ("m_all", "acc", "B") not in lines  # the same questions as m
    assert [lines[t, "acc", "B"]["p_holm"] for t in ("m_a", "m_b", "z")] == holm([1.0, 2 * 0.5**7, 1.0])
    assert {key[0] for key in compared(tmp_path, one, two, "--tasks", "m")[0]} == {"m_a", "m_b", "m"}


def test_all_others_are_compared_with_the_first(tmp_path):
    folders = [run_of(tmp_path / name, {"x": some}) for name, some in (("a", [1, 0]), ("b", [0, 0]), ("c", [1, 1]))]
    lines, _ = compared(tmp_path, *folders)
    assert [lines["x", "acc", letter]["difference"] for letter in "BC"] == [-0.5, 0.5]


def test_log_likelihoods_are_compared_over_their_words(tmp_path):
    def lines_for(sums):
        more = [{"metrics": ["bits_per_byte", "word_perplexity"], "bits_per_byte": [s, 40 + i]} for i, s in sums]
        return {"w": [sample("w", i, 0, **m, word_perplexity=[s, 9]) for (i, s), m in zip(sums, more, strict=True)]}

    one = run_of(tmp_path / "a", {"w": [0, 0]}, lines=lines_for([(0, -30.0), (1, -50.0)]))
    two = run_of(tmp_path / "b", {"w": [0, 0]}, lines=lines_for([(0, -20.0), (1, -40.0)]))
    lines, _ = compared(tmp_path, one, two)
    line = lines["w", "bits_per_byte", "B"]
    assert line["first"] == pytest.approx(80 / 81 / math.log(2))
    assert (line["gained"], line["lost"]) == (2, 0)
    assert lines["w", "ln word_perplexity", "B"]["difference"] == pytest.approx(-20 / 18)


@pytest.mark.parametrize(
    ("first", "second", "remark"),
    [
        ({"n-shot": {"x": 0}}, {"n-shot": {"x": 5}}, r"A had 0 examples .* and B 5 \(--num_fewshot\): x\."),
        (
            {"settings": {"apply_chat_template": True}},
            {"settings": {"apply_chat_template": False}},
            r"A was asked through its chat template and B was not",
        ),
        (
            {},
            {"settings": {"objective": "autoregressive"}},
            r"of A are masked, those of B autoregressive, exact: a bound",
        ),
        (
            {"model": {"objective": "masked"}, "settings": {"likelihood": "exact_count"}},
            {"model": {"objective": "masked"}, "settings": {"likelihood": "exact"}},
            r"of A are masked, exact_count, those of B masked, exact: a bound",
        ),
        ({"settings": {"limit": 10}}, {"settings": {}}, r"A has --limit 10 and B none\."),
        ({}, {"versions": {"lm_eval": "0.4.9"}}, r"A was scored by unmask with lm-eval 0.4.13, B by .* 0.4.9"),
        ({"groups": {"g": {}}}, {}, r'A: no "group_subtasks" tells what belongs to g'),
        ({"results": {"x": {"acc,none": 0.9}}}, {}, r"A: acc of x is 0.9 in its results, .* mean of its samples 0.5"),
        ({"results": {"x": {}, "y": {}}}, {}, r"A: no samples of y; not compared"),
    ],
)
def test_what_makes_runs_differ_is_said(tmp_path, first, second, remark):
    one, two = run_of(tmp_path / "a", {"x": [1, 0]}, **first), run_of(tmp_path / "b", {"x": [1, 1]}, **second)
    _, told = compared(tmp_path, one, two)
    assert len(told["remarks"]) == 1
    assert re.search(remark, told["remarks"][0])


def test_other_prompts_are_counted(tmp_path, capsys):
    rows = [sample("x", 0, 1), sample("x", 1, 1, prompt_hash="other")]
    main([run_of(tmp_path / "a", {"x": [1, 0]}), run_of(tmp_path / "b", {"x": [1, 1]}, lines={"x": rows})])
    assert "the prompts differ in 1 of 2 questions" in capsys.readouterr().err


def test_lm_evals_own_folder_is_read_and_the_newest_is_taken(tmp_path):
    """Its files stand one folder deeper and carry a time; the samples are those of the same time."""
    ours = run_of(tmp_path / "a", {"x": [1, 1]})
    for day, some in (("01", [0, 0]), ("02", [1, 0])):
        tail = f"_2026-01-{day}T00-00-00.0"
        lines = {"x": [sample("x", i, right) for i, right in enumerate(some)]}
        for row in lines["x"]:  # as EvaluationTracker.save_results_samples rewrites them
            row["arguments"] = {f"gen_args_{i}": {"arg_0": a[0], "arg_1": a[1]} for i, a in enumerate(row["arguments"])}
            row["filtered_resps"] = [[str(score), str(greedy)] for score, greedy in row["filtered_resps"]]
            row["target"] = str(row["target"])
        run_of(tmp_path / "b" / "model", {"x": some}, lines=lines, name=f"results{tail}.json", tail=tail)
    lines, told = compared(tmp_path, ours, str(tmp_path / "b"), "--examples", "5")
    assert lines["x", "acc", "B"]["second"] == 0.5
    assert any("newest of 2 results" in remark for remark in told["remarks"])
    (shown,) = told["examples"]
    assert (shown["right"], shown["doc_id"], shown["target"]) == ("A", 1, "B")
    assert shown["answers"]["A"].startswith("B ")
    assert not shown["answers"]["B"].startswith("B ")


def test_several_models_in_one_folder_are_not_guessed_between(tmp_path):
    for name in ("one", "two"):
        run_of(tmp_path / "b" / name, {"x": [1]})
    with pytest.raises(UserError, match=r"several runs; name one: .*one, .*two"):
        compare_runs.read(str(tmp_path / "b"))


def test_examples_stand_in_the_page_and_the_terminal(tmp_path, capsys):
    one, two = run_of(tmp_path / "a", {"x": [1, 0, 1]}), run_of(tmp_path / "b", {"x": [0, 1, 1]})
    assert main([one, two, "--examples", "1", "--output", str(tmp_path / "new" / "it.md")]) == 0
    page, printed = (tmp_path / "new" / "it.md").read_text(encoding="utf-8"), capsys.readouterr().out
    for text in (page, printed):
        assert "A right, B wrong (acc, one of 1): x, question 0" in text
        assert "B right, A wrong (acc, one of 1): x, question 1" in text
        assert "| question 1 of x" in text
        assert "wanted: B" in text
    assert page.startswith("| task | metric | N |")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def bad_line(path):
    path.write_text('{"doc_id": 0', encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], r"1 folders to compare; type at least two"),
        (["a", "nowhere"], r"no folder 'nowhere'"),
        (["a", "empty"], r"empty holds no results.json and no results_….json"),
        (["a", "bare"], r"no samples beside .*run the eval with --log_samples"),
        (["a", "other"], r"no task that all have: a has x; other has y"),
        (["a", "b", "--tasks", "xx"], r"--tasks xx: no such task that all have. Did you mean 'x'"),
        (["a", "b", "--metric", "ac"], r"--metric ac: no such metric that both have. Did you mean 'acc'"),
        (["a", "texts"], r"no metric that all have"),
        (["a", "b", "--output", "x.txt"], r"ends in .json or .md"),
        (["a", "b", "--output", "there.md"], r"there.md is there already"),
        (["a", "b", "--examples", "-1"], r"--examples is -1"),
        (["a", "cut"], r"samples_x.jsonl, line 1: not a JSON object"),
        (["a", "twice"], r"line 2: question 0 stands there twice"),
        (["a", "b", "--nonsense"], r"unknown option --nonsense"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "cut"):
        run_of(tmp_path / name, {"x": [1, 0]})
    run_of(tmp_path / "other", {"y": [1, 0]})
    run_of(tmp_path / "texts", {"x": [1, 0]}, lines={"x": [sample("x", i, 1, acc="yes") for i in range(2)]})
    run_of(tmp_path / "twice", {"x": [1, 0]}, lines={"x": [sample("x", 0, 1)] * 2})
    bad_line(tmp_path / "cut" / "samples_x.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "results.json").write_text('{"results": {"x": {}}}', encoding="utf-8")
    (tmp_path / "there.md").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        main(words)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
