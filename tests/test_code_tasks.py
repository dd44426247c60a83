"""Code written by a model: limits hold, nothing passes that did not end well, and our tasks score what they say."""

from __future__ import annotations

import json
import os
import select
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import UserError
from unmask.harness import code, presets

TASKS = presets.FOLDER.with_name("tasks")


def unix(text):
    """MBPP's code has lines that end as on Windows."""
    return text.replace("\r\n", "\n")


@pytest.fixture(scope="module")
def mbpp(shared):
    lines = (shared / "data" / "mbpp" / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# Running


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "failed: AssertionError at assert 1 + 1 == 3"),
        (
            "def f():\n    return 1 / 0\nassert f() == 1",
            "failed: ZeroDivisionError: division by zero at assert f() == 1",
        ),
        ("x = (", "failed: SyntaxError"),
        ("import sys; sys.exit(0)\nassert False", "left before its tests were done: SystemExit"),
        ("exit()\nassert False", "left before its tests were done: SystemExit"),
        ("import os; os._exit(0)\nassert False", "left before its tests were done: exit code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),  # one without a name
        ("input()", "failed: EOFError"),
        ("while True: pass", "timed out after 0.5 s"),
        ("import time; time.sleep(60)", "timed out after 0.5 s"),
        ("while True: print('x' * 10**6)", "timed out after 0.5 s"),
        ("import sys, time\ntry:\n    sys.exit()\nfinally:\n    time.sleep(60)", "timed out after 0.5 s"),
    ],
)
def test_what_came_of_a_program_is_told(program, why):
    found = code.passes(program, seconds=0.5 if "timed out" in why else 10)
    assert found.why.startswith(why)
    assert found.passed == (why == "passed")


def test_a_child_that_comes_to_the_end_does_not_pass_for_its_parent():
    assert code.passes("import os\nif os.fork(): os._exit(0)") == (
        False,
        "left before its tests were done: exit code 0",
    )


def test_a_child_that_comes_to_the_end_first_takes_nothing_from_its_parent():
    assert code.passes("import os\nif pid := os.fork(): os.waitpid(pid, 0)").passed


def test_a_report_that_the_program_makes_up_counts_for_nothing():
    forged = """
        import json, os
        for number in range(1, 20):
            try:
                os.write(number, (json.dumps(["token", os.getpid(), "passed"]) + "\\n").encode())
            except OSError:
                pass
        os._exit(0)
    """
    assert not code.passes(textwrap.dedent(forged)).passed


