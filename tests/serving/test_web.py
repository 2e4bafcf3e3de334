"""The chat page in a real browser, in front of the real server: a conversation, its faults, and hostile texts."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving.running import running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'tfgpt[dev]'")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]

PAYLOADS = (
    '<img src=x onerror="window.hurt=1">',
    "<script>window.hurt=1</script>",
    "[a](javascript:window.hurt=1)",
    '<a href="javascript:window.hurt=1">b</a>',
    "![c](https://elsewhere.example/c.png)",
    '<svg onload="window.hurt=1"></svg>',
    '<iframe srcdoc="<script>parent.hurt=1</script>"></iframe>',
)
SECONDS = 60_000  # Generous, in milliseconds: the machine may be busy.


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def server(version):
    with running(version, shutdown_seconds=0) as found:
        yield found


@pytest.fixture
def page(browser, server):
    with browser.new_context(locale="en-US", color_scheme="light") as context:
        found = context.new_page()
        found.set_default_timeout(SECONDS)
        found.errors = []
        found.on("pageerror", lambda error: found.errors.append(str(error)))
        found.requested = []
        found.on("request", lambda request: found.requested.append(request.url))
        found.goto(server.url)
        found.wait_for_selector("#model option", state="attached")
        yield found
        assert found.errors == []
        assert [url for url in found.requested if not url.startswith((server.url, "data:"))] == []


def ask(page, text: str) -> None:
    page.fill("#entry", text)
    page.press("#entry", "Enter")


def begun(page) -> None:
    page.locator("article.assistant .content", has_text=re.compile(r"\S")).wait_for()


def finished(page) -> None:
    page.wait_for_selector("#send", state="visible")


def answers(page) -> list[str]:
    # In one call: between the two of all_inner_texts the page may draw anew, and what is detached has no inner text.
    return page.evaluate("[...document.querySelectorAll('article.assistant .content')].map(one => one.innerText)")


def set_number(page, name: str, value: str) -> None:
    if page.locator("#settings").is_hidden():
        page.click("#show-settings")
    page.fill(f"#{name}", value)
    page.press(f"#{name}", "Tab")


def stored(page) -> list[dict]:
    return json.loads(page.evaluate("localStorage.getItem('tfgpt.conversations')"))


def answer_with(page, text: str) -> None:
    """The model itself would say what we want only by chance: this answers in its place."""
    delta = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in (delta, end)) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def test_a_conversation_reload_edit_regenerate_and_languages(page, server):
    for name, value in (("max_tokens", "4"), ("seed", "5"), ("temperature", "0.9")):
        set_number(page, name, value)
    page.click("#show-settings")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    ask(page, "Hi")
    finished(page)
    assert {"max_tokens": 4, "seed": 5, "temperature": 0.9, "model": "chat"}.items() <= sent[-1].items()
    [first] = stored(page)[0]["messages"][1:]
    assert first["usage"]["completion_tokens"] <= 4
    assert re.search(r"\d+ of 48 tokens", page.inner_text("#count"))
    ask(page, "Go")
    finished(page)
    assert [message["content"] for message in sent[-1]["messages"]] == ["Hi", first["content"], "Go"]
    before = answers(page)
    assert len(before) == 2

    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert answers(page) == before

    page.locator("article.assistant").nth(1).get_by_role("button", name="Regenerate").click()
    finished(page)
    assert answers(page) == before  # The same seed.

    page.locator("article.user").nth(0).get_by_role("button", name="Edit").click()
    page.locator("article textarea").fill("No")
    page.get_by_role("button", name="Send again").click()
    finished(page)
    assert stored(page)[0]["messages"][0]["content"] == "No"
    assert len(answers(page)) == 1

    page.select_option("#language", "zh")
    assert page.get_by_role("button", name="新对话", exact=True).first.is_visible()
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.click("#new")
    ask(page, "汉")
    finished(page)
    assert len(stored(page)) == 2
    page.get_by_role("button", name="删除: 汉").click()
    assert [one["title"] for one in stored(page)] == ["Hi"]


def test_stop_stops_the_page_and_the_model(page, server):
    server.backend.seconds = 0.3
    set_number(page, "max_tokens", "2000")
    set_number(page, "temperature", "0")
    ask(page, "Hi")
    begun(page)
    page.press("body", "Escape")
    finished(page)
    assert "Stopped." in page.inner_text("#log")
    calls = len(server.backend.rows)
    page.wait_for_timeout(1500)
    assert len(server.backend.rows) <= calls + 1
    server.backend.seconds = 0.0
    set_number(page, "max_tokens", "3")
    page.get_by_role("button", name="Regenerate").click()
    finished(page)
    assert "Stopped." not in page.inner_text("#log")


def test_hostile_text_is_shown_and_not_run(page, server):
    answer_with(page, "\n\n".join(PAYLOADS) + "\n\n**bold** `code`")
    ask(page, PAYLOADS[0])
    finished(page)
    page.wait_for_timeout(300)
    assert PAYLOADS[0] in page.locator("article.user .content").inner_text()
    page.reload()  # From the store, too.
    page.wait_for_selector("article.assistant strong")
    for link in page.locator("article.assistant a").all():
        assert not (link.get_attribute("href") or "").startswith("javascript:")
        link.click(force=True)
    assert page.locator("#log :is(img, script, svg, iframe)").count() == 0
    assert page.evaluate("window.hurt") is None
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_a_server_that_restarts_in_mid_stream(page, server, version):
    set_number(page, "max_tokens", "2000")
    set_number(page, "temperature", "0")
    server.backend.seconds = 0.3
    ask(page, "Hi")
    begun(page)
    server.stop()
    finished(page)
    assert "connection was lost" in page.inner_text("#log")
    [kept] = answers(page)
    assert kept
    page.get_by_role("button", name="Regenerate").click()  # Nobody is there.
    finished(page)
    assert "does not answer" in page.inner_text("#log")
    with running(version, port=int(server.url.rsplit(":", 1)[1])):
        set_number(page, "max_tokens", "3")
        page.get_by_role("button", name="Regenerate").click()
        finished(page)
        assert "does not answer" not in page.inner_text("#log")
        assert stored(page)[0]["messages"][-1]["usage"]["completion_tokens"] <= 3


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page):
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea')].filter(e => !(e.textContent.trim()
        && e.tagName === 'BUTTON') && !e.getAttribute('aria-label') && !e.labels?.[0]?.textContent.trim())
        .map(e => e.id)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"model", "show-settings", "theme", "language", "new", "log", "entry"} <= reached


def test_the_page_fits_a_phone_and_the_list_opens(browser, server):
    with browser.new_context(viewport={"width": 360, "height": 640}, locale="zh-CN", color_scheme="dark") as context:
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.goto(server.url)
        page.wait_for_selector("#model option", state="attached")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.get_attribute("html", "data-theme") == "dark"
        assert page.locator("#new").is_hidden()
        page.click("#show-settings")
        assert page.evaluate(
            "[...document.querySelectorAll('#settings *')].every(e => e.getBoundingClientRect().right < 350)"
        )
        page.click("#show-settings")
        page.click("#show-list")
        assert page.locator("#new").inner_text() == "新对话"
        assert page.get_attribute("#show-list", "aria-expanded") == "true"


def test_both_languages_have_every_word():
    texts = (ROOT / "tfgpt/serving/web/texts.js").read_text(encoding="utf-8")
    english, chinese = (set(re.findall(r"\b(\w+): \"", part)) for part in texts.split("zh: {"))
    assert english == chinese and len(english) > 40
    used = "".join(path.read_text(encoding="utf-8") for path in Path(ROOT, "tfgpt/serving/web").glob("*.*s"))
    used += (ROOT / "tfgpt/serving/web/index.html").read_text(encoding="utf-8")
    named = set(re.findall(r"say\(\"(\w+)\"", used)) | set(
        re.findall(r"data-(?:text|label|placeholder)=\"(\w+)\"", used)
    )
    assert named <= english
