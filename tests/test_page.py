"""The page at `/`, without a browser: what a tab asks and is told, what stands on it, who may open it."""

import asyncio
import contextlib
import json
import re
import sys
import time
from pathlib import Path

import httpx
import pytest
from nicegui import Client, core, ui
from nicegui.testing import User
from nicegui.testing.general import nicegui_reset_globals
from serving_made import loaded, maker

from unmask import replay, serving
from unmask.serving import api, page, wire
from unmask.serving.engine import Room
from unmask.serving.guard import Guard, Rules
from unmask.serving.page_answers import ALTERNATIVES, Answer, Desk, Session, Sessions
from unmask.serving.page_canvas import Canvas
from unmask.serving.page_compare import alike
from unmask.serving.page_words import CANVAS, TROUBLES, WORDS, Words, language_of
from unmask.serving.replies import whole

FOLDER = Path(serving.__file__).parent
ASKED = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "seed": 1}
GAPS = {"text": "a {{3}} b {{2}}", "seed": 1}


@pytest.fixture(scope="module")
def masked(byte_tokenizer):
    return loaded(byte_tokenizer)


@pytest.fixture(scope="module")
def causal(byte_tokenizer):
    return loaded(byte_tokenizer, causal=True)


@contextlib.contextmanager
def running(some, **how):
    """A maker whose engine runs."""
    made = maker(some, **how)
    made.engine.start()
    try:
        yield made
    finally:
        made.engine.close(0)


def answered(made, kind, fields, meanwhile=None):
    """An answer, and what was told of it piece by piece."""
    told = []

    async def ask():
        answer = Answer(kind, made.causal, show=told.append)
        desk = Desk(made.engine, made, None)
        task = asyncio.create_task(desk.ask(answer, fields))
        if meanwhile:
            await meanwhile(desk, answer)
        await task
        return answer

    return asyncio.run(ask()), told


# ---------------------------------------------------------------------------------------------------------------------
# What a tab asks and is told


@pytest.mark.parametrize("rule", ["reference", "threshold", "wino", "remdm"])
@pytest.mark.parametrize(("kind", "asked"), [("chat", ASKED), ("infill", GAPS)])
def test_the_page_says_what_the_api_says(masked, kind, asked, rule):
    with running(masked) as made:
        asked = asked | {"rule": rule}
        answer, _ = answered(made, kind, asked)
        shape, make = {
            "chat": (wire.ChatRequest, made.chat),
            "infill": (wire.InfillRequest, made.infill),
        }[kind]
        job = make(shape(**asked))
        made.engine.submit(job)
        while not job.finished:
            time.sleep(0.01)
        told = whole(made, job, kind).choices[0]
        assert answer.text == (told.text if kind == "infill" else told.message.content)
        assert answer.end["passes"] == job.passes


@pytest.mark.parametrize("rule", ["reference", "threshold", "wino"])
def test_the_pieces_are_the_whole_and_the_whole_is_the_row(masked, rule):
    with running(masked) as made:
        answer, told = answered(made, "chat", ASKED | {"rule": rule})
    steps = [step for news in told for step in news.get("steps", [])]
    assert steps == answer.steps
    *_, cells = replay.states(answer.record())
    assert [cell.id for cell in cells] == answer.job.choices[0].row.ids.tolist()
    *_, cells = replay.states({"places": answer.places, "steps": answer.steps})
    assert [cell.id for cell in cells] == answer.job.choices[0].row.ids.tolist()
    named = {token for step in steps for _, token, *_ in step["written"]}
    assert {str(token) for token in named} <= set(answer.tokens)
    assert json.loads(json.dumps(answer.state(), allow_nan=False)) == answer.state()


