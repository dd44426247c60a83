"""Exams and data sets on the disk become what lm-eval's tasks would have had from the hub, without network."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.config import UserError
from unmask.harness import data_files, exams, local

LETTERS = ["A", "B", "C", "D"]


def comma_separated(rows, start=""):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return (start + stream.getvalue()).encode("utf-8")


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


CMMLU = [["", "Question", *LETTERS, "Answer"], ["0", "q", "a", "b", "c", "d", "C"]]
CEVAL = [["id", "question", *LETTERS, "answer"], ["0", "q", "a", "b", "c", "d", "C"]]
MMLU = [["q", "a", "b", "c", "d", "C"]]


# ---------------------------------------------------------------------------------------------------------------------
# Exams


def test_all_subjects_of_cmmlu_hold_what_counting_by_hand_says(shared):
    path = shared / "data/exams/cmmlu.zip"
    exam = exams.read(path)
    assert (exam.kind, exam.dataset_path, len(exam.subjects)) == ("CMMLU", "haonan-li/cmmlu", 67)
    with zipfile.ZipFile(path) as archive:
        for subject in exam.subjects:
            splits = exam.dataset(subject)
            for split in ("dev", "test"):
                text = archive.read(f"{split}/{subject}.csv").decode("utf-8-sig")
                wanted = [row[1:] for row in csv.reader(io.StringIO(text, newline=""))]
                assert [list(row.values()) for row in splits[split]] == wanted[1:]
                assert splits[split].column_names == wanted[0]


def test_mmlu_without_its_test_files_is_asked_in_its_validation_questions_and_says_so(shared):
    exam = exams.read(shared / "data/exams/mmlu_dev_val.zip")
    assert (exam.kind, len(exam.subjects)) == ("MMLU", 57)
    assert "stand in" in exam.remarks[0]
    every = exam.dataset("all")
    assert {split: len(rows) for split, rows in every.items()} == {"dev": 285, "validation": 1531, "test": 1531}
    assert set(every["dev"]["answer"]) == {0, 1, 2, 3}
    assert every["dev"].select(range(5))[:]["subject"] == ["abstract_algebra"] * 5


CELL = st.text(alphabet='ab,"\n\r 问’\t', max_size=8)
ROWS = st.lists(st.tuples(CELL, CELL, CELL, CELL, CELL, st.sampled_from(LETTERS)), min_size=1, max_size=5)


@settings(max_examples=40)
@given(ROWS, st.sampled_from(["", "\ufeff"]), st.sampled_from(["", "data/"]), st.booleans())
def test_rows_come_back_from_every_exam_as_they_were_written(tmp_path_factory, rows, mark, above, packed):
    tables = {
        "CMMLU": [CMMLU[0], *([i, *row] for i, row in enumerate(rows))],
        "C-Eval": [CEVAL[0], *([i, *row] for i, row in enumerate(rows))],
        "MMLU": rows,
    }
    for kind, table in tables.items():
        folder = tmp_path_factory.mktemp("exam")
        files = {f"{above}dev/law{'' if kind == 'CMMLU' else '_dev'}.csv": comma_separated(table, mark)}
        files["__MACOSX/dev/._law.csv"] = b"\0\1"
        exam = exams.read(zipped(folder / "x.zip", files) if packed else unpacked(folder / "x", files))
        assert (exam.kind, exam.subjects) == (kind, ("law",))
        found = exam.dataset("law")["dev"]
        if kind == "MMLU":
            back = [(row["question"], *row["choices"], LETTERS[row["answer"]]) for row in found]
        else:
            names = ["Question", *LETTERS, "Answer"] if kind == "CMMLU" else ["question", *LETTERS, "answer"]
            back = [tuple(row[name] for name in names) for row in found]
        assert back == rows


def test_c_eval_keeps_the_answers_of_its_test_to_itself(tmp_path):
    files = {f"{split}/law_{split}.csv": comma_separated(CEVAL) for split in ("dev", "val")}
    files["test/law_test.csv"] = comma_separated([row[:-1] for row in CEVAL])
    splits = exams.read(zipped(tmp_path / "x.zip", files)).dataset("law")
    assert {split: rows["answer"][0] for split, rows in splits.items()} == {"dev": "C", "val": "C", "test": ""}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"dev/a.csv": [*CMMLU, ["1", "q", "a"]]}, "dev/a.csv, line 3: 3 columns"),
        ({"dev/a.csv": [*CMMLU, ["1", "q\nq", *"abcd", "B"], ["2", "q", *"abcd", "E"]]}, "line 5: the answer is 'E'"),
        ({"test/a.csv": [*CMMLU, ["1", "q", *"abcd", ""]]}, "the answer is ''"),
        ({"dev/a.csv": MMLU, "dev/a_dev.csv": MMLU}, "'a' is there twice"),
        ({"dev/a.csv": CMMLU, "dev/b.csv": MMLU}, "mixes exams"),
        ({"dev/a.csv": CMMLU, "dev/b.csv": [["x", "y"], ["1", "2"]]}, "dev/b.csv, line 1"),
        ({"dev/a.csv": CMMLU[:1]}, "no question"),
        ({"dev/a.csv": [CEVAL[0][:-1], CEVAL[1][:-1]]}, "no column 'answer'"),
        ({"x/dev/a.csv": CMMLU, "y/dev/a.csv": CMMLU}, "several folders"),
    ],
)
def test_a_broken_exam_is_refused_with_its_file(tmp_path, files, says):
    path = zipped(tmp_path / "x.zip", {name: comma_separated(rows) for name, rows in files.items()})
    with pytest.raises(UserError) as caught:
        exams.read(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"), [(b'q,"a,b,c,d,A\n', "never closed"), ("问".encode("gb18030"), "UTF-8"), (b"PK", "")]
)
def test_bytes_that_cannot_be_read_are_refused(tmp_path, content, says):
    path = zipped(tmp_path / "x.zip", {"dev/a.csv": comma_separated(MMLU), "dev/b.csv": content})
    if not says:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says or "cannot read"):
        exams.read(path)


def test_what_is_no_exam_is_none_and_an_unknown_subject_has_a_neighbour(tmp_path):
    assert exams.read(zipped(tmp_path / "x.zip", {"dev/a.csv": b"text,label\nx,y\n", "a.txt": b""})) is None
    exam = exams.read(zipped(tmp_path / "y.zip", {"dev/anatomy.csv": comma_separated(CMMLU)}))
    with pytest.raises(UserError, match="'anatomy'"):
        exam.dataset("anatomi")


# ---------------------------------------------------------------------------------------------------------------------
# lm-eval's tasks


@pytest.fixture(scope="module")
def manager():
    """lm-eval's own tasks, but only those asked for here: to list all of them takes seconds."""
    tasks = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(
        include_path=[str(tasks / one) for one in ("arc", "cmmlu", "gsm8k", "mmlu/default")], include_defaults=False
    )


