"""The training loop as a library: packing, tails, adapters and what the Trainer offers come through, curves unmoved."""

import json
import sys
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from runs import run
from safetensors.torch import load_file
from tiny import MASK, conversation, tiny

from unmask import adapters, objectives
from unmask.batches import TOGETHER
from unmask.callbacks import Journal
from unmask.config import UserError
from unmask.report import read_metrics
from unmask.trainer import Trainer

LENGTHS = [9, 3, 14, 5, 2, 7, 11, 4, 6, 3, 8, 5, 2, 9, 4, 3]
VOCABULARY = 262  # of the tokenizer


def data(lengths=LENGTHS, prompt=1):
    return datasets.Dataset.from_list([conversation(n, prompt, seed=i) for i, n in enumerate(lengths)])


def network(kind="llama", causal=False, **more):
    return tiny(kind, causal, vocab_size=VOCABULARY, **more)


@pytest.fixture
def make(tmp_path, byte_tokenizer):
    """A trainer on a few conversations: make(model, folder, objective=…, trainer=…, any TrainingArguments)."""

    def made(model, folder="run", objective="masked", settings=None, trainer=None, rows=None, journal=False, **more):
        usual = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        args = transformers.TrainingArguments(
            **{
                "output_dir": str(tmp_path / folder),
                "report_to": [],
                "use_cpu": True,
                "disable_tqdm": True,
                "remove_unused_columns": False,
                "dataloader_pin_memory": False,
                **usual,
                **more,
            }
        )
        return Trainer(
            model,
            args,
            objectives.load(objective, settings, None if objective == "autoregressive" else MASK),
            byte_tokenizer,
            data() if rows is None else rows,
            data(LENGTHS[:7]),
            callbacks=[Journal(tmp_path / folder, "bound", "")] if journal else None,
            **(trainer or {}),
        )

    return made


def trained(trainer, resume=None):
    """(loss, gradient norm) of each step."""
    trainer.train(resume_from_checkpoint=resume)
    return [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "loss" in line]


def close(one, two, rel=1e-4):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=rel)


# -- packing