def test_what_is_written_greedily_is_the_likeliest_and_is_told_with_its_alternatives(masked):
    with running(masked) as made:
        answer, _ = answered(made, "chat", ASKED | {"logits_eos_inf": True})
    for step in answer.steps:
        also = dict(step["alternatives"])
        assert set(also) == {place for place, _, _, sure in step["written"] if sure is not None}
        for place, token, _, sure in step["written"]:
            probabilities = [p for _, p in also[place]]
            assert len(probabilities) == ALTERNATIVES
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(probabilities) <= 1 + 1e-5
            writable = [
                (t, p) for t, p in also[place] if t not in (257, 258)
            ]  # neither the mask nor the end is written
            assert writable[0] == (token, pytest.approx(sure, abs=1e-5)) or token not in dict(also[place])


def test_a_model_that_writes_left_to_right_streams_its_text(causal):
    with running(causal) as made:
        answer, told = answered(made, "chat", ASKED)
    assert "".join(news.get("text", "") for news in told) == answer.text
    assert answer.steps == []
    assert answer.record() is None
    assert answer.end["tokens"] <= 12


def test_stopping_frees_the_row_and_leaves_what_stands(masked):
    async def stop(desk, answer):
        while not answer.steps:
            await asyncio.sleep(0.01)
        desk.stop([answer])

    with running(masked) as made:
        answer, _ = answered(made, "chat", ASKED | {"max_tokens": 200}, stop)
        assert answer.end["reason"] == "cancelled"
        assert not made.engine.running
        assert not made.engine.jobs
    assert 0 < len(answer.steps) < 200


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (ASKED | {"max_tokens": 500}, "context_length_exceeded"),
        (ASKED | {"steps": 0}, "invalid"),
        (ASKED | {"steps": 2.5}, "invalid"),
        (ASKED | {"rule": "rm -rf"}, "refused"),
        (ASKED | {"rule_args": {"threshold": 2}}, "refused"),
    ],
)
def test_what_cannot_be_is_told_in_words(masked, fields, code):
    with running(masked) as made:
        answer, told = answered(made, "chat", fields)
    assert answer.trouble.code == code
    assert not told
    for language in ("en", "zh"):
        said = Words(language)(code, message=answer.trouble.message, after=1)
        assert answer.trouble.message in said or code == "stopping"


def test_a_full_queue_a_closed_server_and_too_many_questions_are_told(masked):
    with running(masked, room=Room(rows=1, queue=1)) as made:

        async def many():
            desk = Desk(made.engine, made, None)
            answers = [Answer("chat") for _ in range(8)]
            await asyncio.gather(*(desk.ask(one, ASKED | {"max_tokens": 60}) for one in answers))
            return answers

        troubles = [one.trouble.code for one in asyncio.run(many()) if one.trouble]
        assert troubles
        assert set(troubles) == {"queue_full"}
        made.engine.closing = True
        assert answered(made, "chat", ASKED)[0].trouble.code == "stopping"

        async def hasty():
            desk, answer = Desk(made.engine, made, None), Answer("chat")
            desk.too_many = lambda: 7
            await desk.ask(answer, ASKED)
            return answer.trouble

        trouble = asyncio.run(hasty())
        assert (trouble.code, trouble.after) == ("rate_limit_exceeded", 7)


def test_a_failure_of_the_model_is_told_without_its_details(masked, monkeypatch):
    with running(masked) as made:
        monkeypatch.setattr("unmask.decoding.step", lambda *a: 1 / 0)
        answer, _ = answered(made, "chat", ASKED)
    assert answer.trouble.code == "failed"
    assert "division" not in answer.trouble.message


def test_an_error_of_ours_leaves_nobody_waiting(masked, monkeypatch):
    with running(masked) as made:
        monkeypatch.setattr(made, "chat", lambda body: 1 / 0)

        async def ask():
            desk, answer = Desk(made.engine, made, None), Answer("chat")
            with pytest.raises(ZeroDivisionError):
                await desk.ask(answer, ASKED)
            return answer

        assert asyncio.run(ask()).trouble.code == "failed"


