"""The chat page in a real browser."""

import re
from pathlib import Path

import pytest

FIRST = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import scripted"


@pytest.fixture
def page(browser):
    """A page that fails the test if anything goes wrong in it or comes from elsewhere."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("request", lambda r: r.url.startswith("http://127.0.0.1:") or faults.append(r.url))
    page.faults = faults
    yield page
    page.close()


def ask(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")


@pytest.mark.slow
def test_a_conversation(start, page):
    with start(first=FIRST) as server:
        page.goto(server.url)
        page.wait_for_selector("h1:text-is('tiny')")
        ask(page, "hello <b>you</b>")
        page.wait_for_selector(".facts")
        assert page.inner_text(".user") == "hello <b>you</b>"
        assert page.inner_text(".assistant > p").startswith("Hello <img src=x")
        assert page.query_selector("main img, main b") is None
        assert page.title() == "tiny"
        assert not page.is_visible(".thinking p")
        page.click(".thinking summary")
        assert page.is_visible(".thinking p")
        assert page.inner_text(".thinking p").startswith("The user says <b>hello</b>.")
        facts = page.inner_text(".facts")
        assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · drafts accepted 75 %", facts)

        ask(page, "again")
        page.wait_for_selector(".thinking >> nth=1")
        page.click("#stop")
        page.wait_for_selector("text=stopped")
        assert page.is_visible("#send")
        assert page.faults == []

        page.click("#reset")
        assert page.query_selector(".message") is None
        page.click("#settings summary")
        page.fill("#max-tokens", "5")
        page.fill("#system", "short")
        with page.expect_request("**/v1/chat/completions") as request:
            ask(page, "third")
        sent = request.value.post_data_json
        assert [m["content"] for m in sent["messages"]] == ["short", "third"]
        assert sent["max_tokens"] == 5
        page.wait_for_selector("text=cut at the token limit")

        page.fill("#max-tokens", "99999")
        ask(page, "fourth")
        page.wait_for_selector(".fault")
        assert "context has 1024" in page.inner_text(".fault")
        assert page.input_value("#text") == "fourth"


@pytest.mark.slow
def test_a_server_with_a_key(start, page):
    with start("--api-key", "secret", first=FIRST) as server:
        page.goto(server.url)
        page.wait_for_selector("#key-form")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("h1:text-is('tiny')")
        assert not page.is_visible("#key-form")
        ask(page, "hello")
        page.wait_for_selector(".facts")
