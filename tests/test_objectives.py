"""The loss is the official one; its estimator is the bound; a model that knows nothing scores log(vocabulary)."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import unmask.models
from unmask import noise, objectives, validate
from unmask.batches import VALIDATION, Collate, Ticket
from unmask.config import UserError
from unmask.packing import Packed

MASK, VOCABULARY = 7, 8


class Toy:
    """A predictor whose answer at a masked place depends on all that is seen: a table hashed from the row."""

    mask_id, vocab_size, device = MASK, VOCABULARY, torch.device("cpu")

    def __init__(self, knows: bool = True) -> None:
        self.knows = knows

    def __call__(self, ids, *, attention=None, positions=None, cache=None, keep=None, read=None):
        rows = []
        for row in ids:
            random = np.random.default_rng([int(i) for i in row])
            table = random.normal(size=(len(row), VOCABULARY)) * (2 if self.knows else 0)
            table[:, MASK] = -np.inf if self.knows else 0
            rows.append(torch.tensor(table, dtype=torch.float32))
        logits = torch.stack(rows)
        chosen = logits if keep is None else logits[keep]
        return read(chosen, lambda same: same) if read else chosen


def batch_of(rows, objective, seed=0, exact=False, labels=None, places=None):
    collate = Collate(objective, seed=seed, pad_id=0, exact=exact)
    where = places or range(len(rows))
    return collate(
        [
            ({"input_ids": r, **({"labels": labels[i]} if labels else {})}, Ticket(i, p, VALIDATION if exact else 0))
            for i, (r, p) in enumerate(zip(rows, where, strict=True))
        ]
    )


def test_more_draws_of_the_same_rows_say_nothing_more_of_which_rows_were_drawn():
    """Rows that differ, and noise that does not: the error is that of the rows alone, however often each is drawn."""
    cost = np.random.default_rng(0).normal(30, 6, size=50)

    def told(draws):
        rows = [
            (row * draws + draw, nats, nats, 5.0, 10.0, 20.0, (draw + 0.5) / draws, 0.0)
            for row, nats in enumerate(cost)
            for draw in range(draws)
        ]
        return validate.summary(rows, draws=draws)

    once, often = told(1), told(32)
    assert often["loss"] == pytest.approx(once["loss"])
    for key in ("loss_se", "bits_per_byte_se"):
        assert often[key] == pytest.approx(once[key], rel=1e-9)
    assert once["loss_se"] == pytest.approx(cost.std(ddof=1) / 50**0.5 / 10, rel=1e-6)


def enumerated(predict, row):
    """The bound by its definition: the mean over orders = Σ over sets of masked places, each set of size l weighing
    1 / (l · C(L, l)) (any-order chain rule; LLaDA, eq. 6)."""
    length, total = len(row), 0.0
    for size in range(1, length + 1):
        for places in itertools.combinations(range(length), size):
            noisy = torch.tensor(row)
            noisy[list(places)] = MASK
            log_p = predict(noisy[None]).log_softmax(-1)[0]
            total -= sum(log_p[p, row[p]].item() for p in places) / (size * math.comb(length, size))
    return total


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine"}])
def test_the_bernoulli_estimator_agrees_with_enumeration(settings):
    row, predict = [1, 4, 2, 6], Toy()
    objective = objectives.load("masked", {"eps": 1e-6, **settings}, MASK)
    batch = batch_of([row] * 6000, objective)
    nats = objective(predict, batch).nats
    error = nats.std().item() / math.sqrt(len(nats))
    assert abs(nats.mean().item() - enumerated(predict, row)) < 4 * error


def test_the_exact_count_estimator_agrees_with_enumeration():
    row, predict = [1, 4, 2, 6], Toy()
    objective = objectives.load("masked", {}, MASK)
    nats = objective(predict, batch_of([row] * 6000, objective, exact=True)).nats
    error = nats.std().item() / math.sqrt(len(nats))
    assert abs(nats.mean().item() - enumerated(predict, row)) < 4 * error
    assert error < 0.1


def test_exact_counts_have_less_variance_than_bernoulli():
    row, predict = [1, 4, 2, 6, 3, 0], Toy()
    objective = objectives.load("masked", {}, MASK)
    spread = [objective(predict, batch_of([row] * 1500, objective, exact=e)).nats.var().item() for e in (True, False)]
    assert spread[0] < spread[1] / 2


def test_a_model_that_knows_nothing_scores_log_vocabulary():
    """Equal logits cost log V nats a token; with exact counts in every single draw, L/l times l of L places."""
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of([list(range(6))] * 50, objective, exact=True)
    loss = objective(Toy(knows=False), batch)
    assert loss.nats.tolist() == pytest.approx([6 * math.log(VOCABULARY)] * 50, rel=1e-6)


def test_it_scores_log_vocabulary_in_training_too_on_the_mean():
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of([list(range(6))] * 4000, objective)
    loss = objective(Toy(knows=False), batch)
    assert (loss.total / objective.count(batch)).item() == pytest.approx(math.log(VOCABULARY), rel=0.03)


def official_cases(shared):
    return json.loads((shared / "fixtures" / "llada-tiny" / "expected.json").read_text())["loss"]


@pytest.mark.parametrize("case", [0, 1])
def test_loss_and_gradient_are_the_official_ones(shared, case):
    told = official_cases(shared)[case]
    model = transformers.AutoModelForCausalLM.from_pretrained(shared / "fixtures" / "llada-tiny")
    objective = objectives.load("masked", {}, model.config.mask_token_id)
    masked, p = torch.tensor(told["masked"]).bool(), torch.tensor(told["p_mask"])
    ids = torch.tensor(told["input_ids"])
    supervised = torch.arange(ids.shape[1])[None] >= torch.tensor(told["prompt_len"])[:, None]
    batch = {"input_ids": ids, "supervised": supervised, "masked": masked, "weight": masked / p[:, None]}
    loss = objective(unmask.models.predictor(model), batch).total / objective.count(batch)
    loss.backward()
    norm = torch.stack([w.grad.norm() for w in model.parameters()]).norm()
    assert loss.item() == pytest.approx(told["loss"], rel=1e-5)
    assert norm.item() == pytest.approx(told["grad_norm"], rel=1e-5)


def test_the_official_sft_loss_is_met_from_rows_with_labels(shared):
    """As training does it: prompt_len → labels → `Collate` → the objective; only the noise is the one that was told."""
    told = official_cases(shared)[1]
    assert told["kind"] == "sft"
    model = transformers.AutoModelForCausalLM.from_pretrained(shared / "fixtures" / "llada-tiny")
    objective = objectives.load("masked", {}, model.config.mask_token_id)
    drawn = zip(told["masked"], told["p_mask"], strict=True)

    def noise_that_was_told(supervised, t, random, exact):
        masked, p = next(drawn)
        assert not (np.asarray(masked, dtype=bool) & ~supervised).any()
        return objectives.Noised(np.asarray(masked, dtype=bool), np.asarray(masked, dtype=np.float32) / p)

    objective.noise = noise_that_was_told
    rows = [
        {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
        for ids, prompt in zip(told["input_ids"], told["prompt_len"], strict=True)
    ]
    batch = Collate(objective, seed=0, pad_id=0)([(row, Ticket(i, i, 0)) for i, row in enumerate(rows)])
    loss = objective(unmask.models.predictor(model), batch).total / objective.count(batch)
    loss.backward()
    norm = torch.stack([w.grad.norm() for w in model.parameters()]).norm()
    assert loss.item() == pytest.approx(told["loss"], rel=1e-5)
    assert norm.item() == pytest.approx(told["grad_norm"], rel=1e-5)


def test_an_objective_of_ones_own_need_not_know_of_packing():
    from tiny import batch_of as with_labels
    from tiny import conversation, tiny

    file = Path(__file__).parent.parent / "examples" / "custom_objective.py"
    objective, predict = objectives.load(str(file), {}, 39), unmask.models.predictor(tiny())
    batch = with_labels(objective, [conversation(n, prompt=1) for n in (9, 3, 4, 5, 2)])
    plain, packed = (objective(p, batch) for p in (predict, Packed(predict)))
    torch.testing.assert_close(packed.total, plain.total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.nats, plain.nats, rtol=1e-5, atol=1e-6)


def test_rows_are_normalised_by_their_own_length_or_by_all_tokens():
    rows = [[1, 2, 3, 4, 5, 6], [1, 2]]
    by = {}
    for how in ("sequence", "token", "masked"):
        objective = objectives.load("masked", {"normalise": how}, MASK)
        batch = batch_of(rows, objective, exact=True)
        by[how] = (objective(Toy(knows=False), batch).total / objective.count(batch)).item()
    assert by["sequence"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert by["token"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert by["masked"] > math.log(VOCABULARY)


def test_unweighted_loss_over_masked_tokens_is_their_plain_mean():
    objective = objectives.load("masked", {"weight": "none", "normalise": "masked"}, MASK)
    batch = batch_of([[1, 2, 3, 4]] * 8, objective)
    loss = objective(Toy(knows=False), batch)
    assert (loss.total / objective.count(batch)).item() == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_the_prompt_bears_no_loss_and_is_never_masked():
    objective = objectives.load("masked", {}, MASK)
    labels = [[-100, -100, 3, 4]] * 200
    batch = batch_of([[1, 2, 3, 4]] * 200, objective, labels=labels)
    assert not batch["masked"][:, :2].any()
    assert batch["masked"][:, 2:].any()
    assert objective.count(batch) == 200


def test_padding_bears_no_loss():
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of([[1, 2, 3, 4, 5], [1, 2]], objective, exact=True)
    assert batch["attention"].tolist() == [[True] * 5, [True, True, False, False, False]]
    assert not (batch["masked"] & ~batch["attention"]).any()


def test_unknown_settings_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'schedule'"):
        objectives.load("masked", {"shedule": "linear"}, MASK)
    with pytest.raises(UserError, match="elbo, none"):
        objectives.load("masked", {"weight": "elb"}, MASK)
    with pytest.raises(UserError, match=r"no objective called 'maskd'.*Did you mean 'masked'"):
        objectives.load("maskd", {}, MASK)
    with pytest.raises(UserError, match="eps"):
        objectives.load("masked", {"eps": 2.0}, MASK)


def test_a_file_without_an_objective_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("Settings = None\n")
    with pytest.raises(UserError, match="Objective is missing"):
        objectives.load(str(tmp_path / "mine.py"), {}, MASK)


def test_validation_reports_tokens_bytes_and_levels():
    objective = objectives.load("masked", {}, MASK)
    batches = [batch_of([[1, 2, 3, 4, 5, 6]] * 40, objective, exact=True)]
    sizes = np.array([0, 1, 1, 2, 2, 3, 3, 0])
    found = validate.summary(validate.rows(Toy(knows=False), objective, batches, sizes))
    assert found["loss"] == pytest.approx(math.log(8), rel=1e-6)
    assert found["loss_se"] == pytest.approx(0, abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(3 * 6 / 12, rel=1e-6)
    assert found["nats_at_0.5"] == pytest.approx(math.log(8), rel=1e-6)
    assert found["tokens"] == 240
    assert found["eos_share"] == 0


def test_validation_tells_the_share_of_end_of_text():
    objective = objectives.load("masked", {}, MASK)
    batch = batch_of([[1, 2, 0, 0], [5, 0]], objective, exact=True, labels=[[-100, 2, 0, 0], [5, 0]])
    found = validate.rows(Toy(), objective, [batch], None, end_id=0)
    assert validate.summary(found)["eos_share"] == pytest.approx(3 / 5)


def test_the_standard_error_is_that_of_repeated_looks():
    """The spread of the bound over seeds is what one look says its standard error is (noise alone varies here)."""
    objective, predict, row = objectives.load("masked", {}, MASK), Toy(), [1, 4, 2, 6, 3, 0, 5, 2]
    looks, errors = [], []
    random = np.random.default_rng(0)
    for seed in range(40):
        places = [int(p) for p in random.integers(0, 10**9, 32)]  # scattered: as if drawn independently
        batch = batch_of([row] * 32, objective, seed=seed, exact=True, places=places)
        found = validate.summary(validate.rows(predict, objective, [batch], None))
        looks.append(found["loss"]), errors.append(found["loss_se"])
    assert np.mean(errors) == pytest.approx(np.std(looks), rel=0.35)


def test_the_unigram_baseline_is_the_entropy_of_its_own_counts():
    ids = np.array([0] * 750_000 + [1] * 250_000)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert validate.unigram(np.bincount(ids, minlength=2), [ids]) == pytest.approx(entropy, rel=1e-4)


def test_noise_uses_are_apart():
    assert len({noise.TIME, noise.MASK, noise.LENGTH, noise.ORDER}) == 4


def test_no_weight_can_be_asked_for_on_the_command_line():
    from unmask.config import TrainingArguments, parse

    words = ["--objective_args", "weight=none,normalise=masked"]
    training = parse("x", "", [TrainingArguments], words).groups[0]
    made = objectives.load("masked", training.objective_args, 1)
    assert (made.settings.weight, made.settings.normalise) == ("none", "masked")
