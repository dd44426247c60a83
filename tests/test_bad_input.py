"""Bad input to `unmask pretrain`: one clear line, exit code 2, nothing lost, nothing half-written."""

import errno
import json
import re
import shutil

import datasets
import pytest
import transformers
from runs import curve, make_model, pretrain, same_weights, words

from unmask import checkpoint
from unmask.__main__ import main


@pytest.fixture
def finished(tmp_path, model, text):
    """A finished run of six steps with a checkpoint at the third."""
    out = tmp_path / "run"
    pretrain(model, f"{text}[train:50,test:10]", out, save_steps=3)
    return out


def refused(capsys, told, *arguments):
    """The command exits with 2 and one line that matches."""
    capsys.readouterr()
    assert main(["pretrain", *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unmask:")]
    assert len(error) == 1
    assert re.search(told, error[0]), error[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lerning_rate": 1}, "unknown option --lerning_rate. Did you mean 'learning_rate'"),
        ({"model_name_or_path": "{tmp}/tinny"}, "no model folder .*tinny"),
        ({"model_name_or_path": None}, "no model given"),
        ({"dataset_args": None}, "no data given"),
        ({"output_dir": None}, "no run folder given"),
        ({"dataset_args": "{tmp}/txt.jsonl"}, "txt.jsonl"),
        ({"dataset_args": "{text}[trian:10]"}, "trian"),
        ({"dataset_args": "{text}[train:1000]"}, "60"),
        ({"text_field": "txt"}, "txt.*text"),
        ({"max_length": 100_000}, "beyond the model's 64"),
        ({"max_length": 0}, "at least 1"),
        ({"max_steps": 0}, "--max_steps is 0; it must be at least 1"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size is 0; it must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "at least 1"),
        ({"eval_draws": 0}, "--eval_draws is 0"),
        ({"random_length_ratio": 2}, "from 0 to 1"),
        ({"objective": "maskd"}, "no objective called 'maskd'.*Did you mean 'masked'"),
        ({"objective_args": "epsilon=1"}, "unknown setting 'epsilon'.*Did you mean 'eps'"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"report_to": "swanlap"}, "no tracker called 'swanlap'.*Did you mean 'swanlab'"),
        ({"attn_implementation": "nothing"}, "nothing"),
        ({"streaming": True, "max_steps": None}, "needs --max_steps"),
        ({"warmup_ratio": 0.1}, "both --warmup_steps and --warmup_ratio"),
        ({"resume_from_checkpoint": "auto"}, "no checkpoint to go on from"),
        ({"mask_token": "the"}, "the"),
        ({"config": "{tmp}/no.yaml"}, "no config file"),
        ({"learning_rate": -1}, "--learning_rate is -1.0"),
        ({"learning_rate": "nan"}, "--learning_rate is nan"),
        ({"adam_beta2": 2}, "--adam_beta2 is 2.0"),
        ({"seed": -1}, "--seed is -1"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers is -1"),
        ({"max_steps": -1, "num_train_epochs": 0}, "--num_train_epochs is 0"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no effect here"),
        ({"torch_compile_backend": "fast"}, "--torch_compile_backend fast: there is"),
        ({"push_to_hub": True}, "--push_to_hub has no effect here"),
        ({"report_to": "comet_ml"}, "pip install comet-ml"),
        ({"family": "lada"}, "no model called 'lada'"),
    ],
    ids=lambda v: ",".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else None,
)
def test_bad_settings(tmp_path, model, text, capsys, changes, told):
    before = sorted(tmp_path.rglob("*"))
    given = {
        key: value.format(tmp=tmp_path, text=text) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    usual = {"model_name_or_path": model, "dataset_args": f"{text}[train:50,test:10]", "output_dir": tmp_path / "run"}
    usual |= {"max_steps": 2, "max_length": 16, "warmup_steps": 1, "bf16": False, "num_proc": 1}
    arguments = [w for k, v in (usual | given).items() if v is not None for w in (f"--{k}", str(v))]
    refused(capsys, told, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_data_set(tmp_path, model, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    refused(capsys, "empty", *words(model, str(tmp_path / "empty.jsonl"), tmp_path / "run"))


def test_fewer_tokens_than_a_row(tmp_path, model, capsys):
    (tmp_path / "few.jsonl").write_text('{"text": "a few"}\n{"text": "b"}\n')
    refused(capsys, "tokens", *words(model, str(tmp_path / "few.jsonl"), tmp_path / "run", max_length=64))


def test_a_model_folder_without_config(tmp_path, text, capsys):
    (tmp_path / "model").mkdir()
    refused(capsys, "no config.json", *words(tmp_path / "model", str(text), tmp_path / "run"))


def test_a_model_folder_without_tokenizer(tmp_path, model, text, capsys):
    (tmp_path / "model").mkdir()
    shutil.copy(model / "config.json", tmp_path / "model")
    refused(capsys, "no tokenizer", *words(tmp_path / "model", str(text), tmp_path / "run"))


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path, byte_tokenizer, text, capsys):
    folder = make_model(tmp_path / "model", byte_tokenizer, embedding_size=260, vocab_size=260)
    refused(capsys, "262.*260|260.*262", *words(folder, str(text), tmp_path / "run"))


def test_a_tokenizer_whose_mask_is_another(tmp_path, byte_tokenizer, text, capsys):
    folder = make_model(tmp_path / "model", byte_tokenizer, mask_token_id=259)
    refused(capsys, "259.*258|258.*259", *words(folder, str(text), tmp_path / "run"))


def test_no_mask_token_at_all(tmp_path, byte_tokenizer, text, capsys):
    folder = make_model(tmp_path / "model", byte_tokenizer, mask_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(capsys, "--mask_token", *words(folder, str(text), tmp_path / "run"))


def test_a_folder_with_weights_stops_until_told(tmp_path, model, finished, text, capsys):
    trained = finished / "checkpoint-final"
    refused(capsys, "--from_scratch true .*--from_scratch false", *words(trained, str(text), tmp_path / "two"))
    assert not (tmp_path / "two").exists()
    scratch = pretrain(
        trained, f"{text}[train:50,test:10]", tmp_path / "scratch", from_scratch=True, eval_on_start=True
    )
    gone_on = pretrain(trained, f"{text}[train:50,test:10]", tmp_path / "on", from_scratch=False, eval_on_start=True)
    first = [next(line["eval_loss"] for line in lines if "eval_loss" in line) for lines in (scratch, gone_on)]
    assert first[1] < first[0]


def test_a_stray_index_is_no_weights(tmp_path, model, text):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "model-00001.safetensors"}}'
    )
    assert pretrain(folder, f"{text}[train:50,test:10]", tmp_path / "run", max_steps=1)


def test_a_truncated_model(tmp_path, finished, text, capsys):
    file = finished / "checkpoint-final" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    arguments = words(finished / "checkpoint-final", str(text), tmp_path / "two", from_scratch=False)
    refused(capsys, "cannot read the weights", *arguments)


def test_a_model_of_other_shapes(tmp_path, finished, text, capsys):
    config = json.loads((finished / "checkpoint-final" / "config.json").read_text())
    config["mlp_hidden_size"] = 48
    (finished / "checkpoint-final" / "config.json").write_text(json.dumps(config))
    arguments = words(finished / "checkpoint-final", str(text), tmp_path / "two", from_scratch=False)
    refused(capsys, "cannot read the weights", *arguments)


# -- run folders


def test_a_run_is_never_overwritten_silently(finished, model, text, capsys):
    before = (finished / "metrics.jsonl").read_text()
    refused(
        capsys,
        "already holds a run.*--resume_from_checkpoint auto.*--overwrite_output_dir",
        *words(model, f"{text}[train:50,test:10]", finished),
    )
    assert (finished / "metrics.jsonl").read_text() == before
    anew = pretrain(model, f"{text}[train:50,test:10]", finished, overwrite_output_dir=True, max_steps=2)
    assert len(curve(anew, "loss")) == 2
    assert not (finished / "checkpoint-6").exists()


def test_overwriting_deletes_nothing_but_the_run(finished, model, text):
    (finished / "notes.txt").write_text("mine")
    pretrain(model, f"{text}[train:50,test:10]", finished, overwrite_output_dir=True, max_steps=1)
    assert (finished / "notes.txt").read_text() == "mine"


def test_bad_input_does_not_delete_the_earlier_run(finished, text, capsys):
    arguments = words(finished / "nothing", str(text), finished, overwrite_output_dir=True)
    refused(capsys, "no model folder", *arguments)
    assert (finished / "checkpoint-final" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_length": 8}, "max_length 16 there, 8 here"),
        ({"seed": 7}, "seed 42 there, 7 here"),
        ({"per_device_train_batch_size": 4}, "rows_per_step 4 there, 8 here"),
        ({"objective_args": "schedule=cosine"}, "objective"),
    ],
)
def test_a_run_folder_of_another_run(finished, model, text, capsys, changes, told):
    arguments = words(model, f"{text}[train:50,test:10]", finished, resume_from_checkpoint="auto", **changes)
    refused(capsys, f"belongs to another run.*{told}", *arguments)


def test_a_run_of_another_model_or_other_data(finished, byte_tokenizer, model, text, tmp_path, capsys):
    other = make_model(tmp_path / "other", byte_tokenizer, n_layers=1)
    spec = f"{text}[train:50,test:10]"
    refused(capsys, "another run: model", *words(other, spec, finished, resume_from_checkpoint="auto"))
    spec = f"{text}[train:40,test:10]"
    refused(capsys, "another run: train_data", *words(model, spec, finished, resume_from_checkpoint="auto"))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.safetensors", "its model.safetensors is cut short"),
        ("optimizer.pt", "its optimizer.pt is cut short"),
        ("trainer_state.json", "its trainer_state.json is cut short"),
    ],
)
def test_a_truncated_checkpoint_is_passed_over_and_said(finished, model, text, capsys, file, told):
    path = finished / "checkpoint-6" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    arguments = words(model, f"{text}[train:50,test:10]", finished, save_steps=3)
    refused(capsys, told, *arguments, "--resume_from_checkpoint", str(finished / "checkpoint-6"))
    assert main(["pretrain", *arguments, "--resume_from_checkpoint", "auto"]) == 0
    error = capsys.readouterr().err
    assert f"passed over checkpoint-6: {told}" in error
    assert "going on from checkpoint-3" in error


