"""Python that a model wrote, run against its tests: pass@1 without a network.

In:  a program's text; or, from the task files of `tasks/`, a question and a model's answer.
Out: whether the program came to its end, and why not; {"pass@1": 0 or 1} for lm-eval.

lm-eval 0.4.13's own HumanEval and MBPP load their metric from the hub when they are imported (`evaluate.load`), so they
need a network before the first question. These need none.

A program runs in a process of its own with limits. That keeps accidents away, not malice: it may read what this user
may read, and reach the network. So it runs only with leave, HF_ALLOW_CODE_EVAL=1, the word of the `evaluate` library.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from unmask.config import UserError

LEAVE = "HF_ALLOW_CODE_EVAL"
KEPT = 65536  # bytes read of what a process reports; its report has a few hundred

# What the fresh process runs. The order matters: the way to report is kept aside before the program can print; the
# token is read from standard input, so that it stands on no command line; `os._exit` waits for no thread that is left.
RUNNER = """
import json, os, sys, types
job = json.load(sys.stdin)
report, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nowhere, number)
try:
    import resource
except ImportError:
    resource = None
def limit(name, most):
    hard = resource.getrlimit(getattr(resource, name))[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(getattr(resource, name), (most, most))
for name, most in job["limits"].items() if resource else ():
    try:
        limit(name, most)
    except (AttributeError, ValueError, OSError):
        pass  # macOS has no RLIMIT_AS that can be set; time is limited from outside everywhere
def why(error):
    import traceback
    text = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1][:200]
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    return text + (" at " + job["program"].splitlines()[lines[0] - 1].strip()[:200] if lines else "")
code = None
module = types.ModuleType("program")
sys.modules["program"] = module
sys.argv = ["program"]
try:
    code = compile(job["program"], "program", "exec")
    exec(code, module.__dict__)
except SystemExit:
    found = "left before its tests were done: SystemExit"
except BaseException as error:
    found = "failed: " + why(error)
else:
    found = "passed"
os.write(report, (json.dumps([job["token"], os.getpid(), found]) + "\\n").encode())
os._exit(0)
"""


class Outcome(NamedTuple):
    """What came of a program: `why` is "passed", "failed: AssertionError at …", "timed out after …", …"""

    passed: bool
    why: str


def allowed() -> bool:
    """Whether the user has given leave to run code that a model wrote."""
    return os.environ.get(LEAVE) == "1"


def check_allowed(tasks: Sequence[str]) -> None:
    """UserError if there are tasks that run a model's code, and no leave to do so."""
    if tasks and not allowed():
        raise UserError(
            f"{', '.join(tasks)}: scored by running Python that the model writes, on this machine and as this user. "
            f"If that is meant, best in a container, type: export {LEAVE}=1"
        )


