"""Next-token prediction is what `transformers` computes; its numbers are exact."""

import math

import pytest
import torch
from tiny import END, MASK, VOCABULARY, batch_of, conversation, gradients, tiny

from unmask import models, objectives, validate
from unmask.batches import Collate, Ticket
from unmask.config import UserError

ROWS = [conversation(n, prompt=p, seed=n) for n, p in ((9, 4), (3, 0), (12, 11), (1, 0), (7, 1))]


def of_transformers(model, rows):
    """The loss of the network's own class on padded rows, the labels of padding -100."""
    length = max(len(row["input_ids"]) for row in rows)
    ids, labels, mask = ([row[key] + [fill] * (length - len(row["input_ids"])) for row in rows]
                         for key, fill in (("input_ids", END), ("labels", -100), ("labels", None)))  # fmt: skip
    mask = [[int(label is not None) for label in row] for row in mask]
    return model(torch.tensor(ids), labels=torch.tensor(labels), attention_mask=torch.tensor(mask)).loss


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3", "gemma2", "llada"])
def test_loss_and_gradients_are_those_of_transformers(kind):
    model = tiny(kind, causal=True, attention="eager")
    objective = objectives.load("autoregressive", {}, None)
    batch = batch_of(objective, ROWS)
    total = objective(models.predictor(model), batch).total / objective.count(batch)
    total.backward()
    ours = gradients(model)
    told = of_transformers(model, ROWS)
    told.backward()
    theirs = gradients(model)
    assert total.item() == pytest.approx(told.item(), rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_llada_with_the_causal_switch_is_a_llama():
    llada, llama = tiny("llada", causal=True), tiny("llama", causal=True, rms_norm_eps=1e-5)
    llada.load_state_dict(llama.state_dict())
    objective = objectives.load("autoregressive", {}, None)
    batch = batch_of(objective, ROWS)
    one, two = (objective(models.predictor(model), batch).nats for model in (llada, llama))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_by_sequence_each_row_counts_the_same():
    model = tiny(causal=True)
    rows = [row for row in ROWS if len(row["input_ids"]) > 1]
    objective = objectives.load("autoregressive", {"normalise": "sequence"}, None)
    batch = batch_of(objective, rows)
    total = objective(models.predictor(model), batch).total / objective.count(batch)
    alone = [of_transformers(model, [row]).item() for row in rows]
    assert total.item() == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_nothing_is_hidden_and_nothing_random():
    objective = objectives.load("autoregressive", {}, None)
    seen = {}

    def predict(ids, *, attention=None, keep=None, read=None):
        seen["ids"], seen["keep"] = ids, keep
        return read(torch.zeros(int(keep.sum()), VOCABULARY), lambda same: same)

    batch = batch_of(objective, ROWS, exact=True)
    objective(predict, batch)
    assert torch.equal(seen["ids"], batch["input_ids"])
    assert [row.nonzero().flatten().tolist() for row in seen["keep"]] == [
        [4, 5, 6, 7, 8], [1, 2], [11], [], [1, 2, 3, 4, 5, 6],
    ]  # fmt: skip
    assert torch.equal(batch["masked"], batch["supervised"])


def test_validation_reports_the_exact_nats_per_token():
    model, objective = tiny("qwen2", causal=True), objectives.load("autoregressive", {}, None)
    collate = Collate(objective, seed=0, pad_id=END, exact=True)
    seats = [(row, Ticket(i, i, -1)) for i, row in enumerate(ROWS)]
    sizes = torch.full((VOCABULARY,), 2).numpy()
    batches = [collate(seats[:2]), collate(seats[2:])]
    found = validate.rows(models.predictor(model), objective, batches, sizes, END)
    told = validate.summary(found, levels=False)
    assert told["loss"] == pytest.approx(of_transformers(model, ROWS).item(), rel=1e-6)
    assert told["tokens"] == 5 + 2 + 1 + 6
    assert told["bits_per_byte"] == pytest.approx(told["loss"] / math.log(2) / 2, rel=1e-6)
    assert not any(key.startswith("nats_at") for key in told)


def test_it_wants_a_causal_model_and_says_so():
    assert objectives.is_causal(objectives.load("autoregressive", {}, None))
    assert not objectives.is_causal(objectives.load("masked", {}, MASK))
    with pytest.raises(UserError, match="--objective masked needs a mask token"):
        objectives.load("masked", {}, None)
    with pytest.raises(UserError, match="token, sequence"):
        objectives.load("autoregressive", {"normalise": "tokens"}, None)
