"""Text to rows of tokens, plain and ours: `python benchmarks/data.py --shared SHARED --tokenizer gpt2_tokenizer`.

In:  a folder with real text and tokenizers (SOURCES), and Python's own library.
Out: for each tokenizer, seconds from a jsonl of 20 MB to rows on the disk, each run in a process of its own, plain and
     ours in turn; `--settings`: plain at each setting, once; `--memory`: ours, anonymous memory by size of the text.

Plain is the tutorial's way: `datasets.map` with the tokenizer of `transformers`, then a second map that joins lists and
cuts them. Both keep the tail of what they cut, so that their tokens can be compared. Caches are off and empty. A run
begins with the tokenizer loaded. Rounds that were disturbed are run again (sides.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sides

LENGTH = 1024
PACKAGES = ("datasets", "tokenizers", "transformers", "fastokens", "pyarrow", "numpy")
# file, how it is read (names of columns, or what stands between documents); each is taken once
SOURCES: list[tuple[str, list[str] | str]] = [
    ("alpaca/alpaca_data_train.json", ["instruction", "input", "output"]),
    ("chinese_poetry/poems.jsonl", ["text"]),
    ("wikitext2/raw/wiki.validation.raw.txt", "\n \n"),
    ("tinystories/smallGPT.txt", "<|endoftext|>"),
    ("tinyshakespeare/input.txt", "\n\n\n"),
    ("llm_foundry_eval/boolq.jsonl", ["query"]),
    ("llm_foundry_eval/dolly_hhrlhf_train_small.jsonl", ["prompt", "response"]),
    ("llm_foundry_eval/lambada_openai.jsonl", ["context"]),
    ("llama_factory_demo/c4_demo.jsonl", ["text"]),
    ("llama_factory_demo/wiki_demo.txt", "\n\n\n"),
    ("gsm8k/train.jsonl", ["question", "answer"]),
]


def documents(data: Path) -> Iterator[str]:
    for name, how in SOURCES:
        text = (data / name).read_text(encoding="utf-8")
        if isinstance(how, str):
            yield from text.split(how)
            continue
        rows = json.loads(text) if name.endswith(".json") else map(json.loads, text.splitlines())
        for row in rows:
            yield "\n".join(str(row[column]) for column in how if row.get(column))
    for path in sorted(Path(json.__file__).parent.parent.glob("*.py")):
        yield path.read_text(encoding="utf-8")


def write_text(data: Path, path: Path, megabytes: int) -> None:
    """A jsonl of so much text in a fixed random order; beyond 20 MB repeated, each document then with its number."""
    some = [text for text in documents(data) if text.strip()]
    random.Random(0).shuffle(some)
    size = 0
    for i, text in enumerate(some):
        size += len(text.encode())
        if size >= 20e6:
            some = some[: i + 1]
            break
    with path.open("w", encoding="utf-8") as file:
        for turn in range(max(1, megabytes // 20)):
            for text in some:
                file.write(json.dumps({"text": f"{turn} {text}" if turn else text}, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# One run, in a process of its own


def anonymous() -> int:
    """Bytes of this process that are no file's: what a growing corpus must not make grow."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


