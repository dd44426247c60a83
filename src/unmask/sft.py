"""The command `unmask sft`: instructions and answers in, a tuned model or a LoRA adapter out.

In:  a trained model folder, instruction data (`instruct.py` says which), settings from a YAML file and flags.
Out: a run's folder, see `train.py`; with `--lora true` its checkpoints are adapters, which `unmask merge` melts in.

Only answers are learnt. `--objective autoregressive` tunes a causal model (Qwen, Llama, SmolLM) as it is, on the same
rows in the same order.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from unmask import report, train, training_settings
from unmask.adapters import LoraArguments
from unmask.config import ModelArguments, Parsed, Refused, TrainingArguments, UserError, option, parse
from unmask.instruct import SFTDataArguments
from unmask.tail import Tail

if TYPE_CHECKING:
    import transformers

    from unmask.models import Loaded
    from unmask.prepare import Rows


@dataclasses.dataclass
class SFTTrainingArguments(TrainingArguments):
    __doc__ = TrainingArguments.__doc__

    learning_rate: float = option(2e-5, "Peak learning rate; LoRA takes ten times as much.")
    num_train_epochs: float = option(3.0, "Passes over the data.")
    eval_steps: float = option(0.25, "Steps between two validations; below 1: a share of the run.")
    save_steps: float = option(0.25, "Steps between two checkpoints; below 1: a share of the run.")
    group_by_length: bool = option(True, "Put rows of like length into the same step.")


_TEXT = "would do nothing: conversations are rows of their own. `unmask pretrain` lays texts end to end."
# Settings of pretraining.
REFUSED: Refused = {
    "streaming": (False, "is for `unmask pretrain`: instruction data are read whole, to be ordered and counted."),
    "shuffle_buffer": (..., "is for streams, and instruction data are read whole."),
    "drop_tail": (False, _TEXT),
    "insert_eos": (..., "would do nothing: the template ends each turn, and --eos_tail says what follows the last."),
    "random_length_ratio": (0, _TEXT),
}


def parse_sft(argv: list[str]) -> Parsed:
    return parse(
        "unmask sft",
        "Tune a model on instructions and answers. `accelerate launch -m unmask sft …` uses many devices.",
        [ModelArguments, LoraArguments, SFTDataArguments, SFTTrainingArguments],
        argv,
        extra=training_settings.trainer_fields,
        legacy=training_settings.LEGACY,
        refused={**training_settings.GONE, **REFUSED},
    )


def prepare_sft(parsed: Parsed, argv: list[str]) -> train.Run:
    """Read and check everything a run needs; nothing is written to its folder."""
    model: ModelArguments
    lora: LoraArguments
    data: SFTDataArguments
    training: SFTTrainingArguments
    model, lora, data, training = parsed.groups
    if model.from_scratch:
        raise UserError("--from_scratch true: tuning goes on from trained weights; `unmask pretrain` makes them.")
    own = {f.name for f in dataclasses.fields(LoraArguments)} - {"lora"}
    asked = sorted(key for key in parsed.given & own if getattr(lora, key) != getattr(LoraArguments(), key))
    if asked and not lora.lora:
        if "lora" not in parsed.given:
            raise UserError(f"--{asked[0]} is a setting of LoRA; add --lora true, or leave it out.")
        report.say(
            f"all weights are trained (lora: false); {', '.join(asked)} {'does' if len(asked) == 1 else 'do'} nothing."
        )

    def load(args: transformers.TrainingArguments, causal: bool) -> Loaded:
        from unmask import adapters, models

        options["eos_tail"] = data.eos_tail = str(Tail.chosen(data.eos_tail, causal, data.packing))
        if not lora.lora:
            model.dtype = model.dtype or "float32"  # weights that are trained are kept in full
        device = args.device.type if lora.lora else None
        four = adapters.quantised(device) if lora.load_in_4bit else None
        loaded = models.load(model, device=device, causal=causal, quantization=four, trainable=lora.lora)
        if lora.lora and loaded.adapter:
            shaped = sorted(parsed.given & own - {"load_in_4bit"})
            if shaped:
                raise UserError(
                    f"{model.model_name_or_path} is an adapter, which is trained on as it is, so that --{shaped[0]} "
                    "would change nothing; leave it out, or begin anew from its base."
                )
        elif lora.lora:
            told = {"family": loaded.family.name, "objective": training.objective}
            loaded.model = adapters.attach(loaded.model, lora, seed=training.seed, **told)
        elif loaded.adapter:
            raise UserError(
                f"{model.model_name_or_path} is an adapter; type --lora true to go on training it, or merge it first."
            )
        return loaded

    def rows(loaded: Loaded) -> Rows:
        from unmask import instruct
        from unmask.template import Template

        # saved with what is trained, so that a chat is written as training rows were
        loaded.tokenizer.chat_template = Template(loaded.tokenizer, data.chat_template).source
        size = loaded.model.config.vocab_size
        found = instruct.rows(data, loaded.tokenizer, seed=training.seed, vocab_size=size)
        options["max_length"] = data.max_length  # shorter where the rows were prepared so
        return found

    def identity(loaded: Loaded) -> dict[str, Any]:
        from unmask.template import Template

        what = {key: value for key, value in dataclasses.asdict(lora).items() if key != "load_in_4bit"}
        return {
            "lora": (what if not loaded.adapter else "as in the adapter") if lora.lora else None,
            "eos_tail": data.eos_tail,
            "template": Template(loaded.tokenizer).fingerprint,
        }

    settings = {"model": model, "lora": lora, "data": data, "training": training}
    options: dict[str, Any] = {"packing": data.packing}
    return train.prepare(train.Job("sft", settings, load, rows, identity, options), parsed, argv)


def main(argv: list[str]) -> int:
    """`unmask sft --config FILE --key value …`"""
    return train.go(prepare_sft(parse_sft(argv), argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
