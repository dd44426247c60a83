"""`unmask chat`: the same decoder as `unmask sample`, a conversation that loses nothing, a pipe without a banner."""

import builtins
import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from runs import make_model
from says import Says
from transformers import LlamaConfig, LlamaForCausalLM

import unmask
import unmask.models
from unmask import chat, replay, sample
from unmask.__main__ import main
from unmask.template import Template

CONTEXT = 256
SHORT = ("--max_new_tokens", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory, byte_tokenizer):
    """A folder of a mask predictor with random weights."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer, max_sequence_length=CONTEXT)
    unmask.load(str(folder), fresh=True, seed=3).model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory, byte_tokenizer):
    """A folder of a causal model with random weights."""
    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=262, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, eos_token_id=257, bos_token_id=256, initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def piped(capsys, monkeypatch):
    """Runs the command with text on standard input; gives exit code, standard output, standard error."""

    def run(*words, text=""):
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code = main(["chat", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def says(monkeypatch, byte_tokenizer):
    """Puts a model in place that gives `reply(question)`."""

    def make(reply=lambda question: f"So: {question}", **how):
        model = Says(byte_tokenizer, reply, **how)
        monkeypatch.setattr(chat, "load", lambda *_, **__: model.loaded())
        monkeypatch.setattr(unmask.models, "predictor", lambda _: model)
        return model

    return make


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def typed(monkeypatch):
    """Runs the command on a terminal where lines are typed (or exceptions raised); gives the code and all output."""

    def run(*lines, words=("--model", "toy")):
        screen, script = Terminal(), iter(lines)
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")

        def read(prompt=""):
            line = next(script, EOFError())
            screen.write(f"{prompt}{line if isinstance(line, str) else ''}\n")
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        code = main(["chat", *map(str, words)])
        return code, screen.getvalue()

    return run


def ctrl_c(*at):
    """Press Ctrl-C in these forward passes."""
    return lambda number: os.kill(os.getpid(), signal.SIGINT) if number in at else None


# ---------------------------------------------------------------------------------------------------------------------
# One decoder, one template


@pytest.mark.parametrize(
    "words",
    [(), ("--steps", 5), ("--block_length", 4), ("--temperature", 1, "--seed", 7), ("--remasking", "random")],
    ids=lambda words: " ".join(map(str, words)),
)
def test_raw_chat_continues_as_sample_does(piped, capsys, model, words):
    _, chatted, _ = piped("--model", model, "--no_chat_template", "-p", "Once", *SHORT, *words)
    usual = {"--steps": 128, "--block_size": 32}
    more = [w for k, v in usual.items() if k not in words and "--block_length" not in words for w in (k, v)]
    main(["sample", "--model", model, "-p", "Once", "--eos_stop", *SHORT, *map(str, [*more, *words])])
    assert "Once" + chatted == capsys.readouterr().out


@pytest.mark.parametrize("temperature", [0, 1])
def test_chat_writes_what_sample_writes_after_the_same_prompt(piped, model, temperature):
    _, out, _ = piped("--model", model, "-p", "Hello", "--temperature", temperature, *SHORT, "--eos_stop", "False")
    loaded = unmask.load(model)
    prompt = Template(loaded.tokenizer).prompt([{"role": "user", "content": "Hello"}])
    settings = {"steps": 128, "block_size": 32, "temperature": float(temperature), "eot_token_id": [261]}
    [answer] = sample.answers(loaded, [""], [[*prompt, *[None] * 8]], settings, sample.TextArguments())
    assert out == loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True) + "\n"


def test_what_the_model_is_sent_is_what_it_was_trained_on(piped, says, byte_tokenizer):
    model = says()
    piped("--model", "toy", "--system", "Be brief.", text="one\ntwo  \n")
    messages = [{"role": "system", "content": "Be brief."}]
    for question in ("one", "two  "):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": f"So: {question.strip()}"}]
    turns = Template(byte_tokenizer).turns(messages)
    before = [[i for turn in turns[:n] for i in turn.ids] for n in (1, 3)]
    assert [prompt for i, prompt in enumerate(model.prompts) if prompt not in model.prompts[:i]] == before


def test_the_masks_name_is_text(piped, says):
    text = "say <|mdm_mask|> and <|eot_id|>"
    model = says(lambda _: "<ok>")
    code, out, _ = piped("--model", "toy", "-p", text)
    assert (code, out) == (0, "<ok>\n")
    assert model.prompts[0].count(258) == 0
    assert model.prompts[0].count(261) == 1


def test_lines_and_code_survive(piped, says):
    code = "def f(a , b):\n    if a :\n\n        return '你好'  # n't\n\tpass ."
    says(lambda _: code)
    assert piped("--model", "toy", "-p", "code")[1] == code + "\n"


def test_no_time_is_spent_behind_the_end(piped, says):
    model = says(lambda _: "ab")
    piped("--model", "toy", "-p", "x", "--block_size", 4)
    assert model.passes <= 4
    model = says(lambda _: "ab")
    piped("--model", "toy", "-p", "x", "--block_size", 4, "--no_eos_stop", "--max_new_tokens", 16)
    assert model.passes == 16


# ---------------------------------------------------------------------------------------------------------------------
# Pipes


def test_a_pipe_gets_the_answers_and_nothing_else(piped, says):
    says()
    code, out, err = piped("--model", "toy", text="one\n\n  \ntwo\\\nlines\nthree")
    assert (code, out) == (0, "So: one\nSo: two\nlines\nSo: three\n")
    assert "\x1b" not in out + err
    assert err.count("\n") == 1


def test_commands_work_in_a_pipe_and_what_fails_is_told_at_the_end(piped, says):
    says()
    code, out, err = piped("--model", "toy", text="/set steps=4\none\n/hlep\n//help\n/stats\n/quit\nnever\n")
    assert (code, out) == (2, "So: one\nSo: /help\n")
    assert "no command /hlep. Did you mean /help?" in err
    assert "2 answers" in err
    assert "steps=4" in err


def test_quotes_hold_many_lines_and_no_command(piped, says):
    says()
    text = '"""\n/new\n\n  two\n"""\n"""exit"""\n"""open at the end\nof all'
    assert piped("--model", "toy", text=text)[1] == "So: /new\n\n  two\nSo: exit\nSo: open at the end\nof all\n"


