"""A hundred recorded conversations are replayed by two programs, and rendered without a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    SessionState,
    compare_replays,
    drift,
    drift_baseline,
    from_jsonl,
    replay_all,
)
from dspy_session.core import from_messages
from dspy_session.testing import Prompt, ScriptedLM
from tests.test_drift import NoLM
from tests.test_real_conversations import ANSWERED_TURNS, CONVERSATIONS

pytestmark = pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: no conversation was replayed",
)

FIELDS = {"user": "customer", "assistant": "agent"}
ATTENTIVE = dspy.Predict(dspy.Signature("customer -> agent", "Take up what the customer says."))
CURT = dspy.Predict(dspy.Signature("customer -> agent", "Answer in one word."))


@pytest.fixture(scope="module")
def conversations() -> list[SessionState]:
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        return [
            from_messages(messages, fields=FIELDS, id=f"airline-{number:02}")
            for number, messages in enumerate(from_jsonl(lines))
        ]


def as_told(prompt: Prompt) -> dict[str, Any]:
    """Does as the instructions say."""
    if "Answer in one word." in prompt[0]["content"]:
        return {"agent": "No."}
    return {"agent": prompt[-1]["content"].partition("\n\n")[0].splitlines()[-1]}


def overlap(example: dspy.Example, prediction: dspy.Prediction) -> float:
    """How many of the recorded agent's words the answer has."""
    words = set(example.agent.lower().split())
    return len(words & set(prediction.agent.lower().split())) / len(words)


@pytest.mark.parametrize("teacher_forced", [False, True])
def test_X8_of_two_programs_the_report_names_the_better(
    conversations: list[SessionState], teacher_forced: bool
) -> None:
    lm = ScriptedLM(as_told)
    reports = [
        replay_all(
            conversations,
            program,
            lm=lm,
            metric=overlap,
            teacher_forced=teacher_forced,
            name=name,
            num_threads=4,
            progress=False,
        )
        for name, program in (("curt", CURT), ("attentive", ATTENTIVE))
    ]
    for report in reports:
        assert len(report.turns) == report.replayed.lm_calls == ANSWERED_TURNS
        assert [found.session_id for found in report.replays] == [c.id for c in conversations]
        assert report.failed == ()
        assert report.better == "recorded"  # which has all of its own words
    both = compare_replays(*reports)
    assert both.better == "attentive"
    assert both.ranking == ("recorded", "attentive", "curt")
    assert "better: attentive" in str(both)
    curt = max((p for p in lm.prompts if "one word" in p[0]["content"]), key=len)
    said = {message["content"] for message in curt if message["role"] == "assistant"}
    assert (len(said) > 1) is teacher_forced  # otherwise it has only ever said "No."


def test_X9_the_same_setup_does_not_drift_and_another_adapter_does(
    conversations: list[SessionState], tmp_path: Path
) -> None:
    path = tmp_path / "prompts.json"
    with dspy.context(lm=NoLM()):
        prompts = drift_baseline(path, conversations, CURT)
        assert sum(len(turn.prompts) for turn in prompts.turns) == ANSWERED_TURNS
        assert prompts.unrendered == ()
        found = drift(conversations, CURT, path)
        assert (found.ok, found.prompts) == (True, ANSWERED_TURNS)
        assert len(drift(conversations, CURT, path, adapter=dspy.XMLAdapter())) == ANSWERED_TURNS
        assert len(drift(conversations, ATTENTIVE, path)) == ANSWERED_TURNS
    # Each message stands in the file once, though later prompts repeat it.
    recorded = CONVERSATIONS.stat().st_size
    assert path.stat().st_size < 2 * recorded
