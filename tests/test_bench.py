"""`unmask bench decode`: what it counts is what happened, its intervals are the published ones, no file is half."""

import itertools
import json
import math
import re
import statistics
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import make_model
from toy import EOS, MASK, Toy, favouring

import unmask
from unmask import bench, bench_plot, measure
from unmask.config import UserError
from unmask.measure import BASELINE, Answer, Cell, Result
from unmask.template import Template

KNOWS = [1, 2, 3, 4, 5, 6, 7, EOS, EOS, EOS]  # the prompt's two tokens, then the answer
SURE = [0.0, 0.0, 5.0, 5.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0]  # of 12 tokens: 5 is a probability of 0.93, 1 of 0.20
THRESHOLD = Cell("threshold:threshold=0.9")
RULES = ["threshold:threshold=0.15", "entropy_bound:gamma=1", "margin", "reference:remasking=random"]


def rigged(cells, **how):
    toy = Toy(favouring(KNOWS, SURE))
    return toy, measure.run(toy, [[1, 2]], [8], cells, {"block_size": 4}, **how)


# ---------------------------------------------------------------------------------------------------------------------
# Counts


def test_counts_are_those_made_by_hand():
    """The first block takes three passes, two of them for the places of which the model is not sure; the second one."""
    toy, [reference, threshold] = rigged([THRESHOLD], repeats=2)
    assert reference.cell == BASELINE
    known = measure.figures(threshold, reference)
    assert known["forward_passes"] == 4
    assert known["tokens"] == 6  # 3 4 5 6 7 and the end of text
    assert known["tokens_per_forward"] == 6 / 4
    assert known["full_forwards"] == 4
    assert measure.figures(reference, reference)["tokens_per_forward"] == 6 / 8
    assert threshold.answers[0].ids == [3, 4, 5, 6, 7, EOS]
    # counted by the model: two repeats and a warm-up of each, and one of the baseline before all that
    assert toy.passes == 3 * 8 + 3 * 4 + 8


def test_speed_counts_tokens_up_to_the_end_of_text():
    answer = Answer([3, EOS], 2, 4, 40, 10)
    slow, fast = Result(BASELINE, [answer], [2.0, 8.0, 4.0]), Result(THRESHOLD, [answer], [1.0, 1.0, 4.0])
    known = measure.figures(fast, slow)
    assert known["tokens_per_second"] == 2.0
    assert known["speedup"] == 2.0  # of 2, 8 and 1: each repeat is compared with its own
    assert known["seconds"] == 1.0


def test_the_baseline_comes_first_and_once_and_agrees_with_itself():
    cells = measure.cells(["threshold", "reference", "threshold"], ["none"])
    assert cells == [BASELINE, Cell("threshold", "none")]
    _, results = rigged(cells, repeats=1)
    known = measure.figures(results[0], results[0])
    assert (known["same_answers"], known["same_tokens"], known["speedup"]) == (1.0, 1.0, 1.0)
    assert [result.cell for result in results] == cells


def test_agreement_is_counted_up_to_the_end_over_the_longer_answer():
    pairs = {(1, 2, EOS): (1, 2, EOS), (1, EOS): (1, 2, 3, EOS)}
    mine, theirs = ([Answer(list(ids), len(ids), 1, 1, 1) for ids in some] for some in zip(*pairs.items(), strict=True))
    known = measure.figures(Result(THRESHOLD, mine, [1.0]), Result(BASELINE, theirs, [1.0]))
    assert known["same_answers"] == 1 / 2
    assert known["same_tokens"] == (1 + 1 / 4) / 2


def test_an_answer_is_judged_by_what_stands_before_its_end():
    seen = []
    _, [result] = rigged([], judge=lambda number, ids: seen.append((number, ids)) or True, repeats=2)
    assert seen == [(0, [3, 4, 5, 6, 7])]
    assert result.answers[0].right is True


