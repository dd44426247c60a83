"""The flags of `unmask eval`: lm-eval's, with its short forms, and Unmask's own.

In:  words as they were typed.  Out: `TaskArguments`; the words as `config.parse` takes them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from unmask.config import UserError, option

SHORT = {  # lm-eval's
    **{"-t": "--tasks", "-M": "--model", "-a": "--model_args", "-L": "--limit", "-c": "--use_cache"},
    **{"-f": "--num_fewshot", "-b": "--batch_size", "-o": "--output_path", "-s": "--log_samples", "-E": "--samples"},
    **{"-w": "--write_out", "-x": "--predict_only", "-v": "--verbosity", "-C": "--config"},
}
BARE = {"--apply_chat_template": "true", "--cache_requests": "true"}  # values may be left out
JOINED = ("--model_args", "--gen_kwargs", "--metadata", "--wandb_args", "--wandb_config_args", "--trackio_args")
SEEDS = (0, 1234, 1234, 1234)
"""lm-eval's own: of Python, numpy, torch and the choice of examples."""


@dataclasses.dataclass
class TaskArguments:
    """Tasks"""

    tasks: list[str] = option([], "lm-eval's names or patterns of tasks and groups, or YAML files of tasks.")
    data: str | None = option(None, "Your own questions (jsonl) or texts, instead of --tasks. Needs --metric.")
    metric: Literal["exact", "contains", "choice", "perplexity"] | None = option(
        None,
        "How --data is scored: the answer is the text, or has it in it; the likeliest of the choices is right; or how "
        "probable texts are, in bits per byte.",
    )
    preset: str | None = option(None, "Settings behind published numbers: llada-base, llada-instruct, …, or a YAML.")
    local_data: list[str] = option(
        [], "Data on disk instead of the hub: an official zip or CSV folder of CMMLU, C-Eval, MMLU, or DIR/owner/name."
    )
    model_args: str | None = option(
        None, "key=value,key=value: lm-eval's word for the settings of the model; every flag here may stand in it."
    )
    num_fewshot: int | None = option(None, "Examples before each question; the task's own number if left out.")
    limit: float | None = option(None, "Take so many questions of each task (below 1: a share). For trying out only.")
    samples: str | None = option(None, "Which questions of which task, as JSON: '{\"arc_easy\": [0, 5]}', or a file.")
    batch_size: str | None = option(None, "Rows of a pass, or auto. It changes the speed, not the scores.")
    max_batch_size: int | None = option(None, "Most rows of a pass.")
    apply_chat_template: str | None = option(None, "Ask through the chat template (true), or leave it (false).")
    fewshot_as_multiturn: bool | None = option(None, "Examples as turns of a conversation; so with a chat template.")
    system_instruction: str | None = option(None, "What the system says before the first question.")
    gen_kwargs: str | None = option(None, "key=value: changes what tasks ask of generation.")
    harness_seed: str | None = option(None, "lm-eval's seeds: one number, or four (Python, numpy, torch, examples).")


@dataclasses.dataclass
class ResultArguments:
    """Results"""

    output_path: str | None = option(
        None, "Folder for scores, prompts, answers and all settings; a run that was stopped goes on from it."
    )
    log_samples: bool = option(True, "Keep every prompt and answer in --output_path.")
    overwrite: bool = option(False, "Delete an earlier result in --output_path.")
    repeat: str | None = option(
        None, "Repeat the evaluation in a results folder.", aliases=["--from"], metavar="FOLDER"
    )
    predict_only: bool = option(False, "Write answers and no scores.")
    write_out: bool = option(False, "Print the prompts of the first questions.")
    show_config: bool = option(False, "Print the tasks' own settings.")
    include_path: str | None = option(None, "A folder of further tasks in lm-eval's YAML.")
    confirm_run_unsafe_code: bool = option(
        False, "Leave to run code that a model writes, as HF_ALLOW_CODE_EVAL=1 in the environment gives it."
    )
    use_cache: str | None = option(None, "lm-eval's own cache of answers, a file; --output_path keeps them too.")
    cache_requests: str | None = option(None, "lm-eval's cache of prompts: true, refresh or delete.")
    check_integrity: bool = option(False, "Run lm-eval's own tests of the tasks.")
    metadata: str | None = option(None, "key=value: for tasks that take settings.")
    verbosity: str | None = option(None, "What lm-eval says: DEBUG, INFO, WARNING, ERROR.")
    wandb_args: str | None = option(None, "key=value: send the results to Weights & Biases.")
    wandb_config_args: str | None = option(None, "key=value: its config.")
    trackio_args: str | None = option(None, "key=value: send the results to Trackio.")
    hf_hub_log_args: str | None = option(None, "key=value: send the results to the hub.")


def normalised(argv: list[str]) -> list[str]:
    """lm-eval's spellings as those of every command here: short forms, values of several words, bare flags, seeds."""
    words = [SHORT.get(word, word) for word in argv]
    found: list[str] = []
    i = 0
    while i < len(words):
        name, sign, value = words[i].partition("=")
        flag, i = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name, i + 1
        values = [value] if sign else []
        while not sign and i < len(words) and flag.startswith("--") and not words[i].startswith("--"):
            values.append(words[i])
            i += 1
        if flag in JOINED and values:
            values = [",".join(part.strip(",") for part in values)]
        elif flag in BARE and not values:
            values = [BARE[flag]]
        elif flag == "--seed" and values and "," in values[0]:
            flag = "--harness_seed"
        found += [flag, *values]
    return found


def seeds(text: str | None) -> tuple[int | None, ...]:
    """lm-eval's four seeds from one number or from three or four with commas; its own where nothing is said."""
    if text is None:
        return SEEDS
    words = [word.strip() for word in text.split(",")]
    try:
        found = tuple(None if word in ("None", "none") else int(word) for word in words)
    except ValueError:
        raise UserError(f"--seed is {text!r}; expected one number, or four as in 0,1234,1234,1234.") from None
    if len(found) == 1:
        return found * 4
    if len(found) not in (3, 4):
        raise UserError(f"--seed has {len(found)} numbers; expected one, or four as in 0,1234,1234,1234.")
    return found + SEEDS[len(found) :]


def chosen(text: str | None) -> dict[str, list[int]] | None:
    """--samples: JSON, or a file with it."""
    if text is None:
        return None
    path = Path(text)
    try:
        found = json.loads(path.read_text(encoding="utf-8") if not text.lstrip().startswith("{") else text)
        assert all(isinstance(i, int) for some in found.values() for i in some)
    except (OSError, ValueError, AttributeError, TypeError, AssertionError):
        raise UserError(
            f"--samples is {text[:60]!r}; expected JSON such as '{{\"arc_easy\": [0, 5]}}', or its file."
        ) from None
    return {str(task): list(some) for task, some in found.items()}


def template_asked(text: str | None) -> bool | str | None:
    """--apply_chat_template: true, false, or the name of one of several templates; None where nothing is said."""
    if text is None:
        return None
    word = text.strip().lower()
    return True if word in ("true", "1", "yes") else False if word in ("false", "0", "no") else text


def loose(text: str | None) -> dict[str, Any]:
    """lm-eval's `key=value,key=value`, read as it reads it."""
    from lm_eval.utils import simple_parse_args_string

    if text and text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError:
            raise UserError(f"{text[:60]!r} is not valid JSON.") from None
    return dict(simple_parse_args_string(text)) if text else {}
