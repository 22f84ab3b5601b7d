"""The status page in a real Chromium, at a phone's and a desktop's width, light and dark, over fake engines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.fake_script import Conversation, ScriptedCall, ScriptedTurn
from serve_app.engine.replica import EngineFactory
from serve_app.protocol.service_class import Share
from tests.browser import chromium
from tests.browser.chromium import Page
from tests.http.harness import MODEL, NAME, Service, service

PROGRAM = chromium.find()

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=f"no browser: none of {', '.join(chromium.NAMES)} is on PATH"),
]

NASTY = "\"'><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
)

SCRIPT = (
    Conversation(
        when=("weather in (?P<city>Paris)",),
        turns=(
            ScriptedTurn(think="I need the tool.", calls=(ScriptedCall("get_weather", {"city": "Paris"}),)),
            ScriptedTurn(think="I have it.", say="It is 18 degrees."),
        ),
    ),
    Conversation(when=("for ever",), turns=(ScriptedTurn(think="Long.", say="on", ends=False),)),
    Conversation(turns=(ScriptedTurn(think="A thought <b>here</b>.", say=f"An answer {NASTY}."),)),
)


def engine(**options: object) -> EngineFactory:
    config = FakeEngineConfig(script=SCRIPT, tokenizer=str(MODEL), gap_s=0.002, **options)  # type: ignore[arg-type]
    return lambda sink: FakeEngine(config, sink)


class OneKey:
    """`middleware.Keys` of one key."""

    def name_of(self, presented: str) -> str | None:
        return "alice" if presented == "secret" else None

    def share_of(self, name: str) -> Share:  # noqa: ARG002  # all alike
        return Share()


@contextlib.asynccontextmanager
async def looked_at(**options: object) -> AsyncIterator[tuple[Service, Page]]:
    """A service of two replicas, and a page of a browser."""
    assert PROGRAM is not None
    engines = {"r-1": engine(), "r-2": engine()}
    async with service(engines, **options) as running, chromium.chromium(PROGRAM) as page:  # type: ignore[arg-type]
        yield running, page


async def post(running: Service, text: str, **headers: str) -> None:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        asked = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 100}
        answer = await client.post(f"{running.url}/v1/chat/completions", json=asked, headers=headers)
        assert answer.status_code == 200, answer.text


async def picture(page: Page, name: str) -> None:
    """A screenshot for people, where somebody has asked for them: `STATUS_PAGE_PICTURES=<folder>`."""
    if folder := os.environ.get("STATUS_PAGE_PICTURES"):
        await page.screenshot(Path(folder) / f"{name}.png")


CONTRAST = """(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { r, g, b, a }; };
  const light = ({ r, g, b }) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const under = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.a === 1) return colour;
    }
    return { r: 255, g: 255, b: 255 };
  };
  const poor = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || one.matches(":disabled, .skip, script, noscript *")) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(under(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`);
  }
  return poor;
})()"""
"""Visible text whose contrast with what is behind it is below 4.5 to 1 (WCAG AA)."""

UNNAMED = """[...document.querySelectorAll("input, select, textarea")]
  .filter((one) => one.checkVisibility() && !one.labels.length).map((one) => one.id)"""


async def test_it_fits_and_can_be_read() -> None:
    async with looked_at() as (running, page):
        await post(running, "hello", **{"x-request-id": "n" * 200})
        for width, dark, view in itertools.product((360, 1280), (False, True), ("status", "playground")):
            scheme = "dark" if dark else "light"
            await page.open(f"{running.url}/status?{view}{scheme}{width}#{view}", width, dark=dark)
            if view == "status":
                await page.until("document.querySelector('#slowest .requests')")
            else:
                await page.until("document.getElementById('chat').checkVisibility()")
                await page.js("document.getElementById('as-curl').click()")
                await page.until("document.getElementById('curl-text').textContent.includes('curl -N')")
            await picture(page, f"{view}-{width}-{scheme}")
            assert await page.js("document.documentElement.scrollWidth") <= width
            assert await page.js(CONTRAST) == []
            assert await page.js(UNNAMED) == []
        assert page.complaints == []


async def test_names_of_clients_are_text() -> None:
    async with looked_at() as (running, page):
        await post(running, "hello", **{"x-request-id": NASTY, "x-session-id": NASTY})
        await page.open(f"{running.url}/status")
        await page.until("document.querySelector('.requests li')")
        assert NASTY in await page.js("document.getElementById('slowest').innerText")
        assert await page.js("document.querySelectorAll('#status img, #status script').length") == 0
        await page.js("document.getElementById('tab-playground').click()")
        await ask(page, f"say {NASTY}")
        assert NASTY in await page.js("document.querySelector('.assistant > .text').textContent")
        assert NASTY in await page.js("document.querySelector('.user').textContent")
        assert await page.js("document.querySelectorAll('#log img, #log script, #log b').length") == 0
        assert await page.js("document.title") != "taken"
        # Even a page that had such a hole would not run it.
        await page.js("document.getElementById('note').innerHTML = '<img src=x onerror=\"window.taken = 1\">'")
        await page.until("true")
        assert await page.js("window.taken") is None


async def ask(page: Page, text: str, status: str = "Done:") -> str:
    """Write a message, send it by keyboard, and wait for its end."""
    await page.js("document.getElementById('chat-status').textContent = ''; document.getElementById('prompt').focus()")
    await page.write(text)
    await page.press("Enter", ctrl=True)
    said = "document.getElementById('chat-status').textContent"
    return str(await page.until(f"{said}.startsWith('{status}') && {said}"))


async def test_it_asks_for_the_key_and_keeps_it_in_its_tab() -> None:
    async with looked_at(keys=OneKey()) as (running, page):
        await page.open(f"{running.url}/status")
        await page.until("document.getElementById('key').checkVisibility()")
        for key, then in (
            ("wrong", "document.getElementById('key-problem').textContent.includes('does not know')"),
            ("secret", "document.querySelector('#replicas .replica')"),
        ):
            await page.js("document.getElementById('key').focus()")
            await page.write(key)
            await page.press("Enter")
            await page.until(f"!!({then})")
        assert not await page.js("document.getElementById('key-form').checkVisibility()")
        assert await page.js("sessionStorage.getItem('step-serve-key')") == "secret"
        assert await page.js("localStorage.length + document.cookie.length") == 0
        await page.js("document.getElementById('tab-playground').click(); document.getElementById('as-curl').click()")
        await ask(page, "hello")
        curl = await page.until("document.getElementById('curl-text').textContent")
        assert "$STEP_API_KEY" in curl and "secret" not in curl


async def test_a_chat_with_reasoning_an_image_a_tool_and_curl(tmp_path: Path) -> None:
    async with looked_at() as (running, page):
        await page.open(f"{running.url}/status#playground")
        picture_file = tmp_path / "pixel.png"
        picture_file.write_bytes(PIXEL)
        await page.choose_file("#image", picture_file)
        assert "tokens in" in await ask(page, "What is this?")
        assert await page.js("document.querySelector('.user img').naturalWidth") == 8
        assert await page.js("document.querySelector('.assistant details').open") is False
        assert "A thought <b>here</b>." in await page.js("document.querySelector('.assistant details').textContent")
        await page.js("document.getElementById('tool').click()")
        await ask(page, "the weather in Paris")
        assert "get_weather({" in await page.js("document.querySelector('.call code').textContent")
        await page.js("document.getElementById('chat-status').textContent = ''")
        await page.js("document.querySelector('form.call button').click()")
        await page.until("[...document.querySelectorAll('.text')].at(-1).textContent.includes('18 degrees')")
        await page.until("document.getElementById('chat-status').textContent.startsWith('Done:')")
        await page.js("document.getElementById('as-curl').click()")
        curl = await page.until("document.getElementById('curl-text').textContent")
        assert '"tool_call_id"' in curl and "data:image/png;base64," in curl
        assert (await repeated(curl, tmp_path)).count("data: ") > 3
        await picture(page, "playground-chat")
        assert page.complaints == []


async def repeated(curl: str, folder: Path) -> str:
    """What the copied command prints."""
    script = folder / "request.sh"
    script.write_text(curl, encoding="utf-8")
    process = await asyncio.create_subprocess_exec("sh", str(script), stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return printed.decode()


async def test_stop_ends_the_request_and_a_refusal_is_shown() -> None:
    async with looked_at() as (running, page):
        await page.open(f"{running.url}/status#playground")
        await page.js("document.getElementById('max-tokens').value = 5000; document.getElementById('prompt').focus()")
        await page.write("go on for ever")
        await page.press("Enter", ctrl=True)
        await page.until("document.querySelector('.assistant > .text')?.textContent.startsWith('on')")
        assert await page.js("document.getElementById('send').disabled && !document.getElementById('stop').disabled")
        await page.js("document.getElementById('stop').click()")
        await page.until("document.getElementById('chat-status').textContent === 'Stopped.'")
        async with asyncio.timeout(20):
            while running.client.dispatcher.in_flight:
                await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.05)
        await page.js("document.getElementById('max-tokens').value = 1000000")
        await ask(page, "too much", "It has failed")
        assert "8192" in await page.js("[...document.querySelectorAll('.failed')].at(-1).textContent")


async def test_it_works_by_keyboard_and_polls_only_while_it_is_seen() -> None:
    async with looked_at() as (running, page):
        await page.open(f"{running.url}/status")
        await page.until("document.querySelector('#replicas .replica')")
        await page.press("Tab")
        assert await page.js("document.activeElement.className") == "skip"
        await page.press("Tab")
        assert await page.js("document.activeElement.id") == "tab-status"
        assert await page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.press("ArrowRight")
        assert await page.js("document.activeElement.id") == "tab-playground"
        assert await page.js("document.getElementById('chat').checkVisibility()")
        seen = "performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/status/fleet')).length"
        before = await page.js(seen)
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=2.5)
        assert await page.js(seen) == before
        await page.press("ArrowRight")
        await page.until(f"{seen} > {before}")
