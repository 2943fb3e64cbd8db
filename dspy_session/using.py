"""A session with settings for one call, and turns that are asked again."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from typing import Any, Final

import dspy
from dspy.streaming import StatusMessageProvider

from dspy_session.asking import Asking
from dspy_session.core.data import Data
from dspy_session.core.session_data import SessionData
from dspy_session.errors import CallError, TurnIndexError
from dspy_session.program.events import StreamEvent
from dspy_session.program.settings import CallSettings, call_settings

__all__ = ["SessionCall", "Using"]

_ROLLOUT_BITS: Final = 48  # whole numbers that every JSON reader keeps exactly


class Using(Asking):
    """The part of a session that takes settings for one call; made by `Session`, not by hand."""

    def using(
        self,
        *,
        lm: dspy.BaseLM | None = None,
        config: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        data: Mapping[str, Any] | SessionData | Data | None = None,
        request: Mapping[str, Any] | None = None,
        approvals: Collection[str] = (),
        stream_fields: Sequence[str] | None = None,
        status_messages: StatusMessageProvider | None = None,
    ) -> SessionCall:
        """Return this session with settings for one call: `session.using(lm=...)(question=...)`.

        The settings reach every LM call of the program, also where its `forward` has no parameter
        for them.

        Args:
            lm: The LM for the turn, instead of the configured and of the predictors' own.
            config: LM settings (`temperature`, `max_tokens`, `rollout_id`, ...).
            request_id: The caller's own name for the request, kept as `turn.request_id`.
            data: Session data that the turn begins with, in the place of what there is.
            request: What else came with the call, as JSON values by key: hooks, tools and programs
                can read it (`current_request()`).
            approvals: The ids of tool calls that may run now, see `Turn.pending_tool_calls`.
            stream_fields: Which output fields a stream hears of: `answer`, or
                `extract.predict.answer` with the predictor's path; None for all of type `str` and
                `dspy.Reasoning`.
            status_messages: Words the status messages of a stream; None for DSPy's own.

        Raises:
            CallError: A setting is of a type that it cannot have.
            DataError: JSON cannot hold `data` or `request`.

        Example:
            >>> from dspy_session import sessionify
            >>> from dspy_session.testing import scripted_lm
            >>> session = sessionify(dspy.Predict("question -> answer"))
            >>> with dspy.context(lm=scripted_lm()):
            ...     call = session.using(config={"temperature": 0.2}, request_id="r-1")
            ...     prediction = call(question="Hi")
            >>> session.turns[0].request_id
            'r-1'
        """
        settings = call_settings(
            lm=lm,
            config=config,
            request_id=request_id,
            data=data,
            request=request,
            approvals=approvals,
            stream_fields=stream_fields,
            status_messages=status_messages,
        )
        return SessionCall(self, settings)

    def regenerate(self, index: int | None = None, /, **inputs: Any) -> Any:
        """Ask again: the last turn, or an earlier one, perhaps with other inputs.

        The question goes to the model under a fresh rollout id, so that a cached answer does not
        come back. The conversation then ends with the new turn; `redo()` brings the old answer
        back, and with it whatever came after.

        Args:
            index: The turn's absolute index; None for the last.
            **inputs: Inputs that differ from the turn's own.

        Returns:
            What the program returned.

        Raises:
            TurnIndexError: There is no such turn.
            CallError: It was erased in a store, and no inputs are given.
            Exception: As for calling the session; the conversation is as it was.
        """
        return self.using().regenerate(index, **inputs)

    async def aregenerate(self, index: int | None = None, /, **inputs: Any) -> Any:
        """As `regenerate`, in async code.

        Args:
            index: As in `regenerate`.
            **inputs: As in `regenerate`.
        """
        return await self.using().aregenerate(index, **inputs)


class SessionCall:
    """A session with settings for one call; made by `session.using(...)`.

    It is called as the session is, and may be used for several calls.
    """

    def __init__(self, session: Asking, settings: CallSettings) -> None:
        self._session, self._settings = session, settings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn; see calling a session.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: As for calling the session.
        """
        return self._session._call(args, kwargs, self._settings)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn in async code; see `Session.acall`.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: As for calling the session.
        """
        return await self._session._acall(args, kwargs, self._settings)

    def stream(self, *args: Any, **kwargs: Any) -> Generator[StreamEvent, None, None]:
        """Stream one turn; see `Session.stream`.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: As for calling the session.
        """
        return self._session._stream(args, kwargs, self._settings)

    def astream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[StreamEvent, None]:
        """Stream one turn in async code; see `Session.astream`.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: As for calling the session.
        """
        return self._session._astream(args, kwargs, self._settings)

    def regenerate(self, index: int | None = None, /, **inputs: Any) -> Any:
        """Ask again; see `Session.regenerate`.

        Args:
            index: As in `Session.regenerate`.
            **inputs: As in `Session.regenerate`.
        """
        asked, at = self._again(index, inputs)
        return self._session._call((), asked, self._afresh(), at)

    async def aregenerate(self, index: int | None = None, /, **inputs: Any) -> Any:
        """Ask again, in async code; see `Session.regenerate`.

        Args:
            index: As in `Session.regenerate`.
            **inputs: As in `Session.regenerate`.
        """
        asked, at = self._again(index, inputs)
        return await self._session._acall((), asked, self._afresh(), at)

    def ask(self, question: str, kind: Any = str, *, record: bool = False) -> Any:
        """Ask about the conversation; see `Session.ask`.

        Args:
            question: As in `Session.ask`.
            kind: As in `Session.ask`.
            record: As in `Session.ask`.
        """
        return self._session._ask(question, kind, record, self._settings)

    async def aask(self, question: str, kind: Any = str, *, record: bool = False) -> Any:
        """Ask about the conversation, in async code; see `Session.ask`.

        Args:
            question: As in `Session.ask`.
            kind: As in `Session.ask`.
            record: As in `Session.ask`.
        """
        return await self._session._aask(question, kind, record, self._settings)

    def _again(self, index: int | None, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The inputs of the turn to ask again, and its index."""
        state = self._session.state
        if index is None:
            if state.last is None:
                raise TurnIndexError("There is no turn to ask again: the conversation is empty.")
            index = state.last.index
        turn = state.turn(index)
        if turn.erased and not inputs:
            raise CallError(
                f"Turn {index} was erased, so what was asked is not known any more. Give the "
                "inputs: session.regenerate(index, question=...)."
            )
        return {**turn.inputs, **inputs}, index

    def _afresh(self) -> CallSettings:
        fresh = CallSettings(config={"rollout_id": secrets.randbits(_ROLLOUT_BITS)})
        return fresh.updated(self._settings)
