"""Tuning Qwen left to right, to compare with: `unmask sft --objective autoregressive` under the tutorial's name.

    accelerate launch --config_file configs/ddp.yaml --num_processes 1 \
        examples/qwen/sft.py --configs configs/qwen2.5-7b-alpaca.yaml

In:  the flags of `unmask sft`.  Out: the run's folder. Rows and their order are those that LLaDA is tuned on, each in
its own tokenizer and template.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    # first, so that a flag or the YAML file may still say otherwise
    sys.exit(main(["sft", "--objective", "autoregressive", *sys.argv[1:]]))