class Peak(threading.Thread):
    """The most anonymous memory seen, every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = anonymous(), threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.bytes = max(self.bytes, anonymous())


def plain(rows: Any, tokenizer: Any, workers: int | None, batch: int) -> Any:
    end = tokenizer.eos_token_id

    def tokenise(some: dict[str, list[str]]) -> dict[str, Any]:
        ids = tokenizer(some["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*one, end] for one in ids]}

    def group(some: dict[str, list[list[int]]]) -> dict[str, Any]:
        ids = [i for one in some["input_ids"] for i in one]
        return {"input_ids": [ids[i : i + LENGTH] for i in range(0, len(ids), LENGTH)]}

    how: dict[str, Any] = {"batched": True, "batch_size": batch, "num_proc": workers}
    return rows.map(tokenise, remove_columns=rows.column_names, **how).map(group, **how)


def ours(rows: Any, tokenizer: Any, workers: int | None, batch: int) -> Any:
    from unmask import tokens

    return tokens.group(rows, tokenizer, max_length=LENGTH, drop_tail=False, num_proc=2, disable_caching=True)


def child(arguments: Any) -> None:
    """One run; one line of JSON."""
    import datasets
    import numpy as np
    import transformers

    from unmask import tokens  # as costly to import as what it stands on, so before the clock for both

    del tokens
    datasets.disable_caching()
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    kind = transformers.GPT2TokenizerFast if "gpt2" in arguments.tokenizer else transformers.AutoTokenizer
    tokenizer = kind.from_pretrained(arguments.tokenizer)
    began, before = time.perf_counter(), anonymous()
    loaded = datasets.load_dataset("json", data_files=arguments.text, split="train")
    read, peak = time.perf_counter(), Peak()
    way = plain if arguments.child == "plain" else ours
    rows = way(loaded, tokenizer, arguments.workers, arguments.batch)
    done = time.perf_counter()
    peak.over.set()
    digest, count = hashlib.sha256(), 0
    for table in rows.with_format("arrow").iter(batch_size=1000):
        ids = table["input_ids"].combine_chunks().flatten().to_numpy().astype(np.int32)
        digest.update(ids)
        count += len(ids)
    found = {"seconds": done - began, "seconds_reading": read - began, "tokens": count, "digest": digest.hexdigest()}
    print(json.dumps(found | {"anonymous_before": before, "peak_bytes": max(peak.bytes, anonymous())}))


# ---------------------------------------------------------------------------------------------------------------------
# Runs side by side


def run(way: str, text: Path, tokenizer: Path, workers: int | None = None, batch: int = 1000) -> dict[str, Any]:
    """One run, with caches that are its own."""
    with tempfile.TemporaryDirectory(dir=text.parent) as cache:
        command = [sys.executable, __file__, "--child", way, "--text", str(text), "--tokenizer", str(tokenizer)]
        command += ["--batch", str(batch), *([] if workers is None else ["--workers", str(workers)])]
        return sides.run(command, HF_HOME=cache, HF_DATASETS_CACHE=cache, TMPDIR=cache)


def check(found: sides.Round) -> None:
    if found["plain"]["digest"] != found["ours"]["digest"]:
        sys.exit("the tokens differ.")


def pairs(text: Path, tokenizer: Path, workers: int | None, batch: int, count: int) -> dict[str, Any]:
    """So many undisturbed rounds."""
    ways = {
        "plain": lambda: run("plain", text, tokenizer, workers, batch),
        "ours": lambda: run("ours", text, tokenizer),
    }
    made = sides.rounds(ways, count, check)
    settings = {"num_proc": workers, "batch_size": batch}
    return {
        "plain_settings": settings,
        "medians": sides.medians(made, ["seconds", "peak_bytes"], "ours"),
        "rounds": made,
    }


def settings(text: Path, tokenizer: Path) -> list[dict[str, Any]]:
    """Plain at each setting, once."""
    found = []
    for workers, batch in ((None, 250), (None, 1000), (None, 4000), (1, 1000), (2, 250), (2, 1000)):
        one = run("plain", text, tokenizer, workers, batch)
        found.append({"num_proc": workers, "batch_size": batch} | {k: one[k] for k in ("seconds", "others")})
        print(found[-1], file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, help="the folder with `data`")
    parser.add_argument("--tokenizer", help="a folder of it with a byte-level BPE")
    parser.add_argument("--workers", type=int, help="plain's num_proc; none if left out")
    parser.add_argument("--batch", type=int, default=1000, help="plain's batch size")
    parser.add_argument("--settings", action="store_true", help="find plain's best setting")
    parser.add_argument("--memory", type=int, nargs="+", metavar="MB", help="ours at these sizes")
    parser.add_argument("--scratch", type=Path, help="folder for the text and caches; five times the text")
    parser.add_argument("--megabytes", type=int, default=20, help="of text, for pairs")
    parser.add_argument("--pairs", type=int, default=5, help="undisturbed pairs to run")
    parser.add_argument("--output", type=Path, help="JSON to put the results into")
    parser.add_argument("--text", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    tokenizer = arguments.shared / "data" / arguments.tokenizer
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        text = Path(scratch) / "text.jsonl"
        write_text(arguments.shared / "data", text, arguments.megabytes)
        if arguments.settings:
            found["plain_settings"] = settings(text, tokenizer)
        elif arguments.memory:
            found["memory"] = {}
            for size in arguments.memory:
                write_text(arguments.shared / "data", text, size)
                one = run("ours", text, tokenizer)
                kept = ("seconds", "tokens", "anonymous_before", "peak_bytes", "others")
                found["memory"][f"{size} MB"] = {name: one[name] for name in kept}
        else:
            made = pairs(text, tokenizer, arguments.workers, arguments.batch, arguments.pairs)
            found["pairs"] = {f"{arguments.megabytes} MB": made}
    print(json.dumps(found))
    if arguments.output:
        before = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
        about = {"what": __doc__.split("\n\n")[1], "sources": [name for name, _ in SOURCES] + ["Python's library"]}
        before |= about | {"command": f"python benchmarks/data.py --shared SHARED --tokenizer {arguments.tokenizer}"}
        before["machine"] = sides.machine(*PACKAGES)
        entry = before.setdefault("tokenizers", {}).setdefault(arguments.tokenizer, {})
        for name, value in found.items():
            entry[name] = entry.get(name, {}) | value if isinstance(value, dict) else value
        arguments.output.write_text(json.dumps(before, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