def test_nothing_is_begun_for_a_tab_that_was_closed_meanwhile(masked):
    with running(masked) as made:

        async def ask():
            desk, answer = Desk(made.engine, made, None), Answer("chat")
            desk.wanted = lambda: False
            with pytest.raises(asyncio.CancelledError):
                await desk.ask(answer, ASKED)

        asyncio.run(ask())
        assert not made.engine.jobs


def test_two_answers_are_alike_where_their_tokens_are(masked):
    with running(masked) as made:
        one, other = (answered(made, "chat", ASKED | {"rule": "left_to_right"})[0] for _ in range(2))
        assert alike(one, other) == 1
        far = answered(made, "chat", ASKED | {"rule": "left_to_right", "temperature": 5.0})[0]
        assert alike(one, far) < 1


def test_sessions_are_kept_but_not_for_ever_and_never_taken_from_who_looks():
    kept = Sessions(most=3)
    first = kept.of("0")
    first.view = object()
    for number in range(1, 10):
        kept.of(str(number))
    assert kept.of("0") is first
    assert len(kept.kept) == 3
    assert kept.of("1") is not kept.of("2")
    assert isinstance(kept.of("9"), Session)


# ---------------------------------------------------------------------------------------------------------------------
# Words


def test_every_text_is_there_in_both_languages_with_the_same_blanks():
    for name, texts in WORDS.items():
        assert all(texts), name
        blanks = [sorted(re.findall(r"(?<!\{)\{\w+\}(?!\})", text)) for text in texts]
        assert blanks[0] == blanks[1], name
        # they stand between quotation marks as properties of elements
        assert not any('"' in text for text in texts), name
    assert set(CANVAS) | set(TROUBLES) <= set(WORDS)
    script = (FOLDER / "page_canvas.js").read_text(encoding="utf-8")
    used = set(re.findall(r"(?:say|words)\.(\w+)", script)) - {"replace"}
    assert used <= set(CANVAS)


def test_every_word_that_is_asked_for_is_there():
    for path in FOLDER.glob("page*.py"):
        for name in re.findall(r'words\("(\w+)"', path.read_text(encoding="utf-8")):
            assert name in WORDS, (path.name, name)


def test_the_language_is_the_addresss_or_the_browsers():
    assert language_of("zh", "en") == "zh"
    assert language_of(None, "zh-CN,zh;q=0.9,en;q=0.8") == "zh"
    assert language_of(None, "de-DE,en;q=0.5,zh;q=0.7") == "zh"
    assert language_of(None, "en-US,zh;q=0.3") == "en"
    assert language_of("<b>", "fr;q=x,,;q=") == "en"
    assert language_of(None, "") == "en"


# ---------------------------------------------------------------------------------------------------------------------
# The page


class Visitor(User):
    """A simulated browser."""

    async def says(self, condition, seconds=20.0):
        """Until something holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)

    def all(self, kind=ui.element, name=None):
        found = [e for e in self.client.elements.values() if isinstance(e, kind)]
        return [e for e in found if name is None or name in e.classes]

    def field(self, label):
        [found] = [field for field in self.all((ui.number, ui.input)) if field.props.get("label") == label]
        return found

    def texts(self):
        """What stands on the page, but what is hidden."""

        def shown(one):
            return one.visible and "um-hide" not in one.classes

        found = []
        for element in self.client.elements.values():
            text = getattr(element, "text", None)
            if text and shown(element) and all(shown(one) for one in element.ancestors()):
                found.append(text)
        return found

    async def click(self, text):
        """Press a button by its name."""
        shown = self.texts()
        [button] = [b for b in self.all(ui.button) if text == b.props.get("aria-label") or b.text == text in shown]
        with self.client:
            for listener in list(button._event_listeners.values()):
                if listener.type == "click":
                    button._handle_event({"listener_id": listener.id, "args": {}})
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def modules_kept():
    """NiceGUI 3.18 takes the modules of pages and all above them out of `sys.modules` when a test of it ends: another
    `unmask` would be made by whoever imports it next, and other tests would patch one and use the other."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "unmask"}
    try:
        yield
    finally:
        sys.modules.update(before)


