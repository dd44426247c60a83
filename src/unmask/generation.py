"""`model.generate` as `transformers` has it, for models that unmask.

In:  ids, a `GenerationConfig`, a streamer, keywords: those of `transformers` and the decoding loop's own.
Out: a tensor of prompts and answers, or `MaskedDiffusionOutput`. A setting that decoding does not have is refused.

Of the model's own `generation_config` only the ids of end and padding are read. The rest of it describes writing left
to right, often that of the model this one was made from: its temperature or length would change answers unasked.

A streamer hears `put(prompt)`; then, if it has `put_draft`, the whole answer after every step, with the mask's id where
it is open (`skip_special_tokens=True` hides it), and at last `put(answer)`. Without `put_draft`, `put` gets tokens as
soon as all before them stand and no rule may rewrite them. Last comes `end()`, but not after an error, as in
`transformers`. What follows the first end of text or a stop string is never put.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from unmask import decoding
from unmask.canvas import Canvas, Row
from unmask.config import UserError, cast
from unmask.ids import several
from unmask.options import Options
from unmask.predict import Predict

OURS = frozenset(
    {
        *("max_new_tokens", "max_length", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p"),
        *("guidance_scale", "stop_strings", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens"),
    }
)
"""Settings of `transformers` that are heeded. None says nothing, as there."""

THEIRS = frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_")) - OURS
"""All other fields of a `GenerationConfig`."""

ARGUMENTS = frozenset(
    {
        *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model"),
        *("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate", "use_model_defaults"),
        *("past_key_values", "inputs_embeds", "position_ids", "cache_position", "token_type_ids"),
    }
)
"""What `generate` and the networks of `transformers` take beside it."""

UNTOUCHED = frozenset({"bos_token_id", "decoder_start_token_id", "transformers_version", "disable_compile"})
"""Fields that change nothing here, whatever they are: who begins without a prompt, and what is never done anyway."""

NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "length_penalty", "typical_p"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "diversity_penalty"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), 0),
    **{"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4},
    **{"assistant_lookbehind": 10, "target_lookbehind": 10},
}
"""Value that asks for nothing (`GenerationConfig`'s defaults); None, False and an empty list never do."""

INSTEAD = {
    **dict.fromkeys(("past_key_values", "cache_implementation"), "name a cache policy, such as cache='dual'"),
    **dict.fromkeys(("output_scores", "output_logits"), "return_dict_in_generate=True gives each token's confidence"),
    **dict.fromkeys(("force_words_ids", "forced_bos_token_id"), "give constraints={place: token} as a keyword"),
    **dict.fromkeys(("constraints", "forced_eos_token_id"), "give constraints={place: token} as a keyword"),
    **dict.fromkeys(("logits_processor", "bad_words_ids", "sequence_bias"), "suppress_tokens=[…] bars tokens"),
    **dict.fromkeys(("stopping_criteria", "max_time"), "stop_strings=[…] or eos_stop=True end an answer, steps a run"),
    "num_return_sequences": "repeat the prompt in input_ids, each row draws for itself",
    "token_type_ids": "call the tokenizer with return_token_type_ids=False",
    "inputs_embeds": "give input_ids",
    "min_length": "give min_new_tokens",
    "begin_suppress_tokens": "transformers bars them from the first place, unmask writes them last; if that is meant, "
    "give it as a keyword",
}
LENGTHS = ("max_new_tokens", "max_length", "gen_length")
SAMPLING = ("temperature", "top_k", "top_p")


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """What `generate(…, return_dict_in_generate=True)` returns.

    Attributes:
        sequences: (rows, prompt + new) prompts and answers, as they are returned without it.
        tokens_per_forward: (rows,) tokens written up to and including the first end of text, over forward passes.
        forward_passes: (rows,) that the row took part in, both halves of guidance counted.
        finish_reasons: "stop" (`eos_stop`, `stop_strings`) or "length", for each row.
        written_at: (rows, new) the step, from 1, at which a place was last written; 0 where it never was.
        confidence: (rows, new) the model's probability of what was written; NaN where nothing was.
    """

    sequences: Tensor
    tokens_per_forward: Tensor | None = None
    forward_passes: Tensor | None = None
    finish_reasons: list[str] | None = None
    written_at: Tensor | None = None
    confidence: Tensor | None = None


def generate(
    model: Any,
    predict: Predict,
    /,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    streamer: Any = None,
    return_dict_in_generate: bool | None = None,
    **options: Any,
) -> Tensor | MaskedDiffusionOutput:
    """Prompts and their answers, (rows, prompt + new).

    Args:
        model: whose `generation_config` may name the ends of text and the padding.
        input_ids: (rows, prompt); also as `inputs`. attention_mask: (rows, prompt), 0 at padding, wherever that is.
        generation_config: of `transformers`; keywords override it. Fields that it does not know are decoding settings.
        streamer: of `transformers`, for one row; the module's docstring says what it hears.
        return_dict_in_generate: give a `MaskedDiffusionOutput`.
        options: as for `decoding.generate`, and these of `transformers`: max_length (prompt + new), do_sample
            (False: temperature 0; True: 1 if none is given, and no top_k of 50 that nobody asked for), guidance_scale
            (cfg_scale + 1), pad_token_id (stands where a row that has stopped is not written), stop_strings (need
            tokenizer=…; the answer is cut before them). A temperature alone draws, as ever here.

    Raises:
        UserError: settings that contradict, or that decoding does not have.
    """
    inputs = options.pop("inputs", None)
    if inputs is not None and input_ids is not None:
        raise UserError("input_ids and inputs are two names of the same; give one.")
    input_ids = inputs if input_ids is None else input_ids
    base = fields_of(generation_config)
    as_dict = base.pop("return_dict_in_generate", None)
    as_dict = as_dict if return_dict_in_generate is None else return_dict_in_generate
    settings = understood(base, options, 0 if input_ids is None else input_ids.shape[-1])
    pad = padding(model, predict, settings.pop("pad_token_id", None))
    ends = several(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    if ends and settings.get("eos_token_id") is None:
        settings["eos_token_id"] = ends
    canvas, settings = decoding.answers(predict, input_ids, attention_mask, **settings)
    if streamer is not None:
        check_streamer(streamer, canvas)
    strings, tokenizer = settings.get("stop_strings") or [], settings.get("tokenizer")
    assert input_ids is not None  # `answers` has refused None
    decoding.prepare(predict, canvas.rows, **settings)  # what cannot be is told before the streamer hears anything
    steps = decoding.unmask(predict, canvas)
    if streamer is None:
        for _ in steps:
            pass
    else:
        [row] = canvas.rows
        streamer.put(input_ids.cpu())
        if hasattr(streamer, "put_draft"):
            for _ in steps:
                streamer.put_draft(answer_of(row, pad)[None])
            streamer.put(answer_of(row, pad)[: kept(row)])
        else:
            for piece in pieces(steps, row, tokenizer, strings):
                streamer.put(piece)
        streamer.end()
    sequences = decoding.sequences(predict, input_ids, canvas)
    for row, answer in zip(canvas.rows, sequences[:, input_ids.shape[1] :], strict=True):
        length = len(row.answer)
        answer[:length] = answer_of(row, pad)
        if pad is not None:
            answer[length:] = pad
    return output(sequences, canvas.rows, sequences.shape[1] - input_ids.shape[1]) if as_dict else sequences


# ---------------------------------------------------------------------------------------------------------------------
# Settings of `transformers` → settings of decoding


def fields_of(config: Any) -> dict[str, Any]:
    """What is set in a `GenerationConfig`; UserError for anything else, and for words that mean something else here."""
    if config is None:
        return {}
    if not isinstance(config, GenerationConfig):
        raise UserError(
            f"generation_config is a {type(config).__name__}; it must be a GenerationConfig of transformers, or give "
            "its fields as keywords."
        )
    found = {name: value for name, value in vars(config).items() if value is not None and not name.startswith("_")}
    for name in ("begin_suppress_tokens", "constraints"):
        if found.get(name):
            raise refusal(name, found[name])
    return {name: value for name, value in found.items() if name not in UNTOUCHED}


def understood(base: dict[str, Any], options: dict[str, Any], prompt: int) -> dict[str, Any]:
    """Settings for `decoding.answers` and `prepare`, and `pad_token_id`.

    Args:
        base: set fields of a `GenerationConfig`. options: keywords, which override them. prompt: its tokens.
    """
    given = {name: value for name, value in options.items() if value is not None or name not in OURS | THEIRS}
    if any(given.get(name) is not None for name in LENGTHS):
        base = {name: value for name, value in base.items() if name not in LENGTHS}
    if given.get("cfg_scale") is not None:
        base.pop("guidance_scale", None)
    settings = sampling(base, given)
    whole = settings.pop("max_length", None)
    if whole is not None:
        settings["max_new_tokens"] = after_prompt(cast(whole, int, "max_length"), settings, prompt)
    guidance = settings.pop("guidance_scale", None)
    if guidance is not None:
        settings["cfg_scale"] = scale(cast(guidance, float, "guidance_scale"), settings.get("cfg_scale"))
    if isinstance(settings.get("stop_strings"), str):
        settings["stop_strings"] = [settings["stop_strings"]]
    if settings.get("top_k") == 0:  # transformers' word for no limit
        del settings["top_k"]
    refuse(settings)
    return settings


def sampling(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Both together, with do_sample as a temperature.

    In a `GenerationConfig` temperature, top_k and top_p count only with do_sample, as in `transformers`.
    """
    base, given = dict(base), dict(given)
    by_config, said = base.pop("do_sample", False), given.pop("do_sample", None)
    said = None if said is None else cast(said, bool, "do_sample")
    wanted = cast(given.get("temperature", base.get("temperature", 1.0)), float, "temperature")
    if said is False and given.get("temperature") and wanted:
        raise UserError(f"do_sample=False and temperature={wanted:g} contradict each other; leave one out.")
    draws = by_config if said is None else said
    if draws and not wanted and (said or "temperature" not in given):
        raise UserError("do_sample=True and temperature=0 contradict each other; leave one out.")
    if draws and wanted:
        return base | {"temperature": wanted} | given
    if said is False:
        given["temperature"] = 0.0
    return {name: value for name, value in base.items() if name not in SAMPLING} | given


def after_prompt(whole: int, settings: dict[str, Any], prompt: int) -> int:
    """max_length → max_new_tokens; UserError where none are left, or another number is asked for."""
    new = whole - prompt
    if new < 1:
        raise UserError(f"max_length {whole} leaves nothing after {prompt} tokens of prompt; give max_new_tokens.")
    for name in ("max_new_tokens", "gen_length"):
        if settings.get(name) not in (None, new):
            raise UserError(
                f"max_length {whole} leaves {new} tokens after {prompt} of prompt, and {name} is {settings[name]}; "
                "give one of them."
            )
    return new


def scale(guidance: float, ours: Any) -> float:
    """`transformers`' guidance_scale, where 1 is none → cfg_scale, where 0 is; UserError where both disagree."""
    if not guidance >= 1:
        raise UserError(f"guidance_scale is {guidance:g}; it must be 1 (none) or more.")
    if ours is not None and cast(ours, float, "cfg_scale") != guidance - 1:
        raise UserError(
            f"guidance_scale {guidance:g} is cfg_scale {guidance - 1:g}, and cfg_scale is {ours}; give one."
        )
    return guidance - 1


def refuse(settings: dict[str, Any]) -> None:
    """Take out what asks for nothing; UserError for what decoding does not have, unless the rule or cache brings it."""
    defaults = Options()
    kinds = {name: str(settings.get(name) or getattr(defaults, name)) for name in ("rule", "cache", "canvas")}
    own = decoding.plug_in_settings(**kinds)
    if "use_cache" not in own:
        use = settings.pop("use_cache", None)  # True allows a cache; which one, and whether, `cache` says
        if use is False and kinds["cache"] != "none":
            raise UserError(f"use_cache=False and cache={kinds['cache']!r} contradict each other; leave one out.")
    for name in sorted((THEIRS | ARGUMENTS) & (settings.keys() - own.keys() - {"constraints"})):
        value = settings.pop(name)
        asks = value is not None and value is not False and not (isinstance(value, (list, tuple, dict)) and not value)
        if asks and name not in UNTOUCHED and not (name in NEUTRAL and value == NEUTRAL[name]):
            raise refusal(name, value)


def refusal(name: str, value: Any) -> UserError:
    """What to say of a setting that cannot be honoured."""
    shown = repr(value) if isinstance(value, (bool, int, float, str)) else f"<{type(value).__name__}>"
    return UserError(
        f"{name}={shown} of transformers cannot be honoured: decoding of masks has no such setting; leave it out"
        + (f" ({INSTEAD[name]})." if name in INSTEAD else ".")
    )


def padding(model: Any, predict: Predict, asked: Any) -> int | None:
    """The id that fills an answer behind its end, asked for or the model's own; None leaves what decoding put there."""
    if asked is None:
        own = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
        # a model's own may be the mask, which no answer shows
        return own if own is not None and 0 <= own < predict.vocab_size and own != predict.mask_id else None
    pad = cast(asked, int, "pad_token_id")
    if not 0 <= pad < predict.vocab_size or pad == predict.mask_id:
        raise UserError(
            f"pad_token_id is {pad}; it must be one of the model's {predict.vocab_size} tokens, from 0, not its mask."
        )
    return pad


# ---------------------------------------------------------------------------------------------------------------------
# Answers out


def answer_of(row: Row, pad: int | None) -> Tensor:
    """(new,) a row's answer as it stands. When it is finished, what follows its end or stop string is filled."""
    answer = row.answer.clone()
    if row.finished and (pad is not None or row.cut is not None):
        rest = row.written_at[row.start :] == 0
        rest[len(answer) if row.cut is None else row.cut :] = True
        answer[rest & row.free[row.start :]] = row.reading.ends[0] if pad is None else pad
    return answer


def kept(row: Row) -> int:
    """How many tokens of a finished answer count: up to the first end of text, that included, or to the stop string."""
    end = row.end(row.reading.ends)
    most = len(row.answer) if end is None else end - row.start + 1
    return most if row.cut is None else min(most, row.cut)


def pieces(steps: Iterator[Any], row: Row, tokenizer: Any, strings: list[str]) -> Iterator[Tensor]:
    """The answer's ids, (n,) at a time, as soon as nothing before or in them can change; UserError where it does."""
    sent: list[int] = []
    for _ in steps:
        whole = row.answer.tolist()
        if whole[: len(sent)] != sent:
            raise UserError(
                f"the rule in {type(row.rule).__module__} rewrote a block that was done and streamed; take a streamer "
                "with put_draft, such as TextDiffusionStreamer."
            )
        if row.finished:
            break
        ready = standing(row)
        if strings:
            ready = harmless(tokenizer, whole[:ready], strings)
        if ready > len(sent):
            yield row.answer[len(sent) : ready].clone()
            sent = whole[:ready]
    if kept(row) > len(sent):  # no step at all, if the whole answer was given
        yield row.answer[len(sent) : kept(row)].clone()


def standing(row: Row) -> int:
    """How many tokens of an unfinished answer are sure to stay: those before what is open or may be rewritten."""
    places = torch.nonzero(row.open).flatten()
    if row.rule.revises:
        places = torch.cat([row.blocks[row.block][:1], places])
    return min(int(places.min()) - row.start, kept(row))


def harmless(tokenizer: Any, ids: list[int], strings: list[str]) -> int:
    """How many of these ids can be no part of a stop string that has yet to end. A letter cut in two waits."""

    def text(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    whole = text(ids).rstrip("\N{REPLACEMENT CHARACTER}")
    begun = max((n for string in strings for n in range(1, len(string)) if whole.endswith(string[:n])), default=0)
    return bisect.bisect_right(range(1, len(ids) + 1), len(whole) - begun, key=lambda n: len(text(ids[:n])))


def check_streamer(streamer: Any, canvas: Canvas) -> None:
    """UserError for what is no streamer, or wants what there is not."""
    if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise UserError(
            f"streamer is a {type(streamer).__name__}; it needs put and end, as BaseStreamer of transformers."
        )
    if len(canvas.rows) != 1:
        raise UserError(f"a streamer takes one row, and there are {len(canvas.rows)}; stream one prompt at a time.")
    if getattr(streamer, "_takes_logits", False):
        raise UserError(
            "this streamer wants the logits of every draft (_takes_logits), and logits of a whole answer never exist "
            "here; take one that shows tokens, such as TextDiffusionStreamer."
        )


def output(sequences: Tensor, rows: list[Row], new: int) -> MaskedDiffusionOutput:
    """The sequences with what is known of how they came to be."""
    written_at = torch.zeros(len(rows), new, dtype=torch.int32)
    confidence = torch.full((len(rows), new), torch.nan)
    for i, row in enumerate(rows):
        length = len(row.answer)
        written_at[i, :length], confidence[i, :length] = row.written_at[row.start :], row.confidence[row.start :]
    passes = torch.tensor([row.passes for row in rows])
    tokens = torch.tensor([row.tokens for row in rows], dtype=torch.float32)
    return MaskedDiffusionOutput(
        sequences=sequences,
        tokens_per_forward=tokens / passes.clamp(min=1),  # an answer that is given whole takes no pass
        forward_passes=passes,
        finish_reasons=[str(row.finished) for row in rows],
        written_at=written_at,
        confidence=confidence,
    )
