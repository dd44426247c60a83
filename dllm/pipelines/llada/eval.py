"""Evaluation under the tutorial's name: what it is given goes on to `unmask eval`.

    accelerate launch --num_processes 1 dllm/pipelines/llada/eval.py --tasks cmmlu --model llada --apply_chat_template \
        --output_path output/eval --log_samples --model_args "pretrained=FOLDER,mc_num=1,max_length=1024,steps=256"

In:  the flags of `unmask eval`.  Out: the folder of results.

No folder above this file has an `__init__.py`: so a `dllm` that is installed is still the one that is imported.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