def passes(program: str, *, seconds: float = 10.0, memory_mb: int = 2048) -> Outcome:
    """Whether a program, tests and all, comes to its end within its limits.

    A fresh Python in an empty folder, which goes afterwards; nothing to read on standard input, what it prints is
    dropped, none of this process's environment. At the end every process of its session is killed. Coming to the end is
    told by a token and the process's own number: neither `sys.exit(0)` before the tests nor a child can tell it.

    Args:
        program: Python source. It is not `__main__`, so a block under that name does not run.
        seconds: of wall-clock time.
        memory_mb: of address space, in MiB, where the system limits it (Linux).

    Raises:
        UserError: the system has no sessions that could be killed (Windows).
    """
    if os.name != "posix":
        raise UserError("running a model's code needs Linux or macOS; on Windows use WSL.")
    job: dict[str, Any] = {"program": program, "token": secrets.token_hex(16)}
    job["limits"] = {
        "RLIMIT_AS": memory_mb << 20,
        "RLIMIT_CPU": int(seconds) + 2,  # ends also what left the session
        "RLIMIT_FSIZE": 64 << 20,
        "RLIMIT_CORE": 0,
    }
    with tempfile.TemporaryDirectory(prefix="unmask-code-", ignore_cleanup_errors=True) as folder:
        # `-I` would ignore PYTHONHASHSEED too, and then the order of a set of words changes from run to run. With an
        # environment of our own, `-s -P` shuts out the same: the user's site and the current folder.
        environment = {
            "PATH": os.defpath,
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",  # each thread of numpy takes address space
            "OPENBLAS_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin
        assert process.stdout
        with process.stdout:
            late = False
            try:
                with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says so below
                    process.stdin.write(json.dumps(job).encode())
                    process.stdin.close()
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with contextlib.suppress(ProcessLookupError):  # the whole session has ended
                    os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            os.set_blocking(process.stdout.fileno(), False)  # what left the session may hold the pipe open
            said = process.stdout.read(KEPT) or b""
    found = _verdict(said, job["token"], process.pid)
    if found is not None:
        return Outcome(found == "passed", found)
    if late:
        return Outcome(False, f"timed out after {seconds:g} s")
    if code < 0:
        return Outcome(False, f"killed by signal {-code}: {signal.strsignal(-code)}")
    return Outcome(False, f"left before its tests were done: exit code {code}")


def _verdict(said: bytes, token: str, process: int) -> str | None:
    """What the process itself reported; None if it did not: lines of its children, or made up, are passed over."""
    start = json.dumps([token, process])[:-1]
    for line in said.decode(errors="replace").splitlines():
        if line.startswith(start):
            return str(json.loads(line)[2])
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The code in an answer

# A fenced block: from a line of ``` with or without a language to the next line of ```, or to the end of an answer that
# was cut. The first pattern wants the fence at the start of a line, the second takes one after words too.
FENCES = [
    re.compile(r"^([ \t]*)```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL),
    re.compile(r"()```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL),
]
BEGINS = re.compile(r"^(?:async def|def|class|import) +\w|^from +[\w.]+ +import |^@\w", re.MULTILINE)


def extracted(answer: str) -> str:
    """The code in an answer: the first fenced block, else from the first line on that begins code, else all of it."""
    answer = answer.replace("\r\n", "\n")
    for fence in FENCES:
        if found := fence.search(answer):
            indent, body = found.groups()
            return re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) if indent else body
    begin = BEGINS.search(answer)
    return answer[begin.start() :] if begin else answer


def extract_code(answers: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """lm-eval's filter: the code of each answer. Its samples keep both, as `resps` and `filtered_resps`."""
    return [[extracted(answer) for answer in some] for some in answers]


# ---------------------------------------------------------------------------------------------------------------------
# lm-eval's `process_results`


def humaneval_program(doc: dict[str, Any], code: str) -> str:
    """An answer to a row of openai/openai_humaneval with its tests.

    An answer that has the function itself stands after what the prompt has before it (imports, helpers); any other goes
    on where the prompt ends.
    """
    head = rf"^def +{re.escape(doc['entry_point'])}\b"
    whole = re.search(head, code, re.MULTILINE)
    before = re.split(head, doc["prompt"], maxsplit=1, flags=re.MULTILINE)[0] if whole else doc["prompt"]
    return f"{before}{code}\n{doc['test']}\ncheck({doc['entry_point']})\n"


def mbpp_program(doc: dict[str, Any], code: str) -> str:
    """An answer to a row of google-research-datasets/mbpp (full) with its tests.

    `test_setup_code` follows the answer: the two rows that have any (367, 927) use a class of the answer in it.
    """
    return "\n".join([code, doc["test_setup_code"], *doc["test_list"], ""])


def humaneval_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """{"pass@1": 1.0 or 0.0} of one answer to HumanEval, already extracted."""
    return _scored(humaneval_program(doc, results[0]), "HumanEval")


def mbpp_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """{"pass@1": 1.0 or 0.0} of one answer to MBPP, already extracted."""
    return _scored(mbpp_program(doc, results[0]), "MBPP")


def mbpp_examples(docs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worked examples of MBPP's paper (arXiv:2108.07732): tasks 2, 3 and 4 of the split `prompt`."""
    return list(_marked(docs))


def _marked(docs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for doc in docs:
        if doc["task_id"] in (2, 3, 4):
            yield {**doc, "is_example": True}


def _scored(program: str, task: str) -> dict[str, float]:
    check_allowed([task])
    return {"pass@1": float(passes(program).passed)}
