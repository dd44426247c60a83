"""The two arms of a comparison differ in mask and loss, and in nothing else: not in weights, rows or their order."""

import itertools
import shutil

import numpy as np
import pytest
import torch
import transformers
from runs import make_model, make_text, pretrain, words
from tiny import END, MASK, batch_of, conversation, tiny

from unmask import models, objectives
from unmask.config import UserError
from unmask.objectives import masked
from unmask.pretrain import parse_pretrain, prepare_pretrain

ARMS = {"masked": {"first_given": True}, "autoregressive": {}}


@pytest.fixture
def arms(tmp_path, byte_tokenizer):
    """Both arms ready to start, on one model folder."""
    model, data = make_model(tmp_path / "model", byte_tokenizer), make_text(tmp_path / "text.jsonl")
    found = {}
    for name, settings in ARMS.items():
        more = {"objective_args": ",".join(f"{k}={str(v).lower()}" for k, v in settings.items()) or None}
        argv = words(model, f"{data}[train:50,test:10]", tmp_path / name, objective=name, num_train_epochs=3, **more)
        found[name] = prepare_pretrain(parse_pretrain(argv), argv).trainer
    return found


def test_equal_weights_equal_counts(arms):
    one, two = (arm.model for arm in arms.values())
    assert one.num_parameters() == two.num_parameters()
    assert not one.config.is_causal
    assert two.config.is_causal
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_identical_rows_in_identical_order_and_the_same_tokens_count(arms):
    for epoch in (0, 1):
        both = []
        for arm in arms.values():
            loader = arm.get_train_dataloader()
            loader.set_epoch(epoch)
            both.append(list(loader))
        assert len(both[0]) == len(both[1]) > 3
        for one, two in zip(*both, strict=True):
            for key in ("input_ids", "supervised", "place"):
                assert torch.equal(one[key], two[key]), key
    tests = [list(arm._test_batches(arm.eval_dataset)) for arm in arms.values()]
    for one, two in zip(*tests, strict=True):
        assert torch.equal(one["input_ids"], two["input_ids"])
        assert torch.equal(one["supervised"], two["supervised"])


def test_the_autoregressive_loss_is_that_of_a_plain_llama_with_the_same_weights():
    """transformers' own causal loss, of its own class, in float64, so that 1e-6 means something."""
    twin = tiny("llada", causal=True).double()
    llama = tiny("llama", causal=True, rms_norm_eps=1e-5).double()
    llama.load_state_dict(twin.state_dict())
    assert twin.num_parameters() == llama.num_parameters()
    assert type(llama) is transformers.LlamaForCausalLM
    ids = torch.tensor([conversation(16, seed=n)["input_ids"] for n in range(4)])
    objective = objectives.load("autoregressive", {}, None)
    batch = batch_of(objective, [{"input_ids": row} for row in ids.tolist()])
    ours = (objective(models.predictor(twin), batch).total / objective.count(batch)).item()
    assert abs(ours - llama(ids, labels=ids).loss.item()) < 1e-6


def test_with_its_first_token_given_the_bound_is_that_of_the_rest():
    """Enumerated: the mean over all orders of the chain rule, given the first token (LLaDA, eq. 6)."""
    model = tiny("llada").double()
    objective = objectives.load("masked", {"first_given": True}, MASK)
    ids = conversation(5, seed=5)["input_ids"]
    told = 0.0
    for size in range(1, 5):
        for places in itertools.combinations(range(1, 5), size):
            noisy = torch.tensor(ids)
            noisy[list(places)] = MASK
            log_p = torch.log_softmax(model(noisy[None]).logits[0], -1)
            chosen = sum(-log_p[p, ids[p]].item() for p in places)
            told += chosen / (size * len(list(itertools.combinations(range(4), size))))
    draws = [
        objective.noise(np.array([False, *[True] * 4]), t, np.random.default_rng(i), exact=True)
        for i, t in enumerate(np.linspace(0, 1, 2000, endpoint=False))
    ]
    assert not any(d.masked[0] for d in draws)
    batch = {
        "input_ids": torch.tensor([ids] * len(draws)),
        "supervised": torch.tensor([[False, *[True] * 4]] * len(draws)),
        "masked": torch.tensor(np.stack([d.masked for d in draws])),
        "weight": torch.tensor(np.stack([d.weight for d in draws])),
    }
    with torch.no_grad():
        found = objective(models.predictor(model), batch).nats
    assert abs(found.mean() - told) < 4 * found.std() / len(draws) ** 0.5


def test_a_first_token_that_is_given_counts_in_no_row():
    objective = masked.Objective(masked.Settings(first_given=True), MASK)
    rows = [conversation(n, seed=n) for n in (6, 1, 4)]
    for exact in (False, True):
        batch = batch_of(objective, rows, exact=exact)
        assert not batch["supervised"][:, 0].any()
        assert not batch["masked"][:, 0].any()
        assert batch["supervised"].sum(1).tolist() == [5, 0, 3]


# ---------------------------------------------------------------------------------------------------------------------
# What critics ask of the autoregressive arm


def test_hidden_inputs_are_predicted_still_and_validation_hides_none():
    objective = objectives.load("autoregressive", {"input_mask": 0.5}, MASK)
    rows = [conversation(40, seed=n) for n in range(60)]
    plain = batch_of(objectives.load("autoregressive", {}, MASK), rows)
    batch = batch_of(objective, rows)
    assert torch.equal(batch["masked"], plain["masked"])
    assert torch.equal(batch["weight"], plain["weight"])
    shares = batch["hidden"].float().mean(1)
    assert 0.2 < shares.mean() < 0.3
    assert shares.max() < 0.75
    assert shares.min() < 0.1
    seen = {}

    def predict(ids, *, attention=None, keep=None, read=None):
        seen["ids"] = ids
        return read(torch.zeros(int(keep.sum()), END + 2), lambda same: same)

    objective(predict, batch)
    assert torch.equal(seen["ids"] == MASK, batch["hidden"])
    exact = batch_of(objective, rows, exact=True)
    objective(predict, exact)
    assert torch.equal(seen["ids"], exact["input_ids"])


def test_input_masks_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="needs a mask token"):
        objectives.load("autoregressive", {"input_mask": 0.3}, None)
    with pytest.raises(UserError, match="input_mask is 2"):
        objectives.load("autoregressive", {"input_mask": 2}, MASK)


def test_dropout_acts_in_training_alone_and_resumes_where_it_stopped(tmp_path, byte_tokenizer):
    model = make_model(tmp_path / "model", byte_tokenizer, residual_dropout=0.3, embedding_dropout=0.1)
    data = f"{make_text(tmp_path / 'text.jsonl')}[train:50,test:10]"
    how = {"objective": "autoregressive", "save_steps": 3}
    whole = pretrain(model, data, tmp_path / "whole", **how)
    pretrain(model, data, tmp_path / "parts", **how, save_total_limit=9)
    for later in ("checkpoint-6", "checkpoint-final"):
        shutil.rmtree(tmp_path / "parts" / later)
    parts = pretrain(model, data, tmp_path / "parts", **how, resume_from_checkpoint="auto")
    plain = make_model(tmp_path / "plain", byte_tokenizer)
    none = pretrain(plain, data, tmp_path / "none", **how)
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (whole, parts, none)]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]
    read = models.load(str(tmp_path / "whole" / "checkpoint-final"), causal=True).model
    assert read.config.residual_dropout == 0.3
    ids = torch.arange(8)[None]
    assert torch.equal(read(ids).logits, read(ids).logits)
    read.train()
    assert not torch.equal(read(ids).logits, read(ids).logits)