@contextlib.asynccontextmanager
async def site(made, keys=(), rate=0):
    """Opens visitors of a page, behind the guard."""
    with modules_kept(), nicegui_reset_globals():
        app = api.routes(made.engine, made, made.engine.metrics, private=bool(keys))
        page.add(app, made.engine, made, keys)
        guarded = Guard(app, Rules(keys=keys, rate=rate))
        async with app.router.lifespan_context(app), contextlib.AsyncExitStack() as stack:

            async def visit(path="/?lang=en", language="en"):
                http = httpx.AsyncClient(
                    transport=httpx.ASGITransport(guarded, client=("127.0.0.1", 5)),
                    base_url="http://localhost",
                    headers={"accept-language": language},
                )
                visitor = Visitor(await stack.enter_async_context(http))
                await visitor.open(path)
                await visitor.says(lambda: visitor.all(ui.button))
                return visitor

            yield visit
            for client in list(Client.instances.values()):
                client.delete()


def on_the_page(some, do, keys=(), rate=0, **how):
    """Run `do(visit, made)` against a page."""

    wrong = []

    async def run():
        with running(some, **how) as made:
            async with site(made, keys, rate) as visit:
                core.app.on_exception(wrong.append)
                await do(visit, made)

    asyncio.run(run())
    assert not wrong


async def asked(visitor, text, wait=True):
    visitor.all(ui.textarea)[0].set_value(text)
    await visitor.click("Send")
    if wait:
        await visitor.says(lambda: visitor.all(Canvas) and not visitor.all(Canvas)[-1].answer.running)
        await asyncio.sleep(0.05)


def test_a_chat_of_several_turns_with_text_that_is_only_text(masked):
    async def do(visit, made):
        visitor = await visit()
        assert "Watch a model write" in visitor.texts()
        visitor.field("Tokens at most").set_value(12)  # tokens at most
        nasty = "<img src=x onerror=alert(1)> {{8}} ${1} `x`"
        await asked(visitor, nasty)
        assert nasty in visitor.texts()
        assert not any(nasty in str(e.props.get("innerHTML", "")) for e in visitor.all())
        await asked(visitor, "and now?")
        canvases = visitor.all(Canvas)
        assert len(canvases) == 2
        assert all(one.answer.end["tokens"] <= 12 for one in canvases)
        [session] = sessions()
        assert [m["role"] for m in session.messages("x")] in (["user", "assistant"] * n + ["user"] for n in range(3))
        await visitor.click("New chat")
        assert not visitor.all(Canvas)

    on_the_page(masked, do)


def sessions():
    """The sessions of the page that is there now."""
    [site] = {client.request.scope["unmask.site"] for client in Client.instances.values()}
    return list(site.sessions.kept.values())


def test_a_reload_and_another_language_find_the_conversation(masked):
    async def do(visit, made):
        visitor = await visit("/", "zh-CN,zh;q=0.9")
        assert "观看模型写作" in visitor.texts()
        visitor.field("最多词元数").set_value(8)
        await visitor.click("语言：中文。切换为英文")
        assert "Watch a model write" in visitor.texts()
        await asked(visitor, "hi")
        text = visitor.all(Canvas)[0].answer.text
        await visitor.click("Language: English. Change to Chinese")
        assert "hi" in visitor.texts()
        assert "发送" in visitor.texts()
        old = visitor.client
        await visitor.open("/?lang=en")
        await visitor.says(lambda: visitor.all(Canvas))
        assert visitor.all(Canvas)[0].answer.text == text
        old.delete()
        await asked(visitor, "more")
        assert len(visitor.all(Canvas)) == 2

    on_the_page(masked, do)


