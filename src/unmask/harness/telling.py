"""What an evaluation tells when it is done: the table, what to look at, and trackers.

In:  the results.  Out: lines on the terminal; lm-eval's own loggers, where they are asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from unmask import report
from unmask.config import UserError
from unmask.harness import flags, results
from unmask.harness.asking import Evaluation
from unmask.harness.flags import ResultArguments

if TYPE_CHECKING:
    from unmask.harness.presets import Preset


def tell(wanted: Evaluation, whole: dict[str, Any], samples: dict[str, Any], preset: Preset | None) -> None:
    """The table, and what is to be said about it."""
    from unmask.bench import show

    names = [*(whole.get("groups") or {}), *whole["results"]]
    published: dict[str, float] = {}
    for name in names if preset else ():
        with contextlib.suppress(UserError):
            known = preset.published(name) if preset else None
            published |= {name: known} if known is not None else {}
    notes = [what(whole)]
    sign = "=" if whole["model"].get("objective") == "autoregressive" else "≤"
    for task, total in whole["texts"].items():
        error = "" if total["se"] is None else f" ± {1.96 * total['se']:.4f}"
        notes.append(
            f"{task}: {sign} {total['nats_per_token']:.4f}{error} nats/token, {total['tokens']:,} tokens in "
            f"{total['windows']:,} windows"
        )
    for task, total in whole["decoding"].items():
        notes.append(
            f"{task}: {total['forward_passes'] / total['answers']:.1f} forward passes an answer, "
            f"{total['tokens_per_forward']:.2f} tokens a pass, {report.amount(total['tokens_per_second'])} tokens/s "
            "up to the end of text"
        )
    if published:
        notes.append("published: the paper's figure for the paper's model, not measured here")
    if wanted.tasks.limit is not None:
        notes.append(f"--limit {wanted.tasks.limit:g}: not the whole task")
    if wanted.output.show_config:
        notes.append(json.dumps(whole.get("configs"), indent=1, default=str))
    show(results.table(whole, published), notes)
    report.say(*results.suspicious(whole, samples))
    for task, rows in samples.items() if wanted.output.write_out else ():
        for one in rows[:1]:
            report.say(f"--- {task}, question {one['doc_id']}, as the model was asked:", str(one["arguments"][0][0]))


def what(whole: dict[str, Any]) -> str:
    """Which model was scored, and what its likelihoods are."""
    model, settings = whole["model"], whole["settings"]
    if model.get("objective") == "autoregressive":
        return f"{model['name']}: autoregressive, exact likelihood"
    scoring = settings["asked"]["scoring"]
    draws = f", {scoring['mc_num']} draws" if scoring["likelihood"] in ("exact_count", "bernoulli", "any_order") else ""
    return f"{model['name']}: masked, likelihood {scoring['likelihood']}{draws} (one token: exact)"


def trackers(output: ResultArguments, whole: dict[str, Any], samples: dict[str, Any]) -> None:
    """Send the results where lm-eval's own loggers send them."""
    from lm_eval import loggers

    if output.wandb_args:
        wandb = loggers.WandbLogger(flags.loose(output.wandb_args), flags.loose(output.wandb_config_args))
        wandb.post_init(whole)
        wandb.log_eval_result()
        if samples:
            wandb.log_eval_samples(samples)
    if output.trackio_args:
        trackio = loggers.TrackioLogger(flags.loose(output.trackio_args))
        trackio.post_init(whole)
        trackio.log_eval_result()
    if output.hf_hub_log_args:
        tracker = loggers.EvaluationTracker(
            output_path=output.output_path, token=os.environ.get("HF_TOKEN", ""), **flags.loose(output.hf_hub_log_args)
        )
        tracker.save_results_aggregated(results=whole, samples=samples)
