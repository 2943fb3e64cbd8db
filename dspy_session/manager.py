"""Sessions that survive: one program, any number of conversations, kept in a store.

    manager = SessionManager(program, "sqlite:///chats.db")
    session = manager.open("ada")                # made, or loaded
    session(question="Where were we?")           # stored when the call returns

A session from here is a `Session` that is durable change by change. All sessions of a manager share
one program, as forks do; what belongs to a conversation is in the store.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import dspy
import msgspec

from dspy_session import codec
from dspy_session.awaiting import in_thread
from dspy_session.core.data import as_data
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, with_id
from dspy_session.core.transitions import rewind
from dspy_session.errors import (
    CallError,
    ConflictError,
    OptionError,
    SessionExistsError,
    SessionNotFoundError,
)
from dspy_session.files import AnyPath, read_conversation
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.keeping import Journal, OnConflict, as_on_conflict
from dspy_session.journal.sealing import Key, Seal
from dspy_session.maintaining import Maintaining
from dspy_session.manager_config import read_config
from dspy_session.program.run import new_id
from dspy_session.program.types import program_codecs
from dspy_session.recipes import Recipe
from dspy_session.session import Session
from dspy_session.stores.base import Store
from dspy_session.stores.opening import StoreLike, open_store
from dspy_session.templates import SessionTemplate

__all__ = ["SessionManager"]


class SessionManager(Maintaining):
    """Keeps the conversations of one program in a store: makes, opens, lists, finds, deletes them.

    Any thread may use it at any time, and so may other processes use the same store. What a method
    does, its twin with an `a` before its name does when awaited: `await manager.aopen("ada")`.

    Args:
        program: Any DSPy program. It is copied as `copy_mode` says, once for all sessions.
        store: The URL of a store, such as `"sqlite:///chats.db"`, `"postgresql://..."`,
            `"redis://..."` or `"memory:"`; or anything else that `open_store` takes.
        on_conflict: What becomes of a change to a session that somebody else wrote meanwhile:
            `"raise"` (a `ConflictError` that has the finished turn), `"retry"` (it comes after what
            was written) or `"branch"` (it goes on as a session of its own).
        autosave: Whether each change is stored at once; otherwise `save_session` does it.
        key: Encrypts what is stored; `new_secret()` makes one.
        old_keys: Keys that stored sessions may have, too; None stands for no encryption.
        compress_over: From how many bytes on a turn is compressed; None for never.
        max_session_size: How many bytes a session may have, as it was stored last. When it has as
            many, a call is refused before a model is asked. None for any number.
        read_turns: How many of the newest turns are read when a session is opened; the others are
            read when somebody looks. None for those that the model is shown.
        **keywords: What every session has, as for `sessionify`.

    Raises:
        OptionError: One of them is not what it has to be.
        ModuleTypeError: `program` is not a `dspy.Module`.
        StoreError: The store cannot be opened.

    Example:
        >>> from dspy_session.testing import scripted_lm
        >>> manager = SessionManager(dspy.Predict("question -> answer"), "memory:")
        >>> with dspy.context(lm=scripted_lm()):
        ...     prediction = manager.open("ada")(question="Hi")
        >>> len(manager.open("ada"))
        1
    """

    def __init__(
        self,
        program: dspy.Module,
        store: StoreLike,
        *,
        on_conflict: OnConflict | str = OnConflict.RAISE,
        autosave: bool = True,
        key: Key | None = None,
        old_keys: Sequence[Key | None] = (),
        compress_over: int | None = 4096,
        max_session_size: int | None = None,
        read_turns: int | None = None,
        **keywords: Any,
    ) -> None:
        self._on_conflict, self._autosave = as_on_conflict(on_conflict), _bool(autosave)
        self._max_bytes = _limit("max_session_size", max_session_size)
        self._read_turns = _limit("read_turns", read_turns)
        seal = Seal(key=key, old_keys=old_keys, compress_over=compress_over)
        if "session_id" in keywords:
            raise OptionError("Each session has an id of its own: open(session_id) takes it.")
        keywords = _as_they_are(keywords)
        pattern = Session(program, **keywords)
        self.program, self._keywords = pattern.module, keywords
        self._options, self._fields = pattern.options, pattern._shown_fields()
        self._owns_store = not isinstance(store, Store)
        self._archive = Archive(open_store(store), codecs=program_codecs(program), seal=seal)

    @classmethod
    def from_config(
        cls, program: dspy.Module, config: Mapping[str, Any] | AnyPath, **keywords: Any
    ) -> Self:
        """Return a manager as a configuration says.

        Args:
            program: Any DSPy program.
            config: A mapping that has the table `session`, or the path of a TOML file that has it.
                The table's options: `backend` (`"sqlite"` or `"memory"`) with `storage_path` (a
                folder, which is made; `~` is the user's), or `store` (a URL);
                `connection_pool_size`, `message_cache_size` (how many of the newest messages are
                read when a session is opened), `autosave_interval` (0: `save_session` does it;
                otherwise each change is stored at once), `compress_messages`, `max_session_size`
                (in MB), `on_conflict`.
            **keywords: As for `SessionManager`; they beat the configuration.

        Raises:
            OptionError: An option is unknown or has a value that it cannot have, or the file is no
                TOML file.
            OSError: The file cannot be read, or the folder cannot be made.

        Example:
            >>> config = {"session": {"backend": "memory", "max_session_size": 100}}
            >>> SessionManager.from_config(dspy.Predict("question -> answer"), config)
            SessionManager(Predict, MemoryStore)
        """
        read = read_config(config)
        given = {**read.keywords, **keywords}
        if "store" in given:
            return cls(program, **given)
        store = read.open_store()
        try:
            manager = cls(program, store, **given)
        except BaseException:
            store.close()
            raise
        manager._owns_store = True
        return manager

    # --- making and opening -----------------------------------------------------------------------

    def open(
        self,
        /,
        session_id: str,
        *,
        on_conflict: OnConflict | str | None = None,
        autosave: bool | None = None,
        template: SessionTemplate | None = None,
        **keywords: Any,
    ) -> Session:
        """Return the session of that id, which is made if there is none.

        Each session that is returned stands for itself: two of one id are two writers.

        Args:
            session_id: Its id.
            on_conflict: As for the manager; None for what the manager has.
            autosave: As for the manager; None for what the manager has.
            template: What the session begins with, and its hooks and options; those that are the
                defaults leave the manager's.
            **keywords: The template's arguments, and keywords as for `sessionify`, which beat the
                template's and the manager's. What a session begins with (`data`, `messages`, ...;
                instructions that are text, too) counts when it is made: one that is there has its
                own.

        Raises:
            OptionError: No session can have that id, or a keyword is wrong.
            StoreError: The store cannot be read or written.
        """
        recipe = self._recipe(keywords, template)
        bind = self._binding(recipe.options, on_conflict, autosave)
        while True:
            with contextlib.suppress(SessionNotFoundError):
                held = self._loaded(session_id, recipe)
                break
            state = recipe.first_state(session_id)
            with contextlib.suppress(SessionExistsError):  # somebody made it meanwhile
                held = self._archive.create(session_id, state)
                break
        return recipe.session(bind(held))

    def create_session(
        self,
        /,
        session_id: str,
        branch_from: str | None = None,
        at: int | None = None,
        **keywords: Any,
    ) -> Session:
        """Return a new session, or the one of that id; or one that branches off another.

        A branch shares what was said so far, and costs the same at any length; one that begins far
        back also reads where the turns before it are.

        Args:
            session_id: The session's id.
            branch_from: The id of the session that it is to begin as.
            at: Keep only turns with lower indices of that one; None keeps all.
            **keywords: As for `open`. Of a branch, `data` and `instructions` stand in for those of
                the other session, and `metadata` is merged into its own.

        Raises:
            SessionExistsError: There is a session of that id, and `branch_from` is given.
            SessionNotFoundError: There is none to branch from.
            TurnIndexError: There is no such turn.
            FormatError: A turn that it would begin with is damaged; those from `at` on may be.
            OptionError: As for `open`.
            StoreError: As for `open`.
        """
        if branch_from is None:
            if at is not None:
                raise OptionError("at says where to branch off: give branch_from, too.")
            return self.open(session_id, **keywords)
        if keywords.pop("template", None) is not None:
            raise OptionError(
                "A branch begins as the session that it comes from, not by a template."
            )
        on_conflict, autosave = (keywords.pop(name, None) for name in ("on_conflict", "autosave"))
        recipe = self._recipe(keywords)
        bind = self._binding(recipe.options, on_conflict, autosave)
        while True:
            ref, newest = self._archive.ref(branch_from), self._newest(recipe.options)
            source = self._archive.read(ref, newest, until=at)
            state = source.state
            if at is not None and (type(at) is not int or at != state.stop):
                state = rewind(state, at, redoable=False)
            try:
                held = self._archive.fork(source, session_id, recipe.changed(state), newest)
            except ConflictError:  # the other was written meanwhile, or is gone, or is damaged
                if self._archive.ref(branch_from).version == source.ref.version:
                    raise
            else:
                return recipe.session(bind(held))

    def load_session(
        self,
        /,
        session_id: str,
        *,
        on_conflict: OnConflict | str | None = None,
        autosave: bool | None = None,
        **keywords: Any,
    ) -> Session:
        """Return the session of that id.

        Args:
            session_id: Its id.
            on_conflict: As for `open`.
            autosave: As for `open`.
            **keywords: As for `sessionify`. `data` and `instructions` stand in for those that are
                stored, `metadata` is merged into what is stored, and all that is stored in turn.

        Raises:
            SessionNotFoundError: There is none of that id.
            OptionError: As for `open`.
            StoreError: As for `open`.
        """
        recipe = self._recipe(keywords)
        bind = self._binding(recipe.options, on_conflict, autosave)
        return recipe.session(bind(self._loaded(session_id, recipe)), changed=True)

    # --- storing ----------------------------------------------------------------------------------

    def save_session(self, session: Session) -> None:
        """Store what a session has become and is not stored yet.

        A session that is in no store is stored under its id, and kept from then on.

        Args:
            session: The session.

        Raises:
            CallError: It is no session, one of another store, or a frozen one.
            SessionExistsError: It is in no store, and there is another one of its id.
            ConflictError: Somebody else wrote it meanwhile; as `on_conflict` says.
            ValueCodecError: A field holds a value of a type without written form.
            StoreError: It could not be stored. To try again is safe.
        """
        if not isinstance(session, Session):
            raise CallError(f"save_session takes a session, not {type(session).__name__}.")
        journal = session._journal
        if journal is None:
            if session._records is False:
                raise CallError("A frozen session records nothing; save its fork() instead.")
            store, seal = self._archive.store, self._archive.seal
            codecs = program_codecs(session.module)
            archive = Archive(store, codecs=codecs, seal=seal)
            held = archive.create(session.session_id, session.state)
            session._journal = journal = self._binding(session.options)(held)
            journal.use_codecs(codecs)
        elif journal.archive.store is not self._archive.store:
            raise CallError(
                f"Session {session.session_id!r} is kept in another store. Export it there, and "
                "import it here."
            )
        journal.save(lambda: session._state, session._publish)

    def import_session(
        self,
        source: AnyPath | Mapping[str, Any],
        *,
        session_id: str | None = None,
        overwrite: bool = False,
    ) -> Session:
        """Store a session from a file, all of it or nothing, and return it.

        Args:
            source: A file that `export_session` or `Session.save` wrote, or the dict.
            session_id: Its id here; None for the one that it has.
            overwrite: Whether it takes the place of a session of that id.

        Raises:
            SessionExistsError: There is a session of that id.
            FormatError: The source was altered, is damaged, or is something else.
            OSError: The file cannot be read.
        """
        codecs = self._archive.codecs
        if isinstance(source, Mapping):
            state, _ = codec.from_wire(source, codecs)
        else:
            state, _ = read_conversation(source, codecs)
        id = (state.id or new_id()) if session_id is None else session_id
        recipe, state = self._recipe({}), with_id(state, id)
        bind = self._binding(recipe.options)
        while True:
            try:
                held = self._archive.create(id, state)
                break
            except SessionExistsError:
                if not overwrite:
                    raise
            with contextlib.suppress(SessionNotFoundError, ConflictError):
                there = msgspec.structs.replace(self._archive.ref(id), origin=None)
                blank = Held(SessionState(), there)  # nothing of what is there is built on
                held = self._archive.write(blank, state)
                break
        return recipe.session(bind(held))

    # --- the parts of it --------------------------------------------------------------------------

    def _recipe(
        self, keywords: Mapping[str, Any], template: SessionTemplate | None = None
    ) -> Recipe:
        return Recipe(self.program, self._keywords, keywords, template)

    def _newest(self, options: SessionOptions) -> int | None:
        """How many turns to read at opening."""
        if self._read_turns is not None:
            return self._read_turns
        return None if options.max_turns is None else max(1, options.max_turns)

    def _loaded(self, session_id: str, recipe: Recipe) -> Held:
        return self._archive.load(session_id, self._newest(recipe.options))

    def _binding(
        self,
        options: SessionOptions,
        on_conflict: OnConflict | str | None = None,
        autosave: bool | None = None,
    ) -> Callable[[Held], Journal]:
        """What binds a session with these options to its place in the store."""
        return functools.partial(
            Journal,
            self._archive,
            on_conflict=self._on_conflict if on_conflict is None else as_on_conflict(on_conflict),
            autosave=self._autosave if autosave is None else _bool(autosave),
            newest=self._newest(options),
            max_bytes=self._max_bytes,
        )

    # --- the store --------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the store, if the manager opened it; sessions of it cannot be stored then."""
        if self._owns_store:
            self._archive.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        store = type(self._archive.store).__name__
        return f"SessionManager({type(self.program).__name__}, {store})"

    aopen = in_thread(open)
    acreate_session = in_thread(create_session)
    aload_session = in_thread(load_session)
    asave_session = in_thread(save_session)
    aimport_session = in_thread(import_session)
    aclose = in_thread(close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _as_they_are(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords that are the same for each session, whatever becomes of what was given."""
    kept = dict(keywords)
    for name in ("data", "metadata"):
        if name in kept:
            kept[name] = as_data(kept[name])
    if isinstance(kept.get("messages"), Iterator):
        kept["messages"] = list(kept["messages"])
    return kept


def _bool(autosave: Any) -> bool:
    if not isinstance(autosave, bool):
        raise OptionError(f"autosave must be True or False, not {autosave!r}.")
    return autosave


def _limit(name: str, given: Any) -> int | None:
    if given is not None and (type(given) is not int or given < 1):
        raise OptionError(f"{name} must be a whole number from 1 up, or None, not {given!r}.")
    limit: int | None = given
    return limit