def test_an_answer_goes_on_through_a_reload_and_ends_with_the_tab(masked):
    async def do(visit, made):
        visitor = await visit()
        visitor.field("Tokens at most").set_value(200)
        await asked(visitor, "hi", wait=False)
        await visitor.says(lambda: visitor.all(Canvas) and visitor.all(Canvas)[0].answer.steps)
        old = visitor.client
        await visitor.open("/?lang=zh")
        await visitor.says(lambda: visitor.all(Canvas))
        old.delete()
        await asyncio.sleep(0.05)
        assert made.engine.jobs
        assert "停止" in visitor.texts()
        visitor.client.delete()
        await visitor.says(lambda: not made.engine.jobs and not made.engine.running)

    on_the_page(masked, do)


def test_what_is_stopped_before_it_is_begun_is_never_begun(masked):
    """Somebody else's long prompt is being made into tokens."""

    async def do(visit, made):
        visitor = await visit()
        with made.turn:
            await asked(visitor, "hi", wait=False)
            await visitor.says(lambda: "Stop" in visitor.texts())
            await visitor.click("Stop")
        await visitor.says(lambda: "Stop" not in visitor.texts())
        [turn] = sessions()[0].turns
        assert (turn.answer.end["reason"], turn.answer.steps) == ("cancelled", [])
        assert not made.engine.jobs

    on_the_page(masked, do)


def test_a_comparison_whose_tab_went_away_can_be_made_anew(masked):
    async def do(visit, made):
        visitor = await visit()
        visitor.field("Tokens at most").set_value(200)
        visitor.all(ui.tabs)[0].set_value("compare")
        await visitor.click("Compare")
        await visitor.says(lambda: visitor.all(Canvas) and visitor.all(Canvas)[0].answer.steps)
        visitor.client.delete()
        await visitor.says(lambda: not made.engine.jobs)
        await visitor.open("/?lang=en")
        await visitor.says(lambda: visitor.all(ui.button))
        [session] = sessions()
        panel = session.view.panels["compare"]
        await visitor.says(lambda: not panel.busy())
        assert len(session.compared) == len(session.labels) == 1
        visitor.field("Tokens at most").set_value(8)
        await panel.press()
        await visitor.says(lambda: len([one for one in session.compared if one.end]) == 2)

    on_the_page(masked, do)


def test_tabs_do_not_mix(masked):
    async def do(visit, made):
        visitors = [await visit() for _ in range(4)]
        for visitor in visitors:
            visitor.field("Tokens at most").set_value(10)
        await asyncio.gather(*(asked(v, f"I am tab {n}") for n, v in enumerate(visitors)))
        for n, visitor in enumerate(visitors):
            said = [text for text in visitor.texts() if text.startswith("I am tab")]
            assert said == [f"I am tab {n}"]
            assert len(visitor.all(Canvas)) == 1

    on_the_page(masked, do)


def test_gaps_are_filled_and_what_cannot_be_is_said(masked):
    async def do(visit, made):
        visitor = await visit()
        visitor.all(ui.tabs)[0].set_value("infill")
        visitor.all(ui.textarea)[1].set_value("no gap")
        await visitor.click("Fill")
        await visitor.says(lambda: any("there is no gap" in text for text in visitor.texts()))
        visitor.field("Rule settings").set_value("nonsense")
        await visitor.click("Fill")
        assert any("'nonsense' is not key=value" in text for text in visitor.texts())
        visitor.field("Rule settings").set_value("")
        visitor.all(ui.textarea)[1].set_value("a {{3}} b")
        await visitor.click("Fill")
        await visitor.says(lambda: visitor.all(Canvas) and visitor.all(Canvas)[-1].answer.end)
        text = visitor.all(Canvas)[-1].answer.text
        assert text.startswith("a ")
        assert text.endswith(" b")

    on_the_page(masked, do)


def test_two_rules_are_compared_one_after_the_other(masked):
    async def do(visit, made):
        most = []
        step = made.engine.tick

        def counted():
            most.append(len(made.engine.running))
            step()

        made.engine.tick = counted
        visitor = await visit()
        visitor.field("Tokens at most").set_value(24)
        visitor.all(ui.tabs)[0].set_value("compare")
        await visitor.click("Compare")
        await visitor.says(lambda: len([c for c in visitor.all(Canvas) if c.answer.end]) == 2)
        await asyncio.sleep(0.1)
        assert {"Play both", "reference", "threshold", "Forward passes"} <= set(visitor.texts())
        assert any("of the places hold the same token" in text for text in visitor.texts())
        assert max(most) == 1

    on_the_page(masked, do)


