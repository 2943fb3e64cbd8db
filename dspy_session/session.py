"""The everyday face: a `dspy.Module` that holds a conversation with the program inside it.

A session is a `Conversation` (state and moves) and a `Branch` (the program); `Calls` runs turns.
Here is the rest: how a session is made, set up, forked, saved and loaded.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Self

import dspy
import msgspec

from dspy_session import codec
from dspy_session.branch import Branch
from dspy_session.calls import Calls
from dspy_session.conversation import Conversation
from dspy_session.core.options import CopyMode, Lock, SessionOptions, make_options
from dspy_session.core.state import SessionState, start, with_id
from dspy_session.core.transitions import rewind, truncate
from dspy_session.core.turn import Turn
from dspy_session.errors import CallError, HistoryError, OptionError
from dspy_session.files import AnyPath, read_conversation, write_conversation
from dspy_session.locks import Locks
from dspy_session.program import run as program_run
from dspy_session.program.anatomy import check_module, copy_program, holds_learned_state
from dspy_session.program.evaluating import evaluating
from dspy_session.program.slot import history_slot, refuse_conflicts
from dspy_session.program.types import program_codecs

__all__ = ["OnTurn", "Session", "sessionify"]

OnTurn = Callable[["Session", Turn], Any]
"""Called with the session and the new turn after a turn was recorded, outside any lock."""


class _Session(Calls):
    """All that a session is; `Session` is short, for optimizers paste its source into prompts."""

    def __init__(
        self,
        module: dspy.Module,
        *,
        initial_history: dspy.History | None = None,
        on_turn: OnTurn | None = None,
        **options: Any,
    ) -> None:
        chosen = make_options(options)
        check_module(module)
        if isinstance(module, Session):
            raise CallError("The program is a Session already; use session.fork() for another.")
        _check_hook(on_turn)
        settled = _settled(module, chosen)
        state = start(_seed_messages(initial_history), id=program_run.new_id())
        Branch.__init__(self, copy_program(module, chosen.copy_mode))
        Conversation.__init__(self, state, settled)
        self._chosen, self._on_turn, self._attempts = chosen, on_turn, ()
        self._records = True if evaluating() else None  # made in a trial, it is that trial's own

    @classmethod
    def from_state(cls, state: SessionState, module: dspy.Module, **keywords: Any) -> Self:
        """Return a session that goes on from a state.

        Args:
            state: Any state, for example of `step` or of another session.
            module: The program to go on with.
            **keywords: As in `Session(...)`; `initial_history` is the state's own.

        Raises:
            CallError: `state` is not a `SessionState`, or `initial_history` was given.

        Example:
            >>> state = start([{"question": "Hi", "answer": "Hello."}])
            >>> session = Session.from_state(state, dspy.Predict("question -> answer"))
            >>> len(session.session_history.messages)
            1
        """
        if not isinstance(state, SessionState):
            raise CallError(f"state must be a SessionState, not {type(state).__name__}.")
        if "initial_history" in keywords:
            raise CallError(
                "initial_history is part of the state; start the state with it instead."
            )
        session = cls(module, **keywords)
        state = truncate(state, session._options.max_stored_turns)
        session._state = state if state.id is not None else with_id(state, session._state.id)
        return session

    # --- how it behaves ---------------------------------------------------------------------------

    @property
    def options(self) -> SessionOptions:
        """How the session behaves; `history_field` is the name found in the program.

        Set it to go on in another way: `session.options = session.options.replace(max_turns=5)`.
        What earlier turns saw stays what it was.
        """
        return self._options

    @options.setter
    def options(self, options: SessionOptions) -> None:
        if not isinstance(options, SessionOptions):
            raise OptionError(f"options must be SessionOptions, not {type(options).__name__}.")
        settled = _settled(self.module, options)
        self._move(lambda state: (None, truncate(state, options.max_stored_turns)))
        self._chosen, self._options = options, settled

    @property
    def on_turn(self) -> OnTurn | None:
        """What is called after each recorded turn."""
        return self._on_turn

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SessionOptions.__struct_fields__:
            raise OptionError(
                "A session's options are set as one value: session.options = "
                f"session.options.replace({name}=...)."
            )
        if name == "score":  # MIPROv2 leaves its best score there, where a session has a method
            name = "best_score"
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        frozen = ", frozen" if self._records is False else ""
        return (
            f"Session({type(self.module).__name__}, turns={len(self)}, "
            f"history_field={self._options.history_field!r}{frozen})"
        )

    # --- branching --------------------------------------------------------------------------------

    def fork(self, at: int | None = None) -> Self:
        """Return a session that goes its own way from here, or from an earlier turn.

        It shares the program and everything recorded so far, and costs the same at any length.

        Args:
            at: Keep only turns with lower indices; None keeps all, and what can be redone.

        Raises:
            TurnIndexError: There is no such turn.
        """
        state = self.state
        if at is not None and at != state.stop:
            state = rewind(state, at, redoable=False)
        twin = self._twin(with_id(state, program_run.new_id()))
        twin._records = True if evaluating() else None
        return twin

    def frozen(self) -> Self:
        """Return this session as a stateless program: it answers from here, and records nothing.

        It shares the program, goes where programs go (into evaluators, optimizers, servers), and
        stays where it is while this session goes on. Its `fork()` is a live session again.

        Example:
            >>> from dspy_session.testing import scripted_lm
            >>> session = sessionify(dspy.Predict("question -> answer"))
            >>> with dspy.context(lm=scripted_lm()):
            ...     frozen = session.frozen()
            ...     prediction = frozen(question="Hi")
            >>> len(frozen)
            0
        """
        twin = self._twin(with_id(self.state, program_run.new_id()))
        twin._records = False
        return twin

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        """Run examples side by side, as DSPy does; each is answered from here, none is recorded.

        Args:
            *args: As for `dspy.Module.batch`.
            **kwargs: As for `dspy.Module.batch`.

        Raises:
            LockError: The session is running a turn, from which this is called.
        """
        self._checked_lock((), Lock.NONE, trial=True)
        return dspy.Module.batch(self.frozen(), *args, **kwargs)

    def _twin(self, state: SessionState) -> Self:
        """A session like this one over the same program, in another state."""
        twin = self._share()
        twin._state, twin._locks, twin._attempts = state, Locks(), ()
        return twin

    def update_module(self, module: dspy.Module) -> None:
        """Go on with another program; the conversation stays. Other branches keep theirs.

        Args:
            module: The new program, or the session that an optimizer compiled; `copy_mode` says
                what is done with it.

        Raises:
            ModuleTypeError: It is not a `dspy.Module`.
            HistoryError: It cannot take a history under this session's `history_field`.
        """
        check_module(module)
        replaced = None
        if isinstance(module, Session):
            module, replaced = module.module, vars(module).get("forward")
        options = _settled(module, self._chosen)
        self._set_program(copy_program(module, options.copy_mode))
        self._set_forward(replaced)
        self._options = options

    # --- saving -----------------------------------------------------------------------------------

    def save_state(self) -> dict[str, Any]:
        """Return the conversation and the options as a JSON-ready dict, without callables.

        Raises:
            ValueCodecError: A field holds a value of a type without written form.
        """
        return codec.to_wire(self.state, self._options, program_codecs(self.module))

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

    @classmethod
    def load_from(
        cls, source: AnyPath | Mapping[str, Any], module: dspy.Module, **keywords: Any
    ) -> Self:
        """Return a session that goes on with a saved conversation.

        Args:
            source: A file that `save` wrote (or the published dspy-session 0.1), or the dict that
                `save_state` returned.
            module: The program to go on with; its weights are not touched.
            **keywords: As in `Session(...)`; they beat what the file says.

        Raises:
            FormatError: The source is corrupt, truncated, from the future or of another kind, or
                holds a value of a type that the program does not know.
            ModuleTypeError: `module` is not a `dspy.Module`.
            OSError: The file cannot be read.
        """
        codecs = program_codecs(check_module(module))
        if isinstance(source, Mapping):
            state, saved = codec.from_wire(source, codecs)
        else:
            state, saved = read_conversation(source, codecs)
        chosen = dict(keywords)
        if "input_field_override" in chosen and "history_input_fields" not in chosen:
            chosen["history_input_fields"] = chosen.pop("input_field_override")
        if "initial_history" in chosen:
            messages = _seed_messages(chosen.pop("initial_history"))
            state = msgspec.structs.replace(state, seed=start(messages).seed)
        return cls.from_state(state, module, **{**msgspec.structs.asdict(saved), **chosen})

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_locks")
        state["_attempts"] = ()
        if _bare.get():
            state.update(_state=SessionState(), _on_turn=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._locks = Locks()
        if self._state.id is None:  # a saved program: every load begins a conversation of its own
            self._state = with_id(self._state, program_run.new_id())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A session on a deep copy of the program, from the same conversation on."""
        twin = memo[id(self)] = self._twin(self.state)
        twin._set_program(copy_program(self.module, CopyMode.DEEP))
        return twin


