"""Answers to the same prompt, of which one is better: what preference tuning learns from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.chat_formats import json_text
from dspy_session.core.chat_messages import REDACTED
from dspy_session.core.chat_view import messages_by_turn
from dspy_session.core.lineage import Lineage, content_digest, lineages
from dspy_session.core.state import SessionState
from dspy_session.core.transitions import record
from dspy_session.core.turn import Turn
from dspy_session.core.window import Exchange, View, Window
from dspy_session.errors import CallError
from dspy_session.program.examples import example_of
from dspy_session.program.finetuning import Source, plain_message
from dspy_session.program.markers import has_blocks

__all__ = ["PreferencePair", "pairs_of", "preferences_jsonl"]

Message = dict[str, Any]

_SLACK: Final = 1e-9  # 0.5 - 0.4 is a little less than 0.1


class PreferencePair(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Two answers to the same inputs after the same conversation.

    Attributes:
        chosen: The better one, as an example whose inputs hold the history.
        rejected: The other one; its inputs are the same.
        chosen_score: The score of the better one.
        rejected_score: The score of the other one.
        prompt: What both answer, as chat messages in OpenAI's shape.
        chosen_text: The better answer as the text of a chat message.
        rejected_text: The other one.
    """

    chosen: dspy.Example
    rejected: dspy.Example
    chosen_score: float
    rejected_score: float
    prompt: tuple[Message, ...]
    chosen_text: str
    rejected_text: str

    @property
    def margin(self) -> float:
        """By how much the one is better."""
        return self.chosen_score - self.rejected_score

    def to_dict(self) -> dict[str, Any]:
        """Return `prompt`, `chosen` and `rejected`, lists of chat messages, and the scores."""
        return {
            "prompt": [dict(message) for message in self.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen_text}],
            "rejected": [{"role": "assistant", "content": self.rejected_text}],
            "chosen_score": self.chosen_score,
            "rejected_score": self.rejected_score,
        }


class _Answer(msgspec.Struct, frozen=True, eq=False):
    """A turn that was scored, and where it stands."""

    source: Source
    turn: Turn
    lineage: Lineage

    @property
    def score(self) -> float:
        return self.turn.score or 0.0


def pairs_of(sources: Iterable[Source], min_margin: float) -> list[PreferencePair]:
    """Return the pairs of scored turns that answer the same otherwise.

    Args:
        sources: The conversations; their other paths count, too.
        min_margin: By how much the scores differ at least. Equal scores make no pair.
    """
    asked: dict[Any, list[_Answer]] = {}
    for answer in _answers(sources):
        inputs = content_digest(answer.turn.inputs)
        if inputs is not None:
            instructions = answer.source.state.instructions
            window = answer.turn.window
            key = inputs, instructions, window.stop - window.start, len(window.seed)
            asked.setdefault(key, []).append(answer)
    return [
        pair
        for answers in asked.values()
        for siblings in _after_the_same(answers)
        for pair in _pairs(siblings, min_margin)
    ]


def _answers(sources: Iterable[Source]) -> Iterator[_Answer]:
    """Each scored turn once."""
    seen: set[Any] = set()
    for source in sources:
        for path in _paths(source.state):
            for turn, lineage in zip(
                path, lineages(path, source.options.redact_fields), strict=True
            ):
                key = turn.id or id(turn.exchange)
                if turn.score is not None and not turn.erased and key not in seen:
                    seen.add(key)
                    yield _Answer(source, turn, lineage)


def _paths(state: SessionState) -> Iterator[SessionState]:
    """The conversation with its undone turns, the paths ahead, and all that before summaries."""
    replace = msgspec.structs.replace
    for number, each in enumerate((*state.earlier, state)):
        earlier = state.earlier[:number]
        yield replace(each, stop=each.tip, earlier=earlier)
        for other in each.ahead:
            yield replace(other, id=state.id, stop=other.tip, earlier=earlier)


def _after_the_same(answers: Sequence[_Answer]) -> Iterator[list[_Answer]]:
    """Those among answers to equal inputs that saw the same of the past."""
    if len(answers) < 2:
        return
    alike: dict[str | None, list[_Answer]] = {}
    for answer in answers:
        alike.setdefault(content_digest(answer.turn.window.messages()), []).append(answer)
    alike.pop(None, None)
    yield from alike.values()


