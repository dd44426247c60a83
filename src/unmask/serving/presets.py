"""Three ways of decoding by name, and how far their answers agree with the exact one.

In:  a model.  Out: settings; a measured table.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A way of decoding. about: one line for those who choose."""

    name: str
    settings: dict[str, Any]
    about: str


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "exact",
            {"rule": "reference", "cache": "none", "block_size": 32},
            "one token a step, the surest first, everything computed anew",
        ),
        Preset(
            "balanced",
            {"rule": "threshold", "threshold": 0.9, "cache": "none", "block_size": 32},
            "all tokens that are surer than 0.9, everything computed anew",
        ),
        Preset(
            "fast",
            {"rule": "threshold", "threshold": 0.9, "cache": "dual", "block_size": 32},
            "as balanced, from keys and values that are computed once a block",
        ),
    )
}


def given(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A server's decoding settings: the preset's, and the flags, which win."""
    base: dict[str, Any] = {"eos_stop": True} | PRESETS[name].settings
    changed = any(settings.get(key, base.get(key)) != base.get(key) for key in ("rule", "cache", "canvas"))
    if changed:
        base = {key: value for key, value in base.items() if key != "threshold"}
    return base | settings


QUESTIONS = ("What is a lighthouse for?", "Tell me about the sea.", "Name three colours.", "How does bread rise?")
TOKENS = 32


@dataclass(frozen=True)
class Measured:
    """A preset beside exact, on the same prompts.

    Attributes:
        agreement: the mean share of tokens that are exact's, place by place. passes: forward passes of exact for one of
            this preset's. places: places that exact computes for one of this preset's. tokens: of all answers.
    """

    name: str
    agreement: float
    passes: float
    places: float
    tokens: int


def measure(maker: Any) -> list[Measured]:
    """Each preset's answers to a few questions, compared with exact's. Takes some seconds on a small model."""
    from unmask import decoding, report
    from unmask.canvas import Canvas
    from unmask.measure import equal_share

    writer = maker.engine.writer
    prompts = [maker.question(text) for text in QUESTIONS]
    room = TOKENS if maker.max_length is None else min(TOKENS, maker.max_length - max(map(len, prompts)))
    if room < 1:
        return []
    answers: dict[str, list[list[int]]] = {}
    costs: dict[str, tuple[int, int]] = {}
    for name, preset in PRESETS.items():
        bar = report.Bar(f"measuring --preset {name}", room)
        try:
            settings = writer.ends | preset.settings | {"eos_stop": False, "seed": 0, "block_size": min(32, room)}
            canvas = Canvas.after(prompts, room, writer.predict.mask_id)
            decoding.prepare(writer.predict, canvas.rows, tokenizer=maker.engine.loaded.tokenizer, **settings)
            for step in decoding.unmask(writer.predict, canvas):
                bar.to(step.number)
        finally:
            bar.close()
        answers[name] = [row.answer.tolist() for row in canvas.rows]
        costs[name] = (sum(row.passes for row in canvas.rows), sum(row.computed for row in canvas.rows))
    exact = answers["exact"]
    found = []
    for name, rows in answers.items():
        same = statistics.fmean(equal_share(*pair) for pair in zip(rows, exact, strict=True))
        passes, places = (mine / ours for mine, ours in zip(costs["exact"], costs[name], strict=True))
        found.append(Measured(name, same, passes, places, sum(map(len, rows))))
    return found


def show(some: list[Measured]) -> None:
    """A line for each preset."""
    from unmask import report

    for one in some:
        report.say(
            f"--preset {one.name:<9} {one.agreement:4.0%} of {one.tokens} tokens as exact, passes ÷ {one.passes:.1f}, "
            f"places computed ÷ {one.places:.1f}: {PRESETS[one.name].about}"
        )
