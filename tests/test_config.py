"""Words become values of the right type; what is misspelt gets the nearest real name."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    UserError,
    build,
    cast,
    load_file,
    named,
    option,
    parse,
)

GROUPS = [ModelArguments, DataArguments, TrainingArguments]


def read(*words, groups=GROUPS, **how):
    return parse("unmask test", "A test.", groups, list(words), **how)


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_may_have_underscores(n):
    assert cast(f"{n:_}", int, "n") == n


@pytest.mark.parametrize(
    ("text", "value"), [("2e-5", 2e-5), ("3.0e-4", 3e-4), ("1_000", 1000.0), (".5", 0.5), (3, 3.0)]
)
def test_numbers_without_a_dot_are_numbers(text, value):
    assert cast(text, float, "learning_rate") == value


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("true", bool, True),
        ("No", bool, False),
        (1, bool, True),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("a,b", list[str], ["a", "b"]),
        ("[126081;126348]".strip("[]"), list[int], [126081, 126348]),
        ("a=1,b=x,c=true", dict, {"a": 1, "b": "x", "c": True}),
        ('{"a": {"b": 2}}', dict, {"a": {"b": 2}}),
        ("1e3", int, 1000),
    ],
)
def test_words_become_values(text, kind, value):
    assert cast(text, kind, "key") == value


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("x", int, "whole number"),
        ("1.5", int, "whole number"),
        ("x", float, "a number"),
        ("maybe", bool, "true or false"),
    ],
)
def test_what_is_no_such_value_is_refused(text, kind, told):
    with pytest.raises(UserError, match=rf"--key is '{text}'; it must be (a )?{told}"):
        cast(text, kind, "key")


def test_flags_override_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 2e-5\nmax-length: 1_28\nbf16: false\n")
    _, data, training = read("--config", str(path), "--max_length=64").groups
    assert (training.learning_rate, data.max_length, training.bf16) == (2e-5, 64, False)


@pytest.mark.parametrize("words", [["--no_bf16"], ["--no-bf16"], ["--bf16", "false"], ["--bf16=False"], ["--bf16=0"]])
def test_switches_can_be_turned_off_in_every_spelling(words):
    assert read(*words).groups[2].bf16 is False


@pytest.mark.parametrize("words", [["--streaming"], ["--streaming", "true"], ["--streaming=yes"]])
def test_switches_can_be_turned_on_in_every_spelling(words):
    assert read(*words).groups[1].streaming is True


def test_dashes_and_underscores_are_the_same():
    assert read("--max-length", "8").groups[1].max_length == read("--max_length", "8").groups[1].max_length == 8


def test_what_the_user_set_is_known():
    assert read("--seed", "1", "--warmup_steps", "5").given == {"seed", "warmup_steps"}


def test_lists_may_be_repeated_or_spaced_and_keep_their_commas(tmp_path):
    for words in (["--report_to", "swanlab", "wandb"], ["--report_to", "swanlab", "--report_to", "wandb"]):
        assert read(*words).groups[2].report_to == ["swanlab", "wandb"]
    assert read("--report_to", "one, two").groups[2].report_to == ["one, two"]  # a prompt may have commas
    path = tmp_path / "a.yaml"
    path.write_text("report_to: swanlab, wandb\n")
    assert read("--config", str(path)).groups[2].report_to == ["swanlab", "wandb"]


def test_an_unknown_flag_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown option --lerning_rate. Did you mean 'learning_rate'"):
        read("--lerning_rate", "1")


def test_an_unknown_key_in_a_file_is_refused_with_the_file_and_the_nearest(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("max_lenght: 5\n")
    with pytest.raises(UserError, match=r"a.yaml: unknown key 'max_lenght'. Did you mean 'max_length'"):
        read("--config", str(path))


def test_a_wrong_value_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("max_length: long\n")
    with pytest.raises(UserError, match=r"a.yaml: --max_length is 'long'"):
        read("--config", str(path))


@pytest.mark.parametrize(("text", "told"), [("a: [1", "not valid YAML"), ("- a\n- b\n", "expected `key: value`")])
def test_a_broken_file_is_told_in_a_line(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        read("--config", str(path))


def test_a_missing_file_is_told_with_the_nearest(tmp_path):
    (tmp_path / "train.yaml").write_text("")
    with pytest.raises(UserError, match=r"no config file .*trian.yaml'. Did you mean 'train.yaml'"):
        read("--config", str(tmp_path / "trian.yaml"))


def test_an_empty_file_sets_nothing(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert read("--config", str(path)).given == set()


def test_further_keys_are_looked_up_only_when_needed():
    calls = []

    def extra():
        calls.append(1)
        return {"fp16": bool}

    assert read("--seed", "3", extra=extra).more == {}
    assert not calls
    assert read("--fp16", "true", extra=extra).more == {"fp16": True}


def test_old_spellings_lead_to_todays():
    assert read("--max_len", "5", legacy={"max_len": "max_length"}, extra=dict).groups[1].max_length == 5


def test_a_word_too_many_is_refused():
    with pytest.raises(UserError, match="did not expect 'extra'"):
        read("extra")


def test_help_groups_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert [told.index(title) for title in ("General:", "Model:", "Data:", "Training:")] == sorted(
        told.index(title) for title in ("General:", "Model:", "Data:", "Training:")
    )
    assert "[0.01]" in told


def test_every_option_has_help():
    for group in GROUPS:
        for field in dataclasses.fields(group):
            assert len(field.metadata["help"]) > 10, field.name


def test_mutable_defaults_are_not_shared():
    @dataclasses.dataclass
    class Group:
        """Group"""

        names: list[str] = option([], "Some names for the test.")

    one = Group()
    one.names.append("x")
    assert Group().names == []


def test_build_refuses_unknown_settings():
    with pytest.raises(UserError, match="unknown setting 'sed'"):
        build(TrainingArguments, {"sed": 1})


def test_plug_ins_are_found_by_file_name_and_by_path(tmp_path):
    assert named("objectives", "masked").__name__ == "unmask.objectives.masked"
    path = tmp_path / "mine.py"
    path.write_text("VALUE = 3\n")
    assert named("objectives", str(path)).VALUE == 3
    assert load_file(path) is load_file(path)
    with pytest.raises(UserError, match="no file"):
        named("objectives", str(tmp_path / "other.py"))


def test_a_plug_in_that_fails_is_not_kept(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('mine')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="mine"):
            load_file(path)
