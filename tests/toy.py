"""A model as a function, rigged by a test: what it says, and how often and about how many places it was asked."""

import numpy as np
import torch

VOCABULARY, MASK, EOS, EOT = 12, 11, 10, 9


def hashed(ids):
    """Logits (n, vocabulary) that depend on every token of the row."""
    return torch.tensor(np.random.default_rng(ids.tolist()).normal(size=(len(ids), VOCABULARY)), dtype=torch.float32)


def favouring(tokens, sureness=5.0):
    """An answer that knows the token of each place; `sureness` is the logit, one for all or one per place."""

    def answer(ids):
        logits = torch.zeros(len(ids), VOCABULARY)
        logits[torch.arange(len(ids)), torch.tensor(tokens)] = torch.as_tensor(sureness)
        return logits

    return answer


class Toy:
    """`answer`: ids (n,) of a row without its padding → logits (n, vocabulary)."""

    mask_id, vocab_size, device, eos_id = MASK, VOCABULARY, torch.device("cpu"), EOS

    def __init__(self, answer=hashed, max_length=None):
        self.answer, self.max_length = answer, max_length
        self.passes = self.kept = 0
        self.shown = []

    def __call__(self, ids, *, attention=None, positions=None, cache=None, keep=None, read=None):
        logits = torch.zeros(*ids.shape, VOCABULARY)
        for i, row in enumerate(ids):
            n = len(row) if attention is None else int(attention[i].sum())
            logits[i, :n] = self.answer(row[:n])
            self.shown.append(row[:n].tolist())
        chosen = logits if keep is None else logits[keep]
        self.passes += 1
        self.kept += len(chosen)
        return read(chosen, lambda same: same) if read else chosen
