"""Summaries: a conversation's turns become a seed that tells of them.

Rules:

- Any module that makes a `summary` of a `conversation` will do. It runs as it is: no conversation
  is added to its prompts, and its LM calls are no part of any turn.
- A summariser that fails changes nothing. Nor does one that came too late: when what it read was
  undone, replaced or reset meanwhile. Turns that were recorded meanwhile stay turns.
- What is hidden from prompts is hidden from the summariser. The seed is not: so it also tells what
  an earlier summary did.
"""

from __future__ import annotations

from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.chat import ChatFields
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.transitions import summarized
from dspy_session.core.window import Exchange, Window, seed_exchanges
from dspy_session.errors import CallError, OptionError
from dspy_session.program.anatomy import check_module
from dspy_session.program.asking import lm_of
from dspy_session.program.call_modes import async_call, sync_call
from dspy_session.program.chat_fields import inferred_fields
from dspy_session.program.run import prediction_in
from dspy_session.program.slot import takes_input
from dspy_session.program.transcripts import transcript

__all__ = [
    "SummarizeConversation",
    "Summary",
    "asummarize_state",
    "plan_summary",
    "summarize_state",
]

_INPUT: Final = "conversation"
_OUTPUT: Final = "summary"
_ASKED: Final = "Summary of the conversation so far"


class SummarizeConversation(dspy.Signature):
    """Summarise a conversation, so that it can go on from the summary alone.

    Keep what a reply may still depend on: who the people are and what they want; names, numbers,
    dates, decisions and their reasons; what was tried, promised or refused; what is still open.
    Leave out greetings, repetitions, and what was corrected later. Be brief, and add nothing.
    """

    conversation: str = dspy.InputField(desc="All that was said, oldest first.")
    summary: str = dspy.OutputField(desc="Plain text that stands in the place of the conversation.")


class Summary(msgspec.Struct, frozen=True, eq=False):
    """A summary that is about to be made.

    Attributes:
        state: The conversation.
        stop: The index of the first turn that stays a turn.
        conversation: What is to be summarised, as readable text.
        summarizer: The module that does it.
        fields: Which input and output a chat message is; None if the program does not say.
        hidden: The fields that no prompt shows.
    """

    state: SessionState
    stop: int
    conversation: str
    summarizer: dspy.Module
    fields: ChatFields | None
    hidden: frozenset[str]

    def make(self) -> Any:
        """Call the summariser."""
        return sync_call(self.summarizer)(**{_INPUT: self.conversation})

    async def amake(self) -> Any:
        """Await the summariser."""
        return await async_call(self.summarizer)(**{_INPUT: self.conversation})

    def put_into(self, newest: SessionState, returned: Any) -> SessionState | None:
        """Return the conversation with the summary in the place of what was summarised.

        Args:
            newest: The conversation as it is now.
            returned: What the summariser returned.

        Returns:
            The new state; None if what was summarised is no part of the conversation any more.

        Raises:
            CallError: The summariser returned no text.
        """
        seed = self._seed(_text_in(returned))
        if not self._tells_of(newest):
            return None
        return summarized(newest, seed, newest.stop - self.stop)

    def _seed(self, text: str) -> tuple[Exchange, ...]:
        names = self.fields
        if names is not None and self.hidden.isdisjoint((names.user, names.assistant)):
            return seed_exchanges([{names.user: _ASKED, names.assistant: text}])
        name = _OUTPUT
        while name in self.hidden:
            name += "_"
        return seed_exchanges([{name: text}])

    def _tells_of(self, newest: SessionState) -> bool:
        """Whether the conversation still begins with what was summarised."""
        was, last = self.state, self.stop - 1
        if newest.seed is not was.seed or newest.epoch is not was.epoch or newest.stop < self.stop:
            return False
        # Within an epoch, what has the same turn at one position has the same before it.
        trimmed = last < newest.first
        return trimmed or newest.turn(last).exchange is was.turn(last).exchange


