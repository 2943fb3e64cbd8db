"""`dspy-session chat` on a real terminal: tokens as they arrive, Ctrl-C, Ctrl-D, a restart."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.house import PROJECT
from tests.loopback import LoopbackServer
from tests.streams import SOON, Gate, say

CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"
PROMPT = "\n> "
PATIENCE = 20.0
"""How many seconds Ctrl-C has to show: pressed twice, it means something else."""


class Terminal:
    """A chat in a process of its own, and what somebody sees who sits before it."""

    def __init__(self, folder: Path, server: LoopbackServer, *options: str) -> None:
        self._fd, inner = pty.openpty()
        self._chat = subprocess.Popen(
            [
                *(sys.executable, "-m", "dspy_session.cli", "chat", "--store", "chats.db"),
                *("--model", "openai/scripted", "--api-base", server.url, *options),
            ],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT),
                "OPENAI_API_KEY": "none",
                "NO_COLOR": "1",
                "TERM": "dumb",
            },
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(inner)

    def type(self, keys: str | bytes) -> None:
        os.write(self._fd, keys.encode() if isinstance(keys, str) else keys)

    def interrupt(self) -> str:
        """Press Ctrl-C until something happens, and return what is seen of it.

        A signal that comes just before Python begins to wait for a key is noticed with the next.
        """
        seen, end = "", time.monotonic() + SOON
        while not seen and self._chat.poll() is None:
            assert time.monotonic() < end, "Ctrl-C did nothing"
            while not self._waits():
                time.sleep(0.01)
            self.type(CTRL_C)
            patience = time.monotonic() + PATIENCE
            while not seen and self._chat.poll() is None and time.monotonic() < patience:
                seen = self._read().removeprefix("^C")
        return seen

    def _waits(self) -> bool:
        """Whether the chat waits, as it does for a key; true where the system does not tell."""
        stat = Path(f"/proc/{self._chat.pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "R"

    def until(self, text: str, seen: str = "") -> str:
        """What appears until some text has."""
        end = time.monotonic() + SOON
        while text not in seen:
            assert time.monotonic() < end, f"{text!r} did not appear: {seen!r}"
            seen += self._read()
        return seen

    def _read(self) -> str:
        ready, _, _ = select.select([self._fd], [], [], 0.1)
        try:
            data = os.read(self._fd, 4096) if ready else b""
        except OSError:  # the process has ended
            return ""
        return data.decode().replace("\r\n", "\n")

    def ended(self) -> int:
        end = time.monotonic() + SOON
        while self._chat.poll() is None and time.monotonic() < end:
            self._read()
        return self._chat.wait(0)

    def close(self) -> None:
        self._chat.kill()
        self._chat.wait()
        os.close(self._fd)


def _take_terminal() -> None:
    ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is sent to the chat


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def test_a_chat_on_a_terminal(tmp_path: Path, gate: Gate) -> None:
    with LoopbackServer(say, gate) as server:
        chat = Terminal(tmp_path, server, "--reasoning")
        try:
            welcome = chat.until(PROMPT)
            assert "Session chat: 0 turns. openai/scripted answers." in welcome
            chat.type("Hi\n")
            gate.let(5)  # the header of a field, which is five words and does not show
            gate.let(1)
            assert chat.until("reasoning: the").count("reasoning") == 1  # the server is held

            seen = chat.until(PROMPT, chat.interrupt())
            assert "(Cancelled. Nothing was recorded.)" in seen

            gate.open()
            chat.type("Ho\n")
            answered = chat.until(PROMPT)
            assert "reasoning: the reasoning to Ho\nthe answer to Ho\n" in answered

            assert "Ctrl-C again" in chat.until(PROMPT, chat.interrupt())
            chat.type("/tree\n")  # after which it has to come twice again
            assert "chat: 1 turn" in chat.until(PROMPT)
            chat.until(PROMPT, chat.interrupt())
            chat.interrupt()
            assert chat.ended() == 0
        finally:
            chat.close()

        again = Terminal(tmp_path, server)
        try:
            welcome = again.until(f"answer: the answer to Ho{PROMPT}")
            assert "Session chat: 1 turn." in welcome
            assert "\n> Ho\n" in welcome  # which looks like a prompt, and is none
            again.type(UP)
            assert again.until("Ho")  # what was typed before the restart
            again.type("w far?\n")
            assert "the answer to How far?" in again.until(PROMPT)
            again.type(CTRL_D)
            assert again.ended() == 0
        finally:
            again.close()
    assert len(server.received) == 3
