"""Answers so far: each written down as soon as it is known, so that what was stopped goes on.

In:  a folder, and answers by what was asked.
Out: `responses-RANK.jsonl`, one file a process; any number of processes reads them all.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

FILES = "responses-*.jsonl"


def key_of(*asked: Any) -> str:
    """A fingerprint of what is asked: of anything that JSON can hold, and of ids, which are the most of it."""
    made = hashlib.blake2b(digest_size=16)
    for part in asked:
        ids = isinstance(part, tuple)
        made.update(b"ids" + array.array("q", part).tobytes() if ids else json.dumps(part, default=str).encode())
        made.update(b"\0")
    return made.hexdigest()


class Store:
    """Answers by key, in memory and, with a folder, on disk.

    Args:
        settings: what else the answers hang on: answers under others are not taken.
    """

    def __init__(self, folder: Path | None = None, rank: int = 0, settings: Any = None) -> None:
        self.salt = key_of(settings)
        self.answers: dict[str, dict[str, Any]] = {}
        self.found = 0
        self.path = None if folder is None else folder / f"responses-{rank}.jsonl"
        for path in sorted(folder.glob(FILES)) if folder else ():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a last line cut short when the process was killed
                    one = json.loads(line)
                    if one.pop("settings", None) == self.salt:
                        self.answers[one.pop("key")] = one
        self.found = len(self.answers)
        self.file = None
        if self.path:
            # a line cut short would swallow the next one
            whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
            self.file = self.path.open("a", encoding="utf-8")
            self.file.write("" if whole else "\n")

    def get(self, key: str) -> dict[str, Any] | None:
        return self.answers.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        self.answers[key] = answer
        if self.file:
            line = {"key": key, "settings": self.salt, **answer}
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None
