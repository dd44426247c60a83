"""Rules that remember, and rules that revise, write what their definitions say, transcribed here on plain lists."""

import itertools
import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import EOS, EOT, MASK, VOCABULARY, Toy, favouring

import unmask.models
from unmask import decoding
from unmask.canvas import Canvas
from unmask.config import UserError


def softmax(logits):
    odds = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return odds / odds.sum()


def opinion(seed, place, *, shake=0.0, shaken=()):
    """Logits of one place: a favourite token, how clear it is, and a `shake` that depends on the numbers `shaken`."""
    own = np.random.default_rng([seed, place])
    logits, at = own.normal(size=VOCABULARY), own.integers(VOCABULARY)
    logits[at] += own.uniform(0, 9)
    return logits + shake * np.random.default_rng([seed, place, *shaken]).normal(size=VOCABULARY)


def drifting(seed):
    """A model whose opinions move with every token of the row, at some places little, at others much."""

    def answer(ids):
        shakes = 10 ** np.random.default_rng(seed).uniform(-3, 0.3, len(ids))
        rows = [opinion(seed, i, shake=shake, shaken=ids.tolist()) for i, shake in enumerate(shakes)]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    return answer


def free(text):
    return [place for place, token in enumerate(text) if token is None]


def masked(text):
    return [MASK if token is None else token for token in text]


def parts(text, block_size):
    places = free(text)
    return [places[at : at + block_size] for at in range(0, len(places), block_size)]


def writable(p):
    """The likeliest token that may be written, and its probability."""
    token = max((t for t in range(VOCABULARY) if t != MASK), key=p.__getitem__)
    return token, p[token]


