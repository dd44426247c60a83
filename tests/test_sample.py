"""`unmask sample` and `unmask infill`: what stood there stays, what was asked for comes, no setting is ignored."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from runs import make_model

import unmask
from unmask import reader, sample
from unmask.__main__ import main
from unmask.canvas import Canvas

LENGTH = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory, byte_tokenizer):
    """A folder with random weights and a context of 128 tokens."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer, max_sequence_length=LENGTH)
    unmask.load(str(folder), fresh=True, seed=3).model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def said(capsys, model):
    """Runs a command and gives what it printed on standard output."""

    def run(command, *words):
        capsys.readouterr()
        assert main([command, "--model", model, *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def rows(said, tmp_path):
    """Runs a command with --output and gives its rows."""

    def run(command, *words):
        path = tmp_path / "rows.jsonl"
        said(command, "--output", path, *words)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return run


SHORT = ("--max_new_tokens", "6")


def test_a_prompt_is_printed_with_its_answer(said, rows):
    printed = said("sample", "-p", "Once upon", *SHORT)
    assert printed.startswith("Once upon")
    [row] = rows("sample", "-p", "Once upon", *SHORT)
    assert printed == row["prompt"] + row["completion"] + "\n"
    assert printed == row["text"] + "\n"


def test_a_row_tells_all_there_is_to_know(rows):
    [row] = rows("sample", "-p", "Once", "--steps", 3, "--temperature", 0.5, "--seed", 7, *SHORT)
    assert row["prompt"] == "Once"
    assert len(row["tokens"]) <= 6
    assert row["finish_reason"] in ("length", "stop")
    assert row["forward_passes"] == 3
    assert row["seed"] == 7
    told = {"max_new_tokens": 6, "steps": 3, "temperature": 0.5, "rule": "reference", "seed": 7}
    assert told.items() <= row["settings"].items()
    assert row["settings"]["rule_args"] == {"remasking": "low_confidence", "stochastic_transfer": False}


def test_the_command_answers_as_generate_does(rows, model):
    [row] = rows("sample", "-p", "Once", "--steps", 4, "--suppress_tokens", 257, 261, *SHORT)
    loaded = unmask.load(model)
    ids = torch.tensor([loaded.tokenizer.encode("Once")])
    out = loaded.model.generate(ids, max_new_tokens=6, steps=4, suppress_tokens=[257, 261])
    assert row["tokens"] == out[0, 4:].tolist()


def test_the_batch_size_changes_no_answer(rows):
    words = ["sample", *SHORT, "--temperature", "1"]
    for i in range(5):
        words += ["-p", "a" * (3 * i)]
    answers = [[row["tokens"] for row in rows(*words, "--batch_size", size)] for size in (1, 2, 5)]
    assert answers[0] == answers[1] == answers[2]
    assert len({tuple(tokens) for tokens in answers[0]}) == 5


def test_the_same_prompt_twice_is_answered_by_two_draws(rows):
    first, second = rows("sample", "-p", "x", "-p", "x", "--temperature", 1, *SHORT)
    assert first["tokens"] != second["tokens"]


def test_the_masks_name_in_a_prompt_stays_text(rows, byte_tokenizer):
    text = "say <|mdm_mask|> and <|endoftext|>, please"
    [row] = rows("sample", "-p", text, *SHORT)
    assert row["prompt"] == text
    assert row["text"].startswith(text)
    ids = reader.encode(SimpleNamespace(tokenizer=byte_tokenizer), text)
    assert max(ids) < 256
    [row] = rows("infill", "-p", text + "{{3}}" + text)
    assert row["text"].startswith(text)
    assert row["text"].endswith(text)


def test_texts_come_from_flags_a_file_or_standard_input(said, rows, tmp_path, monkeypatch):
    lines, objects = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    lines.write_text("one\n\ntwo, 天\n", encoding="utf-8")
    objects.write_text('{"prompt": "three\\nlines"}\n\n{"text": "four"}\n')
    asked = [row["prompt"] for row in rows("sample", "-p", "zero", "--file", lines, *SHORT)]
    assert asked == ["zero", "one", "two, 天"]
    assert [row["prompt"] for row in rows("sample", "--file", objects, *SHORT)] == ["three\nlines", "four"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("from\na pipe\n"))
    assert [row["prompt"] for row in rows("sample", *SHORT)] == ["from\na pipe"]
    printed = said("sample", "--file", lines, *SHORT)
    assert printed.startswith("one")
    assert "\ntwo, 天" in printed


def test_an_empty_prompt_is_answered(rows):
    [row] = rows("sample", "-p", "", *SHORT)
    assert row["text"] == row["completion"]


def test_max_length_counts_the_prompt(rows):
    for prompt in ("ab", "abcd"):
        [row] = rows("sample", "-p", prompt, "--max_length", 10, "--suppress_tokens", 257, 261)
        assert len(row["tokens"]) == 10 - len(prompt)
    [row] = rows("sample", "-p", "abcd", "--max_length", 10, "--max_new_tokens", 6, "--suppress_tokens", 257, 261)
    assert len(row["tokens"]) == 6


def test_the_tutorials_and_the_official_names_are_understood(rows, model):
    ours = rows("sample", "-p", "ab", "--max_new_tokens", 6, "--block_size", 2, "--steps", 3)
    theirs = rows(
        "sample", "--model_name_or_path", model, "-p", "ab", "--gen-length", 6, "--block_length", 2, "--steps", 3,
        "--no_visualize", "--remasking", "low_confidence", "--stochastic_transfer", "False", "--cfg_scale", "0.0",
        "--right_shift_logits", "False",
    )  # fmt: skip
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]


@pytest.mark.parametrize(
    "words",
    [
        ("--remasking", "random"),
        ("--cfg_scale", "3"),
        ("--cfg_scale", "3", "--cfg_keep_tokens", "98"),
        ("--right_shift_logits",),
        ("--block_size", "2"),
        ("--steps", "2"),
        ("--stochastic_transfer", "--steps", "4"),
        ("--suppress_tokens", "{first}"),
        ("--begin_suppress_tokens", "{first}"),
        ("--temperature", "1"),
        ("--seed", "9", "--temperature", "1"),
        ("--eos_token_id", "{first}", "--logits_eos_inf"),
    ],
    ids=lambda words: words[0],
)
def test_every_option_does_something(rows, words):
    plain = rows("sample", "-p", "abcab", "--max_new_tokens", 24)[0]["tokens"]
    words = [word.format(first=plain[0]) for word in words]
    assert rows("sample", "-p", "abcab", "--max_new_tokens", 24, *words)[0]["tokens"] != plain


def test_the_ends_of_text_and_turn_need_no_ids(rows):
    assert rows("sample", "-p", "ab", "--logits_eos_inf", "--eos_stop", "--confidence_eos_eot_inf", *SHORT)


def test_settings_may_stand_in_a_file(rows, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("max_new_tokens: 6\nsteps: 2\nremasking: random\n")
    [row] = rows("sample", "--config", file, "-p", "ab", "--steps", 3)
    assert (row["settings"]["max_new_tokens"], row["forward_passes"]) == (6, 3)
    assert row["settings"]["rule_args"]["remasking"] == "random"


RULE = """
from dataclasses import dataclass
from unmask import decoding

@dataclass
class Settings:
    width: int = 1

class Rule(decoding.Rule):
    def choose(self, row, seen):
        return seen.choice(slice(0, self.settings.width))
"""


@pytest.mark.parametrize("how", [["--width", "3"], ["--rule_args", "width=3"], ["--width=3", "--temperature", "1"]])
def test_a_rule_from_outside_brings_flags_of_its_own(rows, tmp_path, how):
    (tmp_path / "leftmost.py").write_text(RULE)
    [row] = rows("sample", "-p", "ab", "--rule", tmp_path / "leftmost.py", *how, *SHORT)
    assert row["forward_passes"] == 2
    assert row["settings"]["rule_args"] == {"width": 3}


def test_gaps_are_filled_and_nothing_else_is_touched(said, rows):
    text = "def add(a, b):\n    return{{3}}\n天 and \\{{9}}{{2}} end"
    [row] = rows("infill", "-p", text, "--suppress_tokens", *range(250, 258), *range(128, 250))
    first, second = row["written"]
    assert row["text"] == f"def add(a, b):\n    return{first}\n天 and {{{{9}}}}{second} end"
    assert len(row["tokens"]) == 5
    assert row["prompt"] == text
    assert row["completion"] is None
    assert row["forward_passes"] == 5
    printed = said("infill", "-p", text, "--suppress_tokens", *range(250, 258), *range(128, 250))
    assert printed == row["text"] + "\n"


def test_a_text_may_begin_with_a_gap_end_with_one_or_be_one(rows):
    answers = rows("infill", "-p", "{{2}}ab", "-p", "ab{{2}}", "-p", "{{4}}", "--suppress_tokens", 257, 261)
    assert answers[0]["text"].endswith("ab")
    assert answers[1]["text"].startswith("ab")
    assert [len(row["tokens"]) for row in answers] == [2, 2, 4]


def an_answer(tokenizer, text, stops):
    row = Canvas.of([text], 258).rows[0]
    return sample.finished(SimpleNamespace(tokenizer=tokenizer), row, "", stops)


def test_what_follows_an_end_of_text_is_left_out(byte_tokenizer):
    row = Canvas.after([[65, 66]], 4, 258).rows[0]
    row.ids[2:] = torch.tensor([67, 257, 68, 257])
    answer = sample.finished(SimpleNamespace(tokenizer=byte_tokenizer), row, "", {257})
    b = byte_tokenizer.decode
    assert answer.pieces == [b([65, 66]), b([67])]
    assert (answer.tokens, answer.finish_reason) == ([67], "stop")
    row.ids[2:] = torch.tensor([257, 67, 68, 69])
    answer = sample.finished(SimpleNamespace(tokenizer=byte_tokenizer), row, "", {257})
    assert ("".join(answer.pieces), answer.tokens) == (b([65, 66]), [])
    answer = sample.finished(SimpleNamespace(tokenizer=byte_tokenizer), row, "", {256})
    assert (answer.tokens, answer.finish_reason) == ([257, 67, 68, 69], "length")


def test_an_end_of_text_in_a_gap_cuts_nothing_off(byte_tokenizer):
    row = Canvas.of([[65, None, None, 66]], 258).rows[0]
    row.ids[1:3] = torch.tensor([257, 67])
    answer = sample.finished(SimpleNamespace(tokenizer=byte_tokenizer), row, "", {257})
    assert answer.pieces == [byte_tokenizer.decode([i]) for i in (65, 67, 66)]
    assert answer.finish_reason == "length"


def test_a_word_after_a_text_keeps_its_space():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"▁cat": 0, "▁sat": 1, "[M]": 2}, unk_token="[M]"))
    inner.decoder = decoders.Metaspace()  # drops the first space of what it decodes
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[M]")
    row = Canvas.after([[0]], 1, 2).rows[0]
    row.ids[1] = 1
    answer = sample.finished(SimpleNamespace(tokenizer=tokenizer), row, "", set())
    assert answer.pieces == ["cat", " sat"]


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    encoding = "utf-8"

    def isatty(self):
        return True


