"""Pretraining under the tutorial's name: what it is given goes on to `unmask pretrain`.

    accelerate launch --config_file configs/ddp.yaml --num_processes 1 \
        examples/llada/pt.py --configs configs/llada-100M-pt.yaml --max_steps 100

In:  the flags of `unmask pretrain`; a YAML file as --configs, --config or --config_file.  Out: the run's folder.
To change what is learnt, see `examples/custom_objective.py`; to change the loop, `unmask.trainer`.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":  # workers that tokenise import this file again where processes are spawned
    sys.exit(main(["pretrain", *sys.argv[1:]]))
