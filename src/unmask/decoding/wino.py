"""`wino`: write boldly, and take back what the rest of the row does not bear out (WINO, arXiv:2507.18578, ICLR 2026).

In:  the confidence at the open places of the block; the probability of each token that stands in it, as seen by a
     shadow: a mask at the same position that sees everything but that token.
Out: all places somewhat sure, up to a bound; the written places whose token is doubted are reopened.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask import decoding
from unmask.canvas import Choice, Row
from unmask.config import UserError, option

SHARE, LEAST, MOST = 0.7, 5, 20
"""A step writes at most this share of the open places, but may always write `LEAST` and never more than `MOST`: the
constants of the paper's code."""


@dataclass
class Settings:
    """Rule: wino"""

    draft: float = option(0.6, "Write the places above this confidence, from 0 to below 1.")
    verify: float = option(0.9, "Take back a token to which the rest of the row gives less than this, 0 to 1; 0: none.")

    def check(self) -> None:
        """UserError for what is no probability."""
        if not 0 <= self.draft < 1:
            raise UserError(f"--draft is {self.draft}; it must be 0 or more and below 1.")
        if not 0 <= self.verify <= 1:
            raise UserError(f"--verify is {self.verify}; it must be 0 to 1.")


class Rule(decoding.Rule):
    """Draft {i : c_i > draft}, the surest first; reopen {i : p_shadow(token_i) < verify}, the most doubted first.

    Shadows follow the row, one for each place of the block, open ones too. As in the paper's code, a shadow sees the
    row without its own place and all shadows, and nothing else sees a shadow. (So shadows of open places tell in what
    the others answer, though they are not read.) A step that cannot reopen anything shows the plain row: the row's own
    tokens do not see shadows, so it writes the same.

    Also as in that code: only what was written at an earlier step is doubted, only at a step that writes more than one
    place, and fewer are reopened than the step before wrote. `steps` bounds the rule too, which the paper does not
    ask: every step writes its planned share at least, and reopens nothing that the plan to date needs.
    """

    settings: Settings
    needs = frozenset({"standing"})
    revises = True

    def enter(self, row: Row) -> None:
        row.state = 0  # places written at the last step beyond its share: so many may be reopened

    def view(self, row: Row) -> decoding.View:
        """The row, and a shadow for each place of its block; read are the open places and the written ones' shadows."""
        n, block, asked = len(row.ids), row.blocks[row.block], row.candidates()
        if not row.state or len(asked) < 2:
            return decoding.View(row, row.ids, asked, asked)
        k, written = len(block), torch.nonzero(~row.open[block]).flatten()
        attention = torch.ones(n + k, n + k, dtype=torch.bool)
        attention[:n, n:] = False
        attention[n + torch.arange(k), block] = False
        return decoding.View(
            row,
            torch.cat([row.ids, row.ids.new_full((k,), row.mask_id)]),
            torch.cat([asked, n + written]),
            torch.cat([asked, block[written]]),
            positions=torch.cat([torch.arange(n), block]),
            attention=attention,
        )

    def choose(self, row: Row, seen: decoding.Seen) -> Choice:
        n, share = len(row.candidates()), row.share
        sure = seen.confidence[:n]
        most = max(min(max(int(SHARE * n), LEAST), MOST), share)
        count = min(max(int((sure > self.settings.draft).sum()), share), most)
        choice = seen.choice(torch.nonzero(decoding.highest(row, seen.places[:n], sure, count)).flatten())
        # What stands after this step, less what the plan wants by then.
        ahead = len(row.blocks[row.block]) - n + count - sum(row.shares[: row.taken + 1])
        spare, row.state = min(row.state, ahead), count - share
        if count > 1 and n < len(seen.places):
            assert seen.standing is not None
            places, standing = seen.places[n:], seen.standing[n:]
            # Tokens that are written last have no probability; that is no doubt.
            held = torch.isin(row.ids[places], torch.tensor(row.reading.last, dtype=torch.long))
            doubted = (standing < self.settings.verify) & ~held
            places, standing = places[doubted], standing[doubted]
            choice.reopen = places[decoding.highest(row, places, -standing, min(len(places), spare))]
        return choice

    def limit(self, row: Row) -> int:
        """The planned steps: one a token, if `steps` is left out.

        After step t of a block, N_t places stand. `choose` keeps N_t ≥ s_1 + … + s_t, the shares planned by then: it
        writes s_t or all that is open, and reopens no more than what stands above that sum. The shares of all planned
        steps together are the block. (Without `steps` each s is 1 and the paper's own bound says as much: w_t are
        written and at most w_{t-1} - 1 reopened, so N_t ≥ w_t + Σ_{u<t} (w_u - (w_u - 1)) ≥ t.)
        """
        return sum(row.planned)
