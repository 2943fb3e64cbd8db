"""The everyday face: a `dspy.Module` that holds a conversation with the program inside it.

The session holds the current `SessionState` and swaps it for the next one; everything it does to a
conversation is a pure function of the core. A turn is recorded around `__call__`, not inside
`forward`, because optimizers replace `forward`. Nothing is locked while an LM is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dspy
import msgspec

from dspy_session import codec
from dspy_session.core.options import CopyMode, Lock, SessionOptions, make_options
from dspy_session.core.state import (
    SessionState,
    annotate,
    redo,
    replace_turn,
    reset,
    rewind,
    start,
    truncate,
    undo,
    visible_window,
    with_id,
)
from dspy_session.core.step import commit, prepare, refuse_history_field
from dspy_session.core.turn import Run, Turn
from dspy_session.errors import (
    CallError,
    FormatError,
    HistoryError,
    LockError,
    OptionError,
)
from dspy_session.program import run as program_run
from dspy_session.program.anatomy import (
    check_module,
    copy_program,
    history_slot,
    holds_learned_state,
    refuse_conflicts,
)
from dspy_session.program.examples import Metric, examples_of, scored
from dspy_session.program.frame import frame_of

__all__ = ["OnTurn", "Session", "sessionify"]

logger = logging.getLogger("dspy_session")

OnTurn = Callable[["Session", Turn], Any]
"""Called with the session and the new turn after a turn was recorded, outside any lock."""

_Result = TypeVar("_Result")
_Path = str | os.PathLike[str]


class Session(dspy.Module):
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

    module: dspy.Module

    def __init__(
        self,
        module: dspy.Module,
        *,
        initial_history: dspy.History | None = None,
        on_turn: OnTurn | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        chosen = make_options(options)
        check_module(module)
        if isinstance(module, Session):
            raise CallError("The program is a Session already; use session.fork() for another.")
        if on_turn is not None and not callable(on_turn):
            raise OptionError(f"on_turn must be callable, not {type(on_turn).__name__}.")
        self._options = _settled(module, chosen)
        self._on_turn = on_turn
        self._shared = False
        self._state = start(_seed_messages(initial_history), id=program_run.new_id())
        self._locks = _Locks()
        self.module = copy_program(module, chosen.copy_mode)

    @classmethod
    def from_state(cls, state: SessionState, module: dspy.Module, **keywords: Any) -> Session:
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

    # --- calling ----------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn and return what the program returned.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: The program's inputs; `history=` a `dspy.History`, see `history_policy`;
                `lm=` an LM and `config=` LM settings for this turn, unless the program has inputs
                of these names.

        Raises:
            CallError: Positional arguments, or a `history=` that is none.
            LockError: The session is running this turn already, or needs `acall`.
            Exception: Whatever the program raises; the conversation is as it was.
        """
        self._check_call(args, Lock.THREAD)
        with self._locks.thread if self._options.lock is Lock.THREAD else contextlib.nullcontext():
            turn, returned = self._record(program_run.drive(self._flow(kwargs), super().__call__))
        self._announce(turn)
        return returned

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn in async code; as calling the session, awaited.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: As for calling the session.

        Raises:
            CallError: As for calling the session.
            LockError: As for calling the session, or its lock is for threads.
            Exception: Whatever the program raises; the conversation is as it was.
        """
        self._check_call(args, Lock.ASYNC)
        async with self._locks.task if self._options.lock is Lock.ASYNC else _no_lock():
            outcome = await program_run.adrive(self._flow(kwargs), super().acall)
            turn, returned = self._record(outcome)
        self._announce(turn)
        return returned

    def forward(self, **kwargs: Any) -> Any:
        """Run one turn; the same as calling the session.

        Args:
            **kwargs: As for calling the session.
        """
        frame = frame_of(self)
        if frame is None:
            return self(**kwargs)
        self._enter_once(frame)
        return self.module(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        """Run one turn in async code; the same as `acall`.

        Args:
            **kwargs: As for calling the session.
        """
        frame = frame_of(self)
        if frame is None:
            return await self.acall(**kwargs)
        self._enter_once(frame)
        return await program_run.async_call(self.module)(**kwargs)

    def _flow(self, kwargs: dict[str, Any]) -> program_run.Flow:
        inputs, settings = program_run.split_settings(self.module, kwargs)
        return program_run.running(
            self.module, self._state, inputs, self._options, owner=self, **settings
        )

    def _record(self, outcome: program_run.Outcome) -> tuple[Turn | None, Any]:
        turn = self._move(
            lambda state: commit(state, outcome.step, outcome.outputs, outcome.run, outcome.options)
        )
        return turn, outcome.returned

    def _move(self, transition: Callable[[SessionState], tuple[_Result, SessionState]]) -> _Result:
        """Publish the next state, computed from the newest one.

        The mutex is held over pure functions of the core only. An error leaves the state as it was.
        """
        with self._locks.state:
            result, self._state = transition(self._state)
        return result

    def _announce(self, turn: Turn | None) -> None:
        if turn is None or self._on_turn is None:
            return
        try:
            self._on_turn(self, turn)
        except Exception:  # noqa: BLE001  # a hook is a user's code, and the turn is recorded already
            logger.warning("on_turn failed for turn %d", turn.index, exc_info=True)

    def _check_call(self, args: tuple[Any, ...], lock: Lock) -> None:
        if args:
            raise CallError(
                "A session takes its inputs by keyword, for example session(question=...); "
                f"{len(args)} positional argument(s) came."
            )
        if frame_of(self) is not None:
            raise LockError(
                "This session was called inside its own turn. Its program may call other sessions "
                "or session.fork(), but not the session that is waiting for it."
            )
        if self._options.lock not in (Lock.NONE, lock):
            way = "await session.acall(...)" if lock is Lock.THREAD else "session(...)"
            raise LockError(
                f"This session has lock={self._options.lock.value!r}: call it as {way}, or make it "
                f"with lock={lock.value!r}."
            )

    def _enter_once(self, frame: Any) -> None:
        if frame.draft.entered:
            raise LockError("This session's forward was called inside its own turn.")
        frame.draft.entered = True

    # --- what there is ----------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """The conversation as an immutable value; keep it, and it is a snapshot for ever."""
        return self._state

    @property
    def id(self) -> str:
        """The session's id."""
        return self._state.id or ""

    @property
    def options(self) -> SessionOptions:
        """How the session behaves; `history_field` is the name found in the program."""
        return self._options

    @property
    def on_turn(self) -> OnTurn | None:
        """What is called after each recorded turn."""
        return self._on_turn

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The stored turns, oldest first."""
        return self._state.turns

    @property
    def session_history(self) -> dspy.History:
        """The `dspy.History` that the next call will see: the seed, then the window's turns."""
        history: dspy.History = visible_window(self._state, self._options).history()
        return history

    def __len__(self) -> int:
        return len(self._state)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return (
            f"Session({type(self.module).__name__}, turns={len(self._state)}, "
            f"history_field={self._options.history_field!r})"
        )

    # --- moving and editing -----------------------------------------------------------------------

    def reset(self) -> None:
        """Go back to the start: the seed and the id stay, the turns go."""
        self._move(lambda state: (None, reset(state)))

    def undo(self, steps: int = 1) -> tuple[Turn, ...]:
        """Take back the latest turns, at most as many as there are.

        Args:
            steps: How many.

        Returns:
            The turns taken back, newest first.

        Raises:
            OptionError: `steps` is negative or no whole number.
        """
        return self._move(lambda state: undo(state, steps))

    def pop_turn(self) -> Turn | None:
        """Take back the latest turn and return it; None if there is none."""
        return next(iter(self.undo(1)), None)

    def redo(self, steps: int = 1) -> tuple[Turn, ...]:
        """Bring back turns that were taken back, until a turn was recorded on another path.

        Args:
            steps: How many, at most.

        Returns:
            The turns brought back, oldest first.

        Raises:
            OptionError: `steps` is negative or no whole number.
        """
        return self._move(lambda state: redo(state, steps))

    def rewind(self, to: int) -> None:
        """Go back to before turn `to`: turns with lower indices stay. Like `undo`, it can be redone.

        Args:
            to: An absolute turn index; `len(session)` of an untrimmed session changes nothing.

        Raises:
            TurnIndexError: There is no such turn.
        """
        self._move(lambda state: (None, rewind(state, to)))

    def fork(self, at: int | None = None) -> Session:
        """Return a session that goes its own way from here, or from an earlier turn.

        It shares the program and everything recorded so far, and costs the same at any length.

        Args:
            at: Keep only turns with lower indices; None keeps all, and what can be redone.

        Raises:
            TurnIndexError: There is no such turn.
        """
        state = self._state
        if at is not None and at != state.stop:
            state = rewind(state, at)
            state = msgspec.structs.replace(state, tip=state.stop, epoch=state.epoch + 1)
        self._shared = True
        return self._twin(with_id(state, program_run.new_id()))

    def _twin(self, state: SessionState) -> Session:
        """A session like this one over the same program, in another state."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.history, twin.callbacks = [], list(self.callbacks)
        twin._state, twin._locks = state, _Locks()
        return twin

    def add_turn(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Turn:
        """Append a turn by hand, as if the program had been called; `on_turn` is not.

        Args:
            inputs: The inputs by name.
            outputs: The outputs by name.

        Returns:
            The new turn.

        Raises:
            HistoryError: A field is named like the history field.
            CallError: One of the two is no mapping from names to values.
        """
        run, options = Run(id=program_run.new_id()), self._options

        def append(state: SessionState) -> tuple[Turn | None, SessionState]:
            return commit(state, prepare(state, inputs, options), outputs, run, options)

        turn = self._move(append)
        assert turn is not None  # a step without explicit history is always recorded
        return turn

    def replace_turn(self, index: int, outputs: Mapping[str, Any]) -> Turn:
        """Give a turn other outputs; later calls see them. Its score goes; `on_turn` is not called.

        Args:
            index: The turn's absolute index.
            outputs: The new outputs by name.

        Returns:
            The new turn.

        Raises:
            TurnIndexError: There is no such turn.
            HistoryError: An output is named like the history field.
            CallError: `outputs` is no mapping from names to values.
        """
        if isinstance(outputs, Mapping):
            refuse_history_field(outputs, self._options, "an output")
        return self._move(
            lambda state: replace_turn(state, index, outputs, id=program_run.new_id())
        )

    # --- training data ----------------------------------------------------------------------------

    def score(
        self, metric: Metric, gold: dspy.Example | Sequence[dspy.Example] | None = None
    ) -> list[float]:
        """Score every turn, and keep scores and feedback on the turns.

        Args:
            metric: `metric(example, prediction)` or `metric(example, prediction, trace)`, returning
                a number, a bool, or a Prediction with `score` and `feedback`.
            gold: What to compare with: one example, or one per turn; None for the turn itself.

        Returns:
            One score per turn.

        Raises:
            MetricError: The metric raised, and `on_metric_error` is `"raise"`; nothing is kept.
            CallError: There are not as many gold examples as turns.
        """
        before = self._state
        scores, notes, _ = scored(before, metric, self._options, gold)
        held = {turn.index: turn for turn in before}

        def keep(state: SessionState) -> tuple[None, SessionState]:
            # Turns may have come or gone while the metric ran; only the same turns get the score.
            same = {t.index: notes[t.index] for t in state if held.get(t.index) is t}
            return None, annotate(state, same)

        self._move(keep)
        return scores

    def to_examples(
        self,
        metric: Metric | None = None,
        *,
        min_score: float | None = None,
        gold: dspy.Example | Sequence[dspy.Example] | None = None,
        include_history: bool = True,
        strict_trajectory: bool = False,
        require_outputs: bool = True,
    ) -> list[dspy.Example]:
        """Return one training example per turn, with what its call saw as the history input.

        Args:
            metric: Scores the turns for `min_score`; None uses the scores they carry.
            min_score: Leave out turns that score lower (equal stays), and unscored ones.
            gold: As in `score`.
            include_history: Whether examples hold the history.
            strict_trajectory: Whether a turn that is left out takes all later ones with it.
            require_outputs: Whether a turn without outputs is left out.

        Returns:
            The examples, oldest first; the session is not changed.
        """
        return examples_of(
            self._state,
            self._options,
            metric=metric,
            min_score=min_score,
            gold=gold,
            include_history=include_history,
            strict_trajectory=strict_trajectory,
            require_outputs=require_outputs,
        )

    def to_trainset(self, *args: Any, **kwargs: Any) -> list[dspy.Example]:
        """Return the examples of `to_examples`, under the name that optimizers use.

        Args:
            *args: As for `to_examples`.
            **kwargs: As for `to_examples`.
        """
        return self.to_examples(*args, **kwargs)

    @staticmethod
    def merge_examples(*sessions: Session, **kwargs: Any) -> list[dspy.Example]:
        """Return the examples of several sessions as one list.

        Args:
            *sessions: The sessions.
            **kwargs: As for `to_examples`, for each of them.

        Raises:
            CallError: One of them is not a session.
        """
        for session in sessions:
            if not isinstance(session, Session):
                raise CallError(f"merge_examples takes sessions, not {type(session).__name__}.")
        return [example for session in sessions for example in session.to_examples(**kwargs)]

    # --- the program ------------------------------------------------------------------------------

    def update_module(self, module: dspy.Module) -> None:
        """Go on with another program; the conversation stays. Other branches keep theirs.

        Args:
            module: The new program; `copy_mode` says what is done with it.

        Raises:
            ModuleTypeError: It is not a `dspy.Module`.
            HistoryError: It cannot take a history under this session's `history_field`.
        """
        check_module(module)
        if isinstance(module, Session):
            raise CallError("update_module takes a program; pass session.module.")
        options = _settled(module, self._options)
        self.module = copy_program(module, options.copy_mode)
        self._options, self._shared = options, False

    def set_lm(self, lm: dspy.BaseLM) -> None:
        """Set the LM of every predictor of this branch's program.

        Args:
            lm: The LM.
        """
        self._own_program()
        super().set_lm(lm)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return the program's predictors under `module...`, also when the program is compiled."""
        if isinstance(self.module, dspy.Predict):
            return [("module", self.module)]
        return [(f"module.{name}", found) for name, found in self.module.named_parameters()]

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the program's learned state, as `module.dump_state()` does.

        It loads into the bare program and back. The conversation is not in it: see `save_state`.

        Args:
            json_mode: As in DSPy.
        """
        dumped: dict[str, Any] = self.module.dump_state(json_mode=json_mode)
        return dumped

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Load learned state into this branch's program.

        Args:
            state: What `dump_state` returned, of a session or of the bare program.
            allow_unsafe_lm_state: As in DSPy.

        Raises:
            FormatError: It is a conversation.
        """
        if codec.is_conversation(state):
            raise FormatError(_LOAD_HINT)
        self._own_program()
        self.module.load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def load(
        self, path: _Path, allow_pickle: bool = False, allow_unsafe_lm_state: bool = False
    ) -> None:
        """Load learned state, saved with `program.save(path)`, into this branch's program.

        Args:
            path: A file of a program's state.
            allow_pickle: As in DSPy.
            allow_unsafe_lm_state: As in DSPy.

        Raises:
            FormatError: It is a file of a conversation.
        """
        if Path(path).suffix == ".json":
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                if codec.is_conversation(json.loads(Path(path).read_text("utf-8"))):
                    raise FormatError(_LOAD_HINT)
        self._own_program()
        self.module.load(
            path, allow_pickle=allow_pickle, allow_unsafe_lm_state=allow_unsafe_lm_state
        )

    def _own_program(self) -> None:
        """Give this branch its own copy of the program before changing it."""
        if self._shared:
            self.module = copy_program(self.module, CopyMode.DEEP)
            self._shared = False

    # --- saving -----------------------------------------------------------------------------------

    def save_state(self) -> dict[str, Any]:
        """Return the conversation and the options as a JSON-ready dict, without callables.

        Raises:
            ValueCodecError: A field holds a value of a type without written form.
        """
        return codec.to_wire(self._state, self._options)

    def save(
        self,
        path: _Path,
        save_program: bool = False,
        modules_to_serialize: list[Any] | None = None,
    ) -> None:
        """Write the conversation and the options to a JSON file, whole or not at all.

        The program's learned state is not in it (a user's file must not carry other people's
        demos); `session.module.save(path)` keeps that.

        Args:
            path: The file; with `save_program`, the folder.
            save_program: Write the session as a program, as DSPy does, without its conversation.
            modules_to_serialize: As in DSPy, with `save_program`.

        Raises:
            ValueCodecError: A field holds a value of a type without written form; nothing is written.
        """
        if save_program:
            blank = self._twin(SessionState())
            dspy.Module.save(
                blank, path, save_program=True, modules_to_serialize=modules_to_serialize
            )
            return
        data = codec.encode(self._state, self._options)
        if holds_learned_state(self.module):
            warnings.warn(
                "session.save() writes the conversation only; this program also holds learned "
                "demos or instructions, which session.module.save(path) keeps.",
                UserWarning,
                stacklevel=2,
            )
        _write_whole(Path(path), data)

    @classmethod
    def load_from(
        cls, source: _Path | Mapping[str, Any], module: dspy.Module, **keywords: Any
    ) -> Session:
        """Return a session that goes on with a saved conversation.

        Args:
            source: A file that `save` wrote (or the published dspy-session 0.1), or the dict that
                `save_state` returned.
            module: The program to go on with; its weights are not touched.
            **keywords: As in `Session(...)`; they beat what the file says.

        Raises:
            FormatError: The source is corrupt, truncated, from the future or of another kind.
            FileNotFoundError: There is no such file.
        """
        if isinstance(source, Mapping):
            state, saved = codec.from_wire(source)
        else:
            state, saved = codec.decode(Path(source).read_bytes())
        chosen = dict(keywords)
        if "input_field_override" in chosen and "history_input_fields" not in chosen:
            chosen["history_input_fields"] = chosen.pop("input_field_override")
        if "initial_history" in chosen:
            messages = _seed_messages(chosen.pop("initial_history"))
            state = msgspec.structs.replace(state, seed=start(messages).seed)
        return cls.from_state(state, module, **{**msgspec.structs.asdict(saved), **chosen})

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_locks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._locks = _Locks()

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """A session on a deep copy of the program, from the same conversation on."""
        twin = self._twin(self._state)
        memo[id(self)] = twin
        twin.module, twin._shared = copy_program(self.module, CopyMode.DEEP), False
        return twin


_LOAD_HINT = (
    "This is a saved conversation, not a program's state. Open it with "
    "Session.load_from(path, module)."
)


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


class _Locks:
    """A session's locks; made anew for every copy."""

    def __init__(self) -> None:
        self.state = threading.Lock()
        self.thread = threading.Lock()
        self.task = asyncio.Lock()


@contextlib.asynccontextmanager
async def _no_lock() -> AsyncIterator[None]:
    yield


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


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is either the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
