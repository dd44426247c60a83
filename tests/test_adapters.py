"""Adapters: a new one changes nothing; a saved one comes back, whichever code named its modules; others are refused."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import MASK, VOCABULARY, batch_of, conversation, gradients, tiny
from torch import nn

from unmask import adapter_folder, adapters, models, objectives
from unmask.adapters import LoraArguments
from unmask.config import UserError, parse

SEVEN = {f"{name}_proj" for name in "qkvo"} | {"gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(60).reshape(3, 20) * 7 % 38
KINDS = [("llada", False), ("llama", False), ("qwen2", True), ("qwen3", True)]


def trained(model, **settings):
    """A model wearing an adapter that does something: a new one's second half is zero."""
    worn = adapters.attach(model, LoraArguments(**{"r": 4, "lora_alpha": 8, **settings}))
    shake(worn)
    return worn.eval()


def shake(worn, seed=1):
    torch.manual_seed(seed)
    for parameter in worn.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def base(byte_tokenizer, tmp_path):
    """A saved tiny LLaDA, whose ids fit no tokenizer: adapters do not care."""
    folder = tmp_path / "base"
    tiny("llada").save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


def read(folder, **how):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **how}).eval()


# ---------------------------------------------------------------------------------------------------------------------
# A new adapter


@pytest.mark.parametrize(("kind", "causal"), KINDS)
@pytest.mark.parametrize("whole", [None, ["lm_head"]])
def test_a_new_adapter_changes_nothing(kind, causal, whole):
    model = tiny(kind, causal, tie_word_embeddings=False)
    before = logits(model)
    worn = adapters.attach(model, LoraArguments(modules_to_save=whole))
    assert torch.equal(logits(worn.eval()), before)
    trains = {name for name, p in worn.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or "lm_head.modules_to_save" in name for name in trains)
    assert any("lm_head" in name for name in trains) == bool(whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_trained_is_float32_whatever_the_frozen_model_is_kept_in(dtype):
    worn = adapters.attach(tiny("llada").to(dtype), LoraArguments(modules_to_save=["lm_head", "ln_f"]))
    kept = {p.dtype for p in worn.parameters() if not p.requires_grad}
    assert kept == {dtype}
    assert {p.dtype for p in worn.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):  # as it is trained
        worn(input_ids=IDS, use_cache=False).logits.float().sum().backward()


@pytest.mark.parametrize(("kind", "causal"), KINDS)
def test_all_linear_is_every_linear_layer_but_the_head(kind, causal):
    worn = adapters.attach(tiny(kind, causal), LoraArguments())
    assert set(worn.peft_config["default"].target_modules) == SEVEN
    adapted = worn.base_model.targeted_module_names
    linear = [n for n, m in tiny(kind, causal).named_modules() if isinstance(m, nn.Linear)]
    assert set(adapted) == {name for name in linear if "head" not in name}


@pytest.mark.parametrize(
    "words",
    [
        ["q_proj", "attn_out", "ff_proj", "ff_out"],
        ["q_proj", "o_proj", "gate_proj", "down_proj"],
        "q_proj, attn_out,ff_proj , ff_out",
        "q_proj,o_proj,gate_proj,down_proj",
    ],
)
@pytest.mark.parametrize("how", ["yaml", "flag"])
def test_a_list_and_a_comma_list_with_or_without_blanks_say_the_same_in_official_and_llama_names(words, how, tmp_path):
    if how == "yaml":
        file = tmp_path / "a.yaml"
        file.write_text(f"target_modules: {json.dumps(words)}\n")
        given = ["--config", str(file)]
    else:  # also as separate words, with a comma left on one of them
        given = ["--target_modules", *(words if isinstance(words, list) else words.split())]
    arguments = parse("unmask sft", "", [LoraArguments], given).groups[0]
    worn = adapters.attach(tiny("llada"), arguments)
    assert set(worn.peft_config["default"].target_modules) == {"q_proj", "o_proj", "gate_proj", "down_proj"}


def test_official_ff_out_is_the_layer_of_the_blocks_and_the_head_is_asked_for_by_name():
    def adapted(word):
        return set(
            adapters.attach(tiny("llada"), LoraArguments(target_modules=[word])).base_model.targeted_module_names
        )

    blocks = {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    assert adapted("ff_out") == blocks
    assert adapted("transformer.ff_out") == adapted("lm_head") == {"lm_head"}
    assert adapted("blocks.1.ff_out") == {"model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["q_prj"]}, r"no module 'q_prj'.*attn_out.*Did you mean 'q_proj'"),
        ({"target_modules": ["input_layernorm"]}, "no module 'input_layernorm'"),
        ({"target_modules": []}, "names nothing"),
        ({"modules_to_save": ["lm_hed"]}, "no module 'lm_hed'.*Did you mean 'lm_head'"),
        ({"modules_to_save": ["ff_out"]}, "type lm_head or down_proj"),
        ({"modules_to_save": ["q_proj"]}, "keep it in one"),
        ({"modules_to_save": ["mlp"]}, "keep it in one"),
        ({"r": 0}, "--r is 0"),
        ({"lora_alpha": 0}, "--lora_alpha is 0"),
        ({"lora_dropout": 1.0}, "--lora_dropout is 1.0"),
        ({"lora_args": {"use_rslorra": True}}, "Did you mean 'use_rslora'"),
        ({"lora_args": {"r": 4}}, "a setting of its own: --r"),
        ({"lora_args": {"init_lora_weights": "no such"}}, "LoRA: "),
        ({"lora_args": {"init_lora_weights": "pissa_niter_4"}}, "init_lora_weights=pissa"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_one_line(settings, said):
    with pytest.raises(UserError, match=said) as error:
        adapters.attach(tiny("llada"), LoraArguments(**settings))
    assert "\n" not in str(error.value)


def test_first_weights_follow_the_seed_and_leave_the_random_state_alone():
    def first(seed):
        worn = adapters.attach(tiny("llada"), LoraArguments(), seed=seed)
        return next(p for name, p in worn.named_parameters() if "lora_A" in name)

    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    model = copy.deepcopy(tiny("llada"))
    torch.manual_seed(5)
    adapters.attach(model, LoraArguments())
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


# ---------------------------------------------------------------------------------------------------------------------
# Training through it


def by_hand(worn):
    """The plain model with every update added to its weight: W + s·B·A, written without peft."""
    state = {}
    for name, value in worn.get_base_model().state_dict().items():
        if ".lora_" in name or "original_module" in name:
            continue
        state[name.replace(".base_layer", "").replace(".modules_to_save.default", "")] = value.clone()
    for name, module in worn.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            state[f"{name}.weight"] += module.scaling["default"] * (b @ a).detach()
    config = worn.get_base_model().config
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(state)
    return plain.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["all-linear", "lm_head"]},
        {"lora_args": {"use_rslora": 1}},
    ],
    ids=["plain", "whole head", "head", "rslora"],
)
@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_loss_and_gradient_through_an_adapter_are_those_of_the_merged_model(settings, objective):
    causal = objective == "autoregressive"
    worn = trained(tiny("llada", causal), **settings)
    plain = by_hand(worn)
    loss = objectives.load(objective, {}, None if causal else MASK)
    batch = batch_of(loss, [conversation(12, 4), conversation(9, 2, 1)])
    theirs, mine = loss(models.predictor(plain), batch).total, loss(models.predictor(worn), batch).total
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    theirs.backward()
    mine.backward()
    of_weight = gradients(plain)
    checked = 0
    for name, module in worn.get_base_model().named_modules():
        if hasattr(module, "lora_A"):  # d/dB = s·dW·Aᵀ, d/dA = s·Bᵀ·dW
            a, b, s = module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"]
            dw = of_weight[f"{name}.weight"]
            torch.testing.assert_close(b.grad, s * dw @ a.T, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(a.grad, s * b.T @ dw, rtol=1e-3, atol=1e-4)
            checked += 1
        elif hasattr(module, "modules_to_save"):
            dw = module.modules_to_save["default"].weight.grad
            torch.testing.assert_close(dw, of_weight[f"{name}.weight"], rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked >= 14


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("kind", "causal"), KINDS[:3])
def test_gradient_checkpointing_changes_no_gradient(kind, causal, reentrant):
    worn = trained(tiny(kind, causal)).train()
    for module in worn.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def found():
        worn(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        return gradients(worn)

    without = found()
    # as transformers' Trainer does; use_reentrant=False is the default of transformers 5.23
    worn.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    assert any(getattr(m, "gradient_checkpointing", False) for m in worn.modules())
    with_it = found()
    assert without.keys() == with_it.keys()
    assert without
    for name, value in without.items():
        torch.testing.assert_close(with_it[name], value)


def test_it_generates_as_the_merged_model_does():
    how = {"max_new_tokens": 8, "steps": 4, "block_size": 4}
    with torch.no_grad():
        worn = trained(tiny("llada"), modules_to_save=["lm_head"])
        assert torch.equal(worn.generate(IDS, **how), by_hand(worn).generate(IDS, **how))
        models.refuse_causal(worn)
        worn = trained(tiny("llama", True))
        how = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
        assert torch.equal(worn.generate(IDS, **how), by_hand(worn).generate(IDS, **how))


def test_head_and_embedding_that_are_one_matrix_stay_one(byte_tokenizer, tmp_path):
    model = tiny("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    for word in ("lm_head", "embed_tokens"):
        worn = trained(read(tmp_path / "base"), modules_to_save=[word])
        assert worn.get_output_embeddings().weight is worn.get_input_embeddings().weight
        assert worn.get_output_embeddings().weight.requires_grad
        assert not torch.equal(worn.get_output_embeddings().weight, model.lm_head.weight)
        adapters.save(worn, byte_tokenizer, tmp_path / word)
        again = adapters.put_on(read(tmp_path / "base"), tmp_path / word)
        assert torch.equal(logits(again), logits(worn))
        merged = again.merge_and_unload()
        torch.testing.assert_close(logits(merged), logits(worn), rtol=1e-4, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(read(tmp_path / "merged")), logits(worn), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="one matrix"):
        adapters.attach(tiny("llama", tie_word_embeddings=True), LoraArguments(target_modules=["lm_head"]))


# ---------------------------------------------------------------------------------------------------------------------
# Saved and loaded

VARIANTS = {
    "plain": {},
    "some layers": {"target_modules": ["q_proj", "ff_out"], "lora_args": {"layers_to_transform": [1]}},
    "whole head and norm": {"modules_to_save": ["lm_head", "norm"]},
    "head": {"target_modules": ["attn_out", "transformer.ff_out"]},
    "dora": {"lora_args": {"use_dora": True}},
    "rslora": {"lora_args": {"use_rslora": True}},
    "ranks": {"lora_args": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"o_proj": 3}}},
    "pissa": {"lora_args": {"init_lora_weights": "pissa"}},
    "without a layer": {"lora_args": {"exclude_modules": ["v_proj"]}},
}


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_adapter_comes_back_bit_for_bit_under_either_names(variant, official, base, byte_tokenizer, tmp_path):
    worn = trained(read(base), **VARIANTS[variant])
    adapters.save(worn, byte_tokenizer, tmp_path / "a", official=official)
    again = adapters.put_on(read(base), tmp_path / "a")
    assert torch.equal(logits(again), logits(worn))
    assert not any(p.requires_grad for p in again.parameters())
    on = adapters.put_on(read(base), tmp_path / "a", trainable=True)
    mine, theirs = ({n: p for n, p in m.named_parameters() if p.requires_grad} for m in (worn, on))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    # and once more, by default under the names it came with
    adapters.save(on, byte_tokenizer, tmp_path / "b")
    assert load_file(tmp_path / "a" / adapters.WEIGHTS).keys() == load_file(tmp_path / "b" / adapters.WEIGHTS).keys()
    assert torch.equal(logits(adapters.put_on(read(base), tmp_path / "b")), logits(worn))


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_alone_reads_an_adapter_of_ours(variant, base, byte_tokenizer, tmp_path):
    worn = trained(read(base), **VARIANTS[variant])
    adapters.save(worn, byte_tokenizer, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(read(base), tmp_path / "a").eval()
    assert torch.equal(logits(theirs), logits(worn))


def test_beside_it_stand_tokenizer_template_and_what_peft_does_not_record(base, byte_tokenizer, tmp_path):
    worn = adapters.attach(read(base), LoraArguments(), family="llada", objective="masked")
    adapters.save(worn, byte_tokenizer, tmp_path / "a")
    tokenizer = models.load_tokenizer(str(tmp_path / "a"))
    assert tokenizer.chat_template == byte_tokenizer.chat_template
    assert tokenizer.mask_token == byte_tokenizer.mask_token
    record = json.loads((tmp_path / "a" / "unmask.json").read_text())
    assert record["base_fingerprint"] == adapters.fingerprint(base)
    told = {key: record[key] for key in ("is_causal", "mask_token_id", "shift", "family", "objective", "base")}
    wanted = {"is_causal": False, "mask_token_id": MASK, "shift": 0, "family": "llada", "objective": "masked"}
    assert told == {**wanted, "base": str(base)}
    assert adapters.is_adapter(tmp_path / "a")
    assert not adapters.is_adapter(base)
    assert adapters.causal(tmp_path / "a") is False
    assert adapters.base_of(tmp_path / "a") == str(base)


def test_a_checkpoint_goes_back_into_a_worn_adapter_bit_for_bit(base, byte_tokenizer, tmp_path):
    worn = trained(read(base, dtype=torch.bfloat16), modules_to_save=["lm_head"])
    adapters.save(worn, byte_tokenizer, tmp_path / "a")
    worn.save_pretrained(tmp_path / "as the Trainer saves it")
    wanted = {name: p.clone() for name, p in worn.named_parameters()}
    for folder in ("a", "as the Trainer saves it"):
        shake(worn, 2)
        adapters.put_weights(worn, tmp_path / folder)
        assert all(torch.equal(p, wanted[name]) for name, p in worn.named_parameters())


def test_a_frozen_adapter_with_a_whole_head_answers_without_autocast_in_bfloat16(base, byte_tokenizer, tmp_path):
    adapters.save(trained(read(base), modules_to_save=["lm_head", "embed_tokens"]), byte_tokenizer, tmp_path / "a")
    worn = adapters.put_on(read(base, dtype=torch.bfloat16), tmp_path / "a")
    assert logits(worn).dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------------------
# The names of LLaDA's official code


def official_tree(model):
    """A tree of modules named as in LLaDA's official code, holding a tiny LLaDA's own layers. It cannot be called."""
    blocks = nn.ModuleList()
    for layer in model.model.layers:
        block = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(block, name, getattr(layer.self_attn, name))
        block.attn_out, block.ff_proj, block.up_proj = layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj
        block.ff_out = layer.mlp.down_proj
        block.attn_norm, block.ff_norm = layer.input_layernorm, layer.post_attention_layernorm
        blocks.append(block)
    parts = {"wte": model.model.embed_tokens, "blocks": blocks, "ln_f": model.model.norm, "ff_out": model.lm_head}
    tree = nn.Module()
    tree.model = nn.Module()
    tree.model.transformer = nn.ModuleDict(parts)
    tree.prepare_inputs_for_generation = None  # peft looks for it
    return tree


OFFICIAL = {
    "tutorial": {"target_modules": ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]},
    "two": {"target_modules": ["attn_out", "up_proj"]},
    "pattern": {"target_modules": r".*blocks\.\d+\.(attn_out|ff_out)"},
    "without head": {"target_modules": ["ff_out", "ff_proj"], "exclude_modules": ["transformer.ff_out"]},
    "ranks": {"target_modules": ["ff_proj", "up_proj"], "rank_pattern": {"blocks.1.ff_proj": 2}, "use_rslora": True},
    "one block": {"target_modules": ["attn_out"], "layers_to_transform": [1], "layers_pattern": "blocks"},
    "whole head": {"target_modules": ["attn_out"], "modules_to_save": ["transformer.ff_out"]},
}


@pytest.mark.parametrize("variant", OFFICIAL)
def test_an_adapter_trained_on_official_names_says_here_what_it_said_there(variant, tmp_path):
    tree = official_tree(tiny("llada"))
    theirs = peft.get_peft_model(tree, peft.LoraConfig(r=4, lora_alpha=8, **OFFICIAL[variant]))
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    assert any("model.transformer" in key for key in load_file(tmp_path / adapters.WEIGHTS))
    worn = adapters.put_on(tiny("llada"), tmp_path)
    # the oracle: peft merges it into the tree, whose layers are then a tiny LLaDA's again
    merged = theirs.merge_and_unload()
    plain = tiny("llada")
    parts = official_tree(plain)
    parts.load_state_dict(merged.state_dict())
    torch.testing.assert_close(logits(worn), logits(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(worn), logits(tiny("llada")), atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_under_official_names_is_read_by_peft_on_the_official_tree(variant, base, byte_tokenizer, tmp_path):
    worn = trained(read(base), **VARIANTS[variant])
    adapters.save(worn, byte_tokenizer, tmp_path / "a", official=True)
    tree = peft.PeftModel.from_pretrained(official_tree(read(base)), tmp_path / "a")
    merged = tree.merge_and_unload()
    plain = read(base)
    official_tree(plain).load_state_dict(merged.state_dict())
    torch.testing.assert_close(logits(plain), logits(worn), rtol=1e-4, atol=1e-4)
    assert worn.peft_config["default"].target_modules  # saving has not changed what is worn
    assert not any("ff_out" in str(name) for name in worn.peft_config["default"].target_modules)


def test_the_setting_saves_under_official_names_and_other_families_have_none(byte_tokenizer, tmp_path):
    worn = adapters.attach(tiny("llada"), LoraArguments(official_names=True))
    adapters.save(worn, byte_tokenizer, tmp_path / "a")
    assert "attn_out" in json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    with pytest.raises(UserError, match="no other module names"):
        adapters.save(adapters.attach(tiny("qwen2"), LoraArguments()), byte_tokenizer, tmp_path / "b", official=True)
    assert not list(tmp_path.glob("*b*"))


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def change(path, function):
    tensors = load_file(path)
    function(tensors)
    save_file(tensors, path, {"format": "pt"})


def spoil_kind(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "IA3"}))


def spoil_rank(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 7}))