def test_a_model_that_writes_left_to_right_has_no_canvas_and_the_page_says_why(causal):
    async def do(visit, made):
        visitor = await visit()
        assert len(visitor.all(ui.tab)) == 1
        assert Words("en")("why_plain") in visitor.texts()
        visitor.field("Tokens at most").set_value(8)
        await asked(visitor, "hi")
        assert visitor.all(Canvas)[0].answer.causal
        assert not {"Trace (JSON)", "Replay (HTML)"} & set(visitor.texts())

    on_the_page(causal, do)


def test_too_long_and_too_often_are_said_and_the_question_is_not_lost(masked):
    async def do(visit, made):
        visitor = await visit()
        await asked(visitor, "x" * 600, wait=False)
        await visitor.says(lambda: any("too long for the model" in text for text in visitor.texts()))
        assert visitor.all(ui.textarea)[0].value == "x" * 600
        await asked(visitor, "hi", wait=False)
        await visitor.says(lambda: any("Too many requests within a minute" in text for text in visitor.texts()))

    on_the_page(masked, do, rate=1)


def test_traces_are_handed_out(masked):
    async def do(visit, made):
        visitor = await visit()
        visitor.field("Tokens at most").set_value(8)
        await asked(visitor, "</script><script>alert(1)</script>")
        for name in ("Trace (JSON)", "Replay (HTML)"):
            await visitor.click(name)
        await visitor.says(lambda: len(visitor.download.http_responses) == 2)
        trace, shown = visitor.download.http_responses
        record = json.loads(trace.content)
        assert record["format"] == replay.FORMAT
        assert record["steps"][0]["alternatives"]
        assert b"<script>alert" not in shown.content
        assert shown.content.startswith(b"<!doctype html>")

    on_the_page(masked, do)


# ---------------------------------------------------------------------------------------------------------------------
# Who may open it, and what it asks for


def test_a_key_is_asked_for_before_anything_else(masked):
    async def do(visit, made):
        visitor = await visit()
        assert not visitor.all(ui.textarea)
        assert not visitor.all(Canvas)
        visitor.all(ui.input)[0].set_value("wrong")
        await visitor.click("Open")
        assert "That is not a key of this server." in visitor.texts()
        assert not visitor.all(ui.textarea)
        visitor.all(ui.input)[0].set_value("second")
        await visitor.click("Open")
        await visitor.says(lambda: visitor.all(ui.textarea))
        visitor.field("Tokens at most").set_value(8)
        await asked(visitor, "hi")
        assert visitor.all(Canvas)[0].answer.job.owner == 1
        await visitor.open("/?lang=en")  # the same tab is not asked again
        await visitor.says(lambda: visitor.all(ui.textarea))
        stranger = await visit()
        assert not stranger.all(ui.textarea)

    on_the_page(masked, do, keys=("first", "second"))


def test_keys_cannot_be_guessed_quickly(masked):
    async def do(visit, made):
        visitor = await visit()
        for number in range(page.GUESSES + 1):
            visitor.all(ui.input)[0].set_value(f"guess {number}")
            await visitor.click("Open")
        assert any(text.startswith("Too many tries") for text in visitor.texts())
        visitor.all(ui.input)[0].set_value("first")  # not even the right one, now
        await visitor.click("Open")
        assert not visitor.all(ui.textarea)

    on_the_page(masked, do, keys=("first",))


