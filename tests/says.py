"""A model that answers as a test wants, on the byte tokenizer, for tests of chats."""

from __future__ import annotations

from types import SimpleNamespace

import torch

HEADER_END, EOT, MASK, VOCABULARY = 260, 261, 258, 262


class Says:
    """A mask predictor sure of `reply(question)` after each prompt of LLaDA's template; it remembers what it was shown.

    The question is the last user's text. after: what happens at each forward pass, given its number.
    """

    mask_id, vocab_size, device, eos_id = MASK, VOCABULARY, torch.device("cpu"), 257

    def __init__(self, tokenizer, reply, max_length=512, after=lambda number: None):
        self.tokenizer, self.reply, self.max_length, self.after = tokenizer, reply, max_length, after
        self.passes, self.prompts = 0, []

    def __call__(self, ids, *, attention=None, positions=None, cache=None, keep=None, read=None):
        row = ids[0].tolist()
        start = len(row) - row[::-1].index(HEADER_END) + 2  # after the header's two line ends
        asked = self.tokenizer.decode(row[:start]).rpartition("<|start_header_id|>user<|end_header_id|>\n\n")[2]
        words = self.tokenizer.encode(self.reply(asked.partition("<|eot_id|>")[0]), add_special_tokens=False)
        logits = torch.zeros(*ids.shape, VOCABULARY)
        for i, place in enumerate(range(start, len(row))):
            logits[0, place, words[i] if i < len(words) else EOT] = 9.0
        self.passes += 1
        self.prompts.append(row[:start])
        self.after(self.passes)
        chosen = logits[keep]
        return read(chosen, lambda same: same)

    def loaded(self):
        """Stands in for `models.Loaded`."""
        config = SimpleNamespace(eos_token_id=257, model_type="toy")
        model = SimpleNamespace(config=config, num_parameters=lambda: 1000)
        family = SimpleNamespace(ends=("<|eot_id|>",))
        return SimpleNamespace(model=model, tokenizer=self.tokenizer, family=family, causal=False, adapter=None)
