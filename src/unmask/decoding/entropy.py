"""`entropy`: first where the model hesitates least (Dream's `entropy`).

In:  the entropy at the open places of the block, in nats.
Out: as many places as `steps` plans, of the lowest entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask import decoding
from unmask.canvas import Row


@dataclass
class Settings:
    """Rule: entropy"""


class Rule(decoding.Planned):
    """Score: -H = Σ p log p. (KLASS's repository has the sign the other way round: highest entropy first.)"""

    needs = frozenset({"entropy"})

    def score(self, row: Row, seen: decoding.Seen) -> Tensor:
        assert seen.entropy is not None
        return -seen.entropy
