"""Model folders without weights, and how large a model is."""

import json

import pytest
import torch
import transformers

from unmask import init, models
from unmask.__main__ import main
from unmask.config import UserError


@pytest.fixture
def tokenizer_folder(tmp_path, byte_tokenizer):
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_tutorials_model_has_124327616_parameters(shared, capsys):
    assert main(["count", str(shared / "seed" / "llada-100M.config.json")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "124,327,616"


def test_the_preset_is_the_tutorials_model(shared):
    theirs = json.loads((shared / "seed" / "llada-100M.config.json").read_text())
    ours = init.make_config(init.PRESETS["llada-100M"][0]).to_dict()
    ignored = {"auto_map", "transformers_version", "bos_token_id", "init_device"}
    assert {k: ours.get(k) for k in theirs.keys() - ignored} == {k: theirs[k] for k in theirs.keys() - ignored}


def test_the_8B_preset_is_the_official_model(shared):
    official = shared / "data" / "llada_tokenizer" / "LLaDA-8B-Base" / "config.json"
    theirs, ours = json.loads(official.read_text()), init.make_config(init.PRESETS["llada-8B"][0]).to_dict()
    ignored = {"auto_map", "transformers_version", "bos_token_id", "init_device"}
    assert {k: ours.get(k) for k in theirs.keys() - ignored} == {k: theirs[k] for k in theirs.keys() - ignored}
    assert init.count(init.make_config(init.PRESETS["llada-8B"][0]))["total"] == 8_015_581_184


@pytest.mark.parametrize("preset", ["llada-25M", "llada-6M", "llada-2M", "llada-1M"])
def test_a_small_presets_name_is_its_size_without_vocabulary(preset):
    body = init.count(init.make_config(init.PRESETS[preset][0]))["body"]
    assert body == pytest.approx(float(preset.split("-")[1][:-1]) * 1e6, rel=0.15)


def test_count_tells_tied_heads_apart(tmp_path):
    config = transformers.Qwen2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True
    )
    sizes = init.count(config)
    assert sizes["head"] == 0
    assert sizes["total"] == transformers.AutoModelForCausalLM.from_config(config).num_parameters()


def test_init_makes_a_folder_that_loads_and_has_no_weights(tmp_path, tokenizer_folder):
    out = tmp_path / "model"
    assert main(["init", "llada-2M", "--tokenizer", str(tokenizer_folder), "--output_dir", str(out)]) == 0
    assert models.weight_files(out) == []
    config = transformers.AutoConfig.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert config.vocab_size == len(tokenizer) == 262
    assert (config.mask_token_id, config.eos_token_id) == (tokenizer.mask_token_id, tokenizer.eos_token_id)
    assert models.load(str(out), fresh=True).fresh


def test_fresh_weights_depend_on_the_seed_alone(tmp_path, tokenizer_folder):
    out = tmp_path / "model"
    main(["init", "llada-2M", "--tokenizer", str(tokenizer_folder), "--output_dir", str(out)])
    torch.manual_seed(99)
    one, two, other = (models.load(str(out), fresh=True, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_config_keys_can_be_set(tmp_path, tokenizer_folder):
    out = tmp_path / "model"
    words = ["--tokenizer", str(tokenizer_folder), "--output_dir", str(out), "--max_length", "32"]
    assert main(["init", "llada-2M", *words, "--set", "d_model=64,n_heads=2", "--set", "n_layers=1"]) == 0
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.d_model, config.n_layers, config.max_sequence_length) == (64, 1, 32)
    assert (config.n_heads, config.n_kv_heads) == (2, 2)
    with pytest.raises(UserError, match="n_heads 2 is not a multiple of n_kv_heads 3"):
        init.main(["llada-2M", *words, "--overwrite", "--set", "n_heads=2,n_kv_heads=3"])


def test_a_model_folder_without_weights_is_a_source_with_its_tokenizer(tmp_path, tokenizer_folder):
    one, two = tmp_path / "one", tmp_path / "two"
    main(["init", "llada-2M", "--tokenizer", str(tokenizer_folder), "--output_dir", str(one)])
    assert main(["init", str(one), "--output_dir", str(two), "--set", "n_layers=2"]) == 0
    assert transformers.AutoConfig.from_pretrained(two).n_layers == 2


def test_any_causal_model_can_be_one(tmp_path, tokenizer_folder):
    source = tmp_path / "qwen.json"
    transformers.Qwen2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64
    ).to_json_file(source)
    out = tmp_path / "model"
    assert main(["init", str(source), "--tokenizer", str(tokenizer_folder), "--output_dir", str(out)]) == 0
    loaded = models.load(str(out), fresh=True)
    assert loaded.model.config.is_causal is False
    assert loaded.model.config.mask_token_id == loaded.tokenizer.mask_token_id


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to start from"),
        (["llada-100"], "no preset or config file 'llada-100'.*Did you mean 'llada-100M'"),
        (["llada-2M"], "no folder to make"),
        (["llada-2M", "--output_dir", "{out}"], "no tokenizer given"),
        (
            ["llada-2M", "--output_dir", "{out}", "--tokenizer", "{out}/nothing"],
            "no model folder|cannot read the tokenizer",
        ),
        (
            ["llada-2M", "--output_dir", "{out}", "--tokenizer", "{tok}", "--set", "n_layer=3"],
            "Did you mean 'n_layers'",
        ),
        (
            ["llada-2M", "--output_dir", "{out}", "--tokenizer", "{tok}", "--vocab_size", "5"],
            "below the tokenizer's 262",
        ),
        (
            ["llada-2M", "--output_dir", "{out}", "--tokenizer", "{tok}", "--set", "alibi=true"],
            "alibi=True is not supported",
        ),
        (["llada-2M", "--output_dir", "{out}", "--tokenizer", "{tok}", "--set", "n_heads=5"], "multiple of n_heads"),
    ],
)
def test_bad_input_is_told_in_a_line_and_leaves_nothing(tmp_path, tokenizer_folder, capsys, words, told):
    import re

    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    assert main(["init", *(w.format(out=out, tok=tokenizer_folder) for w in words)]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_a_model_is_not_overwritten(tmp_path, tokenizer_folder, capsys):
    out = tmp_path / "model"
    words = ["init", "llada-2M", "--tokenizer", str(tokenizer_folder), "--output_dir", str(out)]
    assert main(words) == 0
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    (out / "model.safetensors").write_bytes(b"weights")
    assert main([*words, "--overwrite"]) == 2
    assert "holds weights" in capsys.readouterr().err


def test_a_config_that_is_none_is_told(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 3}')
    with pytest.raises(UserError, match="no model_type"):
        init.read_source(str(path))
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        init.read_source(str(path))
    path.write_text('{"model_type": "lladda"}')
    with pytest.raises(UserError, match="Did you mean 'llada'"):
        init.make_config(init.read_source(str(path))[0])