def test_answers_go_to_standard_output_while_a_bar_is_on_the_terminal(said, monkeypatch):
    plain = said("sample", "-p", "ab", "-p", "cd", "--batch_size", 1, *SHORT)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert said("sample", "-p", "ab", "-p", "cd", "--batch_size", 1, *SHORT) == plain
    assert "tokens/s" in terminal.getvalue()
    assert "ab" not in terminal.getvalue()


@pytest.mark.parametrize("words", [(), ("--visualize",)])
def test_a_terminal_shows_the_answer_and_if_wanted_the_way_there(model, monkeypatch, words):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["sample", "--model", model, "-p", "ab\x1b", *SHORT, *words]) == 0
    assert "ab␛" in terminal.getvalue()
    assert "ab\x1b" not in terminal.getvalue()
    assert ("░░" in terminal.getvalue()) == bool(words)


def test_a_canvas_is_not_drawn_where_there_is_no_terminal(model, capsys):
    assert main(["sample", "--model", model, "-p", "ab", "--visualize", *SHORT]) == 0
    out, err = capsys.readouterr()
    assert "░" not in out
    assert "standard output is none" in err


def refused(capsys, command, *words):
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main([command, *map(str, words)]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("unmask:")]
    assert out == ""
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--stepz", 3), "unknown option --stepz. Did you mean 'steps'"),
        (("--steps", 0), "--steps is 0; it must be at least 1"),
        (("--block_size", 0), "--block_size is 0"),
        (("--block_length", -1), "--block_size is -1"),
        (("--max_new_tokens", 0), "--max_new_tokens is 0; it must be at least 1"),
        (("--max_length", 2), "--max_length 2 leaves nothing after a prompt of 2 tokens"),
        (("--max_length", 10, "--max_new_tokens", 5), "leaves 8 tokens .* --max_new_tokens is 5; give one"),
        (("--max_new_tokens", LENGTH), "2 given and 128 new tokens are 130; the model holds 128"),
        (("--max_length", LENGTH + 1), "the model holds 128"),
        (("--temperature", -1), "--temperature is -1.0"),
        (("--cfg_scale", -1), "--cfg_scale is -1.0"),
        (("--batch_size", 0), "--batch_size is 0"),
        (("--block_size", 4, "--block_length", 8), "--block_size 4 and --block_length 8 mean the same"),
        (("--gen-length=4", "--max-new-tokens=8"), "mean the same"),
        (("--remasking", "lowest"), "remasking is 'lowest'; it can be low_confidence, random"),
        (("--rule", "referense"), "'referense'; there are .*Did you mean 'reference'"),
        (("--rule", "no/where.py"), "no file 'no/where.py'"),
        (("--rule_args", "widht=3"), "unknown setting 'widht'"),
        (("--suppress_tokens", 262), "no token 262"),
        (("--suppress_tokens", "the"), "must be a whole number"),
        (("--remasking", "random", "--confidence_eos_eot_inf"), "use remasking low_confidence"),
        (("--chat_template", "True"), "belongs to `unmask chat`"),
        (("--no_chat_template",), "belongs to `unmask chat`"),
        (("--return_dict",), "--output FILE"),
        (("--dtype", "float8"), "--dtype is 'float8'; it can be float32"),
        (("--device", "cudda"), "no device 'cudda'"),
        (("--family", "lada"), "no model called 'lada'.*Did you mean 'llada'"),
        (("--mask_token", "the"), "'the' is not in the tokenizer"),
        (("--file", "no.txt"), "no file 'no.txt'"),
        (("--output", "no/where/out.jsonl"), "cannot write --output no/where/out.jsonl: no such folder"),
    ],
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_bad_settings_are_told_in_one_line(capsys, model, words, told):
    line = refused(capsys, "sample", "--model", model, "-p", "ab", *words)
    assert re.search(told, line), line


