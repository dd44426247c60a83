"""A private file of questions is scored as its rows say: counted by hand, and as `unmask bench` does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from unmask import bench
from unmask.config import UserError
from unmask.harness import questions


class Planted(LM):
    """A model that answers by a rule: `value` of (prompt, continuation), `answer` of a prompt."""

    tokenizer_name = "planted"

    def __init__(self, value=None, answer=None):
        super().__init__()
        self.value, self.answer, self.prompts, self.asked = value, answer, [], []

    def loglikelihood(self, requests):
        return [(self.value(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        self.prompts += [request.args[0] for request in requests]
        self.asked += [request.args[1] for request in requests]
        return [self.answer(request.args[0]) for request in requests]

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "".join(f"<{message['role']}>{message['content']}" for message in chat_history) + "<assistant>"


@pytest.fixture(scope="module")
def manager():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda storage: None)  # it asks the machine for a second, each time
        yield TaskManager(include_defaults=False)


def written(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def evaluated(manager, model, task, **more):
    return evaluator.simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True, **more
    )


def refused(path, metric, **more):
    with pytest.raises(UserError) as caught:
        questions.task(str(path), metric, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


@pytest.mark.parametrize("name", ["arc_easy", "piqa"])
def test_always_the_longest_choice_scores_what_counting_by_hand_says(shared, tmp_path, manager, name):
    lines = (shared / f"data/llm_foundry_eval/{name}.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    by_hand = sum(max(row["choices"], key=len) == row["choices"][row["gold"]] for row in rows) / len(rows)
    path = written(tmp_path / f"{name}.jsonl", rows)
    model = Planted(value=lambda prompt, choice: float(len(choice)))
    result = evaluated(manager, model, questions.task(path, "choice"))["results"][name]
    assert result["acc,none"] == pytest.approx(by_hand)
    assert 0 < by_hand < 1


def test_choices_follow_the_question_as_written_after_a_space(tmp_path, manager):
    seen = []
    path = written(tmp_path / "a.jsonl", [{"question": "{{1}} + 1 =", "choices": ["2", "3"], "answer": 0}])
    evaluated(manager, Planted(value=lambda *pair: seen.append(pair) or 0.0), questions.task(path, "choice"))
    assert seen == [("{{1}} + 1 =", " 2"), ("{{1}} + 1 =", " 3")]


@pytest.mark.parametrize(("metric", "score"), [("exact", 2 / 4), ("contains", 3 / 4)])
def test_answers_score_what_counting_by_hand_says(tmp_path, manager, metric, score):
    rows = [
        {"prompt": "one", "answer": "1"},
        {"question": "two", "gold": ["zwei", "2"]},
        {"instruction": "three", "input": "now", "output": "3"},
        {"messages": [{"role": "user", "content": "four"}], "target": "4"},
    ]
    said = {"one": " 1\n", "two": "2", "three\n\nnow": "it is 3.", "four": "5"}
    model = Planted(answer=said.__getitem__)
    found = evaluated(manager, model, questions.task(written(tmp_path / "q.jsonl", rows), metric))
    assert found["results"]["q"][f"{metric},none"] == score
    assert [sample["filtered_resps"] for sample in found["samples"]["q"]] == [["1"], ["2"], ["it is 3."], ["5"]]
    assert found["samples"]["q"][0]["resps"] == [[" 1\n"]]


def test_the_results_hold_the_config_without_the_questions(tmp_path, manager):
    path = written(tmp_path / "q.jsonl", [{"prompt": "never to be told", "answer": "1"}])
    found = evaluated(manager, Planted(answer=lambda prompt: "1"), questions.task(path, "exact"))
    assert "never to be told" not in str(found["configs"])


@pytest.mark.parametrize("length", [None, 7])
def test_an_answer_has_the_length_that_is_given_and_ends_at_no_text(tmp_path, manager, length):
    model = Planted(answer=lambda prompt: "1")
    path = written(tmp_path / "q.jsonl", [{"prompt": "one", "answer": "1"}])
    evaluated(manager, model, questions.task(path, "exact", max_new_tokens=length))
    assert model.asked[0].get("max_gen_toks") == length
    assert model.asked[0]["until"] == []


def test_a_question_is_never_its_own_example(tmp_path, manager):
    rows = [{"prompt": f"question {i}:", "answer": f"answer {i}"} for i in range(4)]
    model = Planted(answer=lambda prompt: "")
    task = questions.task(written(tmp_path / "q.jsonl", rows), "exact")
    evaluated(manager, model, task, num_fewshot=3)
    for i, prompt in enumerate(model.prompts):
        assert prompt.endswith(f"question {i}:")
        assert f"answer {i}" not in prompt
        assert all(f"question {j}: answer {j}" in prompt for j in range(4) if j != i)


@given(st.text(alphabet="ab \n", max_size=6), st.text(alphabet="ab ", min_size=1, max_size=4))
def test_verdicts_are_those_of_the_plain_words(said, wanted):
    """What `--match` of `unmask bench` says, too: exact, spaces aside; or the wanted text in the answer."""
    assert questions.right("exact", said, [wanted]) == (said.strip() == wanted.strip())
    assert questions.right("contains", said, [wanted]) == (wanted.strip() in said.strip())
    assert questions.right("exact", said, ["c", wanted]) == questions.right("exact", said, [wanted])


# ---------------------------------------------------------------------------------------------------------------------
# Forms of rows

TEXT = st.text(alphabet="xyz {}%é问", min_size=1, max_size=12).filter(lambda text: text.strip())


@given(st.lists(TEXT, min_size=2, max_size=6, unique_by=str.strip), st.data())
def test_place_letter_and_text_name_the_same_choice(tmp_path_factory, choices, data):
    gold = data.draw(st.integers(0, len(choices) - 1))
    letters = "ABCDEF"[: len(choices)]
    asked = {"query": "?"}
    rows = [
        *({**asked, "choices": choices, "gold": said} for said in (gold, letters[gold], choices[gold])),
        {**asked, "options": dict(zip(letters, choices, strict=True)), "answer": gold},
        {**asked, **dict(zip(letters, choices, strict=True)), "target": letters[gold]},
    ]
    found = questions.read(written(tmp_path_factory.mktemp("c") / "c.jsonl", rows), "choice")
    assert [(doc["choices"], doc["gold"]) for doc in found] == [(choices, gold)] * len(rows)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_bench_and_eval_read_the_same_questions_and_answers(tmp_path_factory, pairs):
    path = written(tmp_path_factory.mktemp("b") / "b.jsonl", [{"prompt": q, "answer": a} for q, a in pairs])
    tasks = bench.read_tasks(path)
    docs = questions.read(path, "exact")
    assert [doc["messages"] for doc in docs] == [task.messages for task in tasks]
    assert [doc["answers"] for doc in docs] == [[task.answer] for task in tasks]


def test_a_json_list_is_read_as_the_same_rows_in_jsonl_are(tmp_path):
    rows = [{"prompt": "one", "answer": "1"}, {"prompt": "two", "answer": "2"}]
    (tmp_path / "q.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert questions.read(str(tmp_path / "q.json"), "exact") == questions.read(
        written(tmp_path / "q.jsonl", rows), "exact"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Conversations

TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
]


def test_the_chat_template_sees_every_message_of_a_conversation(tmp_path, manager):
    rows = [{"messages": TALK, "answer": "2"}, {"prompt": "three", "answer": "3"}]
    model = Planted(answer=lambda prompt: "2")
    evaluated(manager, model, questions.task(written(tmp_path / "q.jsonl", rows), "exact"), apply_chat_template=True)
    assert model.prompts == ["<system>be short<user>one<assistant>1<user>two<assistant>", "<user>three<assistant>"]


@pytest.mark.parametrize(("how", "says"), [({}, "apply_chat_template"), ({"num_fewshot": 1}, "num_fewshot")])
def test_a_conversation_is_refused_where_it_would_lose_a_message(tmp_path, manager, how, says):
    rows = [{"prompt": "three", "answer": "3"}, {"messages": TALK, "answer": "2"}]
    task = questions.task(written(tmp_path / "q.jsonl", rows), "exact")
    with pytest.raises(UserError, match=says):
        evaluated(manager, Planted(answer=lambda prompt: ""), task, **how)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

ASKED = {"prompt": "one"}
TWO = {**ASKED, "choices": ["x", "y"]}


@pytest.mark.parametrize(
    ("metric", "row", "says"),
    [
        ("exact", {"answer": "1"}, "expected a question"),
        ("exact", ASKED, "no answer"),
        ("exact", {**ASKED, "answer": " "}, "expected a text"),
        ("exact", {**ASKED, "answer": ["1", 2]}, "expected a text"),
        ("exact", {**ASKED, "answer": []}, "expected a text"),
        ("exact", {**TWO, "gold": 0}, "--metric choice"),
        ("exact", {**ASKED, "answer": "1", "gold": "2"}, "answer and in gold"),
        ("exact", {**ASKED, "query": "two", "answer": "1"}, "prompt and in query"),
        ("exact", {"prompt": " ", "answer": "1"}, "empty"),
        ("contains", {"messages": "hello", "answer": "1"}, "no list of messages"),
        ("choice", {**ASKED, "answer": "x"}, "no choices"),
        ("choice", {**ASKED, "A": "x", "C": "y", "answer": "A"}, "no choices"),
        ("choice", TWO, "no answer"),
        ("choice", {**TWO, "gold": 2}, "from 0 to 1"),
        ("choice", {**TWO, "gold": -1}, "from 0 to 1"),
        ("choice", {**TWO, "gold": True}, "from 0 to 1"),
        ("choice", {**TWO, "gold": "C"}, "A to B"),
        ("choice", {**ASKED, "choices": ["B", "A"], "gold": "A"}, "names several"),
        ("choice", {**ASKED, "choices": ["x", ""], "gold": 0}, "not empty"),
        ("choice", {**ASKED, "choices": ["x", "x"], "gold": "x"}, "names several"),
        ("choice", {**ASKED, "choices": ["x"], "gold": 0}, "at least two"),
        ("choice", {**ASKED, "choices": "xy", "gold": 0}, "expected texts"),
    ],
)
def test_a_bad_row_is_named_with_its_number(tmp_path, metric, row, says):
    good = {**TWO, "gold": 0} if metric == "choice" else {**ASKED, "answer": "1"}
    said = refused(written(tmp_path / "q.jsonl", [good, good, row]), metric)
    assert says in said
    assert "row 3" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no question"), (b"[]", "no question"), (b"{\n", "row 1"), (b"[1]", "row 1"), (b"[{,", "line 1")],
)
def test_a_file_that_is_no_table_of_questions_is_refused(tmp_path, content, says):
    (tmp_path / "q.jsonl").write_bytes(content)
    assert says in refused(tmp_path / "q.jsonl", "exact")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_bytes('{"prompt": "问"}'.encode("gb18030"))
    assert "UTF-8" in refused(tmp_path / "q.jsonl", "exact")


def test_a_missing_file_an_unknown_metric_and_a_length_for_choices_are_refused(tmp_path):
    assert "no file" in refused(tmp_path / "none.jsonl", "exact")
    path = written(tmp_path / "q.jsonl", [{**TWO, "gold": 0}])
    assert "'choice'" in refused(path, "choices")
    assert "--max_new_tokens" in refused(path, "choice", max_new_tokens=5)
