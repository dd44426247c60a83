"""One answer as it is written: by the decoding loop, or left to right by a causal model.

In:  a model, a prompt's ids, settings.
Out: a row (`unmask.canvas.Row`) that stands one step further each time, and what of it is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from unmask import decoding, models
from unmask.canvas import Canvas, Row
from unmask.config import UserError, build
from unmask.ids import several
from unmask.options import Options
from unmask.reader import ends_of
from unmask.screen import before_any, text_of
from unmask.signals import draw, likeliest

if TYPE_CHECKING:
    from unmask.models import Loaded

LEFT_TO_RIGHT = frozenset(
    {
        *("temperature", "top_k", "top_p", "suppress_tokens", "logits_eos_inf", "eos_stop", "eos_token_id"),
        *("eot_token_id", "stop_strings", "seed"),
    }
)
"""The decoding options that mean something to a causal model."""


class Writer:
    """A model that answers.

    Args:
        turn_ends: ids that end an answer, beyond those that the model, its tokenizer and family name.
    """

    def __init__(self, loaded: Loaded, turn_ends: Sequence[int] = ()) -> None:
        self.loaded, self.predict = loaded, models.predictor(loaded.model)
        eos, eot = ends_of(loaded)
        named = [*eot, *turn_ends]
        if loaded.causal:  # chat models on the hub name the end of a turn here or there
            named += several(getattr(loaded.model.generation_config, "eos_token_id", None))
            named += several(loaded.tokenizer.eos_token_id)
        eot = [i for i in dict.fromkeys(named) if i not in eos]
        self.ends: dict[str, Any] = {"eos_token_id": eos, "eot_token_id": eot} if eos else {"eos_token_id": eot}
        self.max_length: int | None = getattr(self.predict, "max_length", None)

    def begin(self, prompt: Sequence[int], new: int, settings: dict[str, Any], number: int = 0) -> Row:
        """A prompt with `new` open places after it, ready to be written.

        Args:
            settings: fields of `Options` and of the rule's settings; the ends of text and turn are known here.
            number: with the seed it makes the row's random numbers.

        Raises:
            UserError: a setting that cannot be, or does not belong to this kind of model; a row the model cannot hold.
        """
        settings = self.ends | settings
        if not self.loaded.causal:
            [row] = Canvas.after([prompt], new, self.predict.mask_id, first=number).rows
            decoding.prepare(self.predict, [row], tokenizer=self.loaded.tokenizer, **settings)
            return row
        for name in settings:
            if name not in LEFT_TO_RIGHT:
                raise UserError(
                    f"--{name} belongs to models that unmask, and {self.loaded.model.config.model_type} writes left to "
                    "right, one token a step; leave it out."
                )
        options = build(Options, settings)
        options.check()
        [row] = Canvas.after([prompt], new, 0, first=number).rows
        row.reading, row.seed = decoding.resolve(self.predict, options), options.seed
        row.stopped = decoding.stop_strings(self.loaded.tokenizer, options.stop_strings, row.reading)
        row.stop_strings = tuple(options.stop_strings)
        decoding.check_row(self.predict, row, options)
        return row

    def write(self, row: Row) -> Iterator[Row]:
        """The row after each step, until it is finished."""
        if self.loaded.causal:
            yield from left_to_right(self.loaded.model, row)
        else:
            for _ in decoding.unmask(self.predict, Canvas([row])):
                yield row

    def answer(self, row: Row) -> tuple[list[int], bool]:
        """The ids up to the first end of text or turn, or the first place that is still open; and whether they end."""
        written = row.answer.tolist()
        opened = row.open[row.start :].tolist()
        ends = {i for ids in self.ends.values() for i in ids} | set(row.reading.stops)
        last = next((i for i, o in enumerate(opened) if o or written[i] in ends), len(written))
        return written[:last], last < len(written) and not opened[last]

    def text(self, row: Row) -> str:
        """The answer as it stands, cut before a stop string."""
        text = text_of(self.loaded.tokenizer, self.answer(row)[0])
        return text if row.cut is None else before_any(text, row.stop_strings)


@torch.no_grad()
def left_to_right(model: Any, row: Row) -> Iterator[Row]:
    """Write a row's open places in their order, each with a forward pass over what the cache has not seen yet."""
    fed, cache = row.ids[~row.free], None
    # The logits of a long prompt over a large vocabulary are gigabytes; a few architectures cannot leave them out.
    more = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    if not len(fed):
        raise UserError("there is nothing to go on from: the prompt has no token.")
    for place in torch.nonzero(row.free).flatten().tolist():
        known: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        out = model(input_ids=fed[None].to(model.device), use_cache=True, **known, **more)
        cache = getattr(out, "past_key_values", None)
        logits = out.logits[:, -1].float()
        if bool(logits.isnan().any()):
            raise UserError("the model's answers are not numbers (NaN): its weights are broken.")
        if row.reading.never:
            logits[:, list(row.reading.never)] = -torch.inf
        token = draw(row, likeliest(logits, row.reading)) if row.reading.temperature else logits.argmax(-1)
        if row.reading.alternatives:
            top = torch.softmax(logits, -1).topk(min(row.reading.alternatives, logits.shape[-1]))
            row.confidence[place] = torch.softmax(logits, -1)[0, token[0]].cpu()
            row.alternatives[place] = list(zip(top.indices[0].tolist(), top.values[0].tolist(), strict=True))
        row.step, row.passes, row.computed = row.step + 1, row.passes + 1, row.computed + len(fed)
        row.ids[place], row.open[place], row.written_at[place] = token.cpu()[0], False, row.step
        fed = row.ids[: place + 1] if cache is None else token.cpu()  # a network without this cache reads all again
        row.cut = row.stopped(row.ids[row.start : place + 1].tolist()) if row.stopped else None
        if int(row.ids[place]) in row.reading.stops or row.cut is not None:
            row.finished = "stop"
            yield row
            return
        yield row
    row.finished = "length"