def fill_plainly(answer, text, block_size, per_block, choose):
    """The row after every step. choose(memory, logits, left, share) → {place: token}; each block has its own memory."""
    x, shown = masked(text), []
    for left in parts(text, block_size):
        memory, size, steps = {}, len(left), min(per_block or len(left), len(left))
        for i in itertools.count():
            if not left:
                break
            share = min(size // steps + (i < size % steps), len(left))
            new = choose(memory, answer(torch.tensor(x)).tolist(), left, share)
            for place, token in new.items():
                x[place] = token
            left = [place for place in left if place not in new]
            shown.append(list(x))
    return shown


def surest(c, count):
    return sorted(c, key=c.__getitem__, reverse=True)[:count]


def klass(memory, logits, left, share, confidence, kl, history):
    ready, c, tokens = [], {}, {}
    for i in left:
        p = softmax(logits[i])
        tokens[i], c[i] = writable(p)
        before = memory.setdefault(i, [])
        before.append(p)
        moved = [float((b * np.log(b / a)).sum()) for a, b in itertools.pairwise(before)]
        if c[i] > confidence and len(moved) >= history and max(moved[-history:]) < kl:
            ready.append(i)
    rest = {i: c[i] for i in left if i not in ready}
    return {i: tokens[i] for i in [*ready, *surest(rest, max(share - len(ready), 0))]}


def credit(memory, logits, left, share, threshold, decay, gamma, alpha):
    c, tokens = {}, {}
    for i in left:
        given = memory.setdefault(i, [0.0] * VOCABULARY)
        token, p = writable(softmax(logits[i]))
        given[:] = [decay * g for g in given]
        given[token] += p**gamma
        tokens[i], c[i] = writable(softmax(np.array(logits[i]) + alpha * np.log(1 + np.array(given))))
    return {i: tokens[i] for i in {*surest(c, share), *(i for i in left if c[i] >= threshold)}}


def trace(toy, text, **options):
    """The row after every step."""
    return [done.canvas.rows[0].ids.tolist() for done in decoding.unmask(toy, Canvas.of([text], MASK), **options)]


TEXT = st.lists(st.one_of(st.none(), st.none(), st.integers(0, MASK - 1)), min_size=1, max_size=24).filter(free)
PER_BLOCK = st.one_of(st.none(), st.integers(1, 6))
UNIT = st.floats(0.05, 0.999)
REMEMBERING = {
    "klass": (klass, {"confidence": UNIT, "kl": st.floats(1e-4, 0.5), "history": st.integers(1, 3)}),
    "credit": (credit, {"threshold": UNIT, "decay": UNIT, "gamma": st.floats(0, 2), "alpha": st.floats(0, 3)}),
}


@pytest.mark.parametrize("name", REMEMBERING)
@given(st.data(), TEXT, st.integers(1, 12), PER_BLOCK, st.integers(0, 99))
@settings(max_examples=40)
def test_rules_that_remember_write_what_their_definition_says(name, data, text, block_size, per_block, seed):
    defined, ranges = REMEMBERING[name]
    drawn = data.draw(st.fixed_dictionaries(ranges))
    blocks = [len(block) for block in parts(text, block_size)]
    if len(set(blocks)) > 1 or (per_block or 0) > blocks[0]:
        per_block = None  # how steps are shared out among unequal blocks is the canvas's affair
    answer, steps = drifting(seed), per_block and per_block * len(blocks)
    wanted = fill_plainly(answer, text, block_size, per_block, lambda *at: defined(*at, **drawn))
    toy = Toy(answer)
    assert trace(toy, text, rule=name, block_size=block_size, steps=steps, **drawn) == wanted
    assert toy.passes == len(wanted) <= (steps or sum(blocks))


def still(ids):
    """A model that never changes its mind; sureness falls from place to place, from 0.9999 to 0.8."""
    return favouring([i % EOT for i in range(len(ids))], torch.linspace(11.5, 3.8, len(ids)))(ids)


def test_klass_holds_a_sure_place_back_until_it_has_stood_still_long_enough():
    for history in (1, 2, 3):
        row = decoding.fill(
            Toy(still), Canvas.after([[]], 12, MASK), rule="klass", history=history, confidence=0.5, block_size=6
        ).rows[0]
        alone = list(range(1, history + 1))
        begun = [*alone, *[history + 1] * (6 - history)]  # the others all at once
        assert row.written_at.tolist() == [*begun, *(history + 1 + at for at in begun)]
    never_sure = decoding.fill(Toy(still), Canvas.after([[]], 6, MASK), rule="klass", confidence=1.0).rows[0]
    assert never_sure.step == 6


def test_klass_remembers_the_open_places_of_the_block_and_no_others():
    canvas = Canvas.after([[1, 2, 3]], 12, MASK)
    row = canvas.rows[0]
    decoding.prepare(Toy(), canvas.rows, rule="klass", block_size=6)
    while not row.finished:
        asked = row.candidates().tolist()
        decoding.step(Toy(), canvas.rows)
        if row.state is not None:  # else a block begins
            assert row.state.places.tolist() == asked
            assert row.state.probs.shape == (len(asked), VOCABULARY)
            assert row.state.probs.dtype == torch.float32


def test_klass_parts_the_places_at_their_divergence_from_the_step_before():
    answer, text = drifting(4), [None] * 8
    first, second = trace(Toy(answer), text, rule="klass")[:2]
    p, q = (torch.softmax(answer(torch.tensor(x)), -1).double() for x in (masked(text), first))
    moved = (q * (q / p).log()).sum(-1).tolist()
    left = [i for i in range(8) if first[i] == MASK]
    assert second != first
    for bound in left:
        for near in (0.99, 1.01):
            kl = near * moved[bound]
            row = trace(Toy(answer), text, rule="klass", kl=kl, history=1, confidence=0.01)[1]
            ready = [i for i in left if moved[i] < kl]
            assert [i for i in left if row[i] != MASK] == ready or not ready


def test_credit_fades_with_every_step_since_it_was_given():
    toy, canvas, decay, gamma = Toy(), Canvas.after([[7]], 6, MASK), 0.6, 0.3
    row, said = canvas.rows[0], []
    decoding.prepare(toy, canvas.rows, rule="credit", decay=decay, gamma=gamma, threshold=1.0)
    while not row.finished:
        asked, said = row.candidates(), [*said, toy.answer(row.ids).numpy()]
        decoding.step(toy, canvas.rows)
        for place in asked.tolist():
            wanted = np.zeros(VOCABULARY)
            for age, logits in enumerate(reversed(said)):
                token, p = writable(softmax(logits[place]))
                wanted[token] += decay**age * p**gamma
            np.testing.assert_allclose(row.state.given[place - 1], wanted, rtol=1e-5)


def test_credit_without_alpha_is_the_threshold_and_with_it_needs_no_more_steps_on_a_model_that_keeps_its_mind():
    def steps(**options):
        canvas = decoding.fill(Toy(lambda ids: still(ids) * 0.5), Canvas.after([[]], 30, MASK), **options)
        return canvas.rows[0].step, canvas.rows[0].written_at.tolist()

    plain = steps(rule="threshold", threshold=0.7)
    assert steps(rule="credit", threshold=0.7, alpha=0.0) == plain
    counts = [steps(rule="credit", threshold=0.7, alpha=alpha)[0] for alpha in (0.0, 0.7, 2.0, 5.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_credit_is_the_rows_own_and_ends_with_its_block():
    text = [1, 2, *[None] * 9]
    canvas = Canvas.of([text, text, [3, *[None] * 9]], MASK)
    decoding.fill(Toy(drifting(3)), canvas, rule="credit", block_size=3, threshold=0.8)
    same, twin, _ = canvas.rows
    assert same.written_at.tolist() == twin.written_at.tolist()
    assert same.state is not twin.state
    assert same.state.given.shape == (3, VOCABULARY)


def test_tokens_that_are_never_written_earn_no_credit():
    def answer(ids):
        logits = torch.zeros(len(ids), VOCABULARY)
        logits[:, EOS], logits[:, MASK], logits[:, 4] = 9.0, 8.0, 7.0
        return logits

    canvas = Canvas.after([[]], 3, MASK)
    decoding.fill(Toy(answer), canvas, rule="credit", suppress_tokens=[EOS], steps=3)
    earned = canvas.rows[0].state.given
    assert set(torch.nonzero(earned)[:, 1].tolist()) == {4}
    assert canvas.rows[0].ids.tolist() == [4, 4, 4]


def test_places_beyond_the_block_neither_earn_credit_nor_disturb_it():
    rows = Canvas.of([[None] * 6] * 2, MASK).rows
    decoding.prepare(Toy(), rows, rule="credit", block_size=4)
    logits = drifting(1)(torch.full((6,), MASK))
    for places in (torch.arange(6), torch.tensor([0, 3, 5]), torch.tensor([4, 5])):
        alone = rows[0].rule.adjust(rows[0], places[places < 4], logits[places[places < 4]])
        found = rows[1].rule.adjust(rows[1], places, logits[places])
        assert found[places < 4].equal(alone)
        assert found[places >= 4].equal(logits[places[places >= 4]])


# ---------------------------------------------------------------------------------------------------------------------
# WINO


class Seeing(Toy):
    """A network of one layer: what it says at a place is a function of the (position, token) pairs seen from there."""

    def __init__(self, seed=0):
        super().__init__()
        self.seed = seed

    def at(self, position, pairs):
        numbers = [number for pair in sorted(pairs) for number in pair]
        return opinion(self.seed, position, shake=1.5, shaken=numbers)

    def __call__(self, ids, *, attention=None, positions=None, cache=None, keep=None, read=None):
        rows, width = ids.shape
        sees = torch.ones(rows, width, width, dtype=torch.bool) if attention is None else attention
        sees = sees[:, 0] if sees.dim() == 4 else sees[:, None].expand(rows, width, width) if sees.dim() == 2 else sees
        at = torch.arange(width).repeat(rows, 1) if positions is None else positions
        said = []
        for r, query in torch.nonzero(keep).tolist():
            seen = sees[r, query]
            said.append(self.at(int(at[r, query]), list(zip(at[r, seen].tolist(), ids[r, seen].tolist(), strict=True))))
        self.passes += 1
        self.kept += len(said)
        return read(torch.tensor(np.array(said), dtype=torch.float32), lambda same: same)


def wino(network, text, block_size, draft, verify):
    """The row after every step."""
    x, shown = masked(text), []
    for block in parts(text, block_size):
        left, before = set(block), 30
        while left:
            row, shadows = list(enumerate(x)), [(i, MASK) for i in block]
            said = {i: writable(softmax(network.at(i, row))) for i in left}
            order = sorted(left, key=lambda i: said[i][1], reverse=True)
            most = min(max(int(0.7 * len(left)), 5), 20)
            new = [i for i in order if said[i][1] > draft][:most] or order[:1]
            back = {}
            if len(new) > 1:
                for i in set(block) - left:
                    others = [pair for pair in row if pair[0] != i]
                    back[i] = softmax(network.at(i, others + shadows))[x[i]]
            doubted = sorted((i for i in back if back[i] < verify), key=back.__getitem__)
            doubted = doubted[: before - 1] if len(doubted) >= before else doubted
            for i in new:
                x[i] = said[i][0]
            for i in doubted:
                x[i] = MASK
            left, before = (left - set(new)) | set(doubted), len(new)
            shown.append(list(x))
    return shown


@given(TEXT, st.integers(2, 16), UNIT, UNIT, st.integers(0, 99))
@settings(max_examples=60)
def test_wino_writes_and_takes_back_what_its_definition_says(text, block_size, draft, verify, seed):
    network = Seeing(seed)
    wanted = wino(network, text, block_size, draft, verify)
    assert trace(network, text, rule="wino", block_size=block_size, draft=draft, verify=verify) == wanted
    assert network.passes == len(wanted)


@pytest.mark.parametrize("draft", [0.02, 0.2])
def test_wino_writes_no_more_of_a_long_block_than_its_bounds(draft):
    network, text = Seeing(8), [None] * 60
    wanted = wino(network, text, 60, draft, 0.5)
    assert trace(network, text, rule="wino", draft=draft, verify=0.5) == wanted
    written = [-row.count(MASK) for row in [masked(text), *wanted]]
    assert written[1] - written[0] == 20


def test_wino_shows_no_shadow_where_none_can_count():
    lengths = {True: set(), False: set()}
    for seed in range(8):
        network, canvas, spare = Seeing(seed), Canvas.after([[1]], 12, MASK), False
        row = canvas.rows[0]
        decoding.prepare(network, canvas.rows, rule="wino", draft=0.3)
        while not row.finished:
            lengths[spare and len(row.candidates()) > 1].add(len(row.rule.view(row).ids))
            spare = len(decoding.step(network, canvas.rows)[0].places) > 1
    assert lengths == {True: {13 + 12}, False: {13}}


def test_wino_takes_back():
    # else the tests of its definition and bound would say little
    canvas, taken_back = Canvas.after([[]], 24, MASK), 0
    for done in decoding.unmask(Seeing(), canvas, rule="wino", draft=0.3):
        reopened = done.changes[0].reopened
        taken_back += 0 if reopened is None else len(reopened)
    assert taken_back >= 3


@given(TEXT, st.integers(1, 24), st.one_of(st.none(), st.integers(1, 20)), st.integers(0, 99))
@settings(max_examples=60)
def test_wino_is_done_within_the_planned_steps_however_rash_and_doubtful(text, block_size, steps, seed):
    canvas = Canvas.of([text], MASK)
    network, seen = Seeing(seed), 0
    rash = {"rule": "wino", "draft": 0.0, "verify": 1.0}
    for done in decoding.unmask(network, canvas, **rash, block_size=block_size, steps=steps):
        row, seen = done.canvas.rows[0], seen + 1
        planned = sum(row.planned[: row.block]) + row.taken if row.block < len(row.blocks) else 0
        assert seen <= planned or row.finished
        assert len(free(text)) - int(row.open.sum()) >= seen
    blocks = len(parts(text, block_size))
    assert network.passes <= min(max(steps or len(free(text)), blocks), len(free(text)))
    assert not row.open.any()
    assert MASK not in row.answer[row.free[row.start :]].tolist()
    assert all(old in (None, new) for old, new in zip(text, row.ids.tolist(), strict=True))


def test_wino_that_verifies_nothing_keeps_all_it_drafts():
    network = Seeing(1)
    for done in decoding.unmask(network, Canvas.after([[1]], 20, MASK), rule="wino", verify=0.0, draft=0.2):
        assert done.changes[0].reopened is None or not len(done.changes[0].reopened)


def shadowed(network, ids, block):
    """The view of a row in which two steps were done, and the row."""
    canvas = Canvas.of([ids], network.mask_id)
    decoding.prepare(network, canvas.rows, rule="wino", block_size=block, draft=0.0)
    row = canvas.rows[0]
    decoding.step(network, [row])
    view = row.rule.view(row)
    assert len(view.ids) == len(ids) + block
    return row, view


def say(network, view, ids=None):
    ids = view.ids if ids is None else ids
    return network(ids[None], attention=view.attention[None, None], positions=view.positions[None])[0]


TEN = [5, 9, *[None] * 9, 7]


@torch.no_grad()
def test_the_row_does_not_see_shadows():
    network = unmask.models.predictor(tiny.tiny("llada"))
    row, view = shadowed(network, TEN, 9)
    torch.testing.assert_close(say(network, view)[: len(TEN)], network(row.ids[None])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_shadow_stands_at_its_place_and_sees_all_but_that():
    # of one layer this is exactly so; above it, what other tokens saw of the place shines through, as in the paper
    network = unmask.models.predictor(tiny.tiny("llada", num_hidden_layers=1))
    row, view = shadowed(network, TEN, 9)
    n, said = len(TEN), say(network, view)
    for i, place in enumerate(row.blocks[0].tolist()):
        others = [j for j in range(len(view.ids)) if j != place]
        without = network(view.ids[None, others], positions=view.positions[None, others])[0]
        torch.testing.assert_close(without[n - 1 + i], said[n + i], atol=1e-5, rtol=1e-5)
        changed = view.ids.clone()
        changed[place] = (changed[place] + 1) % tiny.MASK
        torch.testing.assert_close(say(network, view, changed)[n + i], said[n + i], atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# ReMDM


def remdm(answer, text, block_size, steps_of, strategy, eta, noise):
    """The row after every step."""
    x, shown, psi = masked(text), [], {}
    for block, steps in zip(parts(text, block_size), steps_of, strict=True):
        left = set(block)
        for step in range(steps):
            t, s = step / steps, (step + 1) / steps
            most = 1 if not step else min(1, (1 - s) / t)
            weights = {i: math.exp(-psi[i]) for i in block if i not in left}
            everywhere = {"cap": min(eta, most), "rescale": eta * most, "conf": 0}[strategy]
            logits, write, reopen = answer(torch.tensor(x)).tolist(), [], []
            for i, u in zip(block, torch.rand(len(block), generator=noise, dtype=torch.float64).tolist(), strict=True):
                if i in left and u < (s - (1 - everywhere) * t) / (1 - t):
                    write.append(i)
                own = (
                    eta * most * weights.get(i, 0) / sum(weights.values() or [1]) if strategy == "conf" else everywhere
                )
                if i not in left and u < own:
                    reopen.append(i)
            for i in write:
                x[i], psi[i] = writable(softmax(logits[i]))
            for i in reopen:
                x[i] = MASK
            left = (left - set(write)) | set(reopen)
            shown.append(list(x))
    return shown


@given(
    TEXT, st.integers(1, 12), st.integers(1, 15), st.sampled_from(["cap", "rescale", "conf"]), st.floats(0, 1),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_remdm_writes_and_reopens_what_its_definition_says(text, block_size, steps, strategy, eta, seed):
    blocks, answer = parts(text, block_size), drifting(seed)
    twin = Canvas.of([text], MASK).rows[0]
    twin.seed = seed
    wanted = remdm(answer, text, block_size, [steps] * len(blocks), strategy, eta, twin.generator("remdm"))
    options = {"strategy": strategy, "eta": eta, "steps_per_block": steps, "block_size": block_size, "seed": seed}
    assert trace(Toy(answer), text, rule="remdm", **options) == wanted


@given(TEXT, st.integers(1, 12), st.integers(1, 30), st.booleans(), st.sampled_from(["cap", "rescale", "conf"]))
@settings(max_examples=40)
def test_remdm_takes_exactly_its_steps_and_ends_full(text, block_size, steps, per_block, strategy):
    toy, canvas = Toy(drifting(1)), Canvas.of([text], MASK)
    much = {"steps_per_block": steps} if per_block else {"steps": steps}
    decoding.fill(toy, canvas, rule="remdm", strategy=strategy, eta=1.0, block_size=block_size, **much)
    blocks, row = len(parts(text, block_size)), canvas.rows[0]
    wanted = steps * blocks if per_block else min(max(steps, blocks), len(free(text)))
    assert toy.passes == row.step == canvas.planned == wanted
    assert not row.open.any()
    assert MASK not in row.ids[row.free].tolist()
    assert all(old in (None, new) for old, new in zip(text, row.ids.tolist(), strict=True))


def opened(n, steps, seed, **options):
    """How many of n places are open after each step, and how many each step reopened."""
    canvas, still_open, again = Canvas.after([[]], n, MASK), [], []
    toy = Toy(favouring([1] * n, torch.linspace(0.5, 6, n)))
    for done in decoding.unmask(toy, canvas, rule="remdm", steps_per_block=steps, seed=seed, **options):
        reopened = done.changes[0].reopened
        still_open.append(int(canvas.rows[0].open.sum()))
        again.append([] if reopened is None else reopened.tolist())
    return still_open, again


@pytest.mark.parametrize(("strategy", "eta"), [("cap", 0.0), ("cap", 0.3), ("rescale", 0.5), ("rescale", 1.0)])
def test_however_much_is_reopened_the_share_of_open_places_is_what_the_clock_says(strategy, eta):
    # the paper's theorem 3.1: the marginals are those of plain masked diffusion
    n, steps = 3000, 6
    still_open, _ = opened(n, steps, seed=5, strategy=strategy, eta=eta)
    for step, count in enumerate(still_open, start=1):
        share = 1 - step / steps
        assert abs(count - n * share) <= 4.5 * math.sqrt(n * share * (1 - share))


def test_as_many_are_reopened_as_sigma_says():
    n, steps = 3000, 6
    for strategy, eta, sigma in [
        ("cap", 0.2, [0, 0.2, 0.2, 0.2, 0.2, 0]),
        ("rescale", 0.5, [0, 0.5, 0.5, 1 / 3, 1 / 8, 0]),
    ]:
        still_open, again = opened(n, steps, seed=2, strategy=strategy, eta=eta)
        for written, reopened, share in zip([n - count for count in [n, *still_open]], again, sigma, strict=False):
            assert abs(len(reopened) - share * written) <= 4.5 * math.sqrt(written * share * (1 - share)) + 1e-9


def test_conf_reopens_one_a_step_at_most_on_average_and_the_unsure_more():
    again = [opened(40, 20, seed, strategy="conf")[1] for seed in range(30)]
    counts = np.array([[len(step) for step in run] for run in again]).mean(0)
    assert counts[0] == 0
    assert counts[-1] == 0
    assert abs(counts[1:11].mean() - 1) < 0.25  # σ_max is 1 up to half the time
    places = np.array([place for run in again for step in run for place in step])
    assert (places < 20).mean() > 0.55


def test_remdm_without_eta_writes_each_place_at_any_step_and_never_again():
    # so does `reference` with random places and shares drawn
    n, steps = 1200, 6
    for options in (
        {"rule": "remdm", "eta": 0.0, "steps_per_block": steps},
        {"rule": "reference", "remasking": "random", "stochastic_transfer": True, "steps": steps},
    ):
        canvas = decoding.fill(Toy(favouring([1] * n)), Canvas.after([[]], n, MASK), **options)
        counts = torch.bincount(canvas.rows[0].written_at, minlength=steps + 1)[1:]
        assert ((counts - n / steps) ** 2 / (n / steps)).sum() < 20.5  # 99.9 % of chi-square with 5 degrees


def test_eta_is_that_of_the_strategy_if_left_out():
    for strategy, eta in (("cap", 0.008), ("rescale", 0.015), ("conf", 1.0)):
        assert opened(200, 20, 1, strategy=strategy) == opened(200, 20, 1, strategy=strategy, eta=eta)


# ---------------------------------------------------------------------------------------------------------------------
# All four


@st.composite
def requests(draw):
    options = {
        "rule": draw(st.sampled_from(["klass", "credit", "wino", "remdm"])),
        "block_size": draw(st.sampled_from([None, 4, 7])),
        "steps": draw(st.sampled_from([None, 5])),
        "temperature": draw(st.sampled_from([0.0, 0.8])),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 1.0])),
    }
    if options["rule"] == "wino":
        options["draft"] = 0.1
    if options["rule"] == "remdm":
        options |= {"eta": 0.5, "strategy": draw(st.sampled_from(["cap", "conf"]))}
    return [*draw(st.lists(st.integers(0, 37), max_size=9)), *[None] * draw(st.integers(1, 15))], options


@pytest.fixture(scope="module")
def network():
    return unmask.models.predictor(tiny.tiny("llada"))


@given(st.lists(requests(), min_size=2, max_size=4))
@settings(max_examples=20)
def test_a_row_alone_is_the_row_in_any_batch(network, wanted):
    together = Canvas.of([text for text, _ in wanted], network.mask_id)
    for row, (_, options) in zip(together.rows, wanted, strict=True):
        decoding.prepare(network, [row], **options)
    decoding.fill(network, together)
    for row, (text, options) in zip(together.rows, wanted, strict=True):
        alone = decoding.fill(network, Canvas.of([text], network.mask_id, first=row.number), **options).rows[0]
        assert (row.ids.tolist(), row.written_at.tolist()) == (alone.ids.tolist(), alone.written_at.tolist())
        assert row.step == alone.step <= sum(row.planned)


@pytest.mark.parametrize("name", ["klass", "credit", "wino", "remdm"])
def test_a_row_that_grew_between_steps_is_filled_all_the_same(name):
    toy, canvas = Seeing(), Canvas.after([[1, 2]], 8, MASK)
    row = canvas.rows[0]
    decoding.prepare(toy, canvas.rows, rule=name)
    for more in (3, 2):
        decoding.step(toy, canvas.rows)
        row.grow(int(row.candidates()[0]), more)
    decoding.fill(toy, canvas)
    assert len(row.answer) == 13
    assert MASK not in row.answer.tolist()
    assert row.ids[:2].tolist() == [1, 2]


def test_tokens_held_back_are_written_last_and_not_taken_back_for_it():
    options = {"eot_token_id": [EOT], "confidence_eos_eot_inf": True}
    told = favouring([EOS, 1, 2, EOT, 3], 9.0)

    def answer(ids):  # shadows follow the row
        return told(ids[:5])[torch.arange(len(ids)) % 5]

    toy = Toy(answer)
    for name in ("klass", "credit", "wino"):
        row = decoding.fill(toy, Canvas.after([[]], 5, MASK), rule=name, **options).rows[0]
        assert row.ids.tolist() == [EOS, 1, 2, EOT, 3]
        assert min(row.written_at[[0, 3]]) >= max(row.written_at[[1, 2, 4]])
    with pytest.raises(UserError, match="remdm writes random places"):
        decoding.fill(toy, Canvas.after([[]], 5, MASK), rule="remdm", **options)


def test_wino_does_not_doubt_a_token_for_being_held_back():
    def answer(ids):
        row, at = ids[:7], torch.arange(len(ids)) % 7
        sure = at % 2 == 0 if (row != MASK).sum() < 4 else at >= 0
        if (row == MASK).all():
            sure = at < 0  # at first, an end is the likeliest everywhere
        return torch.nn.functional.one_hot(torch.where(sure, at % 2 + 1, EOS), VOCABULARY) * 9.0

    row = decoding.fill(Toy(answer), Canvas.after([[]], 7, MASK), rule="wino", begin_suppress_tokens=[EOS]).rows[0]
    assert row.step == 3
    assert (row.ids == EOS).sum() == 1


@pytest.mark.parametrize(
    ("rule", "setting", "says"),
    [
        ("klass", {"confidence": 0}, "confidence is 0.0; it must be above 0 and at most 1"),
        ("klass", {"confidence": 1.5}, "confidence is 1.5"),
        ("klass", {"kl": 0}, "kl is 0.0; it must be above 0"),
        ("klass", {"kl": math.inf}, "kl is inf"),
        ("klass", {"history": 0}, "history is 0; it must be at least 1"),
        ("credit", {"threshold": 0}, "threshold is 0.0; it must be above 0 and at most 1"),
        ("credit", {"decay": 1.1}, "decay is 1.1; it must be 0 to 1"),
        ("credit", {"gamma": -1}, "gamma is -1.0; it must be 0 or more"),
        ("credit", {"alpha": math.nan}, "alpha is nan"),
        ("wino", {"draft": 1}, "draft is 1.0; it must be 0 or more and below 1"),
        ("wino", {"draft": -0.1}, "draft is -0.1"),
        ("wino", {"verify": 1.01}, "verify is 1.01; it must be 0 to 1"),
        ("remdm", {"eta": 2}, "eta is 2.0; it must be 0 to 1"),
        ("remdm", {"eta": math.nan}, "eta is nan"),
        ("remdm", {"strategy": "caps"}, "strategy is 'caps'; it can be cap, rescale, conf"),
        ("remdm", {"steps_per_block": 0}, "steps_per_block is 0; it must be at least 1"),
        ("remdm", {"steps_per_block": 9, "steps": 2}, "steps_per_block is 9 and --steps is given too; give one"),
        ("wino", {"eta": 0.1}, "unknown setting 'eta'; the rule 'wino' has draft, verify"),
    ],
)
def test_bad_settings_are_named_in_one_line(rule, setting, says):
    toy = Toy()
    with pytest.raises(UserError, match=says) as caught:
        decoding.fill(toy, Canvas.after([[1, 2]], 4, MASK), rule=rule, **setting)
    assert "\n" not in str(caught.value)
    assert toy.passes == 0
