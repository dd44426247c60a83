"""Chat with Qwen, or any other causal model, under the tutorial's name: tokens come from left to right.

    python examples/qwen/chat.py --model_name_or_path output/qwen2.5-7b-alpaca --max_new_tokens 256 --temperature 0.7

In:  the flags of `unmask chat`, with the tutorial's values where they are left out. Temperature 0 is greedy.
Out: answers on stdout. `exit` leaves.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

USUAL = {"max_new_tokens": "1024", "temperature": "0.7", "system": "You are a helpful assistant."}
INSTEAD = {
    "max_new_tokens": {"max_new_tokens", "max_length", "gen_length"},
    "temperature": {"temperature"},
    "system": {"system", "chat_template", "no_chat_template"},  # without a template there is no place for it
}

words = sys.argv[1:]
given = {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
if not given & {"config", "configs", "config_file"}:
    words += [f"--{name}={value}" for name, value in USUAL.items() if not given & INSTEAD[name]]
sys.exit(main(["chat", *words]))
