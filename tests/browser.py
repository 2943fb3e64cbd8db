"""A headless Chromium, driven through its own driver: what a reader of a page really gets.

Both come with the system (Debian: `chromium`, `chromium-driver`); nothing of Python is needed.
"""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
_PATIENCE = 300.0


class Browser:
    """One page at a time, as wide and as dark as one likes."""

    def __init__(self, root: str) -> None:
        self._root = root

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the driver answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._root}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return json.load(answer)["value"]

    def command(self, name: str, **params: Any) -> Any:
        """What Chromium answers to a command of its developer tools."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": name, "params": params})

    def run(self, script: str) -> Any:
        """What a script returns, run from outside of the page's own policy."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def open(self, page: Path, *, width: int = 900, height: int = 900, dark: bool = False) -> None:
        """Open a file on a screen of this size."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("POST", "/url", {"url": page.as_uri()})

    def complaints(self) -> list[str]:
        """What the console says: errors, and what the page's policy refused."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def press(self, key: str) -> None:
        """Press a key."""
        for type_ in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and type_ == "keyDown" else {}
            codes = {"windowsVirtualKeyCode": {"Enter": 13, "Tab": 9}[key], "key": key, "code": key}
            self.command("Input.dispatchKeyEvent", type=type_, **codes, **text)

    def picture(self) -> bytes:
        """A picture of what is on the screen, as PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, gone in the end."""
    if CHROMIUM is None or DRIVER is None:
        raise FileNotFoundError("There is no chromium, or no chromedriver, on the PATH.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            root = f"http://127.0.0.1:{_port(driver)}"
            arguments = ["--headless=new", "--no-sandbox", "--hide-scrollbars"]
            options = {"binary": CHROMIUM, "args": [*arguments, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            body = {"capabilities": {"alwaysMatch": wanted}}
            session = Browser(root).ask("POST", "/session", body)["sessionId"]
            made = Browser(f"{root}/session/{session}")
            try:
                yield made
            finally:
                made.ask("DELETE", "")
        finally:
            driver.terminate()
            driver.communicate()


def _port(driver: subprocess.Popen[str]) -> str:
    """Where a driver listens: it chooses a port that is free, and says so when it is ready."""
    assert driver.stdout is not None
    said = list[str]()
    for line in driver.stdout:
        said.append(line)
        if found := re.search(r"started successfully on port (\d+)", line):
            return found[1]
    raise RuntimeError(f"The driver of the browser does not start:\n{''.join(said)}")
