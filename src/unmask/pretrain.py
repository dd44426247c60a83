"""The command `unmask pretrain`: text in, a trained mask predictor out.

In:  a model folder (`unmask init`), a dataset spec, settings from a YAML file and flags.
Out: a run's folder, see `train.py`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from unmask import train, training_settings
from unmask.config import DataArguments, ModelArguments, Parsed, Refused, TrainingArguments, UserError, parse

if TYPE_CHECKING:
    import transformers

    from unmask.models import Loaded
    from unmask.prepare import Rows


_WHOLE = "would do nothing: pretraining changes every weight. `unmask sft --lora true` trains an adapter."
# Settings of tuning, which the tutorial's pretraining takes and leaves unread.
REFUSED: Refused = {
    **dict.fromkeys(("lora", "load_in_4bit"), (False, _WHOLE)),
    **dict.fromkeys(("bias", "modules_to_save"), (None, _WHOLE)),
    **dict.fromkeys(("target_modules", "r", "lora_alpha", "lora_dropout"), (..., _WHOLE)),
    "truncation": (..., "would do nothing: texts are laid end to end and cut into rows, and none is too long."),
    "mask_prompt_loss": (False, "would do nothing: a text has no prompt. `unmask sft` learns from conversations."),
}


def parse_pretrain(argv: list[str]) -> Parsed:
    return parse(
        "unmask pretrain",
        "Pretrain a masked diffusion model on text. `accelerate launch -m unmask pretrain …` uses many devices.",
        [ModelArguments, DataArguments, TrainingArguments],
        argv,
        extra=training_settings.trainer_fields,
        legacy=training_settings.LEGACY,
        refused={**training_settings.GONE, **REFUSED},
    )


def prepare_pretrain(parsed: Parsed, argv: list[str]) -> train.Run:
    """Read and check everything a run needs; nothing is written to its folder."""
    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    model, data, training = parsed.groups
    if not 0 <= data.random_length_ratio <= 1:
        raise UserError(f"--random_length_ratio is {data.random_length_ratio}; it must be from 0 to 1.")

    def load(args: transformers.TrainingArguments, causal: bool) -> Loaded:
        from unmask import models

        model.dtype = model.dtype or "float32"
        return models.load(model, fresh=None, seed=training.seed, causal=causal)

    def rows(loaded: Loaded) -> Rows:
        from unmask import prepare

        return prepare.rows(data, loaded.tokenizer, seed=training.seed, vocab_size=loaded.model.config.vocab_size)

    ratio = {"random_length_ratio": data.random_length_ratio}
    settings = {"model": model, "data": data, "training": training}
    job = train.Job("pretrain", settings, load, rows, lambda _: ratio, ratio)
    return train.prepare(job, parsed, argv)


def main(argv: list[str]) -> int:
    """`unmask pretrain --config FILE --key value …`"""
    return train.go(prepare_pretrain(parse_pretrain(argv), argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
