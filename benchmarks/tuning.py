"""What tuning does to a small model's answers: `python benchmarks/tuning.py --data DATA --models before=M after=N`.

In:  model folders (or adapters), instruction data, how many held-out rows.
Out: for each model, on the same prompts: the share of answers that stop before the limit, the share of Chinese
     characters, distinct-2, and the bound of the right answer beside that of another row's answer, in pairs with the
     same noise. As JSON, with the versions and the settings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from unmask import batches, chats, corpus, decoding, models, objectives, report, validate
from unmask.canvas import Canvas
from unmask.template import Template

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


def conversations(data: str, rows: int) -> list[list[chats.Message]]:
    found = corpus.load(data, text_field=None, keep=chats.COLUMNS, need_test=False).train
    form = chats.format_of(found.column_names)
    made = []
    for number, row in enumerate(found):
        try:
            made.append(chats.messages(row, form, number))
        except chats.NoAnswer:
            continue
        if len(made) == rows:
            break
    return made


def write(loaded: Any, prompts: list[list[int]], new: int, steps: int, block: int) -> list[tuple[str, bool]]:
    """(answer, whether it stopped before the limit) for each prompt."""
    predict = models.predictor(loaded.model)
    ends = {loaded.tokenizer.eos_token_id, *Template(loaded.tokenizer).ends}
    answers: list[tuple[str, bool]] = []
    for start in range(0, len(prompts), 20):
        canvas = Canvas.after(prompts[start : start + 20], new, predict.mask_id, first=start)
        decoding.prepare(predict, canvas.rows, steps=steps, block_size=block)
        for _ in decoding.unmask(predict, canvas):
            pass
        for row in canvas.rows:
            ids = row.answer.tolist()
            last = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            answers.append((loaded.tokenizer.decode(ids[:last], skip_special_tokens=True), last < len(ids)))
    return answers


def bounds(loaded: Any, talks: list[list[chats.Message]], answers: list[str], draws: int, most: int) -> list[float]:
    """Nats per token of each answer (end of turn included) after its prompt, at most; NaN where it does not fit."""
    objective = objectives.load("masked", {}, loaded.model.config.mask_token_id)
    collate = batches.Collate(objective, seed=42, pad_id=loaded.tokenizer.pad_token_id, exact=True)
    template = Template(loaded.tokenizer)
    seats = []
    for number, (talk, answer) in enumerate(zip(talks, answers, strict=True)):
        turns = template.turns([*talk[:-1], {"role": "assistant", "content": answer}])
        ids = [i for turn in turns for i in turn.ids]
        labels = [i if turn.answer else -100 for turn in turns for i in turn.ids]
        if len(ids) <= most:
            row = {"input_ids": ids, "labels": labels}
            tickets = (batches.Ticket(number, number * draws + k, batches.VALIDATION) for k in range(draws))
            seats += [(row, ticket) for ticket in tickets]
    made = (collate(seats[i : i + 32]) for i in range(0, len(seats), 32))
    found = validate.rows(models.predictor(loaded.model), objective, made, None)
    total = np.zeros((len(talks), 2))
    for place, nats, _, _, tokens, *_ in found:
        total[int(place) // draws] += nats, tokens
    with np.errstate(invalid="ignore"):
        return (total[:, 0] / total[:, 1]).tolist()


def measure(name: str, arguments: Any) -> dict[str, Any]:
    loaded = models.load(name, causal=None)
    template = Template(loaded.tokenizer)
    most = loaded.model.config.max_position_embeddings
    talks = conversations(arguments.data, 10 * arguments.rows)
    talks = [t for t in talks if len(template.prompt(t[:-1])) + arguments.max_new_tokens <= most][: arguments.rows]
    prompts = [template.prompt(t[:-1]) for t in talks]
    began = time.monotonic()
    answers = write(loaded, prompts, arguments.max_new_tokens, arguments.steps, arguments.block_size)
    seconds = time.monotonic() - began
    text = [re.sub(r"\s", "", answer) for answer, _ in answers]
    pairs = [(a, b) for one in text for a, b in itertools.pairwise(one)]
    right = [t[-1]["content"] for t in talks]
    wrong = right[1:] + right[:1]
    one, other = (np.array(bounds(loaded, talks, said, arguments.draws, most)) for said in (right, wrong))
    both = np.isfinite(one) & np.isfinite(other)
    apart = (other - one)[both]
    return {
        "model": Path(name).parent.name + "/" + Path(name).name,
        "prompts": len(prompts),
        "stopped": sum(stopped for _, stopped in answers) / len(answers),
        "characters": sum(map(len, text)) / len(text),
        "chinese": len(HAN.findall("".join(text))) / max(1, len("".join(text))),
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "nats_right": float(one[both].mean()),
        "nats_shuffled": float(other[both].mean()),
        "shuffled_minus_right": float(apart.mean()),
        "shuffled_minus_right_se": float(apart.std(ddof=1) / math.sqrt(len(apart))),
        "right_is_likelier": float((apart > 0).mean()),
        "pairs": len(apart),
        "seconds": round(seconds, 1),
        "examples": [{"prompt": t[-2]["content"], "answer": a} for t, (a, _) in zip(talks[:5], answers, strict=False)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="spec of the held-out rows")
    parser.add_argument("--models", nargs="+", required=True, help="name=folder")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--block_size", type=int, default=32)
    parser.add_argument("--draws", type=int, default=8, help="noise levels for each answer's bound")
    parser.add_argument("--output", help="file for the JSON; printed if left out")
    arguments = parser.parse_args()
    report.quiet()
    settings = {k: v for k, v in vars(arguments).items() if k not in ("models", "output", "data")}
    found: dict[str, Any] = {"settings": settings, "versions": report.versions()}
    for one in arguments.models:
        name, _, folder = one.partition("=")
        found[name] = measure(folder, arguments)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
