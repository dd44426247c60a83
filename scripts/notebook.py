#!/usr/bin/env python3
"""The guide's notebook, made from its page: `python scripts/notebook.py [--run]`.

In:  docs/en/notebook.md and, if it is there, docs/zh/notebook.md: text, and cells between ```python and ```.
Out: notebook.ipynb beside each. With --run the cells of the English page are run, in an empty folder, and what they
     print is kept in every language; without it what was kept before stays.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [DOCS / "en" / "notebook.md", DOCS / "zh" / "notebook.md"]
LONGEST = 40  # lines kept of what a cell printed


def parts(page: Path) -> list[tuple[str, str]]:
    """(markdown or code, its text), in the page's order."""
    pieces = re.split(r"(?ms)^```python\n(.*?)^```\n", page.read_text(encoding="utf-8"))
    kinds = [("code" if number % 2 else "markdown", text.strip("\n")) for number, text in enumerate(pieces)]
    return [(kind, text) for kind, text in kinds if text]


def cells(page: Path) -> list[str]:
    return [text for kind, text in parts(page) if kind == "code"]


def printed(code: list[str]) -> list[str]:
    """What each cell prints, run one after the other in an empty folder."""
    names: dict[str, Any] = {}
    found = []
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for text in code:
                out = io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of libraries, which name files of this machine
                    exec(compile(text, "notebook", "exec"), names)
                found.append(out.getvalue())
        finally:
            os.chdir(here)
    return found


def shortened(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines if len(lines) <= LONGEST else [*lines[:LONGEST], "…\n"])


def notebook(page: Path, outputs: list[str]) -> dict[str, Any]:
    made = []
    left = iter(outputs)
    for number, (kind, text) in enumerate(parts(page)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            told = next(left, "")
            stream = {"name": "stdout", "output_type": "stream", "text": told.splitlines(keepends=True)}
            cell |= {"execution_count": None, "outputs": [stream] if told else []}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def kept(file: Path) -> list[str]:
    """What the cells of a notebook printed when it was last run."""
    if not file.exists():
        return []
    found = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(out["text"]) for out in cell["outputs"]) for cell in found]


def text_of(page: Path, outputs: list[str]) -> str:
    return json.dumps(notebook(page, outputs), ensure_ascii=False, indent=1) + "\n"


def main(argv: list[str]) -> int:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--run", action="store_true", help="run the cells and keep what they print")
    english = PAGES[0]
    if reader.parse_args(argv).run:
        outputs = [shortened(text) for text in printed(cells(english))]
    else:
        outputs = kept(english.with_suffix(".ipynb"))
    for page in PAGES:
        if page.exists():
            page.with_suffix(".ipynb").write_text(text_of(page, outputs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
