"""The page of the command line is what the commands say now."""

import re

import pytest

from dspy_session.cli import app
from tests import transcript


def test_the_page_is_current() -> None:
    written = transcript.PAGE.read_text("utf-8")
    assert written == transcript.page(), f"`{transcript.COMMAND}` writes {transcript.PAGE}"


def test_the_page_has_every_command() -> None:
    written = transcript.PAGE.read_text("utf-8")
    names = [each.name for each in app.application().registered_commands]
    assert sorted(re.findall(r"^### (.*)$", written, re.MULTILINE)) == sorted(map(str, names))
    assert set(re.findall(r"^\$ (?:.*\| )?dspy-session (?:--store \S+ )?(\S+)", written, re.M)) <= {
        *names
    }


def test_what_a_command_shows_is_read() -> None:
    with transcript.empty_folder():
        fed = transcript.ran("printf 'Hi.\\nAnd?\\n' | dspy-session chat --scripted --session x")
        assert fed.count("\n") == 2
        assert transcript.ran("dspy-session delete x").endswith("$ echo $?\n2\n")
        assert transcript.ran("dspy-session delete -y x") == "Deleted 'x'.\n"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-21 14:32, 1.3 s", "2026-01-05 10:00, 8 ms"),
        ('"size_bytes": 1234', '"size_bytes": 600'),
        ("999 B  2.1 kB", "600 B  1.8 kB"),
        ("3 turns, score 0.5", "3 turns, score 0.5"),
    ],
)
def test_what_varies_is_made_the_same(text: str, same: str) -> None:
    assert transcript.stable(text) == same