def test_a_checkpoint_without_optimiser(tmp_path, model, text, capsys):
    spec = f"{text}[train:50,test:10]"
    pretrain(model, spec, tmp_path / "run", save_only_model=True)
    refused(capsys, "save_only_model", *words(model, spec, tmp_path / "run", resume_from_checkpoint="auto"))


def test_a_checkpoint_of_other_shapes(finished, model):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(finished / "checkpoint-6")
    checkpoint.fits(finished / "checkpoint-6", loaded)
    config = loaded.config
    config.mlp_hidden_size = 48
    other = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(checkpoint.UserError, match=r"belongs to another model: model.transformer.blocks.*48"):
        checkpoint.fits(finished / "checkpoint-6", other)


def test_going_on_with_a_finished_run_changes_nothing(finished, model, text, tmp_path):
    shutil.copytree(finished / "checkpoint-final", tmp_path / "before")
    pretrain(model, f"{text}[train:50,test:10]", finished, resume_from_checkpoint="auto", save_steps=3)
    assert same_weights(tmp_path / "before", finished / "checkpoint-final")
    assert {p.name for p in finished.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6", "checkpoint-final"}


def test_old_checkpoints_go_and_the_final_model_stays(finished, model, text):
    import os

    for path in finished.glob("checkpoint-*"):
        os.utime(path, (1, 1))
    usual = {"max_steps": 12, "save_steps": 2, "lr_scheduler_type": "constant"}
    spec = f"{text}[train:50,test:10]"
    pretrain(model, spec, finished, overwrite_output_dir=True, **{**usual, "max_steps": 6})
    pretrain(model, spec, finished, resume_from_checkpoint="auto", **usual)
    left = {p.name for p in finished.glob("checkpoint-*")}
    assert left == {"checkpoint-10", "checkpoint-12", "checkpoint-final"}


def test_going_on_from_another_runs_checkpoint_spares_this_folders_run(finished, model, text, tmp_path, capsys):
    spec = f"{text}[train:50,test:10]"
    pretrain(model, spec, tmp_path / "other", seed=7)
    arguments = words(model, spec, tmp_path / "other", resume_from_checkpoint=finished / "checkpoint-3")
    refused(capsys, "holds a run of its own", *arguments)
    assert pretrain(model, spec, tmp_path / "new", resume_from_checkpoint=finished / "checkpoint-3", save_steps=3)


def test_later_checkpoints_are_not_overwritten_by_going_back(finished, model, text, capsys):
    arguments = words(model, f"{text}[train:50,test:10]", finished, resume_from_checkpoint=finished / "checkpoint-3")
    refused(capsys, "checkpoint-6 is later than checkpoint-3", *arguments)


def test_a_diverged_run_stops_and_says_so(tmp_path, model, text, capsys):
    arguments = words(model, f"{text}[train:50,test:10]", tmp_path / "run", learning_rate=1e30, max_grad_norm=0)
    assert main(["pretrain", *arguments]) == 3
    assert "the run has diverged" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint-final").exists()


@pytest.mark.parametrize("value", ["no", "false", '"no"'])
def test_a_bare_no_in_yaml_is_the_word(tmp_path, model, text, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"eval_strategy: {value}\nsave_strategy: {value}\nreport_to:\nresume_from_checkpoint: false\n")
    lines = pretrain(
        model, f"{text}[train:50,test:10]", tmp_path / "run", config=path, eval_steps=None, save_steps=None
    )
    assert len([line for line in lines if "eval_loss" in line]) == 1  # there is always one at the end
    assert not (tmp_path / "run" / "checkpoint-6").exists()
    assert (tmp_path / "run" / "checkpoint-final").exists()


# -- the disk


@pytest.mark.parametrize("where", ["model", "optimizer"])
def test_no_space_left_while_saving(tmp_path, model, text, capsys, monkeypatch, where):
    import torch

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "model":
        monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    else:
        monkeypatch.setattr(torch, "save", full)
    arguments = words(model, f"{text}[train:50,test:10]", tmp_path / "run", save_steps=3)
    code = main(["pretrain", *arguments])
    said = capsys.readouterr().err
    assert said.count("checkpoint-3 was not written") == said.count("checkpoint-6 was not written") == 1
    assert "no space left on the disk" in said
    if where == "model":  # then there is no final model, either
        assert code == 2
        assert "checkpoint-final was not written" in said
        assert not list((tmp_path / "run").glob("*checkpoint*"))
    else:
        assert code == 0
        assert [path.name for path in (tmp_path / "run").glob("*checkpoint*")] == ["checkpoint-final"]


def test_a_full_disk_is_known_behind_other_errors():
    def wrapped(cause):
        try:
            try:
                raise cause
            except BaseException as inner:
                raise RuntimeError("saving failed") from inner
        except RuntimeError as error:
            return error

    assert checkpoint.disk_full(wrapped(OSError(errno.ENOSPC, "No space left on device")))
    assert checkpoint.disk_full(RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file"))
    assert not checkpoint.disk_full(wrapped(ValueError("other")))


def test_an_output_dir_that_is_a_file(tmp_path, model, text, capsys):
    (tmp_path / "run").write_text("mine")
    refused(capsys, "is a file", *words(model, str(text), tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"


# -- control ids


def test_the_masks_literal_in_a_text_is_text(tmp_path, model, byte_tokenizer):
    document = "write <|mdm_mask|> here, and <|endoftext|> there. " * 10
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for _ in range(20)) + "\n")
    spec = ["--model_name_or_path", str(model), "--dataset_args", f"{path}[train:15,test:5]"]
    made = ["--output_dir", str(tmp_path / "tokens"), "--max_length", "64", "--num_proc", "1"]
    assert main(["prepare", "pretrain", *spec, *made]) == 0
    ids = [i for row in datasets.load_from_disk(str(tmp_path / "tokens"))["train"]["input_ids"] for i in row]
    assert byte_tokenizer.mask_token_id not in ids
    assert ids.count(byte_tokenizer.eos_token_id) <= 15
    assert pretrain(model, f"{path}[train:15,test:5]", tmp_path / "run", max_steps=1)