def test_several_questions_are_turns_of_one_conversation(piped, says):
    model = says()
    assert piped("--model", "toy", "-p", "one", "-p", "/two")[1] == "So: one\nSo: /two\n"
    assert model.prompts[-1][: len(model.prompts[0])] == model.prompts[0]


def test_bytes_that_are_no_text_are_told_and_the_rest_is_answered(says, capsys, monkeypatch):
    says()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nok\n"), encoding="utf-8"))
    assert main(["chat", "--model", "toy"]) == 2
    out, err = capsys.readouterr()
    assert out == "So: ok\n"
    assert "not UTF-8" in err


class ClosedMidway(io.StringIO):
    def readline(self, *_):
        self.lines = getattr(self, "lines", 0) + 1
        if self.lines > 1:
            raise ValueError("I/O operation on closed file")
        return "one\n"


def test_standard_input_may_close(says, capsys, monkeypatch):
    says()
    monkeypatch.setattr(sys, "stdin", ClosedMidway())
    assert main(["chat", "--model", "toy"]) == 0
    assert capsys.readouterr().out == "So: one\n"
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "--model", "toy"]) == 2
    assert "standard input is closed" in capsys.readouterr().err
    assert main(["chat", "--model", "toy", "-p", "one"]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# The terminal


def test_an_answer_unmasks_on_the_screen_and_then_stands_as_plain_text(typed, says):
    says(lambda _: "one\ntwo, 天")
    code, screen = typed("hi", "exit")
    assert code == 0
    assert "░░" in screen
    assert screen.endswith("one\ntwo, 天\n> exit\nBye.\n")
    assert "\x1b[?25h" in screen[screen.rindex("\x1b[?25l") :]  # the cursor is back


def test_a_screen_can_do_without_the_canvas(typed, says, monkeypatch):
    says()
    for words in (("--model", "toy", "--no_visualize"), ("--model", "toy", "--visualize", "False")):
        screen = typed("hi", words=words)[1]
        assert "So: hi\n" in screen
        assert "\x1b" not in screen
    monkeypatch.setattr(chat, "is_terminal", lambda: False)
    assert "\x1b" not in typed(words=("--model", "toy", "-p", "hi"))[1]


def test_what_a_model_writes_steers_no_terminal(typed, says):
    says(lambda _: "\x1b[2Jgone\x07")
    screen = typed("hi")[1]
    assert "\x1b[2J" not in screen
    assert "␛[2Jgone␇" in screen


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt(), "/quit", "quit", "exit", " EXIT "])
def test_leaving_is_polite(typed, says, end):
    says()
    code, screen = typed("hi", end)
    assert code == 0
    assert screen.endswith("\nBye.\n")