def test_tasks_of_lm_eval_read_the_official_files(shared, manager):
    root = shared / "data"
    data = local.LocalData([str(root / "exams"), str(root / "gsm8k"), str(root / "mbpp/mbpp.jsonl")])
    with local.active(data):
        tasks = manager.load(["cmmlu_anatomy", "mmlu_anatomy"])["tasks"]
        mbpp = datasets.load_dataset("google-research-datasets/mbpp", "full")
        train = datasets.load_dataset("openai/gsm8k", "main", split="train")
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {"cmmlu_anatomy": 148, "mmlu_anatomy": 14}
    assert mbpp["test"]["task_id"][:] == list(range(11, 511))
    assert sorted(i for rows in mbpp.values() for i in rows["task_id"]) == list(range(1, 975))
    assert len(train) == 7473
    assert any("stand in" in remark for remark in data.remarks)
    assert set(data.used) >= {"haonan-li/cmmlu", "cais/mmlu", "google-research-datasets/mbpp/full"}
    wanted = data_files.digest([root / "exams/cmmlu.zip"])
    assert data.used["haonan-li/cmmlu"].endswith(f"cmmlu.zip sha256:{wanted}")
    with local.active(data), pytest.raises(UserError, match="test"):
        manager.load(["gsm8k"])


ARC = [
    {"id": str(i), "question": f"q{i}", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "AB"[i % 2]}
    for i in range(4)
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8")


def saved(folder, rows, name):
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(str(folder / name))


def parquet(folder, rows, name):
    (folder / name).mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(str(folder / name / "test-00000-of-00001.parquet"))


CARD = b"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n  - split: test\n    path: some.jsonl\n---\n"
LAYOUTS = {
    "owner": lambda f: unpacked(f, {"allenai/ai2_arc/ARC-Easy/test.jsonl": lines(ARC)}),
    "name": lambda f: unpacked(f, {"ai2_arc/ARC-Easy/test.jsonl.gz": gzip.compress(lines(ARC))}),
    "underscores": lambda f: unpacked(f, {"allenai__ai2_arc/ARC-Easy/ARC-Easy-Test.jsonl": lines(ARC)}),
    "no configuration": lambda f: unpacked(f, {"allenai/ai2_arc/test.json": json.dumps(ARC).encode()}),
    "data": lambda f: unpacked(f, {"ai2_arc/ARC-Easy/data/test.jsonl": lines(ARC)}),
    "parts": lambda f: unpacked(
        f, {f"ai2_arc/ARC-Easy/test-0000{i}-of-00002.jsonl": lines(ARC[2 * i :][:2]) for i in (0, 1)}
    ),
    "card": lambda f: unpacked(f, {"ai2_arc/README.md": CARD, "ai2_arc/some.jsonl": lines(ARC)}),
    "disk": lambda f: saved(f, ARC, "allenai/ai2_arc/ARC-Easy"),
    "parquet": lambda f: parquet(f, ARC, "allenai/ai2_arc/ARC-Easy"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_task_reads_its_data_however_they_are_laid_out(tmp_path, manager, layout):
    LAYOUTS[layout](tmp_path)
    data = local.LocalData([str(tmp_path)])
    before = sorted(tmp_path.rglob("*"))
    with local.active(data):
        task = manager.load(["arc_easy"])["tasks"]["arc_easy"]
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [0, 1, 0, 1]
    assert [doc["question"] for doc in task.eval_docs] == [row["question"] for row in ARC]
    assert list(data.used) == ["allenai/ai2_arc/ARC-Easy"]
    assert sorted(tmp_path.rglob("*")) == before
    assert bool(data.remarks) == (layout == "no configuration")


@pytest.mark.parametrize("word", ["allenai/ai2_arc", "allenai/ai2_arc/ARC-Easy"])
def test_a_file_given_under_the_name_of_a_data_set_is_what_is_scored(tmp_path, manager, word):
    unpacked(tmp_path, {"mine.jsonl": lines(ARC)})
    data = local.LocalData([f"{word}={tmp_path / 'mine.jsonl'}"])
    with local.active(data):
        tasks = manager.load(["arc_easy"])["tasks"]
    assert len(tasks["arc_easy"].eval_docs) == 4
    assert "names no split" in data.remarks[0]
    local.enough_examples(tasks, 0)
    with pytest.raises(UserError, match="'train'"):
        local.enough_examples(tasks, 1)


HUMANEVAL = [
    {"task_id": f"HumanEval/{i}", "prompt": "p", "entry_point": "f", "canonical_solution": "s", "test": "t"}
    for i in range(3)
]


def test_humaneval_and_gsm8k_are_known_by_their_contents(tmp_path):
    sums = [{"question": "q", "answer": "#### 1"}]
    unpacked(tmp_path, {"he/HumanEval.jsonl.gz": gzip.compress(lines(HUMANEVAL)), "g/test.jsonl": lines(sums)})
    with local.active(local.LocalData([str(tmp_path / "he"), str(tmp_path / "g/test.jsonl")])):
        assert datasets.load_dataset("openai/openai_humaneval")["test"]["task_id"][:] == [
            f"HumanEval/{i}" for i in range(3)
        ]
        assert datasets.load_dataset("gsm8k", "main")["test"][:] == {"question": ["q"], "answer": ["#### 1"]}


def test_dev_stands_in_for_validation_and_never_the_other_way(tmp_path):
    unpacked(tmp_path, {"a/b/dev.jsonl": lines(ARC), "c/d/valid.jsonl": lines(ARC)})
    with local.active(local.LocalData([str(tmp_path)])):
        assert len(datasets.load_dataset("a/b")["validation"]) == 4
        found = datasets.load_dataset("c/d")
        assert len(found["val"]) == len(found["validation"]) == 4
        assert list(found["dev"]) == []
        with pytest.raises(UserError, match="'dev'"):
            found["dev"][0]
        with pytest.raises(UserError, match="'train'"):
            datasets.load_dataset("c/d", split="train")


def test_two_configurations_never_share_the_same_files(tmp_path):
    unpacked(tmp_path, {"allenai/ai2_arc/test.jsonl": lines(ARC), "x/y/one/test.jsonl": lines(ARC)})
    unpacked(tmp_path, {"x/y/test.jsonl": lines(ARC)})
    with local.active(local.LocalData([str(tmp_path)])):
        datasets.load_dataset("allenai/ai2_arc", "ARC-Easy")
        with pytest.raises(UserError, match="ARC-Challenge/test"):
            datasets.load_dataset("allenai/ai2_arc", "ARC-Challenge")
        with pytest.raises(UserError, match="it has one"):
            datasets.load_dataset("x/y", "two")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_data_that_are_not_there_are_named_and_the_hub_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load.load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    with local.active(local.LocalData([str(unpacked(tmp_path, {"a/test.jsonl": lines(ARC)}))])):
        with pytest.raises(UserError, match="DIR/allenai/ai2_arc/ARC-Easy/test"):
            datasets.load_dataset("allenai/ai2_arc", "ARC-Easy")
        with pytest.raises(UserError, match="official zip of C-Eval"):
            datasets.load_dataset("ceval/ceval-exam", "law")


def test_without_local_data_a_hub_that_does_not_answer_is_one_line(manager):
    with local.active(None), pytest.raises(UserError) as caught:
        manager.load(["arc_easy"])
    said = str(caught.value)
    assert "'allenai/ai2_arc' (configuration 'ARC-Easy')" in said
    assert "--local_data DIR with DIR/allenai/ai2_arc/ARC-Easy/test.jsonl" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), True),
        (ValueError("BuilderConfig 'x' not found. Available: ['y']"), True),
        (RuntimeError("out of luck"), False),
    ],
)
def test_only_what_the_hub_says_is_put_into_our_words(monkeypatch, error, told):
    def fails(*args, **more):
        raise error

    monkeypatch.setattr("datasets.load.load_dataset", fails)
    with local.active(None), pytest.raises(UserError if told else type(error)) as caught:
        datasets.load_dataset("a/b", "x")
    assert ("--local_data" in str(caught.value)) == told


