"""Sampling under the tutorial's name: prompts continued, then gaps filled from both sides.

    python -u examples/llada/sample.py --model_name_or_path output/llada-pt-c4-500Mtokens-epoch-1/checkpoint-final \
        --steps 64 --max_new_tokens 64 --block_size 32

In:  the flags of `unmask sample`. With a prompt among them (`-p`), this is that command and no more.
Out: the answers on stdout.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

PROMPTS = ("The train left the station at noon and", "To cook rice, first")
GAPS = ("The weather today is{{6}}, so we will{{8}} in the park.", "She opened the box and found{{10}}. It was a gift.")


def prompted(texts: tuple[str, ...]) -> list[str]:
    return [word for text in texts for word in ("-p", text)]


def without_length(words: list[str]) -> list[str]:
    """The flags without those of an answer's length: the number in the braces says how long a gap is."""
    kept: list[str] = []
    skip = False
    for word in words:
        flag = word.split("=")[0].replace("-", "_")
        if flag in ("__max_new_tokens", "__max_length"):
            skip = "=" not in word
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    words = sys.argv[1:]
    if any(word.split("=")[0] in ("-p", "--prompt") for word in words):
        sys.exit(main(["sample", *words]))
    sys.exit(main(["sample", *words, *prompted(PROMPTS)]) or main(["infill", *without_length(words), *prompted(GAPS)]))