def _pairs(siblings: Sequence[_Answer], min_margin: float) -> Iterator[PreferencePair]:
    made: set[tuple[str | None, str | None]] = set()
    for one, other in combinations(siblings, 2):
        better, worse = (one, other) if one.score > other.score else (other, one)
        kept = [_kept_outputs(better), _kept_outputs(worse)]
        digests = content_digest(kept[0]), content_digest(kept[1])
        margin = better.score - worse.score
        if not margin or margin < min_margin - _SLACK or not all(kept) or len({*digests, None}) < 3:
            continue
        if digests not in made:
            made.add(digests)
            yield _pair(better, worse)


def _kept_outputs(answer: _Answer) -> dict[str, Any]:
    hidden = answer.source.options.redact_fields
    return {name: value for name, value in answer.turn.outputs.items() if name not in hidden}


def _pair(better: _Answer, worse: _Answer) -> PreferencePair:
    (prompt, chosen), (_, rejected) = _as_chat(better), _as_chat(worse)
    return PreferencePair(
        chosen=_example(better),
        rejected=_example(worse),
        chosen_score=better.score,
        rejected_score=worse.score,
        prompt=tuple(prompt),
        chosen_text=chosen,
        rejected_text=rejected,
    )


def _example(answer: _Answer) -> dspy.Example:
    options = answer.source.options
    return example_of(answer.turn, options.history_field, options.redact_fields, answer.lineage)


def _as_chat(answer: _Answer) -> tuple[list[Message], str]:
    """What a call saw and was asked, as chat messages, and its answer as the text of one."""
    source, turn = answer.source, answer.turn
    seen = tuple(_seen(turn.window))
    began = SessionState(seed=seen, profile=source.state.profile)
    inputs, outputs, _ = turn.exchange.parts
    exchange = Exchange(inputs, outputs)  # without the tools, which may differ
    _, state = record(began, exchange, Window(), turn.run)
    opening, ((_, said),) = messages_by_turn(state, source.fields, source.options.redact_fields)
    *asked, last = [plain_message(message) for message in said]
    return [*(plain_message(message) for message in opening), *asked], last["content"] or ""


def _seen(window: Window) -> Iterator[Exchange]:
    view: View = window.view
    for exchange in window:
        inputs, outputs, _ = exchange.parts
        shown = exchange.shown(view)
        yield Exchange(
            {name: value for name, value in inputs.items() if name in shown},
            {name: value for name, value in outputs.items() if name in shown},
        )


def preferences_jsonl(pairs: Iterable[PreferencePair]) -> Iterator[str]:
    r"""Yield a line of JSON for each pair, as OpenAI's preference tuning (DPO) reads it.

    A pair whose two texts are the same is left out, one of which a redacted field leaves no
    question or answer, and one with a picture, a sound or a file. Tool calls are not among the
    messages: of two answers they may differ.

    Args:
        pairs: What `preference_pairs` returned.

    Raises:
        CallError: One of them is no pair.

    Example:
        >>> example = dspy.Example(question="Hi", answer="Hello.").with_inputs("question")
        >>> pair = PreferencePair(
        ...     chosen=example,
        ...     rejected=example.copy(answer="What?"),
        ...     chosen_score=1.0,
        ...     rejected_score=0.0,
        ...     prompt=({"role": "user", "content": "Hi"},),
        ...     chosen_text="Hello.",
        ...     rejected_text="What?",
        ... )
        >>> next(preferences_jsonl([pair]))[:70]
        '{"input": {"messages": [{"role": "user", "content": "Hi"}], "tools": ['
    """
    for pair in pairs:
        if not isinstance(pair, PreferencePair):
            raise CallError(f"preferences_jsonl takes pairs, not {type(pair).__name__}.")
        texts = pair.chosen_text, pair.rejected_text
        asked = [message["content"] for message in pair.prompt[-1:]]
        if texts[0] == texts[1] or not all(texts) or REDACTED in (*texts, *asked):
            continue
        if has_blocks([pair.chosen, pair.rejected]):
            continue
        written = pair.to_dict()
        record = {
            "input": {"messages": written["prompt"], "tools": [], "parallel_tool_calls": True},
            "preferred_output": written["chosen"],
            "non_preferred_output": written["rejected"],
        }
        yield json_text(record) + "\n"
