"""Chat under the tutorial's name: answers are shown while they unmask.

    python -u examples/llada/chat.py --model_name_or_path output/llada-8b-sft/checkpoint-final \
        --steps 128 --max_length 128 --block_size 32

In:  the flags of `unmask chat`; the model may be a LoRA adapter's folder. `--chat_template False` continues raw text.
Out: answers on stdout. /help lists what can be typed besides questions.
"""

from __future__ import annotations

import sys

from unmask.__main__ import main

sys.exit(main(["chat", *sys.argv[1:]]))
