"""A headless Chromium at its debugging pipe: what a page loads, logs and looks like."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
READY = """(async () => {
  const waits = [...document.querySelectorAll("video")].map(video => new Promise(done => {
    if (video.readyState >= 2 || video.error) done();
    video.onloadeddata = video.onerror = done;
  }));
  await Promise.all(waits);
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll") && e.getBoundingClientRect().right > root.clientWidth + 1);
  return JSON.stringify({
    width: root.clientWidth,
    scroll_width: root.scrollWidth,
    too_wide: wide.map(e => e.outerHTML.slice(0, 80)),
    broken_pictures: [...document.images].filter(i => !i.naturalWidth).length,
    broken_videos: [...document.querySelectorAll("video")].filter(v => !v.videoWidth).length,
  });
})()"""


def find_chromium() -> str | None:
    """Return the program, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@dataclass(frozen=True)
class Page:
    """A page after it was opened: what READY found, console messages, addresses, a picture."""

    facts: dict[str, Any]
    messages: list[str]
    addresses: list[str]
    png: bytes


class Browser:
    """Send commands and collect the events that come in between."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self.output, self.input = os.fdopen(write_to, "wb"), os.fdopen(read_from, "rb")
        self.events: list[dict[str, Any]] = []
        self.number = 0
        self.session: dict[str, str] = {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        answer = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": answer["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        content = {"id": self.number, "method": method, "params": params, **self.session}
        self.output.write(json.dumps(content).encode() + b"\0")
        self.output.flush()
        while True:
            message = self._next()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def wait_for(self, method: str) -> None:
        """Block until an event has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self.input.read(1)) not in (b"\0", b""):
            content += byte
        assert content, "the browser has ended"
        return dict(json.loads(content))

    def open(self, path: Path, width: int) -> Page:
        """Open a file in a window of that width, once its pictures and videos are there."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        found = self.ask("Runtime.evaluate", expression=READY, awaitPromise=True)
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        params = [(event.get("method"), event.get("params", {})) for event in self.events]
        logged = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return Page(
            json.loads(found["result"]["value"]),
            [json.dumps(content) for method, content in params if method in logged],
            [p["request"]["url"] for m, p in params if m == "Network.requestWillBeSent"],
            base64.b64decode(picture["data"]),
        )


@contextmanager
def start_browser(program: str, profile: Path) -> Iterator[Browser]:
    """Yield a browser with an empty profile; it has ended when the block is left."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # the browser reads from 3 and writes to 4, so ours must not be these
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser[0], from_browser[1])]
    os.close(to_browser[0])
    os.close(from_browser[1])
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    redirect = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
    with subprocess.Popen(
        ["bash", "-c", redirect, "browser", *command],
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for fd in theirs:
            os.close(fd)
        browser = Browser(to_browser[1], from_browser[0])
        try:
            yield browser
        finally:
            browser.session = {}
            browser.ask("Browser.close")
            browser.output.close()
            browser.input.close()
            process.wait(timeout=30)
