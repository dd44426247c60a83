"""Instruction tuning under the tutorial's name: what it is given goes on to `unmask sft`.

    accelerate launch --config_file configs/ddp.yaml --num_processes 1 \
        examples/llada/sft.py --configs configs/llada-8b-sft.yaml --num_train_epochs 2

In:  the flags of `unmask sft`; a YAML file as --configs, --config or --config_file.  Out: the run's folder.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":  # workers that tokenise import this file again where processes are spawned
    sys.exit(main(["sft", *sys.argv[1:]]))
