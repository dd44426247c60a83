"""Merging an adapter under the tutorial's name: what it is given goes on to `unmask merge`.

    python examples/llada/merge.py --lora_path output/llada-sft/checkpoint-final \
        --base_model_path models/LLaDA-8B-Base --merge_path output/llada-merged

In:  the flags of `unmask merge`.  Out: an ordinary model folder.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
