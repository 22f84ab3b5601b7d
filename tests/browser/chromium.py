"""A real Chromium, driven by its DevTools protocol: what tests of a page need of it, and no more."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-port=0", "--no-proxy-server", "--hide-scrollbars", "about:blank"),
)

KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, " ": 32}


def find() -> str | None:
    """The browser's program; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """One page. Every message of its console, and every error of its scripts, is in `complaints`."""

    socket: ClientConnection
    complaints: list[str] = field(default_factory=list)
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _session: str = ""
    _sent: int = 0

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """A command of the protocol."""
        self._sent += 1
        number = self._sent
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self.socket.send(json.dumps(message))
        return await answer

    async def read(self) -> None:
        """Receive until the browser ends."""
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if answer.cancelled():
                    continue
                if "error" in message:
                    answer.set_exception(AssertionError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"])[:500])
            elif message["method"] == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])

    async def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Load a page as a screen of this size (CSS pixels) shows it."""
        if not self._session:
            target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
            attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "DOM"):
                await self.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def js(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = await self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, deadline_s: float = 20.0) -> Any:
        """Its value as soon as it is true."""
        try:
            async with asyncio.timeout(deadline_s):
                while not (value := await self.js(f"((value) => value instanceof Node || value)({expression})")):
                    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.05)
                return value
        except TimeoutError:
            shown = await self.js("document.body.innerText")
            raise AssertionError(f"after {deadline_s:g} s still not: {expression}\n{shown[:2000]}") from None

    async def press(self, key: str, *, ctrl: bool = False) -> None:
        """A key of the keyboard."""
        text = {"Enter": "\r", " ": " "}.get(key, "") if not ctrl else ""
        for kind in ("keyDown", "keyUp"):
            pressed = {"key": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 2 if ctrl else 0}
            await self.call("Input.dispatchKeyEvent", type=kind, **pressed, **({"text": text} if text else {}))

    async def write(self, text: str) -> None:
        """Text into the element that has the focus."""
        await self.call("Input.insertText", text=text)

    async def choose_file(self, selector: str, file: Path) -> None:
        """A file for an input of files."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def screenshot(self, file: Path) -> None:
        """The whole page as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def chromium(program: str) -> AsyncIterator[Page]:
    """A browser of its own, with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program, f"--user-data-dir={folder}", *FLAGS, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60):
                async for line in process.stderr:
                    _, found, address = line.decode(errors="replace").partition("DevTools listening on ")
                    if found:
                        break
            drain = asyncio.create_task(_drain(process.stderr))
            async with connect(address.strip(), max_size=None, proxy=None) as socket:
                page = Page(socket)
                reader = asyncio.create_task(page.read())
                yield page
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
        finally:
            process.kill()
            await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass
