"""A recorded turn: what went in, what came out, what the call saw, how the run went. An attempt.

Rules:

- A turn never changes; scoring or editing makes a new one.
- What goes along with a conversation without being shown stands *beside* its turns, as of the
  beginning and the end of each: session data, the conversations of the sessions within the program,
  and chat messages that wait to become a turn.
- `turn.index` is the turn's absolute position in the conversation and survives trimming.
- What is handed out (`inputs`, `outputs`, `details`, `usage`, the snapshot) is a copy.
- A call that failed or was cancelled is an `Attempt`: no turn, in no prompt, in no example.

This module does not know where ids, times and costs come from: they arrive in a `Run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dspy_session.core.copies import private_copy
from dspy_session.core.data import EMPTY_DATA, Data
from dspy_session.core.window import Exchange, Window

if TYPE_CHECKING:  # the two types contain each other
    from dspy_session.core.state import SessionState

__all__ = ["PENDING_TOOL_CALLS", "Attempt", "Beside", "Run", "Turn"]

PENDING_TOOL_CALLS: Final = "pending_tool_calls"
"""The run detail that lists the tool calls which wait for an approval."""


class Run(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):  # no cycles: plain values
    """How the run behind a turn went; all of it is empty for a turn added by hand.

    Attributes:
        id: The turn's unique id.
        time: When the call began, in seconds since the epoch (UTC).
        duration: How long the program ran, in seconds.
        usage: Tokens (and whatever else the provider counts) by model name; cached answers count
            nothing.
        cost: What the calls cost, in US dollars; None when no call said.
        fingerprint: A digest of the program's predictors: signatures and demos.
        request_id: The caller's own name for the request, if the call brought one.
        lm_calls: How many calls of a language model it took.
        sent: How many characters the prompts had of those calls that reported usage.
        plain: Whether the program returned a plain value: it is the output named `output`.
    """

    id: str = ""
    time: float | None = None
    duration: float | None = None
    usage: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    cost: float | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    lm_calls: int = 0
    sent: int = 0
    plain: bool = False


class Beside(msgspec.Struct, frozen=True, eq=False):
    """What stands beside the turns of a conversation, at one moment of it.

    Turns that begin or end with the same things beside them share one.

    Attributes:
        states: The conversations of the sessions within the program, by module path; read `nested`
            instead.
        data: The session data.
        pending: Chat messages that wait to become a turn, as they came.
    """

    states: Mapping[str, SessionState] = {}
    data: Data = EMPTY_DATA
    pending: tuple[Mapping[str, Any], ...] = ()

    @property
    def nested(self) -> Mapping[str, SessionState]:
        """The conversations of the sessions within the program, by module path."""
        return MappingProxyType(self.states)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing stands here."""
        return not (self.states or self.data or self.pending)

    def replace(
        self,
        *,
        nested: Mapping[str, SessionState] | None = None,
        data: Data | None = None,
        pending: tuple[Mapping[str, Any], ...] | None = None,
    ) -> Beside:
        """Return this with some parts replaced; None leaves a part as it is.

        Args:
            nested: States by module path; those of other paths stay.
            data: The session data.
            pending: The messages that wait.
        """
        if data is self.data:
            data = None
        if pending is not None and not (pending or self.pending):
            pending = None
        if not nested and data is None and pending is None:
            return self
        return Beside(
            states={**self.states, **nested} if nested else self.states,
            data=self.data if data is None else data,
            pending=self.pending if pending is None else pending,
        )

    def same_as(self, other: Beside, known: Known) -> bool:
        """Whether both hold the same data and messages, and equal states under the same paths.

        Args:
            other: What to compare with.
            known: See `Turn.same_as`.
        """
        return self is other or (
            self.data == other.data
            and self.pending == other.pending
            and self.states.keys() == other.states.keys()
            and all(state.same_as(other.states[path], known) for path, state in self.states.items())
        )


NOTHING_BESIDE: Final = Beside()

Known = set[tuple[int, int]]
"""Pairs of turns, by address, that a comparison under way has already looked at."""


