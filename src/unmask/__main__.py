"""The command `unmask`: finds the command's file and hands it the arguments.

In:  `unmask COMMAND …`, also as `python -m unmask COMMAND …` and under `accelerate launch … -m unmask COMMAND …`.
Out: the command's exit code; 2 and one line for what the user has to change.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time

# command → (file, function, what it does), grouped by what a user wants to do
GROUPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Start": {
        "quickstart": ("quickstart", "main", "Train a small model on this machine's own text, in minutes"),
        "download": ("hub", "main", "Fetch a model or data set from ModelScope or Hugging Face"),
        "tokenizer": ("tokenizer", "main", "Train a tokenizer with LLaDA's special tokens"),
        "init": ("init", "main", "Make a model folder (config, tokenizer, no weights)"),
        "count": ("init", "main_count", "Count a model's parameters and the memory training takes"),
    },
    "Train": {
        "estimate": ("estimation", "main", "Work out the memory and time of a run before it starts"),
        "prepare": ("prepare", "main", "Write tokens to disk once, for later training"),
        "inspect": ("inspection", "main", "Show training rows: who speaks, what is learnt, what is masked"),
        "pretrain": ("pretrain", "main", "Pretrain on text"),
        "sft": ("sft", "main", "Tune on instructions and answers, wholly or with LoRA"),
        "merge": ("merge", "main", "Merge a LoRA adapter into its base model"),
    },
    "Use": {
        "chat": ("chat", "main", "Talk with a model, and watch it write"),
        "sample": ("sample", "main", "Continue prompts"),
        "infill": ("sample", "main_infill", "Fill gaps in a text"),
        "serve": ("serve", "main", "Serve a model: OpenAI's API, and a page to watch it write"),
    },
    "Study": {
        "eval": ("evaluation", "main", "Score a model on benchmarks, exams on disk or your own questions"),
        "compare": ("compare", "main", "Compare scored models, question by question"),
        "bench": ("bench", "main", "Measure decoding: rules and caches side by side"),
        "study": ("study", "main", "Train many models out of one file, and report on them"),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def overview() -> str:
    lines = [
        "unmask: masked diffusion language models, from text to samples",
        "",
        "usage: unmask COMMAND [options]",
        "",
    ]
    for title, group in GROUPS.items():
        lines.append(title)
        lines += [f"  {name:<12}{text}" for name, (_, _, text) in group.items()]
        lines.append("")
    return "\n".join([*lines, "`unmask COMMAND --help` lists a command's options."])


def main(argv: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        from unmask import __version__

        print(__version__)
        return 0
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read by the bars of libraries when they are first loaded
    command = words[0]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean `unmask {near[0]}`?" if near else ""
        return told(f"no command {command!r}.{hint} `unmask` lists them.")
    file, function, _ = COMMANDS[command]
    from unmask.config import UserError

    try:
        return int(getattr(importlib.import_module(f"unmask.{file}"), function)(words[1:]) or 0)
    except UserError as error:
        return told(str(error), error.code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read our output has gone (`unmask … | head`); closing would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is not None and error.errno in (28, 122):  # ENOSPC, EDQUOT
            return told(f"no space left on the disk ({error.filename or error.strerror}).")
        raise


def told(line: str, code: int = 2) -> int:
    """Print what is wrong, once for all processes of a launch; the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        # Launchers end all processes when one does: the first gets the time to speak. If it had nothing to say, we do.
        time.sleep(3)
    print(f"unmask: {f'(process {rank}) ' if rank else ''}{' '.join(line.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
