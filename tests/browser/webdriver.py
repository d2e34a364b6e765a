"""Control Debian's Firefox and WebKitGTK, which Playwright 1.65 cannot.

For Firefox it needs the command emulation.setMediaFeaturesOverride, which Firefox 153 lacks; for WebKit its own build.
Firefox implements WebDriver BiDi (https://w3c.github.io/webdriver-bidi/), and WebKitGTK WebDriver
(https://www.w3.org/TR/webdriver2/). Both evaluate scripts and accept the same JSON for the keyboard and the pointer.
"""

import asyncio
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import websockets

from tests import needs, servers
from tests.harness import TIMEOUT, wait_until

ENTER, ESCAPE = "\ue007", "\ue00c"
LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)\n")
# The number of the screen, after complaints about numbers that other screens use.
DISPLAY = re.compile(r"^(\d+)\n", re.MULTILINE)
# A headless Firefox reports a touch screen; this is a mouse: FINE | HOVER.
MOUSE = 'user_pref("ui.primaryPointerCapabilities", 6);'
# WebDriver has no command for the console. Errors before the end of loading are not recorded.
RECORD_ERRORS = """
    window.errors = [];
    for (const level of ["error", "warn"]) console[level] = (...texts) => errors.push(texts.join(" "));
    addEventListener("error", (event) => errors.push(event.message));
    addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
"""


class BrowserPage(ABC):
    """The only window of a browser."""

    @abstractmethod
    async def open(self, url: str) -> None:
        """Open `url` and wait until it is loaded."""

    @abstractmethod
    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; JSON must be able to represent it."""

    @abstractmethod
    async def perform(self, device: dict[str, Any]) -> None:
        """Perform the actions of one input device, a record of WebDriver's "Perform Actions"."""

    @abstractmethod
    async def errors(self) -> list[str]:
        """Return the errors and warnings that the browser logged since `open`."""

    async def sees(self, selector: str, text: str = "") -> None:
        """Wait until an element that matches `selector` is visible and contains `text`."""
        await wait_until(lambda: self.evaluate(f"Boolean({_find(selector, text)})"), f"{selector} {text}")

    async def box(self, selector: str, text: str = "") -> dict[str, float]:
        """Return the position of the first element that `sees` accepts, in pixels, as a DOMRect."""
        rectangle: dict[str, float] = await self.evaluate(f"{_find(selector, text)}.getBoundingClientRect().toJSON()")
        return rectangle

    async def click(self, selector: str, text: str = "") -> None:
        """Click the centre of the first element that `sees` accepts, once it stands still."""
        await self.sees(selector, text)
        box = None
        while box != (box := await self.box(selector, text)):
            pass
        place = {"x": round(box["x"] + box["width"] / 2), "y": round(box["y"] + box["height"] / 2)}
        steps = [
            {"type": "pointerMove", **place},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        await self.perform({"type": "pointer", "id": "mouse", "actions": steps})

    async def type(self, keys: str) -> None:
        """Press and release keys in the focused element."""
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        await self.perform({"type": "key", "id": "keyboard", "actions": steps})


def _find(selector: str, text: str) -> str:
    accepts = f"(one) => one.checkVisibility() && one.textContent.includes({json.dumps(text)})"
    return f"[...document.querySelectorAll({json.dumps(selector)})].find({accepts})"


class _Firefox(BrowserPage):
    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._sent = 0
        self._errors: list[str] = []
        self._context = ""

    async def start(self) -> None:
        await self._command("session.new", capabilities={})
        await self._command("session.subscribe", events=["log.entryAdded"])
        tree = await self._command("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def open(self, url: str) -> None:
        await self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        answer = await self._command(
            "script.evaluate",
            expression=f"JSON.stringify({expression})",
            target={"context": self._context},
            awaitPromise=False,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    async def perform(self, device: dict[str, Any]) -> None:
        await self._command("input.performActions", context=self._context, actions=[device])

    async def errors(self) -> list[str]:
        return self._errors

    async def _command(self, method: str, **params: Any) -> Any:
        """Send a command; return its result. Events arrive before it."""
        self._sent += 1
        await self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        async with asyncio.timeout(TIMEOUT):
            while (message := json.loads(await self._socket.recv())).get("id") != self._sent:
                if message["method"] == "log.entryAdded" and message["params"]["level"] in ("error", "warn"):
                    self._errors.append(message["params"]["text"])
        assert message["type"] == "success", message
        return message["result"]


class _WebKit(BrowserPage):
    def __init__(self, client: httpx.AsyncClient, session: str) -> None:
        self._client = client
        self._session = session

    async def open(self, url: str) -> None:
        await self._command("url", url=url)
        await self._command("execute/sync", script=RECORD_ERRORS, args=[])

    async def evaluate(self, expression: str) -> Any:
        return await self._command("execute/sync", script=f"return {expression}", args=[])

    async def perform(self, device: dict[str, Any]) -> None:
        await self._command("actions", actions=[device])

    async def errors(self) -> list[str]:
        errors: list[str] = await self.evaluate("errors")
        return errors

    async def _command(self, name: str, **params: Any) -> Any:
        return _value(await self._client.post(f"{self._session}/{name}", json=params))

    async def close(self) -> None:
        """Close the browser."""
        _value(await self._client.delete(self._session))


def _value(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["value"]


@asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[BrowserPage]:
    """A headless Firefox with its profile in `folder`."""
    (folder / "user.js").write_text(MOUSE)
    arguments = ("--headless", "--remote-debugging-port=0", "--profile", str(folder))
    log = folder / "log"
    async with _process(needs.program("firefox-esr"), *arguments, log=log):
        await wait_until(lambda: bool(LISTENING.search(log.read_text())), "WebDriver BiDi")
        [address] = LISTENING.findall(log.read_text())
        async with websockets.connect(f"{address}/session", proxy=None, max_size=None) as socket:
            page = _Firefox(socket)
            await page.start()
            yield page


@asynccontextmanager
async def webkit(folder: Path) -> AsyncIterator[BrowserPage]:
    """A MiniBrowser of WebKitGTK with its profile in `folder`. It needs a screen, which Xvfb provides."""
    driver, xvfb = needs.program("WebKitWebDriver"), needs.program("Xvfb")
    screen, port = folder / "screen", servers.free_port()
    async with _process(xvfb, "-displayfd", "1", "-nolisten", "tcp", log=screen):
        await wait_until(lambda: bool(DISPLAY.search(screen.read_text())), "Xvfb")
        [display] = DISPLAY.findall(screen.read_text())
        transport = httpx.AsyncHTTPTransport(retries=8)  # until the driver accepts connections
        async with (
            _process(driver, f"--port={port}", log=folder / "log", DISPLAY=f":{display}"),
            httpx.AsyncClient(transport=transport, timeout=TIMEOUT, trust_env=False) as client,
        ):
            sessions = f"http://127.0.0.1:{port}/session"
            session = _value(await client.post(sessions, json={"capabilities": {}}))
            page = _WebKit(client, f"{sessions}/{session['sessionId']}")
            yield page
            await page.close()


@asynccontextmanager
async def _process(*command: str, log: Path, **environ: str) -> AsyncIterator[None]:
    """Run a command in the folder of its `log`, which is also its home; terminate it at the end."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(log.parent), **environ}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=output, stderr=output)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
