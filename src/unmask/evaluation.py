"""The command `unmask eval`: lm-eval's benchmarks, exams on disk and your own questions, for masked and causal models.

In:  lm-eval's flags, a model, tasks.
Out: a table; in --output_path scores, errors, prompts, answers, settings and versions.

`accelerate launch -m unmask eval …` shares the questions among processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unmask import report
from unmask.benchmark import evaluate
from unmask.config import UserError
from unmask.harness import arguments, flags, results
from unmask.harness.asking import Evaluation
from unmask.harness.flags import ResultArguments, TaskArguments
from unmask.reader import ReaderArguments, read


def main(argv: list[str]) -> int:
    """`unmask eval --model FOLDER --tasks …`"""
    about = "Score a model, masked or causal, on lm-eval's tasks, exams on disk or your own questions."
    groups = [ReaderArguments, TaskArguments, arguments.ScoringArguments, ResultArguments]
    words = flags.normalised(argv)
    (reader, tasks, scoring, output), _, decoding = read("unmask eval", about, words, groups, refused=REFUSED)
    if output.repeat:
        return again(output, words)
    wanted = Evaluation(reader, tasks, scoring, output, decoding, words)
    check(wanted)
    evaluate(wanted)
    return 0


REFUSED = {
    "trust_remote_code": "would run code from the hub, which Unmask never does.",
    "return_dict": "is for programs.",
}


def check(wanted: Evaluation) -> None:
    """UserError for flags that cannot be, before anything is loaded."""
    tasks, output = wanted.tasks, wanted.output
    if bool(tasks.tasks) == bool(tasks.data):
        what = "both --tasks and --data" if tasks.data else "neither --tasks nor --data"
        raise UserError(
            f"{what} are given; name tasks (--tasks cmmlu), or your own questions (--data qa.jsonl --metric exact)."
        )
    if bool(tasks.data) != bool(tasks.metric):
        raise UserError(
            "--data and --metric belong together: --data FILE --metric exact, contains, choice or perplexity."
        )
    if tasks.data and tasks.preset:
        raise UserError("--preset has settings for published tasks, not for --data; leave one out.")
    if tasks.limit is not None and tasks.limit <= 0:
        raise UserError(f"--limit is {tasks.limit:g}; it must be above 0.")
    if tasks.limit is not None and tasks.samples:
        raise UserError("--limit and --samples both choose questions; give one.")
    if tasks.num_fewshot is not None and tasks.num_fewshot < 0:
        raise UserError(f"--num_fewshot is {tasks.num_fewshot}; it must be 0 or more.")
    if output.predict_only and not output.output_path:
        raise UserError("--predict_only writes answers into --output_path; name a folder.")
    if tasks.fewshot_as_multiturn and not flags.template_asked(tasks.apply_chat_template) and not tasks.preset:
        raise UserError("--fewshot_as_multiturn makes turns of a conversation; it needs --apply_chat_template.")
    flags.seeds(tasks.harness_seed)
    flags.chosen(tasks.samples)
    try:
        import lm_eval
    except ImportError:
        raise UserError("lm-eval is not installed; type: pip install 'unmask[eval]'") from None
    del lm_eval


# ---------------------------------------------------------------------------------------------------------------------
# Again


def again(output: ResultArguments, words: list[str]) -> int:
    """Repeat the evaluation in a results folder, with the flags given beside --from on top, and compare the scores."""
    folder = Path(str(output.repeat))
    file = folder / results.RESULTS
    if not file.is_file():
        raise UserError(f"--from {folder}: there is no {results.RESULTS} in it.")
    there = json.loads(file.read_text(encoding="utf-8"))
    at = next(i for i, word in enumerate(words) if word.partition("=")[0] in ("--from", "--repeat"))
    more = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
    old = without(there["argv"], "--output_path")
    main_words = [*old, *more]
    about, groups = "", [ReaderArguments, TaskArguments, arguments.ScoringArguments, ResultArguments]
    (reader, tasks, scoring, mine), _, decoding = read("unmask eval", about, main_words, groups, refused=REFUSED)
    wanted = Evaluation(reader, tasks, scoring, mine, decoding, main_words)
    check(wanted)
    now = evaluate(wanted)
    if now is None:
        return 0
    if (now["model"].get("fingerprint"), there["model"].get("fingerprint")) != (None, None) and now["model"].get(
        "fingerprint"
    ) != there["model"].get("fingerprint"):
        report.say(f"the model has other weights than in {folder}")
    different = [
        f"{task} {metric}: {before:.4f} there, {after:.4f} here"
        for task, scores in there["results"].items()
        for metric, by, before, _ in results.metrics_of(scores)
        for other, same, after, _ in results.metrics_of(now["results"].get(task, {}))
        if (metric, by) == (other, same) and before != after
    ]
    report.say(*(different or [f"the scores are those in {folder}"]))
    return 0


def without(words: Sequence[str], flag: str) -> list[str]:
    """Words without a flag and its value."""
    found, skip = [], False
    for word in words:
        name, sign, _ = word.partition("=")
        if name == flag:
            skip = not sign
            continue
        if skip and not word.startswith("--"):
            skip = False
            continue
        skip = False
        found.append(word)
    return found
