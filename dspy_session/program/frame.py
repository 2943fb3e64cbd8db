"""The running turn: a frozen Frame with a call-local Draft, carried in `dspy.context`.

A custom key of `dspy.context` crosses DSPy's own threads, where a ContextVar of ours would be lost
(`dspy.Parallel`, `batch`, `Evaluate`). The Frame says what the turn is; whatever happens inside the
turn gathers in its Draft and is folded in whole when the turn ends, or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import dspy
import msgspec
from dspy.utils.callback import ACTIVE_CALL_ID
from dspy.utils.usage_tracker import UsageTracker

from dspy_session.core.data import EMPTY_DATA
from dspy_session.core.options import Scope, SessionOptions
from dspy_session.core.profile import Instructions
from dspy_session.core.session_data import SessionData
from dspy_session.core.window import Window
from dspy_session.program.anatomy import owned_predictors, predictors
from dspy_session.program.nested import Nestable, NestedStates
from dspy_session.program.tool_calls import ToolCall
from dspy_session.program.turn_data import TurnData

__all__ = [
    "FRAME_KEY",
    "Draft",
    "Frame",
    "current_frame",
    "frame_of",
    "home_of",
    "owning_frame",
    "running_copy",
]

FRAME_KEY: Final = "dspy_session_frame"


class Draft(UsageTracker):
    """What gathers during one turn: token usage, cost, streamed text, and whose predictors run.

    DSPy finds it in two places. As `settings.usage_tracker` it counts tokens; `dspy.Parallel` would
    hand each worker a copy, whose counts get lost, so a copy of a Draft is the Draft itself. At the
    head of `settings.caller_modules` it receives the log entry of every LM call, and takes the cost
    from it; the entry itself is not kept. `partial` is for a streaming driver: the text of output
    fields that has arrived so far; `beside` holds what agents left beside their outputs, by name,
    and `begun` the histories that they began for themselves. `tool_calls` are those that have
    ended, in that order, if somebody wants to know; `pending_tools` are those that wait for an
    approval, as dicts of `id`, `name` and `arguments`. `failure` is what the turn ends with, though
    an agent took it for a failure of its tool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost: float | None = None
        self.sent = 0
        self.entered = False
        self.partial: dict[str, str] = {}
        self.beside: dict[str, list[Any]] = {}
        self.begun: list[dspy.History] = []
        self.tool_calls: list[ToolCall] = []
        self.pending_tools: list[dict[str, Any]] = []
        self.unrun: set[str | None] = set()  # DSPy's ids of the calls that waited instead
        self.failure: Exception | None = None
        self._spent: set[str] = set()
        self.owned: dict[str, tuple[dspy.Predict, ...]] = {}
        self.history = _CallLog(self)
        self._logged = self._counted = 0
        self._mutex = threading.Lock()

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Count the tokens of one LM call, from any thread."""
        with self._mutex:
            self._counted += 1
            super().add_usage(lm, usage_entry)

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        """Add up what was counted so far; threads that the turn left behind may still count."""
        with self._mutex:
            total: dict[str, dict[str, Any]] = super().get_total_tokens()
            return total

    @property
    def lm_calls(self) -> int:
        """How many LM calls there were so far.

        DSPy's log has each of them. Where that is off (`disable_history`), those that counted
        tokens are known: here, or in a tracker of the program's own, which adds to these.
        """
        with self._mutex:
            return max(self._logged, self._counted, sum(map(len, self.usage_data.values())))

    def add_call(self, entry: Mapping[str, Any]) -> None:
        """Count the log entry of one LM call, from any thread."""
        with self._mutex:
            self._logged += 1
            if not entry.get("usage"):
                return  # a cached answer carries the cost of the call that once made it
            self.sent += _characters(entry)
            if entry.get("cost") is not None:
                self.cost = (self.cost or 0.0) + entry["cost"]

    def spend(self, approval: str) -> bool:
        """Use an approval, which counts for one call; False if it was used."""
        with self._mutex:
            unused = approval not in self._spent
            self._spent.add(approval)
        return unused

    def wait_for(self, call: dict[str, Any]) -> None:
        """Note that a call of a tool waits for approval."""
        with self._mutex:
            self.unrun.add(ACTIVE_CALL_ID.get())
            if call not in self.pending_tools:
                self.pending_tools.append(call)

    def settle(self, id: str) -> None:
        """Note that a call which perhaps waited for approval has it."""
        with self._mutex:
            self.pending_tools = [call for call in self.pending_tools if call["id"] != id]

    def fail(self, error: Exception) -> None:
        """Let the turn end with an error, unless it does so already."""
        with self._mutex:
            self.failure = self.failure or error

    def hand_up(self, parent: UsageTracker | None) -> None:
        """Add what was counted to the tracker around the turn, as `dspy.track_usage` does."""
        if parent is not None:
            with self._mutex:
                for model, entries in self.usage_data.items():
                    parent.usage_data[model].extend(entries)

    @classmethod
    def sum_of(cls, drafts: Iterable[Draft]) -> Draft:
        """Return what was counted in several runs of one turn, all together."""
        total = cls()
        for draft in drafts:
            draft.hand_up(total)
            total._logged += draft.lm_calls
            total.sent += draft.sent
            if draft.cost is not None:
                total.cost = (total.cost or 0.0) + draft.cost
        return total

    def __deepcopy__(self, memo: dict[int, Any]) -> Draft:
        return self


class _CallLog:
    """Stands where DSPy expects a module's list of LM calls; keeps only what is counted of them."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def __len__(self) -> int:
        return 0

    def append(self, entry: Mapping[str, Any]) -> None:
        self._draft.add_call(entry)


