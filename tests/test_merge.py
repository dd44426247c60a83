"""A merged model answers as its adapter did, is an ordinary folder, and is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from runs import make_model, run
from safetensors.torch import load_file

from unmask import adapters, checkpoint, models
from unmask import merge as merging
from unmask.adapters import LoraArguments
from unmask.config import UserError
from unmask.merge import Difference, judge, main

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ENDS = {"eos_token_id": 256, "bos_token_id": None, "pad_token_id": 256}
IDS = torch.arange(60).reshape(3, 20) * 7 % 256


@pytest.fixture(scope="module")
def plain_tokenizer(byte_tokenizer):
    """A tokenizer of 256 bytes and an end of text, without a mask token: as causal models have."""
    from tokenizers import Tokenizer

    state = json.loads(byte_tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [{**t, "id": 256} for t in state["added_tokens"] if t["content"] == "<|endoftext|>"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>"
    )


def make_base(kind, folder, byte_tokenizer, plain_tokenizer, dtype=torch.float32):
    """A model folder with random weights: a LLaDA, or a Llama as it is on a hub, causal and without a mask token."""
    if kind == "llada":
        config = make_model(folder.with_name("config"), byte_tokenizer)
        model = models.load(str(config), fresh=True).model
        checkpoint.save(model.to(dtype), byte_tokenizer, folder)
    else:
        torch.manual_seed(0)
        tied = {"tie_word_embeddings": kind == "tied"}
        config = transformers.LlamaConfig(**SMALL, **ENDS, **tied, vocab_size=257, initializer_range=0.2)
        transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        plain_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(tmp_path, byte_tokenizer, plain_tokenizer):
    """(kind, settings of LoRA) → folders of the base and of a trained adapter, and what the adapter answers."""

    def made(kind, dtype=torch.float32, size=0.1, **settings):
        name = "llada" if kind == "llada" else "llama"
        base = make_base(kind, tmp_path / name, byte_tokenizer, plain_tokenizer, dtype)
        loaded = models.load(str(base), causal=kind == "causal")
        worn = adapters.attach(loaded.model, LoraArguments(**{"r": 4, "lora_alpha": 8, **settings}))
        torch.manual_seed(1)
        for parameter in worn.parameters():
            if parameter.requires_grad:
                parameter.data.add_(size * torch.randn_like(parameter))
        loaded.tokenizer.chat_template = "{{ messages[0].content }} as it was trained"
        adapters.save(worn, loaded.tokenizer, tmp_path / "adapter")
        return base, tmp_path / "adapter", logits(worn.eval())

    return made


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits.float()


def merge(adapter, base, to, *more):
    words = ["--lora_path", adapter, "--merge_path", to, *(["--base_model_path", base] if base else []), *more]
    return main([str(word) for word in words])


KINDS = ["llada", "bidirectional", "causal", "tied"]
WHOLE = {"llada": "lm_head", "bidirectional": "lm_head", "causal": "embed_tokens", "tied": "lm_head"}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_answers_as_its_adapter_did_wherever_it_is_read(kind, whole, make, tmp_path, capsys):
    base, adapter, wanted = make(kind, modules_to_save=[WHOLE[kind]] if whole else None)
    assert merge(adapter, base, tmp_path / "merged") == 0
    told = capsys.readouterr().out
    assert float(told.split("at most ")[1].split()[0]) <= 1e-4
    ours = models.load(str(tmp_path / "merged"), causal=None)
    assert ours.causal == (kind == "causal")
    torch.testing.assert_close(logits(ours.model), wanted, rtol=1e-4, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(theirs), wanted, rtol=1e-4, atol=1e-4)
    moved = logits(models.load(str(base), causal=kind == "causal").model) - wanted
    assert moved.abs().max() > 1e-2


def test_the_trained_tokenizer_and_template_are_kept_not_the_bases(make, tmp_path):
    base, adapter, _ = make("bidirectional")
    merge(adapter, base, tmp_path / "merged")
    tokenizer = models.load_tokenizer(str(tmp_path / "merged"))
    assert tokenizer.chat_template == "{{ messages[0].content }} as it was trained"
    assert tokenizer.mask_token == "<|mdm_mask|>"
    assert models.load_tokenizer(str(base)).mask_token is None


def test_a_mask_token_that_was_added_keeps_its_id_and_its_row(make, tmp_path):
    base, adapter, _ = make("bidirectional")
    merge(adapter, base, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["mask_token_id"], config["is_causal"], config["vocab_size"]) == (257, False, 258)
    worn = models.load(str(adapter)).model
    merged = models.load(str(tmp_path / "merged")).model
    assert torch.equal(merged.get_input_embeddings().weight, worn.get_input_embeddings().weight)
    assert torch.equal(merged.get_output_embeddings().weight[257], worn.get_output_embeddings().weight[257])


def test_a_causal_model_stays_what_other_tools_know(make, tmp_path):
    base, adapter, _ = make("causal")
    merge(adapter, base, tmp_path / "merged")
    before, after = (json.loads((f / "config.json").read_text()) for f in (base, tmp_path / "merged"))
    assert after.keys() <= before.keys()
    assert not {"is_causal", "shift", "mask_token_id"} & after.keys()
    assert load_file(base / "model.safetensors").keys() == load_file(tmp_path / "merged" / "model.safetensors").keys()


def test_a_llada_is_written_under_the_official_names(make, tmp_path):
    base, adapter, _ = make("llada")
    merge(adapter, base, tmp_path / "merged")
    assert load_file(base / "model.safetensors").keys() == load_file(tmp_path / "merged" / "model.safetensors").keys()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "llada"


def dtypes(folder):
    return {str(value.dtype) for value in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("kind", ["llada", "bidirectional"])
def test_the_bases_dtype_is_kept_unless_another_is_asked_for(kind, make, tmp_path, capsys):
    base, adapter, _ = make(kind, torch.bfloat16)
    merge(adapter, base, tmp_path / "a")
    assert dtypes(tmp_path / "a") == {"torch.bfloat16"}
    assert "is normal in bfloat16" in capsys.readouterr().out
    merge(adapter, base, tmp_path / "b", "--dtype", "float32")
    assert dtypes(tmp_path / "b") == {"torch.float32"}
    merge(adapter, base, tmp_path / "c", "--dtype", "fp16")
    assert dtypes(tmp_path / "c") == {"torch.float16"}
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == "float16"


def test_a_narrower_dtype_is_rounded_to_once_when_all_is_added_up(make, tmp_path):
    base, adapter, _ = make("llada")
    merge(adapter, base, tmp_path / "full")
    merge(adapter, base, tmp_path / "half", "--dtype", "bf16")
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)


def test_a_base_left_out_is_the_adapters_own(make, tmp_path, capsys):
    base, adapter, _ = make("llada")
    merge(adapter, None, tmp_path / "merged")
    assert str(base) in capsys.readouterr().out


def test_the_other_spellings_mean_the_same(make, tmp_path):
    base, adapter, _ = make("llada")
    told = {"adapter_model_name_or_path": adapter, "base_model_name_or_path": base, "push_to_hub": "False"}
    words = [str(word) for key, value in told.items() for word in (f"--{key}", value)]
    assert main([*words, "--output_model_name_or_path", str(tmp_path / "a"), "--dtype", "fp32"]) == 0
    (tmp_path / "m.yaml").write_text("".join(f"{key}: {value}\n" for key, value in told.items()))
    assert main(["--config", str(tmp_path / "m.yaml"), "--merge_path", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_it_carries_where_it_comes_from(make, tmp_path):
    base, adapter, _ = make("llada")
    merge(adapter, base, tmp_path / "merged")
    told = json.loads((tmp_path / "merged" / "unmask.json").read_text())["merged"]
    assert (told["adapter"], told["base"]) == (str(adapter), str(base))
    assert told["base_fingerprint"] == adapters.fingerprint(base)
    assert told["difference"]["largest"] <= 1e-4


def test_large_models_are_written_in_shards(make, tmp_path):
    base, adapter, wanted = make("llada")
    merge(adapter, base, tmp_path / "merged", "--max_shard_size", "40KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(logits(models.load(str(tmp_path / "merged")).model), wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_others_merges_and_what_it_lacks_is_said(make, tmp_path, capsys, byte_tokenizer):
    base, adapter, wanted = make("llada", official_names=True)
    for path in adapter.iterdir():
        if path.name not in ("adapter_config.json", "adapter_model.safetensors"):
            path.unlink()
    merge(adapter, base, tmp_path / "merged")
    said = capsys.readouterr().err
    assert "nothing recorded" in said
    assert "the base's goes with" in said
    torch.testing.assert_close(logits(models.load(str(tmp_path / "merged")).model), wanted, rtol=1e-4, atol=1e-4)
    assert models.load_tokenizer(str(tmp_path / "merged")).chat_template == byte_tokenizer.chat_template


# ---------------------------------------------------------------------------------------------------------------------
# Refused


def spoiled(folder, **config):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"--lora_path": None}, "type --lora_path"),
        ({"--lora_path": "{base}"}, "whole model, not an adapter: it needs no merging"),
        ({"--lora_path": "{tmp}"}, "no adapter_config.json; it holds adapter: type --lora_path .*adapter"),
        ({"--lora_path": "{tmp}/adaptor"}, "Did you mean 'adapter'"),
        ({"--merge_path": None}, "type --merge_path"),
        ({"--merge_path": "{base}"}, "is where .* is read from"),
        ({"--merge_path": "{base}/config.json"}, "is a file"),
        ({"--merge_path": "{adapter}", "--overwrite": "true"}, "is where .* is read from"),
        ({"--merge_path": "{tmp}", "--overwrite": "true"}, "holds other things than a model"),
        ({"--base_model_path": "{tmp}/gone"}, "no model folder"),
        ({"--base_model_path": "{adapter}"}, "an adapter itself"),
        ({"--base_model_path": "{other}"}, r"another base.*--base_model_path"),
        ({"--dtype": "fp8"}, "--dtype is 'fp8'.*fp16"),
        ({"--max_shard_size": "5 apples"}, "--max_shard_size is '5 apples'"),
        ({"--max_shard_size": "0GB"}, "--max_shard_size is '0GB'"),
        ({"--device": "nowhere"}, "no device 'nowhere'"),
        ({"--push_to_hub": "true"}, "nothing is sent anywhere"),
        ({"--load_in_4bit": "true"}, "unknown option --load_in_4bit"),
    ],
)
def test_what_cannot_be_merged_is_told_in_one_line_and_nothing_is_written(words, said, make, tmp_path):
    base, adapter, _ = make("llada")
    other = shutil.copytree(base, tmp_path / "other")
    model = models.load(str(other)).model
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)
    model.save_pretrained(other)
    places = {"base": base, "adapter": adapter, "tmp": tmp_path, "other": other}
    given = {"--lora_path": "{adapter}", "--base_model_path": "{base}", "--merge_path": "{tmp}/merged", **words}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as error:
        main([word.format(**places) for pair in given.items() if pair[1] is not None for word in pair])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_quantised_base_and_a_missing_one_are_refused(make, tmp_path):
    base, adapter, _ = make("llada")
    spoiled(base, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UserError, match="is quantised"):
        merge(adapter, base, tmp_path / "merged")
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"not here; .*--base_model_path"):
        merge(adapter, None, tmp_path / "merged")


def test_a_model_that_is_there_is_replaced_only_on_demand_and_other_folders_never(make, tmp_path):
    base, adapter, _ = make("llada")
    merge(adapter, base, tmp_path / "merged")
    (tmp_path / "merged" / "old.txt").write_text("")
    with pytest.raises(UserError, match="type --overwrite"):
        merge(adapter, base, tmp_path / "merged")
    assert (tmp_path / "merged" / "old.txt").exists()
    merge(adapter, base, tmp_path / "merged", "--overwrite")
    assert not (tmp_path / "merged" / "old.txt").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="holds other things"):
        merge(adapter, base, tmp_path / "notes", "--overwrite")
    assert (tmp_path / "notes" / "mine.txt").exists()
    (tmp_path / "empty").mkdir()
    assert merge(adapter, base, tmp_path / "empty") == 0


def test_too_little_room_on_the_disk_is_told_before_anything_is_loaded(make, tmp_path, monkeypatch):
    base, adapter, _ = make("llada")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match="5B free, and the model takes"):
        merge(adapter, base, tmp_path / "merged")


# ---------------------------------------------------------------------------------------------------------------------
# Checked, and there whole or not at all


def test_a_merge_that_went_wrong_is_found_and_nothing_is_written(make, tmp_path, monkeypatch):
    import peft

    base, adapter, _ = make("llada")
    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", lambda self, **how: None)
    with pytest.raises(UserError, match="too much: nothing was written"):
        merge(adapter, base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_difference_is_judged_by_what_rounding_explains():
    assert "up to 3 % is normal in bfloat16" in judge(Difference(0.2, 0.02, 3.0, 0.5), "bfloat16")
    assert "--dtype float32" not in judge(Difference(0.2, 0.02, 3.0, 0.5), "bfloat16")
    assert "loses much of so small a change; --dtype float32" in judge(Difference(0.2, 0.02, 0.3, 0.03), "bfloat16")
    for bad in (0.2, float("nan")):
        with pytest.raises(UserError, match="too much"):
            judge(Difference(0.2, bad, 3.0, 0.5), "bfloat16")
    with pytest.raises(UserError, match="too much"):
        judge(Difference(0.2, 0.02, 3.0, 0.5), "float32")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_merge_leaves_nothing_new_and_the_old_model_whole(error, make, tmp_path, monkeypatch):
    base, adapter, _ = make("llada")
    merge(adapter, base, tmp_path / "merged")
    old = (tmp_path / "merged" / "model.safetensors").read_bytes()
    before = sorted(tmp_path.rglob("*"))
    save = transformers.PreTrainedTokenizerBase.save_pretrained

    def stopped(self, folder, *words, **how):
        save(self, folder, *words, **how)
        raise error

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", stopped)
    with pytest.raises((KeyboardInterrupt, UserError)) as told:
        merge(adapter, base, tmp_path / "merged", "--overwrite", "--dtype", "bf16")
    assert "resume" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == old


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_merge_that_is_killed_while_it_writes_leaves_no_model_and_the_next_one_goes_through(make, tmp_path):
    base, adapter, _ = make("llada")
    code = f"""
        import os, signal, sys, transformers
        transformers.PreTrainedTokenizerBase.save_pretrained = lambda *w, **h: os.kill(os.getpid(), signal.SIGKILL)
        from unmask.merge import main
        main(["--lora_path", {str(adapter)!r}, "--merge_path", {str(tmp_path / "merged")!r}])
    """
    assert run([sys.executable, "-c", textwrap.dedent(code)]).returncode == -signal.SIGKILL
    assert not (tmp_path / "merged").exists()
    assert (tmp_path / ".merged.part" / "model.safetensors").exists()
    merge(adapter, base, tmp_path / "merged")
    assert {p.name for p in tmp_path.iterdir() if "merged" in p.name} == {"merged"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_merging_needs_little_more_memory_than_the_model(byte_tokenizer, tmp_path):
    """What grows is the process's own memory; the pages of the files it reads can be dropped at any time."""
    large = {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 2048}
    for name, size in (("small", {}), ("large", large)):
        config = make_model(tmp_path / f"{name} config", byte_tokenizer, **size)
        checkpoint.save(models.load(str(config), fresh=True).model, byte_tokenizer, tmp_path / name)
        worn = adapters.attach(models.load(str(tmp_path / name)).model, LoraArguments(r=8))
        adapters.save(worn, byte_tokenizer, tmp_path / f"{name} adapter")
    code = """
        import threading
        from unmask import merge

        def own():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

        def merged(name):
            merge.main(["--lora_path", name + " adapter", "--merge_path", name + " merged", "--max_shard_size", "20MB"])

        merged("small")  # loads what it takes to merge
        most, done, start = [0], threading.Event(), own()

        def watch():
            while not done.wait(0.002):
                most[0] = max(most[0], own())

        thread = threading.Thread(target=watch)
        thread.start()
        merged("large")
        done.set()
        thread.join()
        print("GREW", most[0] - start)
    """
    told = run([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{textwrap.dedent(code)}"])
    assert told.returncode == 0, told.stderr
    grew, size = int(told.stdout.split("GREW ")[1]), (tmp_path / "large" / "model.safetensors").stat().st_size
    assert grew < 1.5 * size, f"{grew / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"


@pytest.mark.parametrize("script", ["merge.py", "examples/llada/merge.py"])
def test_the_tutorials_scripts_are_the_command(script, monkeypatch):
    import runpy

    import unmask.__main__

    given = []
    monkeypatch.setattr(unmask.__main__, "main", lambda words: given.extend(words) or 0)
    monkeypatch.setattr(sys, "argv", [script, "--lora_path", "a"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(os.fspath(Path(__file__).parent.parent / script), run_name="__main__")
    assert not end.value.code
    assert given == ["merge", "--lora_path", "a"]