def test_half_an_answer_is_kept_and_the_chat_goes_on(typed, says):
    model = says(lambda q: "abcdefgh" if q == "one" else "done", after=ctrl_c(4))
    code, screen = typed("one", "two", words=("--model", "toy", "--block_size", "1"))
    assert code == 0
    assert "abc\nstopped: what you see is kept" in screen
    assert "done\n" in screen
    assert "abc<|eot_id|>" in model.tokenizer.decode(model.prompts[-1])


def test_half_a_letter_is_not_kept(typed, says):
    model = says(lambda q: "a天" if q == "one" else "done", after=ctrl_c(3))
    screen = typed("one", "two", words=("--model", "toy", "--block_size", "1"))[1]
    assert "a\nstopped: what you see is kept" in screen
    assert "a<|eot_id|>" in model.tokenizer.decode(model.prompts[-1])


def test_what_has_a_gap_before_it_is_not_kept(typed, says):
    """Places 16, 17, … are written first; none of them is the beginning."""
    model = says(lambda _: "x" * 40, after=ctrl_c(3))
    model.reply = lambda q: "x" * 40
    _, screen = typed("one", "/retry", words=("--model", "toy", "--remasking", "random", "--max_new_tokens", 40))
    assert "stopped: nothing stood yet, so nothing is kept; /retry asks again" in screen
    assert "x" * 40 + "\n" in screen


