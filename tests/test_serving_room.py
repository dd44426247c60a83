"""The engine's room: what is counted is what is taken, and no row holds up or outlives the others."""

import pytest
from serving_made import loaded, maker, run

from unmask import growth
from unmask.screen import BROKEN
from unmask.serving import engine, replies, wire
from unmask.serving.engine import Room
from unmask.serving.requests import Limits, Refused


@pytest.fixture(scope="module")
def masked(byte_tokenizer):
    return loaded(byte_tokenizer)


def text_of(some, job):
    return replies.text_of_choice(some, job.choices[0])


def begin(some, *bodies):
    """Jobs that wait, for ticks by hand."""
    jobs = [some.completion(wire.CompletionRequest(**body)) for body in bodies]
    for job in jobs:
        some.engine.jobs[job.id] = job
        some.engine.waiting.extend(job.choices)
    return jobs


ONE_LONG = [{"prompt": "a" * 200, "max_tokens": 40}, *({"prompt": "a", "max_tokens": 18} for _ in range(15))]


def test_padding_takes_no_more_than_the_room(masked, monkeypatch):
    """Rows of unlike lengths share a pass only as far as the padded places allow."""
    some = maker(masked, Room(rows=16, places=560))
    jobs, shapes = begin(some, *ONE_LONG), []

    def note(module, args, given):
        shapes.append(given["input_ids"].shape)

    hook = masked.model.get_submodule("model").register_forward_pre_hook(note, with_kwargs=True)
    try:
        some.engine.tick()
    finally:
        hook.remove()
    assert len(some.engine.running) == 16
    assert sorted(rows for rows, _ in shapes) == [1, 15]
    assert all(rows * places <= 560 for rows, places in shapes)
    run(some)
    for job, body in zip(jobs[:2], ONE_LONG[:2], strict=True):
        alone = maker(masked)
        [one] = begin(alone, body)
        run(alone)
        assert text_of(alone, one) == text_of(some, job)


def test_keys_and_values_take_what_is_counted_and_nothing_at_the_end(masked):
    """All rows have as much room in a store as the longest."""
    some = maker(masked)
    some.engine.room = Room(rows=16, cache_bytes=some.place_bytes * 1000)
    begin(some, *({**body, "cache": "dual"} for body in ONE_LONG))
    together, taken = [], []
    while some.engine.running or some.engine.waiting:
        some.engine.tick()
        together.append(len(some.engine.running))
        taken.append(some.engine.memory.bytes)
        assert some.engine.memory.bytes <= some.engine.room.cache_bytes
    assert 2 <= together[0] < 15  # beside the long one
    assert max(together) > together[0]  # when that is done
    assert max(taken) > some.place_bytes * 500
    assert some.engine.kept_bytes == taken[-1] == 0


def test_a_canvas_that_grows_counts_with_all_its_places_and_seeks_its_length_a_pass_a_tick(masked, monkeypatch):
    with pytest.raises(Refused, match="241 places"):
        maker(masked, Room(places=240)).completion(
            wire.CompletionRequest(prompt="a", max_tokens=240, canvas="grow", eos_stop=False)
        )
    some, looks, look = maker(masked), [], growth.look
    monkeypatch.setattr(growth, "look", lambda *given: looks.append(1) or look(*given))
    [long, short] = begin(
        some,
        {"prompt": "a", "max_tokens": 240, "canvas": "grow", "eos_stop": False},
        {"prompt": "b", "max_tokens": 8},
    )
    assert long.choices[0].places == 241
    some.engine.tick()
    assert (len(looks), long.passes, long.choices[0].row.step) == (1, 1, 0)
    assert short.choices[0].row.step == 1
    run(some)
    assert len(looks) == (240 - 64) / 8
    assert long.choices[0].places == 241
    alone = maker(masked)
    job = alone.completion(wire.CompletionRequest(prompt="a", max_tokens=240, canvas="grow", eos_stop=False, steps=240))
    run(alone, job)
    assert text_of(alone, job)[:20] == text_of(some, long)[:20]


def test_a_causal_row_that_fails_is_given_up_and_the_others_go_on(byte_tokenizer, monkeypatch, capsys):
    original = engine.left_to_right

    def failing(model, row):
        for number, step in enumerate(original(model, row)):
            if row.seed == 666 and number == 3:
                raise RuntimeError("this row fails")
            yield step

    monkeypatch.setattr(engine, "left_to_right", failing)
    some = maker(loaded(byte_tokenizer, causal=True))
    bad, good = begin(
        some,
        {"prompt": "a", "max_tokens": 20, "seed": 666, "eos_stop": False},
        {"prompt": "b", "max_tokens": 20, "seed": 1, "eos_stop": False},
    )
    for _ in range(5):
        some.engine.tick()
    assert [choice.reason for choice in bad.choices] == ["error"]
    run(some)
    assert [choice.reason for choice in good.choices] == ["length"]
    assert good.passes == 20
    assert "this row fails" in capsys.readouterr().err


def test_a_stop_string_that_comes_with_the_end_is_heeded(masked):
    """Both are written at one step."""
    some, found = maker(masked, block_size=240), 0
    for seed in range(60):
        body = {"prompt": "hi", "max_tokens": 60, "steps": 1, "temperature": 3.0, "seed": seed}
        [job] = begin(some, body)
        run(some)
        text = text_of(some, job)
        stop = next((letter for letter in text[2:] if letter.isprintable() and letter != BROKEN), None)
        if job.choices[0].reason != "stop" or stop is None:
            continue
        [job] = begin(some, body | {"stop": [stop]})
        run(some)
        assert text_of(some, job) == text[: text.index(stop)]
        found += 1
    assert found > 3


def test_what_would_take_for_ever_to_read_is_read_or_refused(masked):
    some = maker(masked, limits=Limits(prompt=10))
    with pytest.raises(Refused, match="at most 10"):  # in n² / 2 looks at a backslash this took an hour
        some.infill(wire.InfillRequest(text="\\" * 500_000 + "{{8}}"))
    turns = [{"role": role, "content": "x"} for _ in range(300) for role in ("user", "assistant")]
    with pytest.raises(Refused, match="601 messages; at most 256"):
        some.chat(wire.ChatRequest(messages=[*turns, turns[0]]))


def test_a_conversation_with_every_mark_is_refused(masked):
    with pytest.raises(Refused, match="private-use"):
        maker(masked).chat(
            wire.ChatRequest(messages=[{"role": "user", "content": "".join(map(chr, range(0x10FF00, 0x10FFFE)))}])
        )