def test_the_api_stays_as_it_is_beside_the_page(masked):
    async def do(visit, made):
        visitor = await visit()
        http = visitor.http_client
        for path, status in (("/nope", 404), ("/v1/nope", 404), ("/v1/chat/completions", 405), ("/nicegui", 404)):
            reply = await http.get(path)
            assert reply.status_code == status
            assert reply.json()["error"]["message"]
        assert (await http.get("/health")).json()["status"] == "ok"
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        reply = await http.post("/v1/chat/completions", json=ASKED)
        assert reply.json()["usage"]["completion_tokens"] <= 12
        assert "/" not in (await http.get("/openapi.json")).json()["paths"]

    on_the_page(masked, do)


def test_the_page_names_no_other_host_and_lets_none_be_asked(masked):
    async def do(visit, made):
        visitor = await visit()
        reply = await visitor.http_client.get("/")
        assert "://" not in re.sub(
            r"http://www\.w3\.org/\S*", "", reply.text.replace("ws://", "").replace("wss://", "")
        )
        policy = reply.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "connect-src 'self' ws://localhost wss://localhost" in policy
        assert reply.headers["cache-control"] == "no-store"
        for name in ("page.css", "page_canvas.js"):
            text = (FOLDER / name).read_text(encoding="utf-8")
            assert "://" not in text
            assert "url(" not in text
            assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
        # a host that a header could make more of
        odd = await visitor.http_client.get("/favicon.ico", headers={"host": "localhost"})
        assert odd.status_code == 200
        strange = await visitor.http_client.get("/", headers={"host": "evil.example"})
        assert strange.status_code == 421
        other = await visitor.http_client.get("/", headers={"origin": "http://evil.example"})
        assert other.status_code == 403

    on_the_page(masked, do)


def test_two_sites_in_one_process_do_not_mix(masked):
    """NiceGUI has one app for the whole process; which engine a page asks is told by the request."""

    async def run():
        with running(masked) as one, running(masked) as other:
            other.name = "other"
            async with site(one) as visit:
                app = api.routes(other.engine, other, other.engine.metrics)
                app.router.routes.append(page.OnlyThePage(page.Site(other.engine, other, ())))
                transport = httpx.ASGITransport(app, client=("127.0.0.1", 5))
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                    second = Visitor(http)
                    await second.open("/")
                    first = await visit()
                    await second.says(lambda: second.all(ui.button))
                    assert "tiny" in first.texts()
                    assert "other" in second.texts()

    asyncio.run(run())
    assert core.app


def test_visits_without_a_connection_are_not_collected_without_end(masked, monkeypatch):
    monkeypatch.setattr(page, "VISITS", 3)

    async def do(visit, made):
        visitor = await visit()
        found = [(await visitor.http_client.get("/")).status_code for _ in range(8)]
        assert found[0] == 200
        assert found[-1] == 503

    on_the_page(masked, do)


def test_wrong_keys_of_others_keep_nobody_out(masked):
    async def do(visit, made):
        site = page.Site(made.engine, made, ("right",))
        for number in range(40):
            site.guess("wrong", f"2001:db8::{number:x}")
            site.guess("wrong", f"10.0.0.{number}")
        assert isinstance(site.guess("right", "2001:db8::ff"), float)  # the same house
        assert site.guess("right", "2001:db9::1") == 0
        assert site.guess("right", "10.0.1.1") == 0
        for _ in range(20):
            assert site.guess("right", "10.0.0.3") == 0  # a right one counts for nothing

    on_the_page(masked, do)


def test_what_was_said_in_a_closed_tab_is_forgotten():
    kept = Sessions(age=0.0)
    first = kept.of("a")
    first.view = "somebody looks"
    kept.of("b")
    assert set(kept.kept) == {"a", "b"}
    first.view = None
    time.sleep(0.01)
    kept.of("c")
    assert set(kept.kept) == {"c"}


def test_half_a_letter_in_a_field_breaks_nothing(masked):
    async def do(visit, made):
        visitor = await visit()
        visitor.all(ui.textarea)[0].set_value("cut \ud83d")
        await visitor.says(lambda: sessions()[0].drafts.get("chat") == "cut \ufffd")

    on_the_page(masked, do)
