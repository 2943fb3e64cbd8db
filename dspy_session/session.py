"""The everyday face: a `dspy.Module` that holds a conversation with the program inside it.

A session is a `Conversation` (state and moves) and a `Branch` (the program). Its parts build on one
another: `Chatting`, `Summarizing`, `Calls`, `Asking`, `Using`, `Saving`, `Looking`, in modules
of these names. Here is the rest: how a session is made, set up, forked and loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import dspy
import msgspec

from dspy_session import codec
from dspy_session.attached import Attached, InstructionsOf
from dspy_session.branch import Branch
from dspy_session.conversation import Conversation
from dspy_session.core.chat import ChatFields
from dspy_session.core.data import Data, as_data
from dspy_session.core.options import CopyMode, Lock, SessionOptions, make_options
from dspy_session.core.profile import Instructions, Profile, as_instructions
from dspy_session.core.session_data import SessionData
from dspy_session.core.state import SessionState, start, with_id
from dspy_session.core.tokens import TokenCounter
from dspy_session.core.transitions import rewind, truncate
from dspy_session.core.turn import Turn
from dspy_session.core.writes import describe, instruct, replace_data
from dspy_session.errors import CallError, FormatError, HistoryError, MessageError, OptionError
from dspy_session.files import AnyPath, read_conversation
from dspy_session.journal.keeping import Journal
from dspy_session.locks import Locks
from dspy_session.looking import Looking
from dspy_session.program import run as program_run
from dspy_session.program.anatomy import check_module, copy_program
from dspy_session.program.approvals import Approver
from dspy_session.program.chat_fields import chat_fields
from dspy_session.program.evaluating import evaluating
from dspy_session.program.hooks import NO_HOOKS, Hooks
from dspy_session.program.slot import history_slot, refuse_conflicts
from dspy_session.program.types import program_codecs

__all__ = ["OnTurn", "Session", "sessionify"]

OnTurn = Callable[["Session", Turn], Any]
"""Called with the session and the new turn after a turn was recorded, outside any lock."""


class _Session(Looking):
    """All that a session is; `Session` is short, for optimizers paste its source into prompts."""

    def __init__(
        self,
        module: dspy.Module,
        *,
        initial_history: dspy.History | None = None,
        messages: Iterable[Mapping[str, Any]] | None = None,
        session_id: str | None = None,
        instructions: str | Instructions | InstructionsOf | None = None,
        data: Mapping[str, Any] | SessionData | Data | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_turn: OnTurn | None = None,
        hooks: Hooks | None = None,
        approver: Approver | None = None,
        summarizer: dspy.Module | None = None,
        token_counter: TokenCounter | None = None,
        message_fields: Mapping[str, str] | ChatFields | None = None,
        **options: Any,
    ) -> None:
        chosen = make_options(options)
        check_module(module)
        if isinstance(module, Session):
            raise CallError("The program is a Session already; use session.fork() for another.")
        told = None if callable(instructions) else as_instructions(instructions)
        settled = _settled(module, chosen)
        self._attached = Attached(
            on_turn=on_turn,
            hooks=NO_HOOKS if hooks is None else hooks,
            approver=approver,
            instructions=instructions if callable(instructions) else None,
            summarizer=summarizer,
            token_counter=token_counter,
            message_fields=(
                None if message_fields is None else chat_fields(module, settled, message_fields)
            ),
        )
        limit = chosen.max_data_bytes
        state = start(
            _seed_messages(initial_history),
            id=program_run.new_id() if session_id is None else session_id,
            data=as_data(data, limit),
            profile=Profile(instructions=told, metadata=as_data(metadata, limit)),
        )
        Branch.__init__(self, copy_program(module, chosen.copy_mode))
        Conversation.__init__(self, state, settled)
        self._chosen, self._attempts = chosen, ()
        self._records = True if evaluating() else None  # made in a trial, it is that trial's own
        if messages is not None:
            before = self._state
            self.add_messages(messages)
            if self._state is before:
                raise MessageError("messages= holds no message; leave it out to begin empty.")

    @classmethod
    def from_state(cls, state: SessionState, module: dspy.Module, **keywords: Any) -> Self:
        """Return a session that goes on from a state.

        Args:
            state: Any state, for example of `step` or of another session.
            module: The program to go on with.
            **keywords: As in `sessionify`; `session_id`, `instructions` and `data` stand in for
                those of the state, and `metadata` is merged into its own. What was said is the
                state's: `initial_history` and `messages` are refused.

        Raises:
            CallError: `state` is not a `SessionState`, or what was said was given.

        Example:
            >>> state = start([{"question": "Hi", "answer": "Hello."}])
            >>> session = Session.from_state(state, dspy.Predict("question -> answer"))
            >>> len(session.session_history.messages)
            1
        """
        if not isinstance(state, SessionState):
            raise CallError(f"state must be a SessionState, not {type(state).__name__}.")
        for name in ("initial_history", "messages"):
            if keywords.get(name) is not None:
                raise CallError(f"{name} is part of the state; start the state with it instead.")
        session = cls(module, **keywords)
        state = session._taking_over(keywords)(state)
        session._state, session._began_with = state, state.data
        return session

    def _taking_over(self, keywords: Mapping[str, Any]) -> Callable[[SessionState], SessionState]:
        """What the keywords that a session was made with change of a state that it takes over."""
        given, options = self._state, self._options

        def taken_over(state: SessionState) -> SessionState:
            if keywords.get("session_id") is not None or state.id is None:
                state = with_id(state, given.id)
            if keywords.get("instructions") is not None:
                state = instruct(state, given.instructions)
            if keywords.get("data") is not None:
                state = replace_data(state, given.data)
            state = describe(state, given.metadata)
            return truncate(state, options.max_stored_turns)

        return taken_over

    @classmethod
    def kept(cls, journal: Journal, module: dspy.Module, **keywords: Any) -> Self:
        """Return a session that is kept in a store; `SessionManager` makes them.

        Args:
            journal: Binds it to its place there.
            module: The program to go on with.
            **keywords: As in `from_state`, without `session_id`.

        Raises:
            CallError: As in `from_state`.
            StoreError: What the keywords change could not be stored.
        """
        session = cls(module, **keywords)
        changed = session._taking_over(keywords)
        session._state, session._journal = journal.held.state, journal
        session._began_with = session._state.data
        session._move(lambda state: (None, changed(state)))
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
        return self._attached.on_turn

    @property
    def hooks(self) -> Hooks:
        """What runs around each turn."""
        return self._attached.hooks

    @property
    def instructions(self) -> Instructions | InstructionsOf | None:
        """What every predictor of the program is told beside its own instructions; see `Session`.

        Set them to go on under others; None for none.
        """
        return self._attached.instructions or self.state.instructions

    @instructions.setter
    def instructions(self, given: str | Instructions | InstructionsOf | None) -> None:
        made = given if callable(given) else None
        told = None if callable(given) else as_instructions(given)
        self._move(lambda state: (None, instruct(state, told)))
        self._attached = msgspec.structs.replace(self._attached, instructions=made)

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

    def fork(self, at: int | None = None, *, session_id: str | None = None) -> Self:
        """Return a session that goes its own way from here, or from an earlier turn.

        It shares the program and everything recorded so far, and costs the same at any length. The
        fork of a session in a store is in that store too.

        Args:
            at: Keep only turns with lower indices; None keeps all, and what can be redone.
            session_id: The new session's id; None makes one.

        Raises:
            TurnIndexError: There is no such turn.
            OptionError: `session_id` is empty, too long, or holds control characters.
            SessionExistsError: The store has a session of that id.
            ConflictError: It was deleted from its store.
        """
        state = self.state
        if at is not None and at != state.stop:
            state = rewind(state, at, redoable=False)
        id = program_run.new_id() if session_id is None else session_id
        journal = None if self._journal is None or evaluating() else self._journal.fork(state, id)
        twin = self._twin(with_id(state, id) if journal is None else journal.held.state)
        twin._journal, twin._records = journal, True if evaluating() else None
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
        twin._journal = None
        twin._began_with = state.data
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
        if self._journal is not None:
            self._journal.use_codecs(program_codecs(self.module))

    # --- loading ----------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], module: dspy.Module, /, **keywords: Any) -> Self:
        """Return a session that goes on with what `to_dict` or `save_state` returned.

        Args:
            saved: The dict.
            module: The program to go on with.
            **keywords: As for `load_from`.

        Raises:
            FormatError: As for `load_from`.
            ModuleTypeError: As for `load_from`.
        """
        if not isinstance(saved, Mapping):
            raise FormatError(
                f"Expected a dict that to_dict() returned, not {type(saved).__name__}. Files are "
                "loaded with Session.load_from(path, module)."
            )
        return cls.load_from(saved, module, **keywords)

    @classmethod
    def load_from(
        cls, source: AnyPath | Mapping[str, Any], module: dspy.Module, **keywords: Any
    ) -> Self:
        """Return a session that goes on with a saved conversation.

        Args:
            source: A file that `save` wrote (or the published dspy-session 0.1), or the dict that
                `save_state` returned.
            module: The program to go on with; its weights are not touched.
            **keywords: As in `sessionify`; they beat what the file says.

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A session on a deep copy of the program, from the same conversation on."""
        twin = memo[id(self)] = self._twin(self.state)
        twin._set_program(copy_program(self.module, CopyMode.DEEP))
        return twin


class Session(_Session):
    """A DSPy program in a conversation; make one with `sessionify(program, ...)`.

    Call it as you call the program. What it can be given is said at `sessionify`.

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


