"""The page in a real browser: a chat is seen to unmask, replayed, looked into; gaps are filled; two rules compared.

Skipped without playwright and a Chromium. UNMASK_SHOTS=FOLDER keeps pictures, to be looked at.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
from test_serve import save, served

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

WIDE, NARROW = (1280, 860), (390, 844)
SAY = {
    "en": {"chat": "Chat", "infill": "Infill", "compare": "Compare", "stop": "Stop", "send": "Send", "lang": "en"},
    "zh": {"chat": "对话", "infill": "填空", "compare": "对比", "stop": "停止", "send": "发送", "lang": "zh-CN"},
}
WAIT = 60_000  # milliseconds: no clock, but what never comes shall not be waited for all night


@pytest.fixture(scope="module")
def address(tmp_path_factory, byte_tokenizer):
    folder = save(tmp_path_factory.mktemp("page") / "tiny", byte_tokenizer, False)
    with served(folder, "--page", "true", "--measure_presets", "false", "--max_new_tokens", "24") as (_, _, web):
        yield str(web.base_url)


@pytest.fixture(scope="module")
def browser():
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        found = own or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("there is no Chromium")
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield made
        made.close()


@contextlib.contextmanager
def tab(browser, address, size=WIDE, language="en", path="/", script="", **how):
    """A tab in which nothing may go wrong and nothing may be asked of others."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, locale={"en": "en-GB", "zh": "zh-CN"}[language], **how
    )
    if script:
        context.add_init_script(script)
    found, wrong = context.new_page(), []
    found.set_default_timeout(WAIT)
    found.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    context.on(
        "request",
        lambda r: None if r.url.startswith((address, "data:", "blob:")) else wrong.append(f"asked for {r.url}"),
    )
    found.goto(address + path)
    found.wait_for_selector("#um-field")
    yield found
    assert not wrong
    context.close()


def picture(found, name):
    folder = os.environ.get("UNMASK_SHOTS")
    if folder:
        found.wait_for_timeout(500)
        found.screenshot(path=Path(folder, f"{name}.png"))


def masks(found):
    """Open places of the last answer; a random model leaves letters unfinished, which are drawn hatched."""
    return found.locator(".uc >> nth=-1").locator(".mask:not(.part)").count()


def panel_of(found, name):
    """A panel, by name and not by being seen: the server turns to it a moment after its tab was clicked."""
    return found.locator(f'.um-panel[aria-label="{name}"]')


