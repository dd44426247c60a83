"""Memory that is kept: the same piece step after step, never one that somebody still holds."""

import pytest
import torch

from unmask import kept

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(kept.USES is None, reason="this torch does not say who holds a storage")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 64)
    monkeypatch.setattr(kept, "_storages", {})


def test_what_is_over_is_given_again_and_what_is_held_is_not():
    one = kept.empty("a", (4, 8), torch.float32, CPU)
    where = one.data_ptr()
    one.fill_(7)
    other = kept.empty("a", (4, 8), torch.float32, CPU)
    assert other.data_ptr() != where
    other.zero_()
    assert bool((one == 7).all())
    del one
    again = other.data_ptr()
    del other
    assert kept.empty("a", (64,), torch.bfloat16, CPU).data_ptr() == again, "other kinds of numbers fit in"


def test_a_view_or_a_gradient_counts_as_holding():
    view = kept.empty("a", (4, 8), torch.float32, CPU)[1:2]
    assert kept.empty("a", (4, 8), torch.float32, CPU).untyped_storage()._cdata != view.untyped_storage()._cdata
    weight = torch.zeros(4, 8, requires_grad=True)
    weight.grad = kept.empty("b", (4, 8), torch.float32, CPU)
    assert kept.empty("b", (4, 8), torch.float32, CPU).data_ptr() != weight.grad.data_ptr()


def test_names_have_pieces_of_their_own_and_a_larger_one_replaces_a_smaller():
    one, other = (kept.empty(name, (32,), torch.float32, CPU) for name in "ab")
    assert one.data_ptr() != other.data_ptr()
    del one
    assert kept.empty("a", (64,), torch.float32, CPU).untyped_storage().nbytes() == 256


def test_small_ones_are_not_kept():
    kept.empty("a", (4,), torch.float32, CPU)
    assert not kept._storages
