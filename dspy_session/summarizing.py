"""The part of a session that keeps long conversations short: how long it is, and when that is much.

What makes a summary is `dspy_session.program.summaries`; what is asked for by hand is in
`dspy_session.asking`. Here a summary is published, and made by itself before a call that would find
the conversation too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import dspy

from dspy_session.chatting import Chatting
from dspy_session.core.state import SessionState
from dspy_session.core.tokens import summary_due, token_count
from dspy_session.core.writes import instruct
from dspy_session.program.course import told_in
from dspy_session.program.summaries import Summary, plan_summary

__all__ = ["Summarizing"]


class Summarizing(Chatting):
    """The part of a session that watches its length; made by `Session`, not by hand."""

    def token_count(self) -> int:
        """Return about how many tokens the next call will be shown of the conversation.

        That is the seed, the turns that the options show, and the session's instructions; not what
        the program says itself, nor what the adapter writes around it. It is counted by the
        session's `token_counter`. Without one it is an estimate by length, at as many tokens per
        character as the language models of the latest turns reported, or a quarter.
        """
        return token_count(self._told_state(), self._options, self._attached.token_counter)

    def _told_state(self) -> SessionState:
        """The conversation under the instructions of the next call."""
        state, given = self.state, self._attached.instructions
        if given is None:
            return state
        return instruct(state, told_in(state, state.data, self.module, self._options, given))

    def _planned(self, summarizer: dspy.Module | None, keep: int | None) -> Summary | None:
        attached = self._attached
        return plan_summary(
            self.state,
            self.module,
            self._options,
            attached.summarizer if summarizer is None else summarizer,
            keep,
            attached.message_fields,
        )

    def _summarized(self, plan: Summary, returned: Any) -> SessionState | None:
        """Publish a summary; return the conversation as it was, or None if it came too late."""

        def publish(state: SessionState) -> tuple[SessionState | None, SessionState]:
            after = plan.put_into(state, returned)
            return (None, state) if after is None else (state, after)

        return self._move(publish)

    async def _asummarized(self, plan: Summary) -> SessionState | None:
        made = await plan.amake()
        return await self._waited_for(lambda: self._summarized(plan, made))

    # --- by itself, before a call -----------------------------------------------------------------

    @property
    def _is_limited(self) -> bool:
        options = self._options
        return not (options.summarize_after_turns is options.summarize_after_tokens is None)

    def _due(self, kwargs: Mapping[str, Any], at: int | None, trial: bool) -> Summary | None:
        """The summary to make before a call; one that leaves the conversation alone needs none."""
        options = self._options
        if not self._is_limited or trial or at is not None or options.history_field in kwargs:
            return None
        if not summary_due(self._told_state(), options, self._attached.token_counter):
            return None
        return self._planned(None, None)

    def _make_room(self, kwargs: Mapping[str, Any], at: int | None, trial: bool) -> None:
        """Summarise the conversation if it is too long for a call that comes."""
        plan = self._due(kwargs, at, trial)
        if plan is not None:
            self._summarized(plan, plan.make())

    async def _amake_room(self, kwargs: Mapping[str, Any], at: int | None, trial: bool) -> None:
        """As `_make_room`, for awaited calls."""
        plan = self._due(kwargs, at, trial)
        if plan is not None:
            await self._asummarized(plan)

    def _with_room(
        self,
        hold: Callable[[], contextlib.AbstractContextManager[object]],
        kwargs: Mapping[str, Any],
        trial: bool,
    ) -> Callable[[], contextlib.AbstractContextManager[object]]:
        """Make room once a stream holds its lock, in the context in which it was asked for."""
        if not self._is_limited:
            return hold
        context = contextvars.copy_context()

        @contextlib.contextmanager
        def held() -> Iterator[None]:
            with hold():
                context.run(self._make_room, kwargs, None, trial)
                yield

        return held

    def _with_room_async(
        self,
        hold: Callable[[], contextlib.AbstractAsyncContextManager[object]],
        kwargs: Mapping[str, Any],
        trial: bool,
    ) -> Callable[[], contextlib.AbstractAsyncContextManager[object]]:
        """As `_with_room`, for streams that are awaited."""
        if not self._is_limited:
            return hold
        context = contextvars.copy_context()

        @contextlib.asynccontextmanager
        async def held() -> AsyncIterator[None]:
            async with hold():
                room = self._amake_room(kwargs, None, trial)
                await asyncio.create_task(room, context=context)
                yield

        return held
