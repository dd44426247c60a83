"""`unmask inspect` shows rows as training meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_sft import make_chats

from unmask import inspection
from unmask.__main__ import main


@pytest.fixture
def chats(tmp_path: Path) -> str:
    return f"{make_chats(tmp_path / 'chats.json')}[train:32,test:8]"


def look(capsys: pytest.CaptureFixture[str], model: Path, data: str, *more: str) -> str:
    capsys.readouterr()
    usual = ["--model_name_or_path", str(model), "--dataset_args", data, "--max_length", "128", "--num_proc", "1"]
    assert main(["inspect", *usual, *more]) == 0
    return capsys.readouterr().out


def test_who_speaks_and_what_is_learnt(model: Path, chats: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = look(capsys, model, chats, "--rows", "1", "--eos_tail", "4", "--t", "1")
    lines = [line for line in text.splitlines() if re.match(r"  (user|assistant|tail|text) ", line)]
    assert lines[0].split() == ["text", "given", "<|startoftext|>"]
    assert lines[1].startswith("  user      given  <|start_header_id|>user<|end_header_id|>")
    assert lines[2].startswith("  assistant given  <|start_header_id|>assistant<|end_header_id|>")
    assert re.fullmatch(r"  assistant learnt \[[a-z ]+<\|eot_id\|>\]", lines[3])
    assert lines[4] == "  tail      learnt <|endoftext|> × 4 (4 masked)"


def test_t_is_the_share_that_is_masked(model: Path, chats: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = look(capsys, model, chats, "--rows", "20", "--t", "0.3")
    shares = re.findall(r"(\d+) learnt.* t = 0.30: (\d+) masked", rows)
    assert len(shares) == 20
    masked, learnt = sum(int(m) for _, m in shares), sum(int(n) for n, _ in shares)
    assert 0.2 < masked / learnt < 0.4


def test_every_token_with_its_id(model: Path, chats: str, byte_tokenizer: Any, capsys: Any) -> None:
    text = look(capsys, model, chats, "--rows", "1", "--ids")
    found = re.findall(r"(?m)^ +\d+ +(\d+)  (\S+) +(given|learnt|masked) +([\d.]+)  '(.*)'$", text)
    ids = [int(i) for i, *_ in found]
    assert byte_tokenizer.decode(ids).startswith("<|startoftext|><|start_header_id|>user")
    assert all((float(weight) > 0) == (what == "masked") for _, _, what, weight, _ in found)
    assert {role for _, role, *_ in found} == {"-", "user", "assistant", "tail"} - (
        {"tail"} if not any(role == "tail" for _, role, *_ in found) else set()
    )


def test_it_shows_the_batches_of_the_run(
    tmp_path: Path, model: Path, chats: str, capsys: Any, monkeypatch: Any
) -> None:
    """The rows, places, noise and tails of the first step, as the Trainer gets them from the same YAML file."""
    import yaml

    from unmask import sft

    settings = {
        "model_name_or_path": str(model),
        "dataset_args": chats,
        "output_dir": str(tmp_path / "run"),
        "max_length": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "lora": True,
        "r": 2,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    shown: list[Any] = []
    monkeypatch.setattr(inspection, "draw", lambda row, *_: shown.append(row))
    main(["inspect", "--config", str(tmp_path / "run.yaml"), "--rows", "4"])
    monkeypatch.setattr("unmask.models.weight_files", lambda _: ["w"])
    monkeypatch.setattr("unmask.models.read_weights", lambda name, config, dtype, how: _fresh(config))
    words = ["--config", str(tmp_path / "run.yaml")]
    trainer = sft.prepare_sft(sft.parse_sft(words), words).trainer
    batches = [batch for _, batch in zip(range(2), trainer.get_train_dataloader(), strict=False)]
    trained = [row for batch in batches for row in zip(*(batch[k].tolist() for k in ("place", "t")), strict=True)]
    assert [(row.place, pytest.approx(row.t)) for row in shown] == trained
    ids = [row for batch in batches for row in batch["input_ids"].tolist()]
    masked = [row for batch in batches for row in batch["masked"].tolist()]
    for row, wanted, hidden in zip(shown, ids, masked, strict=True):
        n = len(row.tokens)
        assert [token.id for token in row.tokens] == wanted[:n]
        assert [token.masked for token in row.tokens] == hidden[:n]
        assert not any(hidden[n:])


def _fresh(config: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_config(config)


def test_training_rows_among_the_test_rows_are_counted(tmp_path: Path, model: Path, capsys: Any) -> None:
    row = {"instruction": "Say", "input": "", "output": "red"}
    other = {"instruction": "Say", "input": "", "output": "blue"}
    path = tmp_path / "same.json"
    path.write_text(json.dumps([row, row, other]))
    text = look(capsys, model, f"{path}[train:1,test:2]", "--rows", "1")
    assert "1 of 2 different test rows stand among the training rows, too" in text


def test_text_rows_are_all_learnt(model: Path, text: Path, capsys: Any) -> None:
    shown = look(capsys, model, f"{text}[train:40,test:10]", "--rows", "1", "--split", "test", "--max_length", "16")
    assert "16 tokens · 16 learnt" in shown
    assert "test row 0 · place 0" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rows", "0"], "--rows is 0"),
        (["--t", "0"], "--t is 0"),
        (["--t", "2"], "--t is 2"),
        (["--split", "tset"], "tset"),
        (["--rowss", "1"], "Did you mean 'rows'"),
        (["--streaming"], "--streaming"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_bad_settings(model: Path, chats: str, capsys: Any, words: list[str], told: str) -> None:
    capsys.readouterr()
    assert main(["inspect", "--model_name_or_path", str(model), "--dataset_args", chats, *words]) == 2
    assert told in capsys.readouterr().err


def test_letters_of_several_ids_are_shown_once(byte_tokenizer: Any) -> None:
    ids = byte_tokenizer.encode("a天b", add_special_tokens=False)
    assert inspection.spelt(ids, byte_tokenizer) == ["a", "", "", "天", "b"]
    assert "".join(inspection.spelt(ids[:3], byte_tokenizer)).startswith("a")