@given(
    st.lists(st.lists(st.integers(0, 8), max_size=5), min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from(RULES),
    st.integers(0, 3),
)
@settings(max_examples=8)
def test_batches_and_repeats_change_no_count(prompts, batch_size, rule, seed):
    options, new = {"block_size": 3, "seed": seed}, [4 + len(prompt) for prompt in prompts]
    alone, together = (
        measure.run(Toy(), prompts, new, [Cell(rule)], options, repeats=repeats, batch_size=size)
        for repeats, size in ((1, 1), (2, batch_size))
    )
    for one, other in zip(alone, together, strict=True):
        assert one.answers == other.answers
        assert other.changed == 0
        assert len(other.seconds) == 2
    assert [answer.passes for answer in alone[0].answers] == new  # one token a step
    assert all(answer.passes <= n and MASK not in answer.ids for answer, n in zip(alone[1].answers, new, strict=True))


def test_answers_that_a_repeat_changes_are_counted():
    count = itertools.count()

    def fickle(ids):
        return favouring([next(count) % 7] * len(ids))(ids)

    _, result = measure.run(Toy(fickle), [[1]], [2], [Cell("margin")], {}, repeats=2)
    assert result.changed == 1


# ---------------------------------------------------------------------------------------------------------------------
# Memory

HELD = 64 << 20


def test_peak_memory_is_what_was_taken_inside():
    with measure.Peak(torch.device("cpu")) as large:
        torch.ones(HELD // 4).sum()
    with measure.Peak(torch.device("cpu")) as small:
        torch.ones(16).sum()
    if large.bytes is None:
        pytest.skip("the system does not tell")
    assert HELD <= large.bytes + (2 << 20) <= 1.5 * HELD
    assert small.bytes < HELD / 4  # what was freed before is not counted again


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(right, count, low, high):
    assert measure.wilson(right, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_bounds_are_where_the_score_test_rejects(pair):
    right, count = pair
    for bound in measure.wilson(right, count):
        distance = abs(right / count - bound)
        assert distance == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / count), rel=1e-4, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_the_paired_difference_is_that_of_gained_and_lost_answers(marks):
    """Its variance by the discordant pairs, as for McNemar's test: (b + c - (b - c)² / n) / (n (n - 1))."""
    results = [
        Result(cell, [Answer([EOS], 1, 1, 1, 1, pair[i]) for pair in marks], [1.0])
        for i, cell in enumerate((THRESHOLD, BASELINE))
    ]
    known, n = measure.figures(*results), len(marks)
    b, c = known["gained"], known["lost"]
    assert known["difference"] == pytest.approx((b - c) / n)
    assert known["accuracy"] == sum(mine for mine, _ in marks) / n
    half = 1.959964 * math.sqrt((b + c - (b - c) ** 2 / n) / (n * (n - 1)))
    low, high = known["difference_interval"]
    assert (low, high) == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=1e-6)


def test_one_answer_has_no_paired_interval():
    assert measure.paired([1]) == (1, None)
    assert measure.paired([1, 0])[1] == pytest.approx([0.5 - 0.98, 0.5 + 0.98], abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be

PLUGIN = """
from dataclasses import dataclass
from unmask import decoding
from unmask.config import UserError

@dataclass
class Settings:
    "Rule: late"
    late: int = 0

class Rule(decoding.Planned):
    def enter(self, row):
        if not self.settings.late:
            raise UserError("this rule is never there.")

    def score(self, row, seen):
        if row.step + 1 == self.settings.late and row.ids[0] == 5:
            raise UserError("this rule has gone.")
        return seen.confidence
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "late.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.parametrize(("late", "reason"), [(0, "this rule is never there."), (2, "this rule has gone.")])
def test_a_cell_that_cannot_be_is_refused_and_the_others_go_on(plugin, late, reason, capsys):
    cells = measure.cells([f"{plugin}:late={late}", "threshold"], ["none"])
    results = measure.run(Toy(), [[1], [5]], [4, 4], cells, {}, repeats=1)
    figures = [measure.figures(result, results[0]) for result in results]
    assert figures[1] == {"refused": reason}
    assert [len(figures[i]) for i in (0, 2)] == [12, 12]
    bench.show(bench.table(results, figures), bench.refusals(results))
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].endswith("refused")
    assert printed[-1] == f"refused: {plugin}:late={late} + none: {reason}"
    assert measure.record(results[1], figures[1], results[0])["refused"] == reason


def test_what_the_baseline_refuses_is_an_error():
    with pytest.raises(UserError, match="holds 6"):
        measure.run(Toy(max_length=6), [[1, 2, 3]], [4], [THRESHOLD], {})


@pytest.mark.parametrize(
    ("rules", "caches", "said"),
    [
        (["refrence"], ["none"], "Did you mean 'reference'"),
        (["reference"], ["dul"], "Did you mean 'dual'"),
        (["threshold:treshold=0.9"], ["none"], "threshold:treshold=0.9: unknown setting"),
        (["threshold:threshold=2"], ["none"], "threshold:threshold=2: .*above 0 and at most 1"),
        (["reference"], ["prefix:refresh_every=0"], "at least 1"),
        ([":threshold=0.9"], ["none"], "names no rule"),
        (["threshold:"], ["none"], "names no rule"),
    ],
)
def test_names_and_settings_that_there_are_not_are_told(rules, caches, said):
    with pytest.raises(UserError, match=said):
        measure.cells(rules, caches)


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    """A model with random weights and a context of 128 tokens."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer, max_sequence_length=128)
    unmask.load(str(folder), fresh=True, seed=3).model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def said(capsys, folder):
    """Runs the command and gives the lines of its standard output."""

    def run(*words):
        capsys.readouterr()
        usual = ["decode", "--model", folder, "--max_new_tokens", "6", "--block_size", "3", "--repeats", "1"]
        assert bench.main([*usual, *map(str, words)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def tasks_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_in_a_pipe_the_table_is_plain_and_its_columns_are_aligned(said):
    head, *rows, legend, notes = said("-p", "Once", "-p", "upon", "--rules", "margin", "threshold:threshold=0.5")
    assert head.split()[:5] == ["rule", "cache", "passes", "tokens/pass", "full"]
    assert "accuracy" not in head
    assert [row.split()[:2] for row in rows] == [
        [r, "none"] for r in ("reference", "margin", "threshold:threshold=0.5")
    ]
    end = head.index("passes") + len("passes")
    assert [float(row[:end].split()[2]) for row in rows[:2]] == [6.0, 6.0]
    assert legend == bench.LEGEND
    assert notes.startswith("2 answers, as plain text, 1 at once; float32 on ")


def test_on_a_terminal_the_table_has_the_same_words(said, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in said("-p", "Once", "--rules", "reference")]
    head, row, *_ = plain
    assert head.split()[:4] == ["rule", "cache", "passes", "tokens/pass"]
    assert row.split()[:3] == ["reference", "none", "6.0"]


def answers_of(folder, questions):
    """What the model says, as chat, asked one by one in the ordinary way."""
    loaded = unmask.load(folder)
    for number, question in enumerate(questions):
        ids = torch.tensor([Template(loaded.tokenizer).prompt([{"role": "user", "content": question}])])
        out = loaded.model.generate(ids, max_new_tokens=6, block_size=3, suppress_tokens=list(range(256, 262)))
        yield number, loaded.tokenizer.decode(out[0, ids.shape[1] :])


def test_right_answers_are_counted_and_files_hold_all_that_was_measured(said, folder, tmp_path):
    questions = ["Once", "upon", "a", "time"]
    rows = [
        {"prompt": q, "answer": text} for q, (_, text) in zip(questions, answers_of(folder, questions), strict=True)
    ]
    rows[1]["answer"] = "something else"
    rows[2] = {"instruction": "a", "input": "", "output": f"\n {rows[2]['answer']}"}
    rows[3] = {"messages": [{"role": "user", "content": "time"}], "answer": rows[3]["answer"]}
    out = tmp_path / "made" / "out"
    tasks = tasks_file(tmp_path / "tasks.jsonl", rows)
    words = ["--rules", "threshold:threshold=0.02", "--suppress_tokens", *range(256, 262), "--batch_size", 3]
    printed = said("--tasks", tasks, *words, "--output_dir", out)

    assert sorted(path.name for path in out.iterdir()) == ["results.json", "speed-quality.png", "table.md"]
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    reference, threshold = found["cells"]
    assert reference["of_each_answer"]["right"] == [True, False, True, True]
    assert reference["accuracy"] == 0.75
    assert reference["accuracy_interval"] == pytest.approx(measure.wilson(3, 4))
    assert (reference["rule"], reference["cache"], reference["forward_passes"]) == ("reference", "none", 6)
    assert threshold["forward_passes"] == statistics.fmean(threshold["of_each_answer"]["passes"]) < 6
    assert threshold["gained"] - threshold["lost"] == threshold["right"] - 3
    assert len(threshold["seconds_of_each_repeat"]) == 1
    assert found["settings"]["max_new_tokens"] == 6
    assert found["settings"]["block_size"] == 3
    assert found["chat_template"] is True
    assert found["machine"]["dtype"] == "float32"
    assert found["machine"]["device"] == "cpu"
    assert "torch" in found["versions"]
    assert (out / "speed-quality.png").read_bytes().startswith(b"\x89PNG")
    lines = (out / "table.md").read_text(encoding="utf-8").splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith("| reference | none | 6.0 |")
    assert "75.0 %" in printed[1]
    with pytest.raises(UserError, match=r"holds a results\.json already"):
        said("--tasks", tasks, "--output_dir", out)


def test_contains_is_right_where_the_wanted_text_is_part_of_the_answer(said, folder, tmp_path):
    [(_, text)] = answers_of(folder, ["Once"])
    part = text.strip()[:2].strip()
    assert part != text.strip()
    tasks = tasks_file(tmp_path / "tasks.jsonl", [{"prompt": "Once", "answer": part}])
    words = ["--tasks", tasks, "--rules", "reference", "--suppress_tokens", *range(256, 262)]
    assert "100.0 %  20.7–100.0" in said(*words, "--match", "contains")[1]
    assert "0.0 %  0.0–79.3" in said(*words)[1]


def test_tasks_without_answers_have_no_accuracy_and_are_asked_as_told(said, tmp_path):
    tasks = tasks_file(tmp_path / "tasks.jsonl", [{"prompt": "Once"}, {"prompt": "upon"}, {"prompt": "a"}])
    lines = said("--tasks", tasks, "--rules", "reference", "--limit", 2)
    assert "accuracy" not in lines[0]
    assert lines[-1].startswith("2 answers, as chat")
    assert said("--tasks", tasks, "--rules", "reference", "--chat", "false")[-1].startswith("3 answers, as plain text")
    assert said("-p", "x", "--rules", "reference", "--chat")[-1].startswith("1 answer, as chat")


def test_ctrl_c_while_files_are_written_leaves_none_half_written(said, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def broken_off(self, path, **how):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", broken_off)
    with pytest.raises(KeyboardInterrupt):
        said("-p", "Once", "--output_dir", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--rules", "wonder"], "no decoding called 'wonder'"),
        (["--rule", "threshold"], "--rules takes several"),
        (["--remasking", "random"], "behind the name"),
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--limit", "-1"], "--limit is -1"),
        (["--tasks", "x.jsonl"], "two sources"),
        (["--rules", "--caches", "none"], "--rules is empty"),
        (["--output_dir", __file__], "no folder that can be written to"),
        (["--output_dir", __file__ + "/deeper"], "no folder that can be written to"),
    ],
)
def test_bad_settings_are_told_before_the_model_is_looked_for(words, reason):
    with pytest.raises(UserError, match=reason):
        bench.main(["decode", "--model", "no/such/model", "-p", "x", *words])


def test_a_rule_in_a_config_file_is_refused_too(tmp_path):
    (tmp_path / "config.yaml").write_text("rule: threshold\n")
    with pytest.raises(UserError, match="--rules takes several"):
        bench.main(["decode", "--model", "no/such/model", "-p", "x", "--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize("argv", [[], ["train"], ["--model", "x"]])
def test_there_is_one_bench(argv):
    with pytest.raises(UserError, match="there is one: unmask bench decode"):
        bench.main(argv)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "holds no task"),
        ([{"text": "x"}], "row 1 has the columns text; expected prompt, instruction or messages"),
        ([{"prompt": "x", "answer": 72}], "row 1: the answer is 72; expected a text"),
        ([{"prompt": "x", "answer": " "}], "expected a text that is not empty"),
        ([{"prompt": "x", "answer": "y"}, {"prompt": "z"}], "line 2: some rows have an answer"),
        ([{"messages": "x", "answer": "y"}], "no list of messages"),
        ([{"messages": [{"role": "assistant", "content": "x"}], "answer": "y"}], "the user begins"),
        ([["x"]], "line 1: not a JSON object"),
    ],
)
def test_tasks_in_another_form_are_told_by_their_row(tmp_path, rows, reason):
    with pytest.raises(UserError, match=reason):
        bench.read_tasks(str(tasks_file(tmp_path / "tasks.jsonl", rows)))


def test_several_messages_need_a_chat_template(said, tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    tasks = tasks_file(tmp_path / "tasks.jsonl", [{"messages": messages}])
    with pytest.raises(UserError, match="2 messages"):
        said("--tasks", tasks, "--chat", "false")


# ---------------------------------------------------------------------------------------------------------------------
# The picture


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=6))
@settings(max_examples=5)
def test_names_in_the_picture_cover_no_other_name(spots):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

    figure = Figure(figsize=(7, 5))
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.plot(*zip(*spots, strict=True), "o")
    panel.margins(0.3)
    figure.draw_without_rendering()
    bench_plot.write_names(panel, [(x, y, f"rule {i}", "C0") for i, (x, y) in enumerate(spots)])
    notes = [child for child in panel.get_children() if isinstance(child, Annotation)]
    assert sorted(note.get_text() for note in notes) == [f"rule {i}" for i in range(len(spots))]
    boxes = [Text.get_window_extent(note, figure.canvas.get_renderer()) for note in notes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_spots_name_is_as_short_as_it_can_be():
    rules = ["reference", "threshold:threshold=0.9", "threshold:threshold=0.7", "entropy_bound:gamma=0.1"]
    names = [bench_plot.short(rule, rules) for rule in rules]
    assert names == ["reference", "threshold=0.9", "threshold=0.7", "entropy_bound"]
