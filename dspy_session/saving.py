"""The part of a session that is written out: as a dict, to a file, as a pickle.

The conversation and the options are; the program and what an application attached are not.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from dspy_session import codec
from dspy_session.attached import Attached
from dspy_session.core.data import EMPTY_DATA
from dspy_session.core.state import SessionState, with_id
from dspy_session.files import AnyPath, write_conversation
from dspy_session.locks import Locks
from dspy_session.program.anatomy import holds_learned_state
from dspy_session.program.nested import told_outside
from dspy_session.program.run import new_id
from dspy_session.program.types import program_codecs
from dspy_session.using import Using

__all__ = ["Saving"]


class Saving(Using):
    """The part of a session that is written out; made by `Session`, not by hand."""

    def save_state(self) -> dict[str, Any]:
        """Return the conversation and the options as a JSON-ready dict, without callables.

        Raises:
            ValueCodecError: A field holds a value of a type without written form.
        """
        return codec.to_wire(self.state, self._options, program_codecs(self.module))

    def to_dict(self) -> dict[str, Any]:
        """Return the conversation and the options as a JSON-ready dict that may be handed on.

        It is what `save_state` returns, without the session data under `private_data` and without
        the fields in `redact_fields`, also those of the sessions within the program.

        Raises:
            ValueCodecError: A field holds a value of a type without written form.
        """
        state = told_outside(self.state, self.module, self._options)
        return codec.to_wire(state, self._options, program_codecs(self.module))

    def save(
        self,
        path: AnyPath,
        save_program: bool = False,
        modules_to_serialize: list[Any] | None = None,
    ) -> None:
        """Write the conversation and the options to a JSON file, whole or not at all.

        The program's learned state is not in it (a user's file must not carry other people's
        demos); `session.module.save(path)` keeps that.

        Args:
            path: The file; with `save_program`, the folder.
            save_program: Write the session as a program, as DSPy does, without conversations and
                without `on_turn`.
            modules_to_serialize: As in DSPy, with `save_program`.

        Raises:
            ValueCodecError: A field holds a value of a type without written form.
            OSError: The file cannot be written. After either, what was there before still is.
        """
        if save_program:
            with _without_conversations():
                super().save(path, save_program=True, modules_to_serialize=modules_to_serialize)
            return
        write_conversation(path, self.state, self._options, program_codecs(self.module))
        if holds_learned_state(self.module):
            warnings.warn(
                "session.save() writes the conversation only; this program also holds learned "
                "demos or instructions, which session.module.save(path) keeps.",
                UserWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_locks")
        state.pop("_journal", None)  # a copy is in no store
        state["_attempts"] = ()
        if _bare.get():
            state.update(_state=SessionState(), _attached=Attached(), _began_with=EMPTY_DATA)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._locks = Locks()
        if self._state.id is None:  # a saved program: every load begins a conversation of its own
            self._state = with_id(self._state, new_id())


_bare = ContextVar("dspy_session_bare", default=False)


@contextlib.contextmanager
def _without_conversations() -> Iterator[None]:
    """Pickle sessions, wherever they are in a program, as if nobody had said anything yet.

    Hooks stay behind too: they may hold on to turns, or to what cannot be pickled.
    """
    token = _bare.set(True)
    try:
        yield
    finally:
        _bare.reset(token)
