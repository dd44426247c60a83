"""`unmask merge` where the tutorial has it: python merge.py --lora_path A --base_model_path B --merge_path C"""

from __future__ import annotations

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