def test_bad_texts_are_told_in_one_line(capsys, model, tmp_path, monkeypatch):
    def told(command, *words):
        return refused(capsys, command, "--model", model, *words)

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert '-p "text"' in told("sample")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "standard input is empty" in told("sample")
    (tmp_path / "empty.txt").write_text("\n")
    assert "holds no text" in told("sample", "--file", tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "not UTF-8" in told("sample", "--file", tmp_path / "latin.txt")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    assert "bad.jsonl, line 2: no `prompt`" in told("sample", "--file", tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    assert "bad.jsonl, line 1: not a JSON object" in told("sample", "--file", tmp_path / "bad.jsonl")
    assert "no gap in 'text'; write {{8}}" in told("infill", "-p", "text")
    assert "a gap has at least 1" in told("infill", "-p", "a{{0}}b")
    assert "no gap" in told("infill", "-p", r"a\{{8}}b")
    assert "the model holds 128" in told("infill", "-p", "a{{200}}b")
    assert "--eos_stop and --stop_strings have no meaning" in told("infill", "-p", "a{{2}}b", "--eos_stop")
    assert "unknown option --max_new_tokens" in told("infill", "-p", "a{{2}}b", *SHORT)
    assert "no model given" in refused(capsys, "sample", "-p", "ab")
    assert "no model folder" in refused(capsys, "sample", "-p", "ab", "--model", tmp_path / "gone")


def test_a_run_that_fails_leaves_no_output(capsys, model, tmp_path):
    (tmp_path / "idle.py").write_text(RULE.replace("slice(0, self.settings.width)", "slice(0, 0)"))
    words = ("--rule", tmp_path / "idle.py", "--output", tmp_path / "out.jsonl")
    assert "wrote nothing at step 1" in refused(capsys, "sample", "--model", model, "-p", "ab", *words)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["idle.py"]
