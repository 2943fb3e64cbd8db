"""A chat: lines come in, turns go out, until there are no more lines.

Rules:

- A turn that fails or is cancelled leaves the session as it was, and the chat goes on.
- Ctrl-C during an answer ends that answer. At the prompt it has to come twice.
- The session is read anew before each turn, so that the model sees what another chat added; what is
  added during the turn stays, and the turn comes after it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import dspy
from dspy.streaming import StatusMessageProvider

from dspy_session.cli.chat_commands import Desk, LeftError, run_command
from dspy_session.cli.chat_input import Lines, Piped, Questions, Typed
from dspy_session.cli.chat_screen import JsonScreen, Said, Screen, TextScreen
from dspy_session.cli.context import CommandContext
from dspy_session.cli.ending import Usage
from dspy_session.cli.places import seal
from dspy_session.cli.program_errors import explained
from dspy_session.cli.program_models import Model
from dspy_session.cli.sessions import Sessions
from dspy_session.errors import SessionError
from dspy_session.pictures.figures import counted
from dspy_session.pictures.values import one_line
from dspy_session.program.chat_fields import inferred_fields
from dspy_session.program.events import TurnEvent
from dspy_session.program.inputs import program_inputs

__all__ = ["Chat", "open_chat"]

_REMEMBERED: Final = 100
"""How many earlier messages the arrow keys bring back."""


def open_chat(
    context: CommandContext,
    session_id: str,
    program: dspy.Module,
    model: Model,
    fixed: Mapping[str, Any],
    *,
    whole: bool = False,
) -> Chat:
    """Return a chat in a session of the chosen store.

    Args:
        context: What the command works with.
        session_id: The session, which is made if there is none.
        program: What is talked to.
        model: What answers.
        fixed: Inputs that are the same in every turn.
        whole: Whether answers come whole; see `Chat`.

    Raises:
        Usage: The inputs of the program cannot be asked for.
        SessionError: The session cannot be opened.
    """
    live = not context.as_json and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    manager = context.open_manager(program, on_conflict="retry")
    options = manager._options
    fields = inferred_fields(manager.program, options)
    questions = Questions.of(
        program_inputs(manager.program, options),
        fixed,
        None if fields is None else fields.user,
        live,
    )
    desk = Desk(manager, Sessions(manager._archive.store, seal()), session_id)
    main = None if fields is None else fields.assistant
    screen: Screen = JsonScreen(context) if context.as_json else TextScreen(context, main, live)
    lines: Lines = Piped(sys.stdin or io.StringIO())
    if live:
        earlier = desk.session.turns[-_REMEMBERED:]
        said = [turn.inputs.get(questions.message.name) for turn in earlier]
        lines = Typed(text for text in said if isinstance(text, str))
    return Chat(desk, model, lines, screen, questions, whole=whole)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


class Chat:
    """A chat of somebody with a session.

    Args:
        desk: The session and its store.
        model: What answers.
        lines: Where lines come from.
        screen: Where answers go.
        questions: What a line is to the program.
        whole: Whether answers come whole, so that DSPy may ask again in another format.
    """

    def __init__(
        self,
        desk: Desk,
        model: Model,
        lines: Lines,
        screen: Screen,
        questions: Questions,
        *,
        whole: bool = False,
    ) -> None:
        self._desk, self._model, self._lines = desk, model, lines
        self._screen, self._questions, self._whole = screen, questions, whole
        self._failures = 0

    def run(self) -> int:
        """Chat until there are no more lines.

        Returns:
            0; of a script, 1 if a turn or a command failed.

        Raises:
            KeyboardInterrupt: Ctrl-C, in a script.
        """
        self._screen.welcome(self._welcome())
        try:
            for line in self._heard():
                self._answer(line)
        except KeyboardInterrupt:
            if not self._lines.live:
                raise
        except LeftError:
            return self._status()
        return self._status()

    def note(self, text: str) -> None:
        """Show what a person should know beside the turns.

        Args:
            text: What.
        """
        self._screen.note(text)

    def _status(self) -> int:
        return 0 if self._lines.live else min(self._failures, 1)

    def _heard(self) -> Iterator[str]:
        """The lines that say something; Ctrl-C has to come twice to end them."""
        warned = False
        while True:
            try:
                line = self._lines.line("> ")
            except KeyboardInterrupt:
                if warned or not self._lines.live:
                    raise
                warned = True
                self._screen.note("(Ctrl-C again, Ctrl-D or /quit ends the chat.)")
                continue
            if line is None:
                return
            warned = False
            if line.strip():
                yield line

    def _welcome(self) -> Said:
        session = self._desk.session
        said = (
            f"Session {session.session_id}: {counted(len(session), 'turn')}. {self._model.name} "
            "answers. /help shows what else there is."
        )
        last = session.state.last
        if last is not None:
            said += f"\n> {one_line(last.inputs)}\n{one_line(last.outputs)}"
        return Said(said)

    def _answer(self, line: str) -> None:
        """Answer one line; what goes wrong is shown."""
        expected = self._desk.session.state.stop
        try:
            if line.startswith("/") and not line.startswith("//"):
                self._screen.said(*run_command(self._desk, line))
                return
            text = line.removeprefix("/") if line.startswith("//") else line
            inputs = self._questions.inputs(text, self._lines)
            if inputs is not None:
                self._turn(inputs)
        except KeyboardInterrupt:
            if not self._lines.live:
                raise
            self._say_cancelled(expected)
        except (LeftError, BrokenPipeError):  # nobody reads any more: ask no more questions
            raise
        except (Usage, SessionError, OSError) as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001  # a program's or a model's; the chat goes on
            self._fail(explained(error, whole=self._whole))

    def _turn(self, inputs: dict[str, Any]) -> None:
        desk, screen = self._desk, self._screen
        if desk.refresh():
            screen.note(f"(Changed elsewhere meanwhile: {_turns(desk)} now.)")
        expected = desk.session.state.stop
        screen.begin(desk.session.session_id, inputs)
        call = desk.session.using(
            lm=self._model.lm,
            stream_fields=[] if self._whole else None,
            status_messages=_Steps(),
        )
        for event in call.stream(**inputs):
            screen.heard(event)
            if isinstance(event, TurnEvent) and event.turn is not None:
                came = event.turn.index - expected
                if came > 0:
                    screen.note(f"({counted(came, 'turn')} came from elsewhere before this one.)")

    def _say_cancelled(self, expected: int) -> None:
        """Say what became of a line that was interrupted: a turn may have been stored just then."""
        self._desk.refresh()
        recorded = self._desk.session.state.stop > expected
        what = "It had been recorded already." if recorded else "Nothing was recorded."
        self._screen.note(f"(Cancelled. {what})")

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self._screen.failed(reason)


class _Steps(StatusMessageProvider):
    """Says which tools are called, and with what."""

    def tool_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str:
        return f"{instance.name}: {one_line(inputs.get('kwargs', inputs))}"

    def tool_end_status_message(self, outputs: Any) -> str:  # noqa: ARG002  # DSPy's own name
        return ""


def _turns(desk: Desk) -> str:
    return counted(len(desk.session), "turn")
