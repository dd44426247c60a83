"""On a GPU: the same answers as on a CPU, and training as there. `make test-gpu` runs them; else they are skipped."""

import json

import pytest
import torch
from runs import curve, make_model, make_text, pretrain
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu


@torch.no_grad()
def test_logits_are_the_official_ones(shared):
    import transformers

    import unmask.models  # noqa: F401  registers LLaDA

    folder = shared / "fixtures" / "llada-tiny"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().cuda()
    told = load_file(folder / "expected_logits.safetensors")
    ids = told["logits_input_ids"].cuda()
    assert (model(ids).logits.cpu() - told["logits"]).abs().max() < 1e-5


def test_generated_tokens_are_the_official_ones(shared):
    import transformers

    import unmask.models  # noqa: F401  registers LLaDA

    folder = shared / "fixtures" / "llada-tiny"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().cuda()
    for case in json.loads((folder / "expected.json").read_text())["generate"]:
        mask = case["attention_mask"]
        out = model.generate(
            torch.tensor(case["prompt"]).cuda(), torch.tensor(mask).cuda() if mask else None, **case["args"]
        )
        assert out.tolist() == case["output"]


@pytest.mark.parametrize("bf16", [False, True])
def test_training_is_the_cpus(tmp_path, byte_tokenizer, bf16):
    model = make_model(tmp_path / "model", byte_tokenizer)
    data = f"{make_text(tmp_path / 'text.jsonl')}[train:50,test:10]"
    gpu = pretrain(model, data, tmp_path / "gpu", bf16=bf16)
    cpu = pretrain(model, data, tmp_path / "cpu", bf16=bf16, use_cpu=True)
    for a, b in zip(curve(gpu, "loss", "grad_norm"), curve(cpu, "loss", "grad_norm"), strict=True):
        assert a == pytest.approx(b, rel=5e-2 if bf16 else 1e-4)
