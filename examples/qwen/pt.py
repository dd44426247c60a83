"""Pretraining a Qwen left to right, to compare with: `unmask pretrain --objective autoregressive`.

    accelerate launch --config_file configs/ddp.yaml --num_processes 1 \
        examples/qwen/pt.py --configs configs/qwen2.5-100M-pt.yaml --max_steps 100

In:  the flags of `unmask pretrain`.  Out: the run's folder.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    # first, so that a flag or the YAML file may still say otherwise
    sys.exit(main(["pretrain", "--objective", "autoregressive", *sys.argv[1:]]))
