"""Any causal model becomes a mask predictor or is refused; `predict` says the same as the model, only where asked."""

import pytest
import torch
import transformers
from runs import make_model

from unmask import models
from unmask.config import ModelArguments, UserError

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 257,
}
CAUSAL = {
    "qwen2": transformers.Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "llama": transformers.LlamaConfig(**SMALL, eos_token_id=1, pad_token_id=1),
    "gemma2": transformers.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=257),
}
STAY_CAUSAL = {
    "mamba": transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=257),
    "stablelm": transformers.StableLmConfig(**SMALL, num_key_value_heads=4),
    "gpt_neo": transformers.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], vocab_size=257
    ),
}


@pytest.fixture
def plain_tokenizer(byte_tokenizer, tmp_path):
    """A tokenizer of 256 bytes and an end of text, without a mask token: as causal models have."""
    from tokenizers import Tokenizer

    inner = Tokenizer.from_str(byte_tokenizer.backend_tokenizer.to_str())
    import json

    state = json.loads(inner.to_str())
    state["added_tokens"] = [{**t, "id": 256} for t in state["added_tokens"] if t["content"] == "<|endoftext|>"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>"
    )


def folder_of(config, tokenizer, path, weights=True):
    ends = {"eos_token_id": 256, "bos_token_id": None, "pad_token_id": 256}
    config = type(config).from_dict({**config.to_dict(), **ends})
    torch.manual_seed(0)
    if weights:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    else:
        config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_causal_model_is_made_to_see_both_sides(name, plain_tokenizer, tmp_path):
    loaded = models.load(folder_of(CAUSAL[name], plain_tokenizer, tmp_path))
    ids = torch.randint(0, 256, (1, 10))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 256
    changed = (loaded.model(ids).logits != loaded.model(other).logits).any(-1)
    assert changed.all()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_it_gets_a_mask_token_of_its_own(name, plain_tokenizer, tmp_path):
    before = transformers.AutoModelForCausalLM.from_pretrained(folder_of(CAUSAL[name], plain_tokenizer, tmp_path))
    loaded = models.load(str(tmp_path))
    mask = loaded.model.config.mask_token_id
    assert mask == loaded.tokenizer.mask_token_id == 257
    assert loaded.tokenizer.encode("<|mdm_mask|>", split_special_tokens=True).count(mask) == 0
    table = loaded.model.get_input_embeddings().weight
    assert table.shape[0] == 258
    old = before.get_input_embeddings().weight
    assert torch.equal(table[:257], old)
    assert torch.allclose(table[257], old.mean(0), atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
@torch.no_grad()
def test_it_is_saved_and_loads_as_it_was(name, plain_tokenizer, tmp_path):
    loaded = models.load(folder_of(CAUSAL[name], plain_tokenizer, tmp_path / "one"))
    loaded.model.save_pretrained(tmp_path / "two"), loaded.tokenizer.save_pretrained(tmp_path / "two")
    again = models.load(str(tmp_path / "two"))
    ids = torch.randint(0, 257, (2, 9))
    assert torch.equal(loaded.model(ids).logits, again.model(ids).logits)
    assert again.model.config.architectures == [type(loaded.model).__name__]
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two")  # transformers alone, no Unmask
    assert torch.equal(plain(ids).logits, again.model(ids).logits)


@pytest.mark.parametrize("name", STAY_CAUSAL)
def test_what_stays_causal_is_refused_by_name(name, plain_tokenizer, tmp_path):
    folder = folder_of(STAY_CAUSAL[name], plain_tokenizer, tmp_path, weights=False)
    with pytest.raises(UserError, match=f"{name} stays causal"):
        models.load(folder, fresh=True)


def test_an_ordinary_word_is_no_mask_token(plain_tokenizer, tmp_path):
    folder = folder_of(CAUSAL["qwen2"], plain_tokenizer, tmp_path)
    with pytest.raises(UserError, match="'a'"):
        models.load(ModelArguments(model_name_or_path=folder, mask_token="a"))


@pytest.fixture
def llada(tmp_path, byte_tokenizer):
    return models.load(str(make_model(tmp_path / "llada", byte_tokenizer)), fresh=True)


@torch.no_grad()
def test_predict_says_what_the_model_says_where_asked(llada):
    ids = torch.randint(0, 256, (3, 12))
    attention = torch.arange(12)[None] < torch.tensor([12, 9, 5])[:, None]
    keep = (torch.rand(3, 12) < 0.4) & attention
    predict = models.predictor(llada.model)
    whole = llada.model(ids, attention_mask=attention.long()).logits
    assert torch.equal(predict(ids, attention=attention), whole)
    assert torch.allclose(predict(ids, attention=attention, keep=keep), whole[keep], atol=1e-6)
    assert predict.vocab_size == 262


@torch.no_grad()
def test_a_reader_gets_hidden_states_and_head(llada):
    ids, keep = torch.randint(0, 256, (1, 6)), torch.tensor([[0, 1, 0, 0, 1, 0]]).bool()
    predict = models.predictor(llada.model)
    seen = {}

    def read(hidden, head):
        seen["shape"] = hidden.shape
        return head(hidden).argmax(-1)

    answer = predict(ids, keep=keep, read=read)
    assert seen["shape"] == (2, 32)
    assert torch.equal(answer, llada.model(ids).logits[keep].argmax(-1))
    assert "forward" not in vars(llada.model.lm_head)  # the head is itself again


def test_the_head_is_itself_again_after_an_error(llada):
    def fail(hidden, head):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        models.predictor(llada.model)(torch.zeros(1, 4, dtype=torch.long), read=fail)
    assert "forward" not in vars(llada.model.lm_head)
    assert llada.model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 262)


