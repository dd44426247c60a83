"""LLaDA is a Llama without its causal mask: the official answers, names and keys."""

import json

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

import unmask.models  # registers the families
from unmask.config import UserError
from unmask.models.llada import LLAMA_ONLY, LLaDAConfig, LLaDAModelLM

EXACT = Version(torch.__version__).release[:2] == (2, 13) and not torch.cuda.is_available()
TOLERANCE = 0.0 if EXACT else 1e-5
SMALL = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "mlp_hidden_size": 48,
    "max_sequence_length": 64,
    "embedding_size": 50,
    "vocab_size": 50,
    "mask_token_id": 49,
    "eos_token_id": 48,
}


@pytest.fixture(scope="module")
def tiny(shared):
    return shared / "fixtures" / "llada-tiny"


@pytest.fixture(scope="module")
def model(tiny):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny).eval()


@torch.no_grad()
def test_logits_are_the_official_ones(model, tiny):
    told = load_file(tiny / "expected_logits.safetensors")
    ids, mask = told["logits_input_ids"], told["logits_attention_mask"]
    assert (model(ids).logits - told["logits"]).abs().max() <= TOLERANCE
    padded = (model(ids, attention_mask=mask).logits - told["logits_masked"]).abs()
    assert padded[mask.bool()].max() <= TOLERANCE


def test_saving_writes_the_official_names_and_keys(model, tiny, tmp_path):
    model.save_pretrained(tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config, official = (json.loads((d / "config.json").read_text()) for d in (tmp_path, tiny))
    config.pop("transformers_version"), official.pop("transformers_version")
    assert config == official


def test_the_tutorials_config_has_its_number_of_parameters(shared):
    config = transformers.AutoConfig.from_pretrained(shared / "seed" / "llada-100M.config.json")
    with torch.device("meta"):
        assert transformers.AutoModelForCausalLM.from_config(config).num_parameters() == 124_327_616


def test_official_keys_survive_a_round_trip(shared, tmp_path):
    official = json.loads((shared / "seed" / "llada-100M.config.json").read_text())
    transformers.AutoConfig.from_pretrained(shared / "seed" / "llada-100M.config.json").save_pretrained(tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())
    ignored = {"auto_map", "transformers_version"}  # Python files that we do not write
    assert {k: v for k, v in official.items() if k not in ignored} == {
        k: ours.get(k) for k in official.keys() - ignored
    }


def test_a_config_answers_to_both_vocabularies():
    config = LLaDAConfig(**SMALL)
    assert config.d_model == config.hidden_size == 32
    assert config.n_kv_heads == config.num_key_value_heads == 4
    assert config.head_dim == 8


def test_grouped_and_multi_query_heads():
    assert LLaDAConfig(**SMALL, n_kv_heads=2).num_key_value_heads == 2
    assert LLaDAConfig(**SMALL, multi_query_attention=True).num_key_value_heads == 1
    with pytest.raises(UserError, match="multi_query_attention"):
        LLaDAConfig(**SMALL, multi_query_attention=True, n_kv_heads=2)


def test_an_embedding_larger_than_the_vocabulary_is_kept_apart(tmp_path):
    config = LLaDAConfig(**{**SMALL, "vocab_size": 45, "embedding_size": 50})
    assert config.vocab_size == 50
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["vocab_size"], saved["embedding_size"]) == (45, 50)
    assert transformers.AutoConfig.from_pretrained(tmp_path).vocab_size == 50


def test_weight_tying_is_honoured():
    model = LLaDAModelLM(LLaDAConfig(**SMALL, weight_tying=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("key", LLAMA_ONLY)
def test_what_a_llama_cannot_do_is_refused_by_name(key):
    only = LLAMA_ONLY[key]
    other = {bool: lambda: not only, int: lambda: 7, float: lambda: 0.5, str: lambda: "other", type(None): lambda: 8.0}
    with pytest.raises(UserError, match=key):
        LLaDAConfig(**SMALL, **{key: other[type(only)]()})


@pytest.mark.parametrize(("key", "value"), [("init_fn", "kaiming_normal"), ("activation_type", "swiglu")])
def test_unknown_initialisations_and_activations_are_refused(key, value):
    with pytest.raises(UserError, match=value):
        LLaDAConfig(**SMALL, **{key: value})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="multiple of n_heads"):
        LLaDAConfig(**{**SMALL, "n_heads": 5})


def test_mitchell_initialisation_follows_its_formula():
    torch.manual_seed(0)
    model = LLaDAModelLM(LLaDAConfig(**{**SMALL, "d_model": 256, "n_layers": 3, "mlp_hidden_size": 512}))
    cut = 0.98658  # std of a normal cut at ±3

    def measured(weight):
        return weight.std().item() / cut

    assert measured(model.model.embed_tokens.weight) == pytest.approx(256**-0.5, rel=0.03)
    assert measured(model.lm_head.weight) == pytest.approx(256**-0.5, rel=0.03)
    for i, layer in enumerate(model.model.layers):
        assert measured(layer.self_attn.q_proj.weight) == pytest.approx(256**-0.5, rel=0.03)
        assert measured(layer.self_attn.o_proj.weight) == pytest.approx((2 * 256 * (i + 1)) ** -0.5, rel=0.03)
        assert measured(layer.mlp.down_proj.weight) == pytest.approx((2 * 512 * (i + 1)) ** -0.5, rel=0.03)
        assert layer.mlp.gate_proj.weight.abs().max() <= 3 * 256**-0.5


def test_normal_initialisation_uses_init_std():
    torch.manual_seed(0)
    model = LLaDAModelLM(LLaDAConfig(**{**SMALL, "d_model": 256}, init_fn="normal", init_std=0.05))
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.05, rel=0.05)


def test_loading_keeps_the_weights_and_does_not_initialise_them_again(tiny):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    stored = load_file(tiny / "model.safetensors")
    assert torch.equal(loaded.model.layers[1].mlp.down_proj.weight, stored["model.transformer.blocks.1.ff_out.weight"])


@torch.no_grad()
def test_the_same_class_is_its_causal_twin():
    torch.manual_seed(0)
    config = LLaDAConfig(**SMALL)
    both = LLaDAModelLM(config).eval()
    config.is_causal = True
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            vocab_size=50,
            rms_norm_eps=config.rms_norm_eps,
        )
    ).eval()
    llama.load_state_dict(both.state_dict())
    ids = torch.randint(0, 48, (2, 16))
    assert torch.equal(both(ids).logits, llama(ids).logits)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
@torch.no_grad()
def test_every_place_sees_every_other(how):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(LLaDAConfig(**SMALL), attn_implementation=how).eval()
    ids = torch.randint(0, 48, (1, 12))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 48
    assert (model(ids).logits != model(other).logits).any(-1).all()


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = LLaDAModelLM(LLaDAConfig(**SMALL)).train()
    ids = torch.randint(0, 48, (2, 12))

    def gradients():
        model.zero_grad()
        model(ids).logits.logsumexp(-1).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, gradients(), strict=True))


def test_the_end_of_text_is_learnt_although_it_pads_too():
    torch.manual_seed(0)
    model = LLaDAModelLM(LLaDAConfig(**SMALL, pad_token_id=48))
    model(torch.tensor([[1, 48, 2]])).logits.logsumexp(-1).sum().backward()
    assert model.model.embed_tokens.weight.grad[48].abs().sum() > 0


def test_the_public_names_are_the_official_ones():
    assert unmask.models.llada.LLaDAModelLM(LLaDAConfig(**SMALL)).config.model_type == "llada"
    assert LLaDAModelLM.__name__ == "LLaDAModelLM"