@pytest.mark.parametrize(
    ("kind", "objective", "normalise", "tail"),
    [
        ("llada", "masked", "sequence", "none"),
        ("llada", "masked", "token", "block:4"),
        ("qwen2", "masked", "sequence", "3"),
        ("qwen2", "autoregressive", "token", "none"),
        ("llada", "autoregressive", "sequence", None),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_run_has_the_curve_of_the_plain_one_and_less_to_do(make, kind, objective, normalise, tail, attention):
    found = {}
    for packing in (False, True):
        model = network(kind, objective == "autoregressive", attention=attention)
        rows = []
        model.register_forward_pre_hook(lambda m, a, k, rows=rows: rows.append(k["input_ids"].shape), with_kwargs=True)
        trainer = make(
            model, objective=objective, settings={"normalise": normalise}, max_steps=3,
            trainer={"packing": packing, "eos_tail": tail},
        )  # fmt: skip
        rows.clear()
        curve = trained(trainer)
        found[packing] = curve, trainer.evaluate(), rows
    (plain, told, shapes), (packed, same, packed_shapes) = found[False], found[True]
    close(packed, plain)
    for key in ("eval_loss", "eval_loss_se", "eval_tokens", "eval_eos_share"):
        assert same[key] == pytest.approx(told[key], rel=1e-5)
    many, few = (sum(shape.numel() for shape in asked) for asked in (shapes, packed_shapes))
    assert few < 0.9 * many
    if attention == "sdpa":  # conversations one by one, so that a row may be as long as they are together
        assert {n for n, _ in packed_shapes} == {1}
    else:
        assert {places for _, places in packed_shapes} == {places for _, places in shapes}


def test_packing_does_not_go_with_a_tail_up_to_the_longest_row(make):
    with pytest.raises(UserError, match=r"every row would be as long .* use --eos_tail block:32"):
        make(network(), trainer={"packing": True, "eos_tail": "step"})


def test_a_tail_does_not_go_with_an_objective_that_predicts_the_next_token(make):
    with pytest.raises(UserError, match="stops at its first end of text"):
        make(network("qwen2", True), objective="autoregressive", trainer={"eos_tail": "step"})


def test_an_objective_that_predicts_the_next_token_needs_a_model_that_does_not_see_it(make):
    with pytest.raises(UserError, match="and the model sees it"):
        make(network(), objective="autoregressive")


# -- tails


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize(
    "how",
    [{"eos_tail": "step"}, {"eos_tail": "step", "by_length": True}, {"eos_tail": "3", "packing": True}],
    ids=lambda how: ",".join(how),
)
def test_eight_by_one_is_one_by_eight_with_tails_too(make, how, shape):
    rows, micro = shape
    shared = make(
        network(), max_steps=3, per_device_train_batch_size=rows, gradient_accumulation_steps=micro, trainer=how
    )
    close(trained(shared), trained(make(network(), max_steps=3, trainer=how)))


def test_every_tail_makes_another_loss(make):
    tails = ("none", "step", "block:7", "5")
    losses = {round(trained(make(network(), max_steps=1, trainer={"eos_tail": t}))[0][0], 5) for t in tails}
    assert len(losses) == 4


@pytest.mark.parametrize("batch", [1, 3])
def test_the_evaluation_batch_does_not_change_the_number(make, batch):
    how = {"eos_tail": "step", "eval_draws": 3}
    one, two = (make(network(), trainer=how, per_device_eval_batch_size=n).evaluate() for n in (batch, 7))
    assert one["eval_loss"] == pytest.approx(two["eval_loss"], rel=1e-6)
    # every row as long as the longest of all seven, but for its prompt of one token
    assert one["eval_tokens"] == two["eval_tokens"] == 3 * 7 * (max(LENGTHS[:7]) - 1)


def test_rows_far_apart_do_not_lengthen_one_another_in_validation(make):
    lengths = [4] * TOGETHER + [2, 12]
    trainer = make(network(), trainer={"eos_tail": "step"})
    found = trainer.evaluate(data(lengths, prompt=0))
    assert found["eval_tokens"] == 4 * TOGETHER + 2 * 12


def test_rows_of_like_length_share_a_tail_in_validation_as_in_training(make):
    lengths = [12, 4] * TOGETHER
    trainer = make(network(), trainer={"eos_tail": "step", "by_length": True})
    assert trainer.evaluate(data(lengths, prompt=0))["eval_tokens"] == sum(lengths)


def test_no_tail_goes_beyond_max_length_or_what_the_model_holds(make):
    tokens = [
        make(network(), trainer={"eos_tail": "100", **how}).evaluate()["eval_tokens"]
        for how in ({"max_length": 20}, {})
    ]
    assert tokens == [7 * 19, 7 * 63]


def test_the_share_of_end_of_text_is_logged_and_too_much_of_it_is_said_once(make, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    trainer = make(network(), trainer={"eos_tail": "40"}, journal=True, logging_steps=2)
    trained(trainer)
    told = trainer.evaluate()
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    learnt = sum(LENGTHS) - len(LENGTHS)
    assert len(lines) == 2
    for line in lines:  # 2 steps of 8 rows: all 16
        assert line["eos_share"] == pytest.approx(40 * 16 / (40 * 16 + learnt), abs=1e-5)
    assert told["eval_eos_share"] == pytest.approx(40 * 7 / (40 * 7 + sum(LENGTHS[:7]) - 7))
    said = capsys.readouterr().err
    assert said.count("warning") == (lines[0]["eos_share"] > 0.9)
    assert lines[0]["eos_share"] < 0.9
    trained(make(network(), trainer={"eos_tail": "60"}, journal=True))
    assert capsys.readouterr().err.count("warning: 94% of the tokens learnt are end of text") == 1


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import conftest, test_trainer
tokenizer = conftest.byte_tokenizer.__wrapped__()
from pathlib import Path
make = test_trainer.make.__wrapped__(Path({out!r}), tokenizer)
for name, lora, how in (("tail", False, dict(eos_tail="step")), ("packed", True, dict(eos_tail="3", packing=True))):
    model = test_trainer.with_lora(lora_dropout=0.0) if lora else test_trainer.network("llada")
    trainer = make(model, name, trainer=how, rows=test_trainer.data(test_trainer.LENGTHS[:13]), max_steps=4,
                   per_device_train_batch_size={rows}, ddp_find_unused_parameters=False)
    curve, told = test_trainer.trained(trainer), trainer.evaluate()
    if trainer.is_world_process_zero():
        found = [curve, told["eval_loss"], told["eval_tokens"]]
        Path({out!r}, name + ".json").write_text(test_trainer.json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_are_one_with_tails_packing_and_adapters_too(tmp_path):
    """13 rows, 8 in a step: each epoch ends in a short step, which two processes cannot share evenly."""
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        script = out / "script.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), rows=4 // processes))
        done = run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
                str(processes),
                str(script),
            ]
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append([json.loads((out / f"{name}.json").read_text()) for name in ("tail", "packed")])
    for one, two in zip(*found, strict=True):
        close([tuple(step) for step in one[0]], [tuple(step) for step in two[0]])
        assert one[1:] == pytest.approx(two[1:], rel=1e-5)


STREAMED = """
import json, sys
sys.path.insert(0, {tests!r})
import conftest, datasets, test_trainer
from pathlib import Path
from unmask.batches import FILLER
from unmask.trainer import Trainer
out, name, workers, resume, shuffled = Path({out!r}), *json.loads(sys.argv[1])
make = test_trainer.make.__wrapped__(out, conftest.byte_tokenizer.__wrapped__())
fetch = Trainer.get_batch_samples

def get_batch_samples(self, *given):
    found = fetch(self, *given)
    with (out / f"{{name}}-{{self.args.process_index}}.jsonl").open("a") as file:
        for batch in found[0]:
            seen = batch.get("attention", batch["input_ids"] >= 0)
            for place, ids, at in zip(batch["place"].tolist(), batch["input_ids"], seen):
                if place != FILLER:
                    file.write(json.dumps([self.state.global_step, place, ids[at].tolist()]) + chr(10))
    return found

Trainer.get_batch_samples = get_batch_samples
rows = [test_trainer.conversation(2 + i % 11, 1, seed=i) for i in range(21)]
stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3)
if shuffled:
    stream = stream.shuffle(seed=5, buffer_size=7)
trainer = make(test_trainer.network("llada"), "run" if resume else name, trainer=dict(eos_tail="3", packing=True),
               rows=stream, max_steps=7, dataloader_num_workers=workers, ddp_find_unused_parameters=False,
               per_device_train_batch_size=4 // {processes}, save_strategy="steps", save_steps=4, save_total_limit=None)
curve = test_trainer.trained(trainer, str(out / "run/checkpoint-4") if resume else None)
if trainer.is_world_process_zero():
    (out / f"{{name}}.json").write_text(json.dumps(curve))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_packed_stream_goes_on_by_one_process_with_the_rows_that_two_with_workers_left(shuffled, tmp_path):
    """21 rows, 8 in a step: the run is left in the second epoch, and ends in the third."""

    def go(processes, name, workers, resume=False):
        script = tmp_path / f"{name}.py"
        folder = str(Path(__file__).parent)
        script.write_text(STREAMED.format(tests=folder, out=str(tmp_path), processes=processes))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = run([sys.executable, *launcher, str(script), json.dumps([name, workers, resume, shuffled])])
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line for path in tmp_path.glob(f"{name}-*.jsonl") for line in path.read_text().splitlines()]
        return sorted(map(json.loads, lines)), json.loads((tmp_path / f"{name}.json").read_text())

    whole, curve = go(1, "alone", 0)
    two, same = go(2, "run", 2)
    rest, end = go(1, "rest", 0, resume=True)
    assert len(whole) == len({tuple(row[:2]) for row in whole}) == 8 + 8 + 5 + 8 + 8 + 5 + 8
    assert two == whole
    assert rest == [row for row in whole if row[0] >= 4]
    close([tuple(step) for step in same], [tuple(step) for step in curve])
    close([tuple(step) for step in end], [tuple(step) for step in curve])


# -- adapters


def with_lora(kind="llada", **more):
    settings = adapters.LoraArguments(lora=True, r=4, lora_alpha=8, **more)
    return adapters.attach(network(kind), settings)


def test_a_stopped_and_resumed_adapter_run_is_the_uninterrupted_one_bit_for_bit(make, tmp_path):
    """With dropout: the random state comes back too."""
    often = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make(with_lora(modules_to_save=["lm_head"]), "whole", **often)
    curve = trained(whole)
    halfway = tmp_path / "whole" / "checkpoint-3"
    assert adapters.is_adapter(halfway)
    assert not (halfway / "model.safetensors").exists()
    resumed = make(with_lora(modules_to_save=["lm_head"]), "resumed", **often)
    assert trained(resumed, str(halfway)) == curve
    for trainer, folder in ((whole, "one"), (resumed, "two")):
        trainer.save_final(tmp_path / folder)
    one, two = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one.keys() == load_file(halfway / "adapter_model.safetensors").keys()


def test_an_adapter_run_can_take_what_a_checkpoint_holds(make, tmp_path):
    trainer = make(with_lora(), max_steps=2, save_strategy="steps", save_steps=2)
    trained(trainer)
    other = make(with_lora(), "other")
    before = other.evaluate()["eval_loss"]
    other.take(tmp_path / "run" / "checkpoint-2")
    assert other.state.global_step == 2
    assert other.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"] != before


def test_the_best_adapter_is_there_at_the_end(make):
    trainer = make(
        with_lora(), max_steps=4, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, learning_rate=0.5, metric_for_best_model="loss",
    )  # fmt: skip
    trained(trainer)
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_the_frozen_model_stays_as_it_was_and_a_packed_adapter_run_has_the_same_curve(make):
    curves = []
    for packing in (False, True):
        model = with_lora(lora_dropout=0.0)
        before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        curves.append(trained(make(model, trainer={"packing": packing})))
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)
    close(*curves)


# -- what the Trainer of transformers offers


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(make, lora, packing):
    curves = []
    for checkpointing in (False, True):
        model = with_lora(lora_dropout=0.0) if lora else network("llada")
        trainer = make(model, gradient_checkpointing=checkpointing, trainer={"packing": packing}, max_steps=3)
        curves.append(trained(trainer))
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == checkpointing
    close(*curves, rel=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_neftune_adds_noise_in_training_only(make, lora):
    curves, told = [], []
    for alpha in (None, 5.0):
        model = with_lora(lora_dropout=0.0) if lora else network("llada")
        trainer = make(
            model, neftune_noise_alpha=alpha, max_steps=2, learning_rate=0.0, eval_strategy="steps", eval_steps=1
        )
        curves.append(trained(trainer))
        told.append([line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line])
        assert not model.get_input_embeddings()._forward_hooks
    assert all(a != b for a, b in zip(*curves, strict=True))
    assert told[0] == told[1]


def test_rows_of_like_length_come_together(make):
    def spread(by_length):
        batches = list(make(network(), trainer={"by_length": by_length}).get_train_dataloader())
        return sum(int((~b.get("attention", b["supervised"] | True)).sum()) for b in batches)

    assert spread(True) < spread(False) / 2


def test_a_validation_without_noise_needs_one_look(make):
    trainer = make(network("qwen2", True), objective="autoregressive", trainer={"eval_draws": 5})
    told = trainer.evaluate()
    assert told["eval_tokens"] == sum(LENGTHS[:7]) - 7
    assert not any("nats_at" in key for key in told)
    json.dumps(told)