@pytest.mark.parametrize("name", ["gemma2"])
@torch.no_grad()
def test_logits_changed_after_the_head_are_kept(name, plain_tokenizer, tmp_path):
    """Gemma caps its logits after the head: `predict` gives the capped ones."""
    loaded = models.load(folder_of(CAUSAL[name], plain_tokenizer, tmp_path))
    loaded.model.get_output_embeddings().weight.mul_(100)
    ids, keep = torch.randint(0, 256, (2, 7)), torch.rand(2, 7) < 0.5
    predict = models.predictor(loaded.model)
    whole = loaded.model(ids).logits
    assert torch.equal(predict(ids, keep=keep), whole[keep])
    assert torch.equal(predict(ids, keep=keep, read=lambda hidden, head: head(hidden)), whole[keep])


@torch.no_grad()
def test_a_shifted_family_speaks_of_the_next_token(llada):
    ids = torch.randint(0, 256, (2, 8))
    whole = llada.model(ids).logits
    llada.model.config.shift = 1
    shifted = models.predictor(llada.model)(ids)
    assert torch.equal(shifted[:, 1:], whole[:, :-1])
    assert torch.equal(shifted[:, 0], whole[:, 0])


def test_gradients_flow_through_predict(llada):
    ids, keep = torch.randint(0, 256, (2, 8)), torch.rand(2, 8) < 0.6
    llada.model.train()
    models.predictor(llada.model)(ids, keep=keep).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in llada.model.parameters())


def test_a_family_from_a_file_is_used(tmp_path, byte_tokenizer):
    folder = make_model(tmp_path / "model", byte_tokenizer)
    plug = tmp_path / "mine.py"
    plug.write_text(
        "from unmask.models import Family\n"
        "FAMILY = Family(name='mine', ends=('<|eot_id|>',))\n"
        "def adapt(config, tokenizer, mask_token):\n    config.shift = 1\n"
    )
    loaded = models.load(ModelArguments(model_name_or_path=str(folder), family=str(plug)), fresh=True)
    assert loaded.family.name == "mine"
    assert models.predictor(loaded.model).shift == 1


def test_the_folder_of_models_can_be_named_in_the_environment(tmp_path, byte_tokenizer, monkeypatch):
    make_model(tmp_path / "models" / "tiny", byte_tokenizer)
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path / "models"))
    assert models.load("tiny", fresh=True).model.num_parameters() > 0


def test_an_adapter_folder_asks_for_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gone/for/good"}')
    with pytest.raises(UserError, match="gone/for/good"):
        models.load(str(tmp_path))


def test_official_shapes_are_those_on_the_disk(llada, tmp_path):
    from safetensors.torch import load_file

    llada.model.save_pretrained(tmp_path)
    stored = {name: list(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()}
    assert models.official_shapes(llada.model) == stored


def test_weights_are_put_into_a_model_that_is_there(llada, tmp_path, byte_tokenizer):
    llada.model.save_pretrained(tmp_path / "saved"), byte_tokenizer.save_pretrained(tmp_path / "saved")
    other = models.load(str(tmp_path / "saved"), fresh=True, seed=9).model
    assert not torch.equal(other.lm_head.weight, llada.model.lm_head.weight)
    models.put_weights(other, tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), llada.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["models/llada-100M", "output/none", "here/none"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_a_hub(name, tmp_path, monkeypatch):
    """`models/x` reads like owner/name, and asking a hub for it takes most of a minute where there is no network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=f"no model folder '{name}'"):
        models.find(name)
    assert models.find("GSAI-ML/LLaDA-8B-Base") == "GSAI-ML/LLaDA-8B-Base"
