"""Decoding beside the plain loop: how much faster, in how much less memory, and how alike.

In:  nothing; the tutorial's 124M architecture with random weights, the head sharpened so that confidences spread.
Out: results/decoding.json: ratios of runs side by side on this machine, medians of several.

    python benchmarks/decoding.py [--runs 5] [--device cuda] [--dtype bfloat16]

The plain loop is written here from the published description (arXiv:2502.09992, algorithm 5, low-confidence remasking
within blocks): at every step the logits of the whole canvas, their softmax, and the surest open place of the block.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from unmask import decoding, measure, models, report
from unmask.canvas import Canvas
from unmask.models.llada import LLaDAConfig

HERE = Path(__file__).parent
MASK = 126336
PROMPT, NEW, BLOCK = 64, 128, 32
SHARPER = 24.0  # times the head: then about a third of the places read are surer than 0.9


def network(device: str, dtype: str) -> Any:
    """The tutorial's 124M LLaDA with weights that are the same everywhere."""
    config = LLaDAConfig(
        d_model=448,
        n_layers=6,
        n_heads=7,
        mlp_hidden_size=896,
        max_sequence_length=2048,
        vocab_size=126464,
        mask_token_id=MASK,
        eos_token_id=126081,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.lm_head.weight.data *= SHARPER
    return model.to(device, getattr(torch, dtype))


@torch.no_grad()
def plain(model: Any, prompts: torch.Tensor, new: int, steps: int, block: int) -> torch.Tensor:
    """The published loop, with every logit: prompts (rows, prompt) → (rows, prompt + new)."""
    x = torch.cat([prompts, prompts.new_full((len(prompts), new), MASK)], 1)
    blocks = new // block
    for b in range(blocks):
        end = prompts.shape[1] + (b + 1) * block
        for _ in range(steps // blocks):
            masked = x == MASK
            logits = model(input_ids=x, use_cache=False).logits
            best = logits.argmax(-1)
            sure = torch.softmax(logits, -1).gather(-1, best[..., None])[..., 0]
            sure[:, end:] = -torch.inf
            sure = torch.where(masked, sure, -torch.inf)
            for row in range(len(x)):
                top = sure[row].topk(blocks * block // steps).indices
                x[row, top] = best[row, top]
    return x


CELLS: dict[str, dict[str, Any]] = {
    "exact": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "threshold": {"rule": "threshold"},
    "threshold + dual": {"rule": "threshold", "cache": "dual"},
}


def speed(device: str, dtype: str, runs: int) -> dict[str, Any]:
    """Seconds of an answer by the plain loop and by ours, one after the other, `runs` times."""
    model = network(device, dtype)
    predict = models.predictor(model)
    prompt = torch.randint(0, 126000, (1, PROMPT), generator=torch.Generator().manual_seed(1)).to(device)

    def ours(settings: dict[str, Any]) -> Any:
        canvas = Canvas.after(prompt.tolist(), NEW, MASK)
        return decoding.fill(predict, canvas, steps=NEW, block_size=BLOCK, **settings).rows[0]

    def timed(what: Any, *arguments: Any) -> tuple[float, Any]:
        measure.wait(model.device)
        began = time.perf_counter()
        made = what(*arguments)
        measure.wait(model.device)
        return time.perf_counter() - began, made

    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *CELLS)}
    rows: dict[str, Any] = {}
    plain(model, prompt, BLOCK, BLOCK, BLOCK)
    for _ in range(runs):
        took, whole = timed(plain, model, prompt, NEW, NEW, BLOCK)
        seconds["plain"].append(took)
        for name, settings in CELLS.items():
            took, rows[name] = timed(ours, settings)
            seconds[name].append(took)
    found: dict[str, Any] = {"plain": {"seconds": statistics.median(seconds["plain"]), "passes": NEW}}
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        found[name] = {
            "seconds": statistics.median(seconds[name]),
            "times faster": statistics.median(ratios),
            "from": min(ratios),
            "to": max(ratios),
            "passes": row.passes,
            "full passes": row.computed / len(row.ids),
            "same tokens": float((row.ids[PROMPT:] == whole[0, PROMPT:].cpu()).float().mean()),
        }
    dual, both = found["dual"], found["threshold + dual"]
    # each block's first pass is whole, whatever the rule: that part does not shrink with the passes
    both["expected"] = dual["times faster"] * dual["full passes"] / both["full passes"]
    return found


def memory(device: str, dtype: str, which: str) -> int:
    """Bytes above the loaded model that two steps of a batch of 8 × 1,024 take at most."""
    model = network(device, dtype)
    predict = models.predictor(model)
    prompts = torch.randint(0, 126000, (8, 1024 - NEW), generator=torch.Generator().manual_seed(1)).to(device)
    model(input_ids=prompts[:1, :16], use_cache=False)
    with measure.Peak(model.device) as peak:
        if which == "plain":
            plain(model, prompts, NEW, 4, BLOCK)
        else:
            canvas = Canvas.after(prompts.tolist(), NEW, MASK)
            decoding.fill(predict, canvas, steps=4, block_size=BLOCK, **CELLS[which])
    return int(peak.bytes or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory", help="only this one's peak, printed: what this script calls itself for")
    arguments = parser.parse_args()
    if arguments.memory:
        print(memory(arguments.device, arguments.dtype, arguments.memory))
        return
    dtype, peaks = arguments.dtype, {}
    for which in ("plain", "exact", "dual"):  # a process each, so that no freed memory is used again
        words = [sys.executable, __file__, "--memory", which, "--device", arguments.device, "--dtype", dtype]
        peaks[which] = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
    found = {
        "command": " ".join(["python", "benchmarks/decoding.py", *sys.argv[1:]]),
        "versions": report.versions(),
        "setting": f"124M, {PROMPT} + {NEW} tokens, {NEW} steps, blocks of {BLOCK}, {dtype}, head × {SHARPER}",
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "runs": arguments.runs,
        "speed": speed(arguments.device, dtype, arguments.runs),
        "peak of 8 × 1,024 above the model, bytes": peaks,
        "share of the plain loop's peak": {k: v / peaks["plain"] for k, v in peaks.items() if k != "plain"},
    }
    name = "decoding.json" if arguments.device == "cpu" else f"decoding_{arguments.device}.json"
    (HERE / "results" / name).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
