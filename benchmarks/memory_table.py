"""The tables of docs/devices.md: what each way of sharing a model needs on a GPU, computed by `unmask estimate`.

In:  nothing.  Out: the tables between the marks in docs/devices.md and docs/devices.zh-CN.md, made again:
     `python benchmarks/memory_table.py`; about three minutes on two cores, no GPU and no weights.

Nothing here is measured. `row(name)` is one row; a test compares one with the pages.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask import estimation, init
from unmask.estimate import step

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs" / "devices.md", ROOT / "docs" / "devices.zh-CN.md"]
GPUS = 8
COMMON = "--device cuda --per_device_train_batch_size 2 --max_length 1024 --gradient_checkpointing true"
PRETRAIN = f"pretrain --gradient_accumulation_steps 8 {COMMON}"
LORA = f"sft --lora true --target_modules all-linear --r 32 --gradient_accumulation_steps 8 {COMMON}"
BILLION = init.llada(2048, 22, 32, 5634, 2048, 10_000.0, n_kv_heads=4)  # LLaDA 1B (arXiv:2502.09992)
# row → (command and settings, model)
RUNS: dict[str, tuple[str, str | dict[str, Any]]] = {
    "100M": (PRETRAIN, "llada-100M"),
    "1B": (PRETRAIN, BILLION),
    "8B": (PRETRAIN, "llada-8B"),
    "8B, LoRA": (LORA, "llada-8B"),
}
WAYS = ["ddp", "zero1", "zero2", "zero3", "fsdp"]
AWAY = ["zero2-offload", "zero3-offload", "fsdp-offload"]


def parts(name: str, ways: list[tuple[str, int]]) -> Iterator[tuple[float, float]]:
    """For each way and number of GPUs: GiB on a GPU, and GiB in the machine's memory for all of them."""
    words, model = RUNS[name]
    kind, *flags = words.split()
    steps: dict[bool, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, dict):
            (Path(folder) / "config.json").write_text(json.dumps(model), encoding="utf-8")
        where = folder if isinstance(model, dict) else model
        for way, count in ways:
            more = ["--model_name_or_path", where, "--num_processes", str(count), "--sharding", way]
            parsed = estimation.parse_run(kind, [*flags, *more])
            asked = parsed.groups[-1]
            what = estimation.plan(kind, parsed)
            asked.device = what.shape.device
            if what.narrow not in steps:
                steps[what.narrow] = step(what.make, what.shape, what.optimiser)
            here, away = estimation.shares(steps[what.narrow], asked, what)
            yield sum(here.values()) / estimation.GIB, away * count / estimation.GIB


def amount(size: float) -> str:
    return f"{size:.1f}" if size < 10 else f"{size:.0f}"


def row(name: str) -> str:
    """One GPU, then 8 by each way."""
    cells = [amount(here) for here, _ in parts(name, [("ddp", 1), *((way, GPUS) for way in WAYS)])]
    return " | ".join([f"| {name}", *cells]) + " |"


def row_off(name: str) -> str:
    """With what is not in use in the machine's memory, behind the plus. The number of GPUs in it changes neither."""
    cells = [f"{amount(here)} + {amount(away)}" for here, away in parts(name, [(way, 1) for way in AWAY])]
    return " | ".join([f"| {name}", *cells]) + " |"


def filled(text: str) -> str:
    """A page with its tables made again."""
    for mark, make in (("memory", row), ("offload", row_off)):
        begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
        inside = re.escape(begin) + r"\n(\|.*\n\|.*\n)(?s:.*?)" + re.escape(end)
        rows = "\n".join(make(name) for name in RUNS)
        text, count = re.subn(inside, lambda found: f"{begin}\n{found[1]}{rows}\n{end}", text)  # noqa: B023
        assert count == 1, f"no table between {begin} and {end}"
    return text


def main() -> int:
    first, *others = (page.read_text(encoding="utf-8") for page in PAGES)
    made = [filled(first), *others]
    for mark in ("memory", "offload"):  # the same rows in each language
        rows = re.search(rf"(?s)<!-- {mark}: begin -->\n\|.*?\n\|.*?\n(.*?)<!-- {mark}: end -->", made[0])
        assert rows
        pattern = rf"(?s)(<!-- {mark}: begin -->\n\|.*?\n\|.*?\n).*?(<!-- {mark}: end -->)"
        made[1:] = [re.sub(pattern, lambda found: found[1] + rows[1] + found[2], text) for text in made[1:]]  # noqa: B023
    for page, text in zip(PAGES, made, strict=True):
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