def send(found, text="What is a lighthouse for?"):
    """By the keyboard alone: from the top of the page, by the link that skips what stands around."""
    found.focus(".um-skip")
    found.keyboard.press("Enter")
    found.wait_for_function("document.activeElement.id === 'um-field'")
    found.keyboard.type(text)
    found.keyboard.press("Enter")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_visit(browser, address, size, language):
    name, say = f"{language}-{size[0]}", SAY[language]
    dark = {"color_scheme": "dark"} if (language == "zh") == (size == WIDE) else {}
    with tab(browser, address, size, language, **dark) as found:
        assert found.evaluate("document.documentElement.lang") == say["lang"]
        picture(found, f"{name}-1-hello")

        # a chat, seen to unmask
        found.evaluate(
            """() => {
              window.seen = [];
              const look = () => {
                const open = document.querySelectorAll(".uc-text .mask:not(.part)").length;
                if (document.querySelector(".uc-text .t")) window.seen.push(open);
                requestAnimationFrame(look);
              };
              look();
            }"""
        )
        send(found)
        found.wait_for_selector(".uc-text .answer, .uc-text .special")
        picture(found, f"{name}-2-writing")
        found.wait_for_selector(".uc-ended")
        seen = found.evaluate("window.seen")
        assert seen[0] > 3
        assert len(set(seen)) > 2
        assert seen == sorted(seen, reverse=True)
        assert masks(found) == 0

        # a token, by the mouse and by the keyboard
        found.locator(".uc-text .t").nth(2).click()
        found.wait_for_selector(".uc-tip:not([hidden]) .uc-also li")
        assert found.locator(".uc-also li").count() == 5
        picture(found, f"{name}-3-token")
        found.keyboard.press("Escape")
        assert found.locator(".uc-tip").is_hidden()
        found.locator(".uc-text .t[tabindex='0']").focus()
        found.keyboard.press("ArrowRight")
        found.keyboard.press("Enter")
        assert found.locator(".uc-tip").is_visible()
        assert found.evaluate("document.activeElement.getAttribute('aria-label')")
        found.keyboard.press("Escape")

        # replayed
        found.locator(".uc-bar input").focus()
        found.keyboard.press("Home")
        assert masks(found) == 24
        found.keyboard.press("ArrowRight")
        assert masks(found) < 24
        picture(found, f"{name}-4-replay")
        found.keyboard.press("Home")
        found.locator(".uc-play").click()
        found.wait_for_function("document.querySelectorAll('.uc-text .mask:not(.part)').length === 0")

        # gaps
        found.get_by_role("tab", name=say["infill"]).click()
        panel = panel_of(found, say["infill"])
        panel.locator(".um-go").click()
        panel.locator(".uc-ended").wait_for()
        assert panel.locator(".uc-text").inner_text().startswith("The lighthouse ")
        picture(found, f"{name}-5-infill")

        # two rules
        found.get_by_role("tab", name=say["compare"]).click()
        panel = panel_of(found, say["compare"])
        panel.locator(".um-go").click()
        found.wait_for_function("document.querySelectorAll('.um-pair .uc-ended').length === 2")
        found.wait_for_selector(".um-table td")
        picture(found, f"{name}-6-compare")
        assert found.evaluate("document.documentElement.scrollWidth <= innerWidth")

        # the other language, without losing anything
        other = "zh" if language == "en" else "en"
        found.get_by_role("tab", name=say["chat"]).click()
        found.locator(".um-tools .q-btn").last.click()
        found.wait_for_function(f"document.documentElement.lang === '{SAY[other]['lang']}'")
        assert f"lang={other}" in found.url
        assert found.locator(".um-question").inner_text() == "What is a lighthouse for?"
        assert found.locator(".um-panel:not(.um-hide) .uc-ended").count() == 1
        picture(found, f"{name}-7-other")


def test_a_trace_is_taken_home_and_plays_there(browser, address, tmp_path):
    with tab(browser, address) as found:
        send(found, "</script><img src=x onerror=alert(1)>")
        found.wait_for_selector(".uc-ended")
        for ending, button in (("json", "Trace (JSON)"), ("html", "Replay (HTML)")):
            with found.expect_download() as download:
                found.get_by_role("button", name=button).click()
            download.value.save_as(tmp_path / f"trace.{ending}")
        assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["steps"]
    context = browser.new_context()
    replay = context.new_page()
    replay.goto((tmp_path / "trace.html").as_uri() + "#step=1")
    assert replay.locator("#text .mask").count() > 1
    context.close()


def test_stopping_and_closing_free_the_rows(browser, address):
    with tab(browser, address) as found:
        found.get_by_label("Tokens at most").fill("200")
        send(found)
        found.wait_for_selector(".uc-text .answer, .uc-text .special")
        found.get_by_role("button", name="Stop").click()
        found.wait_for_selector(".uc-ended")
        assert masks(found) > 0
        send(found, "and on")
        found.wait_for_function("document.querySelectorAll('.uc').length === 2")
    with tab(browser, address) as found:  # the first is closed now
        found.wait_for_function("fetch('/health').then(r => r.json()).then(s => s.running === 0)")


def test_without_websockets_it_works_by_polling(browser, address):
    with tab(browser, address, script="delete window.WebSocket;") as found:
        send(found)
        found.wait_for_selector(".uc-ended")


def test_colours_can_be_chosen_and_stay_in_the_address(browser, address):
    with tab(browser, address, path="/?theme=dark&lang=zh") as found:
        found.wait_for_selector("body.body--dark")
        assert found.evaluate("document.documentElement.lang") == "zh-CN"
        found.locator(".um-tools .q-btn").nth(1).click()
        found.wait_for_selector("body.body--light")
        assert "theme" not in found.url
