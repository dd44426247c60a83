"""Presets: each holds what the paper says, for tasks that there are, in settings that decode."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import UserError
from unmask.harness import presets
from unmask.options import Options

NAMES = presets.names()
HOLDING_OTHERS = ("benchmarks", "e2lmc", "llama3")  # folders of lm-eval 0.4.13 with names that begin as others do


@pytest.fixture(scope="module")
def known_tasks():
    """The names that lm-eval and our folder of tasks have, of the data sets that presets speak of.

    lm-eval's whole index, 14,683 names of which most are translations, takes longer than all else here together.
    """
    import lm_eval.tasks

    patterns = [pattern for name in NAMES for row in presets.load(name).benchmarks for pattern in row.tasks]
    words = {match[0] for pattern in patterns if (match := re.search("[a-z]+", pattern))}
    folders = Path(lm_eval.tasks.__file__).parent.iterdir()
    chosen = [folder for folder in folders if folder.is_dir() and folder.name.startswith((*words, *HOLDING_OTHERS))]
    chosen.append(presets.FOLDER.with_name("tasks"))
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=chosen).all_tasks


def rows():
    return [pytest.param(name, row, id=f"{name}-{row.name}") for name in NAMES for row in presets.load(name).benchmarks]


def write(folder, benchmarks, **head):
    import yaml

    path = folder / "mine.yaml"
    keys = {"family": "llada", "instruct": False, "source": "mine", "benchmarks": benchmarks, **head}
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# What ships


def test_the_presets_of_the_papers_are_there():
    assert {"llada-base", "llada-instruct", "llada-instruct-semi", "llada-1.5"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_for_a_family_that_there_is(name):
    preset = presets.load(name)
    assert (presets.FOLDER.parents[1] / "models" / f"{preset.family}.py").is_file()
    assert "arXiv:" in preset.source


@pytest.mark.parametrize(("name", "row"), rows())
def test_settings_decode_and_say_whether_templates_and_examples_are_used(name, row):
    preset = presets.load(name)
    Options(**{key: value for key, value in row.settings.items() if key not in presets.BESIDES}).check()
    assert row.settings["num_fewshot"] >= 0
    assert row.settings["apply_chat_template"] is preset.instruct
    written = {"steps", "max_new_tokens", "block_size"} & set(row.settings)
    assert ("mc_num" in row.settings) is not bool(written), "a task is scored by likelihood or by what is written"
    if written:
        steps, length, block = (row.settings[key] for key in ("steps", "max_new_tokens", "block_size"))
        assert steps == length, "LLaDA published one token a step"
        assert length % block == 0
    assert 0 < row.published < 100


@pytest.mark.parametrize(("name", "row"), rows())
def test_every_task_named_is_known_and_finds_its_settings(known_tasks, name, row):
    preset = presets.load(name)
    for pattern in row.tasks:
        if pattern.startswith("!"):
            assert any(presets.Benchmark("", (pattern[1:],), {}, None).closeness(task) for task in known_tasks), pattern
        else:
            meant = [task for task in known_tasks if presets.Benchmark("", (pattern,), {}, None).closeness(task)]
            assert [task for task in meant if row.closeness(task)], pattern
        if not set(pattern) & set("!*?["):
            assert preset.settings(pattern) == row.settings
            assert preset.published(pattern) == row.published


@pytest.mark.parametrize(
    ("name", "row", "count"),
    [
        ("llada-base", "MMLU", 1 + 57 + 4 + 4),  # the group, its subjects, its four parts, and a tag for each of those
        ("llada-base", "CMMLU", 1 + 67),
        ("llada-base", "C-Eval", 1 + 52),
        ("llada-base", "Math", 1 + 7),
        ("llada-instruct", "MMLU", 1 + 57 + 4),
        ("llada-instruct", "MMLU-pro", 1 + 14),
    ],
)
def test_a_pattern_takes_the_subjects_of_an_exam_and_nothing_else(known_tasks, name, row, count):
    found = next(one for one in presets.load(name).benchmarks if one.name == row)
    assert len([task for task in known_tasks if found.closeness(task)]) == count


def test_the_base_table_of_the_paper_stands_in_published(shared):
    text = (shared / "research" / "papers.md").read_text(encoding="utf-8")
    table = text.split("### C5 Base table", 1)[1].split("### C6", 1)[0]
    paper = {name: float(value) for name, value in re.findall(r"(?m)^\| ([\w-]+) \| ([\d.]+) \|", table)}
    ours = {row.name: row.published for row in presets.load("llada-base").benchmarks}
    assert len(paper) == 15
    assert ours == {name: value for name, value in paper.items() if name != "HumanEval-FIM"}


def test_the_instruct_table_of_the_paper_stands_in_published(shared):
    text = (shared / "research" / "papers.md").read_text(encoding="utf-8")
    table = text.split("### C6 Instruct table", 1)[1].split("\n", 1)[1].split("(LLaDA SFT only", 1)[0]
    paper = {name: float(value) for name, value in re.findall(r"([\w-]+) ([\d.]+)/", table)}
    ours = {row.name: row.published for row in presets.load("llada-instruct").benchmarks}
    assert len(paper) == 9
    assert ours == {name: value for name, value in paper.items() if name != "HellaSwag"}


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("llada-base", "cmmlu", {"num_fewshot": 5, "mc_num": 1, "cfg_scale": 0.0}),
        ("llada-base-cfg", "truthfulqa_mc2", {"num_fewshot": 0, "mc_num": 128, "cfg_scale": 2.0}),
        ("llada-base", "gsm8k", {"steps": 1024, "max_new_tokens": 1024, "block_size": 1024}),
        ("llada-instruct", "gsm8k", {"max_new_tokens": 512, "block_size": 512, "confidence_eos_eot_inf": True}),
        ("llada-instruct", "humaneval_instruct_llada", {"max_new_tokens": 512, "logits_eos_inf": True}),
        ("llada-instruct", "mbpp_instruct_llada", {"max_new_tokens": 256, "confidence_eos_eot_inf": True}),
        ("llada-instruct-semi", "gsm8k", {"max_new_tokens": 256, "block_size": 8}),
        ("llada-instruct-semi", "minerva_math", {"max_new_tokens": 512, "block_size": 64}),
        ("llada-1.5", "gsm8k", {"max_new_tokens": 256, "block_size": 16}),
        ("llada-1.5", "minerva_math", {"max_new_tokens": 1024, "block_size": 128}),
    ],
)
def test_the_settings_that_were_published(name, task, expected):
    found = presets.load(name).settings(task)
    assert {key: found[key] for key in expected} == expected


def test_guidance_is_all_that_sets_the_guided_base_preset_apart():
    plain = {row.name: row for row in presets.load("llada-base").benchmarks}
    for row in presets.load("llada-base-cfg").benchmarks:
        assert row.tasks == plain[row.name].tasks
        assert row.settings == {**plain[row.name].settings, "cfg_scale": row.settings["cfg_scale"]}
        assert row.settings["cfg_scale"] > 0
        assert row.published > plain[row.name].published


# ---------------------------------------------------------------------------------------------------------------------
# Looking a task up


def test_a_part_of_an_exam_has_its_settings_and_not_its_number():
    preset = presets.load("llada-base")
    assert preset.settings("cmmlu_anatomy") == preset.settings("cmmlu")
    assert (preset.published("cmmlu"), preset.published("cmmlu_anatomy")) == (69.9, None)


def test_a_task_named_in_full_wins_over_patterns_and_longer_patterns_over_shorter(tmp_path):
    path = write(
        tmp_path,
        {
            "all": {"tasks": "*", "num_fewshot": 0},
            "long": {"tasks": "gsm8k_*", "num_fewshot": 1},
            "short": {"tasks": ["gsm*", "!gsm_plus"], "num_fewshot": 2},
            "one": {"tasks": ["gsm8k_cot"], "num_fewshot": 3},
        },
    )
    preset = presets.load(path)
    wanted = {"arc_easy": 0, "gsm8k_platinum": 1, "gsm8k": 2, "gsm_plus": 0, "gsm8k_cot": 3}
    assert {task: preset.settings(task)["num_fewshot"] for task in wanted} == wanted


@given(task=st.text("ab_", min_size=1, max_size=6), head=st.text("ab_", max_size=4))
def test_a_pattern_that_ends_in_a_star_fits_what_begins_as_it_does(task, head):
    row = presets.Benchmark("row", (f"{head}*",), {}, None)
    assert (row.closeness(task) is not None) == task.startswith(head)
    assert presets.Benchmark("row", (f"{head}*", f"!{head}*"), {}, None).closeness(task) is None


def test_a_caller_cannot_change_a_preset():
    preset = presets.load("llada-base")
    preset.settings("gsm8k")["steps"] = 1
    assert preset.settings("gsm8k")["steps"] == 1024


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_a_model_of_another_family_is_refused():
    with pytest.raises(UserError, match=r"llada-base.*family llada; my/model is of the family dream"):
        presets.load("llada-base").check("dream", False, "my/model")


@pytest.mark.parametrize(("name", "instruct"), [("llada-base", True), ("llada-instruct", False)])
def test_base_and_instruct_are_told_apart_in_a_remark(capsys, name, instruct):
    preset = presets.load(name)
    preset.check("llada", not instruct, "my/model")
    preset.check("llada", None, "my/model")
    assert capsys.readouterr().err == ""
    preset.check("llada", instruct, "my/model")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"my/model looks like {'an instruct' if instruct else 'a base'} model" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llada-bse", "no preset called 'llada-bse'.*llada-1.5.*Did you mean 'llada-base'"),
        ("../settings/llada-base", "no preset called"),
        ("nowhere.yaml", "no config file 'nowhere.yaml'"),
    ],
)
def test_an_unknown_preset_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        presets.load(name)


def test_a_task_that_a_preset_does_not_have_is_refused_with_those_it_has():
    preset = presets.load("llada-instruct-semi")
    for look in (preset.settings, preset.published):
        with pytest.raises(UserError, match=r"no settings for the task 'gsm8'; it has gsm8k, .*Did you mean 'gsm8k'"):
            look("gsm8")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_fewshots": 5}, "unknown setting 'num_fewshots'.*Did you mean 'num_fewshot'"),
        ({"gen_length": 5}, "unknown setting 'gen_length'"),
        ({"steps": "many"}, "X: --steps is 'many'; it must be a whole number"),
        ({"steps": 0}, "X: --steps is 0; it must be at least 1"),
        ({"top_k": 5}, "X: --top_k.*give a temperature"),
        ({"mc_num": 0}, "X: mc_num is 0; it must be at least 1"),
        ({"num_fewshot": -1}, "X: num_fewshot is -1; it must be at least 0"),
        ({"published": "good"}, "X: --published is 'good'; it must be a number"),
        ({"tasks": []}, "X: `tasks:` is"),
        ({"tasks": [3]}, "X: `tasks:` is"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path, keys, message):
    with pytest.raises(UserError, match=rf"mine\.yaml, {message}" if message[0] == "X" else message):
        presets.load(write(tmp_path, {"X": {"tasks": ["gsm8k"], **keys}}))


@pytest.mark.parametrize(
    ("benchmarks", "head", "message"),
    [
        ({"X": {"tasks": "a"}}, {"familly": "llada"}, "unknown key 'familly'.*Did you mean 'family'"),
        ({"X": {"tasks": "a"}}, {"instruct": None}, "no 'instruct'"),
        ({"X": {"tasks": "a"}}, {"instruct": "perhaps"}, "--instruct is 'perhaps'"),
        ({"X": {"tasks": "a"}, "Y": {"tasks": ["a"]}}, {}, "'a' stands under X and Y"),
        ({"X": 5}, {}, "expected `key: value` lines, found 5"),
        (["X"], {}, "`benchmarks:` is"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, benchmarks, head, message):
    with pytest.raises(UserError, match=message):
        presets.load(write(tmp_path, benchmarks, **head))