class Turn(msgspec.Struct, frozen=True, eq=False, weakref=True, kw_only=True):
    """One exchange of a conversation, as it was recorded.

    Two turns are equal when everything they show is equal.

    Attributes:
        index: Absolute position in the conversation, counted from 0; survives trimming.
        exchange: The private inputs and outputs; read `inputs` and `outputs` instead.
        window: What the call saw of the past; read `history_snapshot` instead.
        run: Id, time, duration, usage, cost and fingerprint.
        score: The last score given, if any.
        feedback: What the metric said beside the score, if it did.
        before: What stood beside the conversation when the turn began; read `data_before` instead.
        beside: What stood there when it had ended; read `nested` and `data` instead.
    """

    index: int
    exchange: Exchange
    window: Window
    run: Run = Run()
    score: float | None = None
    feedback: str | None = None
    before: Beside = NOTHING_BESIDE
    beside: Beside = NOTHING_BESIDE

    @property
    def inputs(self) -> dict[str, Any]:
        """A copy of what the program was called with, without the history, in written order."""
        return self.exchange.inputs

    @property
    def outputs(self) -> dict[str, Any]:
        """A copy of what the program returned; a plain return is under `"output"`."""
        return self.exchange.outputs

    @property
    def details(self) -> dict[str, Any]:
        """A copy of what the run left beside its outputs, such as an agent's `trajectory`."""
        return self.exchange.details

    @property
    def erased(self) -> bool:
        """Whether its content was erased in a store: it has no fields, and no prompt shows it."""
        return self.exchange.erased

    @property
    def nested(self) -> Mapping[str, SessionState]:
        """The conversations of the sessions within the program as this turn left them, by path."""
        return self.beside.nested

    @property
    def data(self) -> Data:
        """The session data as this turn left it."""
        return self.beside.data

    @property
    def data_before(self) -> Data:
        """The session data as this turn found it."""
        return self.before.data

    @property
    def pending_tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls that wait for somebody's approval: dicts of `id`, `name`, `arguments`."""
        waiting: list[dict[str, Any]] = self.exchange.details.get(PENDING_TOOL_CALLS, [])
        return waiting

    @property
    def history_snapshot(self) -> Any:
        """The `dspy.History` that this call saw, whatever happened since."""
        return self.window.history()

    @property
    def lm_calls(self) -> int:
        """How many calls of a language model the turn took; 0 for a turn added by hand."""
        return self.run.lm_calls

    @property
    def id(self) -> str:
        """The turn's unique id."""
        return self.run.id

    @property
    def time(self) -> float | None:
        """When the call began, in seconds since the epoch (UTC); None for a turn added by hand."""
        return self.run.time

    @property
    def duration(self) -> float | None:
        """How long the program ran, in seconds; None for a turn added by hand."""
        return self.run.duration

    @property
    def usage(self) -> dict[str, dict[str, Any]]:
        """Tokens by model name, as DSPy counts them; empty when all answers came from a cache."""
        return {model: private_copy(dict(counts)) for model, counts in self.run.usage}

    @property
    def cost(self) -> float | None:
        """What the turn's LM calls cost, in US dollars; None when no call said."""
        return self.run.cost

    @property
    def fingerprint(self) -> str | None:
        """A digest of the program's signatures and demos at the time of the call."""
        return self.run.fingerprint

    @property
    def request_id(self) -> str | None:
        """The caller's own name for the request, if the call brought one."""
        return self.run.request_id

    def answers(self, request_id: str) -> bool:
        """Whether this is the answer to a request; one that was erased is none any more.

        Args:
            request_id: The caller's own name for the request.
        """
        return self.run.request_id == request_id and not self.erased

    def same_as(self, other: Turn, known: Known) -> bool:
        """Whether both turns show equal things, the states beside them included.

        Args:
            other: What to compare with.
            known: Pairs that need no second look, for nested states share most of their turns. An
                unequal pair ends the whole comparison, so whatever is in here has not been one.
        """
        pair = (id(self), id(other))
        if self is other or pair in known:
            return True
        known.add(pair)
        return (
            self.index == other.index
            and self.score == other.score
            and self.feedback == other.feedback
            and self.run == other.run
            and self.exchange.same_as(other.exchange)
            and self.window.same_as(other.window)
            and self.before.same_as(other.before, known)
            and self.beside.same_as(other.beside, known)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Turn):
            return NotImplemented
        return self.same_as(other, set())

    def __ne__(self, other: object) -> bool:
        return not self == other  # the one that msgspec brings compares identities

    def __hash__(self) -> int:
        return hash((self.index, self.run.id))

    def __copy__(self) -> Turn:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Turn:
        return self

    def __repr__(self) -> str:
        return (
            f"Turn(index={self.index}, inputs={self.inputs!r}, outputs={self.outputs!r}, "
            f"history_snapshot={self._snapshot_repr()}, score={self.score!r})"
        )

    def _snapshot_repr(self) -> str:
        return f"History(messages={self.window.messages()!r})"


class Attempt(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A call that ended without a turn: it failed, or it was cancelled.

    Attributes:
        exchange: The private inputs, and as outputs the text that had arrived; read `inputs` and
            `partial` instead.
        window: What the call saw of the past; read `history_snapshot` instead.
        run: Id, time, duration, usage, cost and fingerprint, as of a turn.
        cancelled: Whether the caller gave it up: a cancelled task, an abandoned stream, Ctrl-C.
        error: What ended it, as text: the exception's type and message.
    """

    exchange: Exchange
    window: Window
    run: Run = Run()
    cancelled: bool = False
    error: str = ""

    @property
    def status(self) -> str:
        """`"failed"` or `"cancelled"`."""
        return "cancelled" if self.cancelled else "failed"

    @property
    def inputs(self) -> dict[str, Any]:
        """A copy of what the program was called with, without the history."""
        return self.exchange.inputs

    @property
    def partial(self) -> dict[str, str]:
        """The text of the output fields that had arrived; only a stream has any."""
        return self.exchange.outputs

    @property
    def history_snapshot(self) -> Any:
        """The `dspy.History` that the call saw."""
        return self.window.history()

    def __repr__(self) -> str:
        return (
            f"Attempt(status={self.status!r}, error={self.error!r}, inputs={self.inputs!r}, "
            f"partial={self.partial!r})"
        )


def usage_pairs(usage: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a copy of `usage` in the compact form that `Run` keeps."""
    return tuple((m, tuple(private_copy(dict(counts)).items())) for m, counts in usage.items())