def first_key(tensors):
    return sorted(tensors)[0]


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_kind, "of the kind IA3"),
        (spoil_rank, r"has shape \(4, \d+\) there, \(7, \d+\) here"),
        (lambda f: change(f / adapters.WEIGHTS, lambda t: t.pop(first_key(t))), "1 tensors are missing"),
        (lambda f: change(f / adapters.WEIGHTS, lambda t: t.update(more=torch.ones(2))), "no place here, such as more"),
        (lambda f: (f / adapters.WEIGHTS).write_bytes((f / adapters.WEIGHTS).read_bytes()[:-9]), "cut short"),
        (lambda f: (f / adapters.WEIGHTS).unlink(), "has no adapter_model.safetensors"),
        (lambda f: (f / adapters.WEIGHTS).rename(f / "adapter_model.bin"), "could run code"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(spoil, said, official, base, byte_tokenizer, tmp_path):
    adapters.save(trained(read(base)), byte_tokenizer, tmp_path / "a", official=official)
    spoil(tmp_path / "a")
    with pytest.raises(UserError, match=said) as error:
        adapters.put_on(read(base), tmp_path / "a")
    assert "\n" not in str(error.value)


def test_another_models_adapter_is_refused(base, byte_tokenizer, tmp_path):
    adapters.save(trained(read(base)), byte_tokenizer, tmp_path / "a")
    for other in (
        tiny("llada", hidden_size=16),
        tiny("llada", num_hidden_layers=3),
        tiny("qwen2", num_hidden_layers=1),
    ):
        with pytest.raises(UserError, match="does not fit this model"):
            adapters.put_on(other, tmp_path / "a")


def test_a_base_with_another_mask_token_is_refused(base, byte_tokenizer, tmp_path):
    adapters.save(trained(read(base)), byte_tokenizer, tmp_path / "a")
    other = read(base)
    other.config.mask_token_id = 7
    with pytest.raises(UserError, match=rf"id {MASK}.*has id 7 here. Type --mask_token"):
        adapters.put_on(other, tmp_path / "a")


@pytest.mark.parametrize("causal", [False, True])
def test_an_adapter_of_a_causal_model_is_not_put_on_a_mask_predictor_nor_the_other_way(
    causal, byte_tokenizer, tmp_path
):
    adapters.save(trained(tiny("qwen2", causal)), byte_tokenizer, tmp_path / "a")
    with pytest.raises(UserError, match=r"was trained on a .*; merge it first"):
        adapters.put_on(tiny("qwen2", not causal), tmp_path / "a")


def test_embeddings_that_others_grew_and_saved_with_the_adapter_are_read(tmp_path):
    model = tiny("llada")
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    shake(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    worn = adapters.put_on(tiny("llada"), tmp_path)
    assert logits(worn).shape[-1] == VOCABULARY + 2
    assert torch.equal(logits(worn), logits(theirs.eval()))


def test_saving_never_replaces_what_is_no_adapter(base, byte_tokenizer, tmp_path):
    worn = trained(read(base))
    with pytest.raises(UserError, match="holds no adapter"):
        adapters.save(worn, byte_tokenizer, base)
    assert (base / "model.safetensors").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The base


@pytest.fixture
def saved(base, byte_tokenizer, tmp_path):
    adapters.save(trained(read(base)), byte_tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_base_that_has_moved_is_told_with_what_to_type(saved, base, tmp_path, monkeypatch):
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"base, which is not here; .*--base_model_path"):
        adapters.base_of(saved)
    (tmp_path / "moved").rename(base)
    path = saved / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path))
    (saved / "unmask.json").unlink()
    assert adapters.base_of(saved) == str(base)
    path.write_text(json.dumps({**config, "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Base"}))
    assert adapters.base_of(saved) == "GSAI-ML/LLaDA-8B-Base"
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not say which model"):
        adapters.base_of(saved)


