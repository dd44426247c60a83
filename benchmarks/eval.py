"""Likelihoods beside the plain way: how many more requests a second, at equal values.

In:  nothing; the tutorial's 124M architecture with random weights, the head sharpened so that tokens differ.
Out: results/eval.json: ratios of runs side by side on this machine, medians of several.

    python benchmarks/eval.py [--rounds 3] [--questions 20] [--targets 2] [--device cuda] [--dtype bfloat16]

The plain way is written here from what public harnesses of LLaDA do (arXiv:2502.09992, eq. 6): one request after the
other, a pass for each choice, the draws of one request in batches of 32, and in every pass the logits of all places
over the whole vocabulary. It is handed our draws, and making them is counted for ours alone.

    letters  CMMLU's shape: a question of 60 to 200 tokens, four choices of one token each
    endings  HellaSwag's shape: about 80 tokens given, targets of about 24, each from 128 draws of its masks
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from unmask import estimators, init, likelihood, measure, models, report
from unmask.estimators import Request

RESULTS = Path(__file__).parent / "results"
PRESET = "llada-100M"  # the tutorial's
SHARPER = 24.0  # times the head: random weights alone would find all tokens alike, and any wrong value right
ORDINARY = 126_000  # ids below are no special tokens
SETTINGS = estimators.Settings(mc_num=128)
PLAIN_ROWS = 32
EQUAL = 1e-3  # nats, in float32
BARS = {"letters": 10.0, "endings": 3.0}
Values = list[float]


def network(preset: str, device: str, dtype: str) -> Any:
    """A preset's architecture with weights that are the same everywhere."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(init.make_config(init.read_source(preset)[0])).eval()
    model.lm_head.weight.data *= SHARPER
    return model.to(device, getattr(torch, dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Requests


def tokens(random: np.random.Generator, least: int, most: int) -> tuple[int, ...]:
    """Between `least` and `most` ids, both included."""
    return tuple(random.integers(0, ORDINARY, random.integers(least, most + 1)).tolist())


def letters(questions: int) -> list[Request]:
    """Four choices of one token each for every question; the letters are the same throughout."""
    random = np.random.default_rng(1)
    choices = random.choice(ORDINARY, 4, replace=False).tolist()
    # 60 to 200 tokens with a mean of 120: most questions are short
    lengths = 60 + np.rint(140 * random.beta(1.5, 2.0, questions)).astype(int)
    given = [tokens(random, n, n) for n in lengths]
    return [Request(one, (choice,), place) for place, one in enumerate(given) for choice in choices]


def endings(targets: int) -> list[Request]:
    """So many targets, of which four follow one text."""
    random = np.random.default_rng(2)
    given = [tokens(random, 70, 90) for _ in range(-(-targets // 4))]
    return [Request(given[i // 4], tokens(random, 20, 28), i // 4) for i in range(targets)]


# ---------------------------------------------------------------------------------------------------------------------
# Both ways


@torch.no_grad()
def plain(model: Any, request: Request, masks: torch.Tensor) -> float:
    """The bound of one request, in nats: mean of L / l · Σ log p over the draws; masks: (draws, L)."""
    clean = torch.tensor([*request.given, *request.target])
    start, found = len(request.given), []
    for some in masks.split(PLAIN_ROWS):
        hide = torch.cat([some.new_zeros(len(some), start), some], 1)
        ids = clean.where(~hide, model.config.mask_token_id).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        nats = -torch.nn.functional.cross_entropy(
            logits[hide].float(), clean.expand(hide.shape)[hide].to(model.device), reduction="none"
        ).cpu()
        weights = (some.shape[1] / some.sum(1, keepdim=True)).expand(some.shape)[some]
        found.append(float((weights * nats).sum()))
    return sum(found) / len(masks)


def draws(request: Request) -> torch.Tensor:
    """Which places of the target our estimator hides, draw by draw: (draws, L)."""
    looks = next(estimators.masked(request, SETTINGS))
    return torch.from_numpy(np.stack([look.masked for look in looks]))


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what came of it)"""
    measure.wait(device)
    began = time.perf_counter()
    found = work()
    measure.wait(device)
    return time.perf_counter() - began, found


def compare(model: Any, requests: Sequence[Request], rounds: int) -> dict[str, Any]:
    """Requests a second of both ways, one after the other, `rounds` times, and how far apart their values are."""
    masks = [draws(request) for request in requests]
    predict = models.predictor(model)
    scorer = likelihood.Scorer(predict, SETTINGS)

    def ours() -> Values:
        nonlocal scorer
        scorer = likelihood.Scorer(predict, SETTINGS)
        return [score.nats for _, score in sorted(scorer.scores(requests))]

    def theirs() -> Values:
        return [plain(model, one, hide) for one, hide in zip(requests, masks, strict=True)]

    plain(model, requests[0], masks[0][:PLAIN_ROWS])  # libraries make room for themselves at the first pass
    list(likelihood.Scorer(predict, SETTINGS).scores(requests[:4]))
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    apart = 0.0
    bar = report.Bar("rounds", rounds)
    for done in range(1, rounds + 1):
        mine, values = timed(model.device, ours)
        usual, wanted = timed(model.device, theirs)
        seconds["ours"].append(mine)
        seconds["plain"].append(usual)
        apart = max(apart, *(abs(a - b) for a, b in zip(values, wanted, strict=True)))
        bar.to(done, f"{usual / mine:.1f} times faster")
    bar.close()
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {
        "requests": len(requests),
        "tokens given, mean": statistics.fmean(len(one.given) for one in requests),
        "tokens of a target, mean": statistics.fmean(len(one.target) for one in requests),
        "requests per second": {name: len(requests) / statistics.median(some) for name, some in seconds.items()},
        "seconds of each round": seconds,
        "rows through the model": {"ours": scorer.rows, "plain": sum(map(len, masks))},
        "times faster": statistics.median(ratios),
        "from": min(ratios),
        "to": max(ratios),
        "nats, mean": statistics.fmean(values),
        "largest difference, nats": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="values are held to be equal in float32 alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=20, help="of the shape `letters`, four requests each")
    parser.add_argument("--targets", type=int, default=2, help="of the shape `endings`, 128 draws each")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for both ways")
    parser.add_argument("--preset", default=PRESET, help="another architecture of `unmask init`, for a trial")
    parser.add_argument("--output", help="file for the JSON; a trial with another preset is printed alone")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.questions, arguments.targets, arguments.threads) < 1:
        parser.error("--rounds, --questions, --targets and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    model = network(arguments.preset, arguments.device, arguments.dtype)
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/eval.py", *sys.argv[1:]]),
        "versions": report.versions(),
        "machine": measure.machine(model),
        "setting": f"{arguments.preset}, {model.num_parameters():,} parameters, {arguments.dtype}, head × {SHARPER}, "
        f"{SETTINGS.mc_num} draws, {PLAIN_ROWS} rows in a pass of the plain way",
        "rounds": arguments.rounds,
    }
    for name, requests in (("letters", letters(arguments.questions)), ("endings", endings(arguments.targets))):
        found[name] = compare(model, requests, arguments.rounds)
        found[name] |= {"bar": BARS[name], "reached": found[name]["times faster"] >= BARS[name]}
        apart = found[name]["largest difference, nats"]
        if arguments.dtype == "float32" and not apart <= EQUAL:
            raise SystemExit(f"{name}: the values differ by {apart:.2g} nats, more than {EQUAL:g}.")
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if arguments.output or arguments.preset == PRESET:
        name = "eval.json" if arguments.device == "cpu" else f"eval_{arguments.device}.json"
        report.write_json(Path(arguments.output) if arguments.output else RESULTS / name, found)


if __name__ == "__main__":
    main()