def test_the_function_of_datasets_is_back_afterwards_even_for_who_kept_ours(tmp_path):
    before = datasets.load_dataset
    with (
        pytest.raises(ZeroDivisionError),
        local.active(local.LocalData([str(unpacked(tmp_path, {"test.csv": b"a\n1\n"}))])),
    ):
        kept = datasets.load_dataset
        assert kept is not before
        _ = 1 / 0
    assert datasets.load_dataset is before
    rows = kept("csv", data_files={"test": str(tmp_path / "test.csv")})["test"]
    assert rows[0] == {"a": 1}


@pytest.mark.parametrize(
    ("files", "words", "says"),
    [
        ({}, ["none"], "no file or folder"),
        ({}, ["a/b=none.jsonl"], "no file or folder"),
        ({}, [], "is empty"),
        ({"notes.txt": b"x"}, ["."], "holds no data"),
        ({"notes.txt": b"x"}, ["notes.txt"], "OWNER/NAME=notes.txt"),
        ({"x.jsonl": lines(ARC)}, ["x.jsonl"], "OWNER/NAME=x.jsonl"),
        ({"x.jsonl": lines(ARC)}, ["a/b=x.jsonl", "a/b=x.jsonl"], "twice"),
        ({f"{n}/dev/a.csv": comma_separated(CMMLU) for n in "xy"}, ["x", "y"], "CMMLU twice"),
        ({f"{n}/HumanEval.jsonl": lines(HUMANEVAL) for n in "xy"}, ["x", "y"], "twice"),
    ],
)
def test_bad_words_are_refused(tmp_path, monkeypatch, files, words, says):
    monkeypatch.chdir(unpacked(tmp_path, files))
    with pytest.raises(UserError) as caught:
        local.LocalData(words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_split_are_refused_when_they_are_asked_for(tmp_path):
    files = {"a/b/test.jsonl": lines(ARC), "a/b/test.csv": b"x\n1\n", "c/d/test.jsonl": lines(ARC)}
    with local.active(local.LocalData([str(unpacked(tmp_path, files))])):
        assert len(datasets.load_dataset("c/d")["test"]) == 4
        with pytest.raises(UserError, match="two files for the split test"):
            datasets.load_dataset("a/b")


@pytest.mark.parametrize(("name", "content"), [("bad.jsonl", b"{\n"), ("empty.jsonl", b""), ("x.bin", b"x")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    unpacked(tmp_path, {name: content})
    with local.active(local.LocalData([f"a/b={tmp_path / name}"])), pytest.raises(UserError, match=name):
        datasets.load_dataset("a/b")