class Session(_Session):
    """A DSPy program in a conversation; make one with `sessionify(program, ...)`.

    Call it as you call the program. See `SessionOptions` for the keywords; beside those:

    Args:
        module: Any DSPy program; it is not changed.
        initial_history: A `dspy.History` that the model sees before the first turn. It is not
            counted among the turns and survives `reset()`.
        on_turn: Called as `on_turn(session, turn)` after each recorded turn. An error in it is
            logged and never breaks the call. Forks share it.
        **options: The fields of `SessionOptions`, and `input_field_override`, an alias.

    Raises:
        ModuleTypeError: `module` is not a `dspy.Module`.
        OptionError: An option is unknown or has a wrong value.
        HistoryError: The program cannot take a history under `history_field`.

    Example:
        >>> from dspy_session.testing import scripted_lm
        >>> dspy.configure(lm=scripted_lm(lambda prompt: {"answer": f"{len(prompt)} messages"}))
        >>> session = Session(dspy.Predict("question -> answer"))
        >>> session(question="Hi").answer, session(question="And now?").answer
        ('2 messages', '4 messages')
        >>> session
        Session(Predict, turns=2, history_field='history')
    """


def sessionify(
    module: dspy.Module,
    *,
    initial_history: dspy.History | None = None,
    on_turn: OnTurn | None = None,
    **options: Any,
) -> Session:
    """Give any DSPy program a conversation.

    Args:
        module: Any DSPy program; it is not changed.
        initial_history: As in `Session`.
        on_turn: As in `Session`.
        **options: The fields of `SessionOptions`, and `input_field_override`, an alias.

    Returns:
        A session: call it as you call the program, and it remembers.

    Raises:
        SessionError: As `Session`.

    Example:
        >>> sessionify(dspy.ChainOfThought("question -> answer"), max_turns=10)
        Session(ChainOfThought, turns=0, history_field='history')
    """
    return Session(module, initial_history=initial_history, on_turn=on_turn, **options)


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


def _check_hook(on_turn: Any) -> None:
    if on_turn is not None and not callable(on_turn):
        raise OptionError(f"on_turn must be callable, not {type(on_turn).__name__}.")
    if inspect.iscoroutinefunction(on_turn):
        raise OptionError(
            "on_turn must be a plain function: an async one would never be awaited. Start a task "
            "in it instead, for example with asyncio.get_running_loop().create_task(...)."
        )


def _settled(module: dspy.Module, options: SessionOptions) -> SessionOptions:
    """The options with the history field that the program has, if it can take a history at all."""
    refuse_conflicts(module, options)
    field = history_slot(module, options).field
    return options if field == options.history_field else options.replace(history_field=field)


def _seed_messages(history: Any) -> list[dict[str, Any]]:
    if history is None:
        return []
    if isinstance(history, dspy.History):
        messages: list[dict[str, Any]] = history.messages
        return messages
    raise HistoryError(
        f"initial_history must be a dspy.History, not {type(history).__name__}; for example "
        "dspy.History(messages=[...])."
    )
