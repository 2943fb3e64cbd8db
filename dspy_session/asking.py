"""The part of a session that looks back: typed questions about the conversation, and summaries.

A question runs as a turn does, with a program of its own, and is recorded only if one wants that.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar, overload

import dspy

from dspy_session.calls import Calls
from dspy_session.core.options import Lock
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.program import run as program_run
from dspy_session.program.asking import Question, make_question
from dspy_session.program.chat_fields import inferred_fields
from dspy_session.program.frame import home_of
from dspy_session.program.settings import NO_SETTINGS, CallSettings

__all__ = ["Asking"]

_Answer = TypeVar("_Answer")


class Asking(Calls):
    """The part of a session that asks about its conversation; made by `Session`, not by hand."""

    @overload
    def ask(self, question: str, *, record: bool = ...) -> str: ...

    @overload
    def ask(self, question: str, kind: type[_Answer], *, record: bool = ...) -> _Answer: ...

    @overload
    def ask(self, question: str, kind: Any, *, record: bool = ...) -> Any: ...

    def ask(self, question: str, kind: Any = str, *, record: bool = False) -> Any:
        """Ask about the conversation, and get a value of the type that one wants.

        The conversation is as it was afterwards, unless the question is to be recorded. The LM is
        that of the program's first predictor, or else the configured one; the session's
        instructions apply. Hooks run, and `on_turn` is called, for a recorded question only.

        Args:
            question: The question.
            kind: The type of the answer: a pydantic model, `list[str]`, `Literal["yes", "no"]`, an
                enum, `bool`, a type of DSPy's, ...
            record: Whether question and answer become a turn: under the program's input and output
                of text if it has one of each, else under `question` and `answer`. An answer of a
                type that the program's own annotations do not name is recorded as plain data.

        Returns:
            The answer.

        Raises:
            CallError: The question is no text, or `kind` no type that DSPy can produce.
            LockError: As for calling the session.
            Exception: Whatever DSPy raises; the conversation is as it was.

        Example:
            >>> from dspy_session import sessionify
            >>> from dspy_session.testing import scripted_lm
            >>> session = sessionify(dspy.Predict("question -> answer"))
            >>> with dspy.context(lm=scripted_lm(lambda prompt: {"answer": "3"})):
            ...     prediction = session(question="How many fjords are there?")
            ...     count = session.ask("How many did you say?", int)
            >>> count, len(session)
            (3, 1)
        """
        return self._ask(question, kind, record)

    @overload
    async def aask(self, question: str, *, record: bool = ...) -> str: ...

    @overload
    async def aask(self, question: str, kind: type[_Answer], *, record: bool = ...) -> _Answer: ...

    @overload
    async def aask(self, question: str, kind: Any, *, record: bool = ...) -> Any: ...

    async def aask(self, question: str, kind: Any = str, *, record: bool = False) -> Any:
        """As `ask`, in async code.

        Args:
            question: As in `ask`.
            kind: As in `ask`.
            record: As in `ask`.

        Returns:
            The answer.

        Raises:
            CallError: As for `ask`.
            LockError: As for `acall`.
            Exception: Whatever DSPy raises; the conversation is as it was.
        """
        return await self._aask(question, kind, record)

    def summarize(
        self, summarizer: dspy.Module | None = None, *, keep: int | None = None
    ) -> SessionState:
        """Go on from a summary: the turns become a seed, which the model sees in their place.

        Session data, metadata, instructions and id stay. The conversation as it was is the last of
        `session.state.earlier`: `Session.from_state(session.state.earlier[-1], program)` goes on
        with that one. Turns that another thread records meanwhile stay turns. If another thread
        takes back or changes what was being summarised, the summary is made anew.

        Args:
            summarizer: Any module that takes `conversation`, text, and returns a `summary`; None
                for the session's own, or else a `dspy.Predict` on `SummarizeConversation`.
            keep: How many of the newest turns stay turns; None for the option `summarize_keep`.

        Returns:
            The conversation as it was. It still is so if there was nothing to summarise.

        Raises:
            ModuleTypeError: `summarizer` is not a `dspy.Module`.
            CallError: `summarizer` takes no `conversation`, or returned no text.
            OptionError: `keep` is negative or no whole number.
            LockError: As for calling the session.
            Exception: Whatever the summariser raises; the conversation is as it was.

        Example:
            >>> from dspy_session import sessionify
            >>> from dspy_session.testing import scripted_lm
            >>> session = sessionify(dspy.Predict("question -> answer"))
            >>> lm = scripted_lm(lambda prompt: {"answer": "Hello.", "summary": "A greeting."})
            >>> with dspy.context(lm=lm):
            ...     prediction = session(question="Hi")
            ...     before = session.summarize()
            >>> len(before), len(session), session.session_history.messages[0]["answer"]
            (1, 0, 'A greeting.')
        """
        with self._locks.turn(self._checked_lock((), Lock.THREAD, trial=False)):
            while True:
                plan = self._planned(summarizer, keep)
                if plan is None:
                    return self.state
                was = self._summarized(plan, plan.make())
                if was is not None:
                    return was

    async def asummarize(
        self, summarizer: dspy.Module | None = None, *, keep: int | None = None
    ) -> SessionState:
        """As `summarize`, in async code.

        Args:
            summarizer: As in `summarize`.
            keep: As in `summarize`.

        Returns:
            As `summarize`.

        Raises:
            SessionError: As `summarize`.
            Exception: Whatever the summariser raises; the conversation is as it was.
        """
        async with self._locks.async_turn(self._checked_lock((), Lock.ASYNC, trial=False)):
            while True:
                plan = self._planned(summarizer, keep)
                if plan is None:
                    return self.state
                was = await self._asummarized(plan)
                if was is not None:
                    return was

    # --- one question -----------------------------------------------------------------------------

    def _ask(self, text: str, kind: Any, record: bool, settings: CallSettings = NO_SETTINGS) -> Any:
        trial, question = self._is_tried(), self._question(text, kind)
        with self._locks.turn(self._checked_lock((), Lock.THREAD, trial)):
            if record:
                answered = self._begin(settings, trial)
                if answered is not None:
                    return question.answer_in(answered)
                self._make_room({}, None, trial)
            flow = self._question_flow(question, settings, record, trial)
            outcome = program_run.drive(flow, question.predictor)
            turn = self._recorded(question, outcome)
        return self._told(question, outcome, turn)

    async def _aask(
        self, text: str, kind: Any, record: bool, settings: CallSettings = NO_SETTINGS
    ) -> Any:
        trial, question = self._is_tried(), self._question(text, kind)
        async with self._locks.async_turn(self._checked_lock((), Lock.ASYNC, trial)):
            if record:
                answered = await self._waited_for(lambda: self._begin(settings, trial))
                if answered is not None:
                    return question.answer_in(answered)
                await self._amake_room({}, None, trial)
            flow = self._question_flow(question, settings, record, trial)
            outcome = await program_run.adrive(flow, question.predictor.acall)
            turn, cancelled = await self._arecorded(question, outcome)
        answer = self._told(question, outcome, turn)
        if cancelled is not None:
            raise cancelled
        return answer

    def _told(self, question: Question, outcome: program_run.Outcome, turn: Turn | None) -> Any:
        self._announce(turn, outcome)
        if turn is not None and turn.id != outcome.run.id:  # it was answered meanwhile
            return question.answer_in(turn)
        return question.answer_of(outcome)

    def _question(self, text: str, kind: Any) -> Question:
        module, options = self.module, self._options
        fields = self._attached.message_fields or inferred_fields(module, options)
        return make_question(text, kind, module, options, fields)

    def _question_flow(
        self, question: Question, settings: CallSettings, record: bool, trial: bool
    ) -> program_run.Flow:
        inside = home_of(self) is not None
        return program_run.running(
            question.predictor,
            self.state,
            question.inputs,
            self._options,
            owner=self,
            settings=settings,
            missed=None if trial else self._missed,
            trial=trial,
            inside=inside,
            instructions=self._attached.instructions,
            hooks=self._attached.hooks if record else None,
            records=record and (not trial or (inside and self._records is None)),
        )

    def _recorded(self, question: Question, outcome: program_run.Outcome) -> Turn | None:
        if not outcome.step.records:
            return None
        turn, _ = self._record(question.recordable(outcome))
        return turn

    async def _arecorded(
        self, question: Question, outcome: program_run.Outcome
    ) -> tuple[Turn | None, asyncio.CancelledError | None]:
        if not outcome.step.records:
            return None, None
        return await self._arecord(question.recordable(outcome))
