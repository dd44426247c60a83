"""All measurements, one after the other: `make bench ARGS="--shared SHARED"`, or `python benchmarks/run.py`.

In:  parts by name; a folder with real text and tokenizers for `sft` and `data`.
Out: results/*.json, and the tables in README.md beside this file made from them.

    pretrain  a step of pretraining, float32 and bfloat16 (training.py)
    sft       a step of tuning on Alpaca's rows (training.py)
    lora      a step of LoRA on an 8B-shaped model (training.py); with --device cuda
    data      text to rows of tokens (data.py)
    decode    decoding (decoding.py)
    eval      likelihood (eval.py)

Leave the machine alone meanwhile: what other processes take is recorded, and disturbed rounds are run again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PARTS = ("pretrain", "sft", "lora", "data", "decode", "eval")
TOKENIZERS = ("gpt2_tokenizer", "sdar_qwen3_tokenizer")


def commands(part: str, arguments: Any, scratch: Path) -> list[list[str]]:
    """The command lines of a part, without Python's own."""
    where = [] if arguments.device == "cpu" else ["--device", arguments.device]
    training = RESULTS / ("training.json" if arguments.device == "cpu" else f"training_{arguments.device}.json")
    small = ["--preset", "llada-200k", "--rounds", "1", "--steps", "1", "--warm", "1"] if arguments.tiny else []
    if part in ("pretrain", "sft", "lora"):
        precisions = ("float32", "bfloat16") if part == "pretrain" else ("bfloat16",)
        if arguments.device != "cpu":
            small += ["--largest"]
        output = scratch / "training.json" if arguments.tiny else training
        more = ["--length", "32"] if arguments.tiny and part != "sft" else []
        more += ["--rows", str(scratch / "rows")] if part == "sft" else []
        return [
            ["training.py", part, "--precision", one, *more, *small, *where, "--output", str(output)]
            for one in precisions
        ]
    if part == "data":
        found = []
        for name in TOKENIZERS:
            base = ["data.py", "--shared", str(arguments.shared), "--tokenizer", name]
            base += ["--output", str(RESULTS / "data.json")]
            found += [[*base, "--settings"], base, [*base, "--memory", "20", "200", "2000"]]
        return found
    return [["decoding.py" if part == "decode" else "eval.py", *where]]


def alpaca(shared: Path, folder: Path) -> None:
    """Rows of Alpaca as `unmask prepare sft` writes them, of at most 1,024 tokens."""
    model = folder.parent / "model"
    unmask = [sys.executable, "-m", "unmask"]
    tokenizer = shared / "data" / "sdar_qwen3_tokenizer"
    subprocess.run([*unmask, "init", "llada-100M", "--tokenizer", tokenizer, "--output_dir", model], check=True)
    data = f"{shared / 'data' / 'alpaca' / 'alpaca_data_train.json'}[train:2000,test:10]"
    asked = ["--model_name_or_path", model, "--dataset_args", data, "--output_dir", folder]
    subprocess.run([*unmask, "prepare", "sft", *asked], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def training_table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| step | way | seconds | tokens/s | peak memory | of the rate | ours is faster by | ours takes |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, result in found.items():
        medians = result["medians"]
        learnt = "learnt_per_second" if name.startswith("sft") else "tokens_per_second"
        for way, seconds in medians["seconds"].items():
            share = f"{medians['share'][way]:.0%}" if "share" in medians else ""
            beside = medians.get(f"{way} / ours")
            faster = less = ""
            if beside:
                middle, least, most = beside["seconds"]
                faster, less = f"{middle:.2f}× ({least:.2f}–{most:.2f})", f"{beside['peak_bytes']:.0%}"
            peak = f"{medians['peak_bytes'][way] / 2**30:.2f} GiB"
            cells = [name, way, f"{seconds:.2f}", f"{medians[learnt][way]:,.0f}", peak, share, faster, less]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def data_table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| tokenizer | text | plain | ours | ours is faster by |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, result in found["tokenizers"].items():
        for size, pairs in result.get("pairs", {}).items():
            medians = pairs["medians"]
            seconds = medians["seconds"]
            middle, least, most = medians["plain / ours"]["seconds"]
            times = f"{middle:.1f}× ({least:.1f}–{most:.1f})"
            lines.append(f"| {name} | {size} | {seconds['plain']:.1f} s | {seconds['ours']:.2f} s | {times} |")
    lines += ["", "| tokenizer | text | seconds | most memory of its own |", "|---|--:|--:|--:|"]
    for name, result in found["tokenizers"].items():
        for size, one in result.get("memory", {}).items():
            lines.append(f"| {name} | {size} | {one['seconds']:.1f} | {one['peak_bytes'] / 2**20:,.0f} MiB |")
    return lines


def estimate_table(found: dict[str, Any]) -> list[str]:
    lines = ["| run | estimated | measured, median of five | off by |", "|---|--:|--:|--:|"]
    for name, one in found["runs"].items():
        estimated, measured = (f"{one[key] / 2**30:.2f} GiB" for key in ("estimated", "measured"))
        lines.append(f"| {name} | {estimated} | {measured} | {one['estimated'] / one['measured'] - 1:+.0%} |")
    return lines


TABLES = {
    "training": ("training.json", training_table),
    "training_cuda": ("training_cuda.json", training_table),
    "data": ("data.json", data_table),
    "estimate": ("estimate.json", estimate_table),
}


def write_tables(page: Path, results: Path = RESULTS) -> None:
    """Puts each table between its two marks on a page."""
    text = page.read_text(encoding="utf-8")
    for name, (file, table) in TABLES.items():
        path, (begin, end) = results / file, (f"<!-- {name}: begin -->", f"<!-- {name}: end -->")
        if path.exists() and begin in text:
            made = "\n".join(table(json.loads(path.read_text(encoding="utf-8"))))
            text = re.sub(f"(?s){re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{made}\n{end}", text)  # noqa: B023
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["pretrain", "sft", "data", "decode", "eval"])
    parser.add_argument("--shared", type=Path, help="the folder with `data`, for sft and data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a trial: small models, one round, nothing recorded")
    parser.add_argument("--tables", action="store_true", help="make the tables alone")
    arguments = parser.parse_args()
    if arguments.tables:
        return write_tables(HERE / "README.md")
    if arguments.shared is None and {"sft", "data"} & set(arguments.parts):
        parser.error("sft and data need --shared, or leave them out: --parts pretrain decode eval")
    with tempfile.TemporaryDirectory() as scratch:
        if "sft" in arguments.parts:
            alpaca(arguments.shared.resolve(), Path(scratch) / "rows")
        for part in arguments.parts:
            for command in commands(part, arguments, Path(scratch)):
                print("$ python", *command, file=sys.stderr, flush=True)
                subprocess.run([sys.executable, HERE / command[0], *command[1:]], check=True)
    if not arguments.tiny:
        write_tables(HERE / "README.md")


if __name__ == "__main__":
    main()