@pytest.mark.parametrize("ending", ["while True: pass", "pass", "os._exit(3)"])
def test_a_child_dies_with_its_parent(tmp_path, ending):
    """A named pipe reads as ended once nobody holds its other end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    program = f"""
        import os, time
        here, told = os.pipe()
        if not os.fork():
            writer = os.open({str(fifo)!r}, os.O_WRONLY)
            os.write(writer, b"here")
            os.write(told, b"x")
            while True: time.sleep(1)
        os.read(here, 1)
        {ending}
    """
    try:
        code.passes(textwrap.dedent(program), seconds=0.7)
        assert os.read(reader, 9) == b"here"
        assert select.select([reader], [], [], 20)[0], "the child still holds the pipe"
        assert os.read(reader, 9) == b""
    finally:
        os.close(reader)


def test_memory_is_limited():
    assert code.passes("x = bytearray(300 << 20)", memory_mb=1024).passed
    assert code.passes("x = bytearray(300 << 20)", memory_mb=200).why.startswith("failed: MemoryError")


def test_a_program_sees_an_empty_folder_that_goes_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    told = tmp_path / "told.json"
    program = f"""
        import json, os, sys
        open("left", "w").write("x")
        seen = [os.getcwd(), os.listdir(), sorted(os.environ), sys.argv, [hash(w) for w in "abc"]]
        json.dump(seen, open({str(told)!r}, "w"))
    """
    seen = []
    for _ in range(2):
        assert code.passes(textwrap.dedent(program)).passed
        seen.append(json.loads(told.read_text()))
    folders = [one.pop(0) for one in seen]
    assert seen[0] == seen[1], "the same program, run twice, saw another world"
    files, variables, argv, _ = seen[0]
    assert files == ["left"]
    assert "HF_TOKEN" not in variables
    assert argv == ["program"]
    assert not any(os.path.exists(folder) for folder in folders)


def test_no_leave_no_run(monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    code.check_allowed([])
    with pytest.raises(UserError, match=r"mbpp_local.*on this machine.*export HF_ALLOW_CODE_EVAL=1"):
        code.check_allowed(["mbpp_local"])
    with pytest.raises(UserError, match="export HF_ALLOW_CODE_EVAL=1"):
        code.mbpp_results({"test_list": [], "test_setup_code": ""}, ["pass"])
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    code.check_allowed(["mbpp_local"])
    assert code.mbpp_results({"test_list": [], "test_setup_code": ""}, ["pass"]) == {"pass@1": 1.0}


# ---------------------------------------------------------------------------------------------------------------------
# Extraction

LINES = st.text(st.characters(blacklist_characters="`\r", blacklist_categories=["Cs"]), max_size=60)


@given(before=LINES, body=LINES, after=LINES, language=st.sampled_from(["", "python", "py", "Python3"]))
def test_a_fenced_block_is_found_whatever_stands_around_it(before, body, after, language):
    answer = f"{before}\n```{language}\n{body}\n```\n{after}"
    assert code.extracted(answer) == body + "\n"
    assert code.extracted(f"{before}\n```{language}\n{body}") == body, "an answer that was cut has no closing fence"
    assert code.extracted(answer + "\n```\nanother\n```") == body + "\n", "the first block counts"


@given(before=LINES, body=LINES, spaces=st.integers(1, 4))
def test_a_block_in_a_list_loses_the_lists_indent_alone(before, body, spaces):
    lines = body.split("\n")
    indented = "\n".join(" " * spaces + line for line in ["```python", *lines, "```"])
    assert code.extracted(f"{before}\n{indented}\n") == body + "\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Sure.\ndef f(x):\n    return x\n", "def f(x):\n    return x\n"),
        ("from here on it is easy:\nfrom math import pi\nimport os\n", "from math import pi\nimport os\n"),
        ("import the module first\nclass A:\n    pass", "import the module first\nclass A:\n    pass"),
        ("Here: ```python\nx = 1\n```", "x = 1\n"),
        ("Use `f`, or ```x``` in line.\n```\ny = 2\n```", "y = 2\n"),
        ("    return x + 1\n", "    return x + 1\n"),
        ("no code at all", "no code at all"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\n"),
        ("", ""),
    ],
)
def test_what_is_taken_for_code(answer, expected):
    assert code.extracted(answer) == expected


# ---------------------------------------------------------------------------------------------------------------------
# HumanEval and MBPP

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from math import floor\n\ndef helper(x):\n    return x\n\n\n"
    'def rounded(x: float) -> int:\n    """ Round x down.\n    """\n',
    "entry_point": "rounded",
    "canonical_solution": "    return floor(helper(x))\n",
    "test": "def check(candidate):\n    assert candidate(1.5) == 1\n    assert candidate(-1.5) == -2\n",
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return floor(helper(x))\n", True),
        ("    return floor(helper(x)) + 1\n", False),
        ("def rounded(x):\n    return floor(helper(x))", True),  # imports and helpers are the prompt's
        ("import math\n\ndef rounded(x):\n    return math.floor(x)\n", True),
        ("def rounded(x):\n    return int(x)", False),
        ("def rounded_down(x):\n    return floor(x)", False),
        ("def check(candidate):\n    pass", False),
        ("", False),
    ],
)
def test_humaneval_takes_the_whole_function_or_its_rest(monkeypatch, answer, right):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert code.humaneval_results(HUMANEVAL, [answer]) == {"pass@1": float(right)}


def test_mbpps_own_solutions_pass_their_tests_and_broken_ones_do_not(mbpp):
    some = mbpp[::26] + [row for row in mbpp if row["test_setup_code"]]
    assert len(some) == 40
    for row in some:
        assert code.passes(code.mbpp_program(row, row["code"])) == (True, "passed"), row["task_id"]
    for row in (row for row in some[::4] if "return" in row["code"]):
        assert not code.passes(code.mbpp_program(row, row["code"].replace("return", "return None #"))).passed


def answers(solution, fenced):
    """The `LM` that gives the reference solution, in an instruct model's words or bare; every third answer is wrong."""
    from lm_eval.api.model import LM

    class Answers(LM):
        def generate_until(self, requests, disable_tqdm=False):
            self.asked = [request.args for request in requests]
            texts = ["assert False" if i % 3 == 0 else request.doc[solution] for i, request in enumerate(requests)]
            return [f"Of course!\n```python\n{text}\n```\nThat is it." if fenced else text for text in texts]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    return Answers()


