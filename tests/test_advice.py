"""What limits a run is said, with the key that changes it; where nothing is to be gained nothing is said."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
import transformers
from tiny import MASK, conversation, tiny

from unmask import advice, compiling, objectives, processor
from unmask.config import UserError
from unmask.trainer import Trainer


@pytest.fixture
def make(tmp_path, byte_tokenizer):
    """A trainer on conversations of these lengths."""

    def made(lengths=(8, 8, 8, 8), by_length=False, packing=False, compiled=None, callbacks=None, **more):
        import datasets

        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            save_strategy="no",
            per_device_train_batch_size=2,
            **{"max_steps": 3, "logging_steps": 1, **more},
        )
        rows = datasets.Dataset.from_list([conversation(n, seed=i) for i, n in enumerate(lengths)])
        return Trainer(
            tiny("llada", vocab_size=byte_tokenizer.vocab_size + 10),
            args,
            objectives.load("masked", {}, MASK),
            byte_tokenizer,
            rows,
            rows,
            by_length=by_length,
            packing=packing,
            compiled=compiled,
            eos_tail="none" if packing else "step",
            callbacks=callbacks,
        )

    return made


def rates(monkeypatch, wide, narrow):
    found = {torch.float32: wide, torch.bfloat16: narrow}
    monkeypatch.setattr(processor, "rate", lambda kind, device="cpu": found[kind])


@pytest.mark.parametrize(
    ("bf16", "wide", "narrow", "told"),
    [
        (True, 300e9, 150e9, "--bf16 false is faster"),
        (False, 200e9, 400e9, "--bf16 true is faster"),
        (True, 200e9, 400e9, None),
        (False, 300e9, 150e9, None),
        (True, 200e9, 190e9, None),
    ],
)
def test_the_faster_kind_of_number_is_named(make, monkeypatch, bf16, wide, narrow, told):
    rates(monkeypatch, wide, narrow)
    found = [line for line in advice.before(make(bf16=bf16), 3) if "bf16" in line]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_padding_is_counted_and_named_where_it_is_much(make):
    def told(**how):
        return [line for line in advice.before(make(**how), 3) if "shorter rows" in line]

    uneven = (40, 10) * 8  # in the order of the data: each batch has one of each
    found = told(lengths=uneven, dataloader_num_workers=0)
    assert found
    assert "--packing true or --group_by_length true" in found[0]
    assert not told(lengths=(20,) * 16)
    assert not told(lengths=uneven, packing=True)
    assert not told(lengths=(40,) * 8 + (10,) * 8, by_length=True)


def test_idle_cores_are_named(make, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2 * torch.get_num_threads())), raising=False)
    cores = 2 * torch.get_num_threads()
    assert any(f"OMP_NUM_THREADS={cores}" in line for line in advice.before(make(), 3))


class Slow(transformers.TrainerCallback):
    """Makes each fetch of a batch seem to take a share of a second."""

    def __init__(self, waiting, seconds):
        self.waiting, self.seconds = waiting, seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.waiting.seconds += self.seconds


@pytest.mark.parametrize("seconds", [-1e3, 1e3])
def test_waiting_for_data_is_named_once(make, capsys, seconds):
    waiting = advice.Waiting(after=2)
    make(max_steps=6, callbacks=[Slow(waiting, seconds), waiting]).train()
    told = [line for line in capsys.readouterr().err.splitlines() if "waiting for data" in line]
    assert len(told) == (seconds > 0)
    assert not told or "--dataloader_num_workers 2" in told[0]


KEEPS = """
import sys
from unmask import advice
def faults():
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    import torch
    for _ in range(20):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
if sys.argv[1] == "keep":
    advice.keep_memory()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator only")
def test_what_a_step_gave_back_is_kept_for_the_next():
    def faults(what, **more):
        clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", KEEPS, what], env=clean | more, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    as_it_is, kept, chosen = faults("as it is"), faults("keep"), faults("keep", MALLOC_ARENA_MAX="4")
    assert kept < as_it_is / 4
    assert chosen > as_it_is / 2, "whoever chose settings keeps them"


# -- torch.compile


def curve(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_compiled_run_has_the_curve_of_the_plain_one(make):
    torch._dynamo.reset()
    plain = curve(make((8, 20, 9, 31, 5, 12)))
    compiled = curve(make((8, 20, 9, 31, 5, 12), compiled={"backend": "aot_eager", "mode": None}))
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_every_layer_is_compiled_and_no_name_changes():
    model, seen = tiny("llada"), []
    names = list(model.state_dict())
    compiling.layers(model, {"backend": lambda graph, inputs: (seen.append(graph), graph)[1]})
    model(torch.arange(6)[None])
    assert seen
    assert list(model.state_dict()) == names
    assert all(layer._compiled_call_impl for layer in model.model.layers)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, None),
        ({"torch_compile": False}, None),
        ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, {"backend": "aot_eager", "mode": None}),
        ({"torch_compile_mode": "max-autotune"}, {"backend": "inductor", "mode": "max-autotune"}),
    ],
)
def test_any_key_of_compiling_asks_for_it(more, found):
    assert compiling.asked(more, "cuda") == found


def test_an_unknown_back_end_is_named():
    with pytest.raises(UserError, match=r"--torch_compile_backend fast: there is .*inductor"):
        compiling.asked({"torch_compile": True, "torch_compile_backend": "fast"}, "cpu")


def test_without_a_compiler_it_is_refused_before_the_run(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UserError, match="install g"):
        compiling.asked({"torch_compile": True}, "cpu")
    assert compiling.asked({"torch_compile": True}, "cuda")