def sessionify(module: dspy.Module, **keywords: Any) -> Session:
    """Give any DSPy program a conversation.

    Args:
        module: Any DSPy program; it is not changed.
        **keywords: See below.

    Keyword Args:
        initial_history: A `dspy.History` that the model sees before the first turn. It is not
            counted among the turns and survives `reset()`.
        messages: A conversation in OpenAI's chat shape to begin with, as turns; a system message
            becomes the instructions. What is not answered yet waits, see `add_message`.
        session_id: The session's id; None makes one.
        instructions: What every predictor of the program is told after its own instructions, or in
            front of them: `Instructions(text, "before")`. Or a function from the state to either.
        data: Session data to begin with.
        metadata: What the application notes about the session.
        on_turn: Called as `on_turn(session, turn)` after each recorded turn. An error in it is
            logged and never breaks the call. Forks share it.
        hooks: What runs around each turn, see `Hooks`. Forks share them.
        approver: Asked whether a tool that needs approval may run, see `session_tool`.
        summarizer: The program that summarises the conversation, see `summarize`.
        token_counter: From a text to its number of tokens; None estimates it.
        message_fields: Which input and output a chat message's text is, as
            `{"user": "request", "assistant": "reply"}`; what is left out is the program's only one.
        **options: The fields of `SessionOptions`, and `input_field_override`, an alias.

    Returns:
        A session: call it as you call the program, and it remembers.

    Raises:
        ModuleTypeError: `module` is not a `dspy.Module`.
        OptionError: An option is unknown or has a wrong value.
        HistoryError: The program cannot take a history under `history_field`.
        DataError: JSON cannot hold `data` or `metadata`.
        MessageError: `messages` make no conversation.

    Example:
        >>> sessionify(dspy.ChainOfThought("question -> answer"), max_turns=10)
        Session(ChainOfThought, turns=0, history_field='history')
    """
    return Session(module, **keywords)


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