def test_a_second_ctrl_c_leaves(typed, says, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    says(after=ctrl_c(2))
    close = chat.Screen.close
    monkeypatch.setattr(chat.Screen, "close", lambda screen: (os.kill(os.getpid(), signal.SIGINT), close(screen)))
    code, screen = typed("one", "two", words=("--model", "toy", "--block_size", "1"))
    assert code == 0
    assert screen.endswith("\nBye.\n")
    assert "So: two" not in screen
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_a_pipe_ends_it(piped, says):
    says(after=ctrl_c(2))
    code, out, _ = piped("--model", "toy", "--block_size", 1, text="one\ntwo\n")
    assert (code, out) == (130, "S\n")


def test_ctrl_c_in_the_middle_of_a_message_gives_it_up(typed, says):
    model = says()
    _, screen = typed("one\\", KeyboardInterrupt(), "two")
    assert "So: two" in screen
    assert "one" not in "".join(map(model.tokenizer.decode, model.prompts))


def test_retry_draws_anew_and_the_same_conversation_draws_the_same(typed, model):
    words = ("--model", model, "--temperature", 1, "--no_visualize", *SHORT)

    def answers(*lines):
        screen = typed(*lines, words=words)[1]
        return [re.sub("(cut at|a new|taken back).*\n", "", part.partition("\n")[2]) for part in screen.split("> ")[1:]]

    first, again, second = answers("hi", "/retry", "hi")[:3]
    assert len({first, again, second}) == 3
    assert answers("hi", "/retry", "hi")[:3] == [first, again, second]
    assert answers("hi", "/new", "hi")[2] == first
    assert answers("hi", "/undo", "hi")[2] == first


def test_retry_at_temperature_0_says_that_nothing_can_change(typed, says):
    says()
    screen = typed("hi", "/retry")[1]
    assert "the same answer: at temperature 0" in screen


def test_an_interrupted_retry_loses_nothing(typed, says):
    model = says(after=lambda number: None)
    model.after = lambda number: ctrl_c(model.passes)(number) if len(model.prompts) == 10 else None
    screen = typed("ask", "/retry", "more", words=("--model", "toy", "--block_size", "1"))[1]
    assert "stopped: the earlier answer stays" in screen
    assert "So: ask<|eot_id|>" in model.tokenizer.decode(model.prompts[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def test_undo_new_and_system_change_what_the_model_sees(piped, says):
    model = says()
    text = "one\ntwo\n/undo\nthree\n/system Be brief.\nfour\n/new\nfive\n/system none\nsix\n/system\n"
    code, _, err = piped("--model", "toy", text=text)
    assert code == 0
    seen = list(dict.fromkeys(model.tokenizer.decode(p) for p in model.prompts))

    def turns(prompt):
        return re.findall(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n([^<]+)", prompt)

    assert turns(seen[2]) == [("user", "one"), ("assistant", "So: one"), ("user", "three")]
    assert turns(seen[3])[0] == ("system", "Be brief.")
    assert turns(seen[4]) == [("system", "Be brief."), ("user", "five")]
    assert turns(seen[5]) == [("user", "five"), ("assistant", "So: five"), ("user", "six")]
    assert "taken back: two (1 turn left)" in err
    assert "system text: none" in err


def test_settings_change_or_stay_as_they_were(piped, says):
    model = says(lambda _: "x" * 99)
    text = "/set steps=2 block_size=8 max_new_tokens=8\none\n/set steps=0\n/set stepz=3\n/set steps=1 temperature=-1\n"
    text += "/set suppress_tokens=999\n/set remasking=lowest\n/set steps\n/set max_new_tokens=0\ntwo\n/set\n"
    code, out, err = piped("--model", "toy", text=text)
    assert (code, model.passes) == (2, 4)
    assert out == ("x" * 8 + "\n") * 2
    for told in ("--steps is 0", "'stepz'. Did you mean 'steps'", "--temperature is -1", "no token 999", "'lowest'"):
        assert told in err
    assert "max_new_tokens=8 steps=2 block_size=8 " in err
    assert "max_new_tokens is 0" in err


def test_any_spelling_of_a_setting_works_and_nothing_brings_the_default_back(piped, says):
    says()
    text = "/set block-length=4 gen_length=7\n/set --steps 3\n/set suppress_tokens=1,2 remasking=random\n/set\n"
    text += "/set steps= remasking= suppress_tokens=\n/set\n"
    err = piped("--model", "toy", text=text)[2].splitlines()
    assert err[4].startswith("max_new_tokens=7 steps=3 block_size=4 ")
    assert "suppress_tokens=1,2" in err[4]
    assert "remasking=random" in err[4]
    assert (
        err[6] == "max_new_tokens=7 steps=128 block_size=4 eos_stop=true rule=reference cache=none canvas=fixed seed=42"
    )


def test_a_conversation_is_saved_once_however_often(piped, says, tmp_path):
    says()
    file = tmp_path / "my chats.jsonl"
    text = f"one\n/save {file}\ntwo\n/save {file}\n/new\n/system S\nthree\n/save {file}\n"
    assert piped("--model", "toy", text=text)[0] == 0
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    roles = [[m["role"] for m in row["messages"]] for row in rows]
    assert roles == [["user", "assistant"] * 2, ["system", "user", "assistant"]]
    assert rows[1]["messages"][2] == {"role": "assistant", "content": "So: three"}
    assert [path.name for path in tmp_path.iterdir()] == ["my chats.jsonl"]


def test_what_is_saved_can_be_trained_on(piped, says, tmp_path):
    from unmask import chats

    says()
    piped("--model", "toy", "--system", "S", text=f"天\u2028one\n/save {tmp_path}/a.jsonl\n/save {tmp_path}/a.json\n")
    for name in ("a.jsonl", "a.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        [row] = json.loads(text) if name == "a.json" else [json.loads(text)]
        assert chats.messages(row, chats.format_of(row), 1)[1]["content"] == "天\u2028one"


def test_saving_spoils_no_file(piped, says, tmp_path):
    says()
    other = tmp_path / "other.json"
    other.write_text('{"a": 1}')
    text = f"/save {tmp_path}/a.jsonl\none\n/save {other}\n/save {tmp_path}/no/where.jsonl\n/save x.txt\n/save\n"
    code, _, err = piped("--model", "toy", text=text)
    assert code == 2
    assert "no conversation to save" in err
    assert "something other than conversations" in err
    assert "cannot write" in err
    assert "must end in .jsonl" in err
    assert other.read_text() == '{"a": 1}'
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_statistics_count_up_to_the_end_of_text(piped, says):
    says(lambda q: {"ab": "four", "c": "x" * 99}[q])
    text = "/stats\nab\n/stats\n/set cfg_scale=1 max_new_tokens=6\nc\n/stats\n"
    err = piped("--model", "toy", "--block_size", 1, text=text)[2]
    assert "nothing has been answered" in err
    assert re.search(r"last answer: 4 tokens in \S+ s \(\S+ tokens/s\), 5 forward passes; it ended by itself", err)
    assert re.search(r"last answer: 6 tokens in .*, 12 forward passes; it was cut at its limit", err)
    assert re.search(r"all 2 answers: 10 tokens in .*, 17 forward passes", err)


def test_every_command_is_listed_and_there(says, piped):
    says()
    err = piped("--model", "toy", text="/help\n/new now\n/ help\n")[2]
    for name in chat.COMMANDS:
        assert f"/{name}" in err
        assert name == "quit" or hasattr(chat.Chat, f"do_{name}")
    assert "/new takes nothing after it" in err


def test_nothing_to_do_is_said(piped, says):
    says()
    err = piped("--model", "toy", text="/undo\n/retry\n")[2]
    assert "nothing to take back" in err
    assert "no question to ask again" in err


def test_an_answer_without_a_word_is_not_kept(typed, says):
    model = says(lambda q: "" if q == "one" else "yes")
    screen = typed("one", "two")[1]
    assert "ended without a word" in screen
    assert "one" not in model.tokenizer.decode(model.prompts[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Lengths


def test_max_length_alone_means_new_tokens_and_the_first_line_says_so(piped, says):
    says(lambda _: "x" * 99)
    for name in ("--max_length", "--max_new_tokens", "--gen_length"):
        _, out, err = piped("--model", "toy", "-p", "a question", name, 10)
        assert out == "x" * 10 + "\n"
        assert "up to 10 new tokens" in err
        assert ("--max_length 10 alone means so many new tokens" in err) == (name == "--max_length")


def test_beside_max_new_tokens_it_bounds_prompt_and_answer(piped, says):
    model = says(lambda _: "x" * 99)
    piped("--model", "toy", "-p", "hi")
    prompt = len(model.prompts[0])
    words = ("--model", "toy", "-p", "hi", "--max_new_tokens", 30, "--max_length", prompt + 20)
    code, out, err = piped(*words)
    assert (code, out) == (0, "x" * 20 + "\n")
    assert f"--max_length allows {prompt + 20} tokens, which leaves 20 for this answer" in err
    code, out, err = piped(*words[:-1], prompt + 10)
    assert (code, out) == (2, "")
    assert "there is no room for an answer. Ask more briefly" in err


def test_a_conversation_that_fills_the_model_is_told_and_nothing_is_lost(typed, says):
    says(lambda q: "x" * 40, max_length=100)
    words = ("--model", "toy", "--max_new_tokens", 40)
    screen = typed("one", "two", "/undo", "/retry", "/new", "three", words=words)[1]
    assert re.search(r"the conversation has \d+ tokens with this question, and the model holds 100: .*/new", screen)
    assert "taken back: one (0 turns left)" in screen
    assert screen.count("x" * 40 + "\n") >= 3


def test_the_first_line_says_what_is_loaded(piped, model, causal):
    _, _, err = piped("--model", model, "-p", "x", *SHORT, "--steps", 4, "--block_size", 2)
    assert err.splitlines()[-1].startswith(f"{model}: llada, ")
    assert err.rstrip().endswith("parameters, diffusion; 4 steps, blocks of 2, up to 8 new tokens")
    _, _, err = piped("--model", causal, "-p", "x", *SHORT)
    assert err.rstrip().endswith("parameters, autoregressive, up to 8 new tokens")


# ---------------------------------------------------------------------------------------------------------------------
# Causal models


def test_a_causal_model_answers_from_left_to_right(piped, causal, byte_tokenizer):
    code, out, _ = piped("--model", causal, "-p", "Hello", "--temperature", 0, *SHORT)
    assert code == 0
    prompt = torch.tensor([Template(byte_tokenizer).prompt([{"role": "user", "content": "Hello"}])])
    model = LlamaForCausalLM.from_pretrained(causal)
    told = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, eos_token_id=[257, 261]
    )[0, prompt.shape[1] :]
    assert out == byte_tokenizer.decode(told, skip_special_tokens=True) + "\n"


def test_its_tokens_are_streamed(typed, causal):
    code, screen = typed("hi", "/stats", words=("--model", causal, "--suppress_tokens", *range(128, 262), *SHORT))
    assert code == 0
    assert "8 tokens in" in screen
    assert "░" not in screen


@pytest.mark.parametrize("words", [("--steps", 4), ("--cfg_scale", 1), ("--remasking", "random")])
def test_options_of_unmasking_are_refused_for_it(piped, causal, words):
    code, out, err = piped("--model", causal, "-p", "x", *words)
    assert (code, out) == (2, "")
    assert f"unmask: {words[0]} belongs to models that unmask, and llama writes left to right" in err


def test_settings_of_unmasking_are_refused_for_it_while_it_chats(piped, causal):
    code, _, err = piped("--model", causal, text="/set steps=4\n/set temperature=0.5\n/set\n")
    assert code == 2
    assert "--steps belongs to models that unmask" in err
    assert err.rstrip().endswith("max_new_tokens=128 temperature=0.5 eos_stop=true seed=42")
    code, _, err = piped("--model", causal, "-p", "x", "--right_shift_logits")
    assert code == 2
    assert "--right_shift_logits belongs to models that unmask" in err


# ---------------------------------------------------------------------------------------------------------------------
# Templates and bad input


@pytest.mark.parametrize(
    "words", [("--chat_template",), ("--chat_template", "True"), ("--chat-template=llada",), (), ("--chat_template=1",)]
)
def test_the_template_is_the_tokenizers_or_llada(piped, says, words):
    model = says()
    assert piped("--model", "toy", "-p", "x", *words)[1] == "So: x\n"
    assert 259 in model.prompts[0]


def test_a_template_may_be_a_file(piped, says, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    model = says()
    assert piped("--model", "toy", "-p", "x", "--chat_template", file)[1] == "So: x\n"
    assert 256 not in model.prompts[0]


@pytest.mark.parametrize("words", [("--chat_template", "False"), ("--no_chat_template",), ("--no-chat-template",)])
def test_without_a_template_each_text_is_continued_by_itself(piped, model, words):
    code, out, err = piped("--model", model, *words, *SHORT, text="one\none\n/system x\n")
    assert code == 2  # for /system
    assert len(set(out.splitlines())) == 1
    assert "no chat template: each text is continued" in err
    assert "a system text needs a chat template" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps", 0), "--steps is 0; it must be at least 1"),
        (("--block_length", 0), "--block_size is 0"),
        (("--max_new_tokens", 0), "--max_new_tokens is 0; it must be at least 1"),
        (("--max_length", -1), "--max_length is -1"),
        (("--temperature", -1), "--temperature is -1"),
        (("--remasking", "lowest"), "remasking is 'lowest'"),
        (("--stepz", 3), "unknown option --stepz. Did you mean 'steps'"),
        (("-p", ""), "-p is empty"),
        (("--chat_template", "no/where.jinja"), "there is no such file"),
        (("--system", "x", "--no_chat_template"), "--system needs a chat template"),
        (("--return_dict",), "/save FILE"),
        (("--max_new_tokens", 4, "--gen_length", 5), "mean the same"),
        (("--rule", "referense"), "Did you mean 'reference'"),
    ],
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_bad_settings_are_told_in_one_line(piped, model, words, told):
    code, out, err = piped("--model", model, *words, text="hi\n")
    lines = [line for line in err.splitlines() if line.startswith("unmask:")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert told in lines[0]


def test_no_model_is_told(piped):
    assert "no model given" in piped(text="hi\n")[2]
    assert "no model folder" in piped("--model", "./gone", text="hi\n")[2]


def test_help_is_there(capsys):
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    out = capsys.readouterr().out
    for name in ("--model", "--chat_template", "--system", "--max_length", "--cfg_keep_tokens", "--remasking"):
        assert name in out


@pytest.mark.slow
def test_a_real_terminal(model):
    """On a pseudo-terminal: a canvas, Ctrl-C in the middle of it, a command, Ctrl-D; the terminal is as it was."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    words = ["--model", model, "--max_new_tokens", "200", "--temperature", "1"]
    command = [sys.executable, "-m", "unmask", "chat", *words]
    env = os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)  # so that reading ends with the process
    seen = b""

    def until(text):
        nonlocal seen
        while text.encode() not in seen:
            seen += os.read(ours, 4096)
        found, _, seen = seen.partition(text.encode())
        return found.decode(errors="replace")

    until("/help lists")
    os.write(ours, "你好\n".encode())
    assert "\x1b[?25l" in until("░░░░")
    process.send_signal(signal.SIGINT)
    assert "\x1b[?25h" in until("stopped: ")
    os.write(ours, b"/stats\n")
    until("it was stopped")
    until("> ")  # before that, Ctrl-D goes nowhere
    os.write(ours, b"\x04")
    until("Bye.")
    assert process.wait(60) == 0
    assert termios.tcgetattr(ours)[3] == before[3]
    os.close(ours)


def test_the_last_answer_is_replayed_from_a_file(piped, says, tmp_path):
    says()
    code, _, err = piped("--model", "toy", text=f"/replay {tmp_path}/a.json\none\n/replay {tmp_path}/a.json\n/replay\n")
    assert code == 2  # for the first and the last
    assert "no answer was unmasked yet" in err
    assert "type /replay FILE.html" in err
    record = replay.read(tmp_path / "a.json")
    *_, last = replay.states(record)
    answer = "".join(cell.text or "" for cell in last[record["start"] :])
    assert answer.startswith("So: one")