@pytest.fixture
def evaluated(monkeypatch):
    """lm-eval's own run of one of our tasks on some rows, which stand for the data set on the hub."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    def run(task, splits, lm):
        asked = []
        rows = datasets.DatasetDict({name: datasets.Dataset.from_list(some) for name, some in splits.items()})
        monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **_: asked.append((path, name)) or rows)
        monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
        manager = TaskManager(include_path=str(TASKS), include_defaults=False)
        more = {"confirm_run_unsafe_code": True, "bootstrap_iters": 0, "log_samples": True}
        found = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, **more)
        return asked[0], found["results"][task], found["samples"][task]

    return run


@pytest.mark.parametrize(("task", "fenced"), [("mbpp_instruct_llada", True), ("mbpp_local", False)])
def test_mbpp_through_lm_eval_scores_what_the_answers_deserve(mbpp, evaluated, task, fenced):
    lm = answers("code", fenced)
    data, scores, samples = evaluated(task, {"test": mbpp[10:16], "prompt": mbpp[:10]}, lm)
    assert data == ("google-research-datasets/mbpp", "full")
    assert scores["pass@1,extract_code" if fenced else "pass@1,none"] == pytest.approx(4 / 6)
    assert [sample["pass@1"] for sample in samples] == [0, 1, 1, 0, 1, 1]
    if fenced:
        assert samples[1]["resps"][0][0].startswith("Of course!"), "the raw answer is kept"
        assert samples[1]["filtered_resps"] == [unix(mbpp[11]["code"]) + "\n"], "and so is its code"
    prompt, given = lm.asked[1]
    asked = [row for row in mbpp if row["text"] in prompt]
    assert [row["task_id"] for row in asked] == [2, 3, 4, 12], "three examples, then the question"
    assert all(test in prompt for row in asked for test in row["test_list"])
    assert [unix(row["code"]).strip() in unix(prompt) for row in asked] == [True, True, True, False]
    assert (given["until"], given["max_gen_toks"]) == (([], 256) if fenced else (["[DONE]"], 1024))


@pytest.mark.parametrize(("task", "fenced"), [("humaneval_instruct_llada", True), ("humaneval_local", False)])
def test_humaneval_through_lm_eval_scores_what_the_answers_deserve(evaluated, task, fenced):
    lm = answers("canonical_solution", fenced)
    data, scores, _ = evaluated(task, {"test": [HUMANEVAL] * 3}, lm)
    assert data == ("openai/openai_humaneval", None)
    assert scores["pass@1,extract_code" if fenced else "pass@1,none"] == pytest.approx(2 / 3)
    prompt, given = lm.asked[0]
    assert HUMANEVAL["prompt"].rstrip() in prompt
    assert fenced or prompt == HUMANEVAL["prompt"]
    assert (given["until"] == [], given["max_gen_toks"]) == ((True, 512) if fenced else (False, 1024))


def test_a_task_that_runs_code_says_so_to_lm_eval():
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    for path in sorted(TASKS.glob("*.yaml")):
        keys = yaml.load(path.read_text(encoding="utf-8"), Loader)
        keys = {**(yaml.load((TASKS / keys["include"]).read_text(), Loader) if "include" in keys else {}), **keys}
        assert keys["task"] == path.stem
        assert keys["unsafe_code"] is True
