"""Starts commands of unmask fast, hundreds of times: what takes seconds to import is imported once, each run is a fork.

In:  a command's words, a file for what it says.  Out: a process to wait for, or to kill.

The server imports and computes nothing, so that no thread is alive when it forks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import importlib, json, os, sys
for name in ("torch", "datasets", "accelerate", "matplotlib.figure", "unmask.train", "unmask.trainer",
             "unmask.pretrain", "unmask.models", "unmask.prepare", "unmask.sft", "unmask.trackers", "unmask.tokens",
             "unmask.validate",
             "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
             "transformers.models.auto.tokenization_auto", "transformers.integrations.integration_utils"):
    importlib.import_module(name)
from unmask.__main__ import main
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(0)
    code = 70
    try:
        code = main(asked["words"])
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@dataclass
class Process:
    """A run that was started. Its code is that of a signal, negative, if one ended it."""

    pid: int
    server: Forks

    def wait(self) -> int:
        return int(self.server.ask(wait=self.pid))

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended by then; what it left is still to be waited for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if ended(self.pid):
                return True
            time.sleep(0.002)
        return ended(self.pid)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)


def ended(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Forks:
    def __init__(self) -> None:
        env = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **what: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, words: list[str], log: Path) -> Process:
        return Process(int(self.ask(words=words, log=str(log))), self)

    def run(self, words: list[str], log: Path) -> int:
        return self.start(words, log).wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