def plan_summary(
    state: SessionState,
    program: dspy.Module,
    options: SessionOptions,
    summarizer: dspy.Module | None = None,
    keep: int | None = None,
    fields: ChatFields | None = None,
) -> Summary | None:
    """Return the summary that is to be made; None if there is nothing to summarise.

    Args:
        state: The conversation.
        program: The program that it is held with.
        options: The session's options.
        summarizer: See `summarize_state`.
        keep: See `summarize_state`.
        fields: Which input and output a chat message is; None if the program says.

    Raises:
        ModuleTypeError: `summarizer` is not a `dspy.Module`.
        CallError: `summarizer` takes no `conversation`.
        OptionError: `keep` is negative or no whole number.
    """
    if summarizer is None:
        summarizer = dspy.Predict(SummarizeConversation)
        summarizer.lm = lm_of(program)
    elif not takes_input(check_module(summarizer, "summarizer"), _INPUT):
        raise CallError(
            f"A summarizer takes the text of the {_INPUT!r} and returns a {_OUTPUT!r}: "
            f'dspy.ChainOfThought("{_INPUT} -> {_OUTPUT}"), for example; '
            f"{type(summarizer).__name__} has no such input."
        )
    keep = options.summarize_keep if keep is None else keep
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
        raise OptionError(f"keep must be a whole number of turns from 0 up, not {keep!r}.")
    if len(state) <= keep:
        return None
    stop = state.stop - keep
    return Summary(
        state,
        stop,
        transcript(_window(state, stop, options)),
        summarizer,
        fields or inferred_fields(program, options),
        options.view.exclude,
    )


def _window(state: SessionState, stop: int, options: SessionOptions) -> Window:
    """The seed and the turns before `stop`, as prompts show them."""
    return Window(
        seed=state.seed,
        log=state.log,
        offset=state.first,
        start=state.first,
        stop=stop,
        epoch=state.epoch,
        view=options.view,
    )


def _text_in(returned: Any) -> str:
    prediction = prediction_in(returned)
    text = prediction.get(_OUTPUT) if isinstance(prediction, dspy.Example) else prediction
    if isinstance(text, str) and text.strip():
        return str(text)
    raise CallError(
        f"A summarizer must return a prediction with the text of a {_OUTPUT!r}, or that text, "
        f"not {returned!r}. The conversation is as it was."
    )


def summarize_state(
    state: SessionState,
    module: dspy.Module,
    options: SessionOptions | None = None,
    *,
    summarizer: dspy.Module | None = None,
    keep: int | None = None,
) -> SessionState:
    """Summarise a conversation into a fresh start: what servers use beside `step`.

    The turns become a seed, which the model sees in their place. Session data, metadata,
    instructions and id stay; `state.earlier` ends with the conversation as it was.

    Args:
        state: The conversation.
        module: The program that it is held with; it is not called.
        options: How the session behaves; the defaults if None.
        summarizer: Any module that takes `conversation`, text, and returns a `summary`; None for a
            `dspy.Predict` on `SummarizeConversation`, with the LM of the program's first predictor.
        keep: How many of the newest turns stay turns; None for `options.summarize_keep`.

    Returns:
        The new state; the same one if there is nothing to summarise.

    Raises:
        SessionError: What was given cannot be it, or the summariser returned no text.
        Exception: Whatever the summariser raises. The state is as it was.

    Example:
        >>> from dspy_session import step
        >>> from dspy_session.testing import scripted_lm
        >>> program = dspy.Predict("question -> answer")
        >>> lm = scripted_lm(lambda prompt: {"answer": "Hello.", "summary": "A greeting."})
        >>> with dspy.context(lm=lm):
        ...     _, state = step(SessionState(), program, {"question": "Hi"})
        ...     shorter = summarize_state(state, program)
        >>> len(shorter), shorter.seed[0].outputs["answer"], len(shorter.earlier[-1])
        (0, 'A greeting.', 1)
    """
    plan = _checked_plan(state, module, options, summarizer, keep)
    return state if plan is None else _result(plan, plan.make())


async def asummarize_state(
    state: SessionState,
    module: dspy.Module,
    options: SessionOptions | None = None,
    *,
    summarizer: dspy.Module | None = None,
    keep: int | None = None,
) -> SessionState:
    """As `summarize_state`, for async code.

    Args:
        state: As in `summarize_state`.
        module: As in `summarize_state`.
        options: As in `summarize_state`.
        summarizer: As in `summarize_state`.
        keep: As in `summarize_state`.

    Returns:
        As `summarize_state`.

    Raises:
        SessionError: As `summarize_state`.
        Exception: As `summarize_state`; also `asyncio.CancelledError`. The state is as it was.
    """
    plan = _checked_plan(state, module, options, summarizer, keep)
    return state if plan is None else _result(plan, await plan.amake())


def _checked_plan(
    state: SessionState,
    module: dspy.Module,
    options: SessionOptions | None,
    summarizer: dspy.Module | None,
    keep: int | None,
) -> Summary | None:
    if not isinstance(state, SessionState):
        raise CallError(f"state must be a SessionState, not {type(state).__name__}.")
    if not isinstance(options, SessionOptions | None):
        raise CallError(f"options must be SessionOptions, not {type(options).__name__}.")
    return plan_summary(state, check_module(module), options or SessionOptions(), summarizer, keep)


def _result(plan: Summary, returned: Any) -> SessionState:
    after = plan.put_into(plan.state, returned)
    assert after is not None  # it is the very state that was summarised
    return after