def test_a_base_named_from_another_folder_is_found(base, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapters.save(trained(read("base")), byte_tokenizer, "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert adapters.base_of(tmp_path / "adapter") == str(base)


def test_the_fingerprint_tells_any_changed_layer_and_nothing_else(base, tmp_path):
    mine = adapters.fingerprint(base)
    model = read(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert adapters.fingerprint(tmp_path / "sharded") == mine
    seen = {mine}
    for name, parameter in model.named_parameters():
        before = parameter.data.clone()
        parameter.data.mul_(1.01)
        model.save_pretrained(tmp_path / "changed")
        parameter.data.copy_(before)
        found = adapters.fingerprint(tmp_path / "changed")
        assert found not in seen, name
        seen.add(found)
    half = read(base, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    half.float().save_pretrained(tmp_path / "wider")
    assert adapters.fingerprint(tmp_path / "half") == adapters.fingerprint(tmp_path / "wider") != mine


def test_the_fingerprint_samples_the_whole_of_a_large_tensor(tmp_path):
    def of(tensor):
        save_file({"one": tensor}, tmp_path / "model.safetensors")
        return adapters.fingerprint(tmp_path)

    large = torch.randn(300, 5000).bfloat16()
    assert of(large) == of(large.float())
    assert of(large) != of((large.float() * 1.003).bfloat16())
    assert len({of(torch.zeros(shape)) for shape in ((6,), (2, 3), (3, 2), (1, 2, 3), (), (0, 2))}) == 6


def test_a_merged_model_is_another_base(saved, base, tmp_path):
    merged = adapters.put_on(read(base), saved).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert adapters.check_base(saved, base) is None
    with pytest.raises(UserError, match=r"another base.*--base_model_path"):
        adapters.check_base(saved, tmp_path / "merged")


def test_a_base_that_cannot_be_fingerprinted_is_said_and_not_refused(saved, base, tmp_path):
    assert adapters.fingerprint("nobody/has-this-model") is None
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    assert "nothing tells" in adapters.check_base(saved, tmp_path / "gguf")
    (saved / "unmask.json").unlink()
    assert "nothing recorded" in adapters.check_base(saved, base)
    assert adapters.causal(saved) is None
    assert torch.isfinite(logits(adapters.put_on(read(base), saved))).all()


# ---------------------------------------------------------------------------------------------------------------------
# 4 bits


def test_four_bits_without_bitsandbytes_is_an_error_never_full_precision(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match="install bitsandbytes"):
        adapters.quantised("cpu")


def test_four_bits_trains_where_bitsandbytes_works(byte_tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    tiny("llada", hidden_size=64, intermediate_size=128).save_pretrained(base)  # blocks of 64 values on a CPU
    four = read(base, quantization_config=adapters.quantised("cpu"))
    assert {m.weight.dtype for n, m in four.named_modules() if n.endswith("q_proj")} == {torch.uint8}
    worn = trained(four)
    worn(input_ids=IDS, use_cache=False).logits.float().square().mean().backward()
    assert all(p.grad.abs().sum() > 0 and p.dtype == torch.float32 for p in worn.parameters() if p.requires_grad)
    adapters.save(worn, byte_tokenizer, tmp_path / "a")
    assert adapter_folder.read_record(tmp_path / "a").base_fingerprint == adapters.fingerprint(base)
    assert adapters.check_base(tmp_path / "a", base) is None


def test_a_path_of_either_kind_is_taken():
    assert adapters.is_adapter("nowhere") is False
    assert adapters.is_adapter(Path("nowhere")) is False