def _characters(entry: Mapping[str, Any]) -> int:
    """How many characters the prompt of a logged LM call has; images and the like have none."""
    sent = len(entry.get("prompt") or "")
    for message in entry.get("messages") or ():
        content = message.get("content")
        if isinstance(content, str):
            sent += len(content)
        elif content:
            sent += sum(len(part.get("text") or "") for part in content if isinstance(part, dict))
    return sent


class Frame(msgspec.Struct, frozen=True, eq=False):
    """One running turn.

    Attributes:
        program: The program that runs.
        options: The session's options; `history_field` is the name found in the program.
        window: What the turn sees of the past.
        draft: Where the turn's side results gather.
        nested: The conversations of sessions within the program.
        owner: The session that runs the turn; None for a bare `step`.
        passed: The `dspy.History` handed to the program's own `forward`, or by the caller.
        explicit: Whether the caller passed the history: then it also enters DSPy's trace.
        given: The names of the inputs that the turn was given.
        lm: The LM for this turn, before the predictors' own; None for theirs.
        config: LM settings for every call of this turn.
        trial: Whether an evaluator, an optimizer or a frozen session asks: nothing of it is kept.
        parent: The turn around this one, if any.
        data: The session data, as tools and the program read and write it.
        instructions: What every predictor of the program is told; None for nothing.
        request: What else came with the call, read-only.
        approver: Says whether a tool that needs approval may run; None if nobody was named.
        approvals: The calls of such tools that were approved beforehand.
    """

    program: dspy.Module
    options: SessionOptions
    window: Window
    draft: Draft
    nested: NestedStates
    owner: object | None = None
    passed: dspy.History | None = None
    explicit: bool = False
    given: frozenset[str] = frozenset()
    lm: dspy.BaseLM | None = None
    config: Mapping[str, Any] = {}
    trial: bool = False
    parent: Frame | None = None
    data: TurnData = msgspec.field(default_factory=lambda: TurnData(EMPTY_DATA))
    instructions: Instructions | None = None
    request: Mapping[str, Any] = EMPTY_DATA
    approver: Callable[..., Any] | None = None
    approvals: frozenset[str] = frozenset()

    @property
    def session_data(self) -> SessionData:
        """The session data, as tools and the program see it."""
        return SessionData.over(self.data, self.options.private_data)

    def owned(self, caller: Any) -> tuple[dspy.Predict, ...]:
        """Return the program's predictors that `caller` is, or is a copy of; none for others.

        Args:
            caller: The module that makes an LM call.
        """
        if not isinstance(caller, dspy.Predict):
            return ()
        known = self.draft.owned
        if caller.stage not in known:
            known[caller.stage] = owned_predictors(self.program, caller.stage)
        return known[caller.stage]

    def shows_to(self, caller: Any) -> bool:
        """Whether the turn's conversation is for a module that makes an LM call.

        Args:
            caller: The module.
        """
        everybody = self.options.scope is Scope.ALL
        return bool(self.owned(caller)) or (everybody and isinstance(caller, dspy.Predict))


def current_frame() -> Frame | None:
    """Return the innermost running turn of this thread or task, or None."""
    frame: Frame | None = dspy.settings.get(FRAME_KEY)
    return frame


def owning_frame(caller: Any) -> Frame | None:
    """Return the innermost running turn whose conversation a module is to be shown, or None.

    Args:
        caller: The module that makes an LM call: a predictor of the turn's program, or a copy of
            one; with `scope="all"` any predictor.
    """
    frame = current_frame()
    while frame is not None and not frame.shows_to(caller):
        frame = frame.parent
    return frame


def frame_of(owner: object) -> Frame | None:
    """Return the running turn of a session in this thread or task, or None.

    Args:
        owner: The session.
    """
    frame = current_frame()
    while frame is not None and frame.owner is not owner:
        frame = frame.parent
    return frame


def running_copy(program: dspy.Module) -> Frame | None:
    """Return the innermost running turn whose program this one is a copy of, or None.

    Args:
        program: A module; the parts of a running program count as copies too.
    """
    first = next((predictor for _, predictor in predictors(program)), None)
    frame = current_frame()
    while frame is not None and not frame.owned(first):
        frame = frame.parent
    return frame


def home_of(session: Nestable) -> NestedStates | None:
    """Return where a session's conversation lives now: in the outermost turn whose program has it.

    Args:
        session: The session.

    Returns:
        None if there is no such turn, so that it lives in the session itself.
    """
    home, frame = None, current_frame()
    while frame is not None:
        if frame.nested.holds(session):
            home = frame.nested
        frame = frame.parent
    return home
