"""Erasing one turn: its content is nowhere any more, and all else is as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import dspy
import pytest

from dspy_session import Session, codec, step
from dspy_session.core.chat import add_message
from dspy_session.core.chat_view import state_messages, to_openai
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, start, visible_window
from dspy_session.core.tokens import token_count
from dspy_session.core.transitions import annotate, replace_turn, rewind, summarized, undo
from dspy_session.core.window import seed_exchanges
from dspy_session.core.writes import write
from dspy_session.errors import (
    CallError,
    ConflictError,
    SessionNotFoundError,
    StoreError,
    TurnIndexError,
)
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.checking import verify
from dspy_session.journal.digests import digests as digests_of
from dspy_session.journal.erasing import erase
from dspy_session.journal.keeping import Journal
from dspy_session.journal.payloads import about_node
from dspy_session.journal.sealing import Seal, new_secret
from dspy_session.program.examples import examples_of, scored
from dspy_session.program.summaries import summarize_state
from dspy_session.stores import MemoryStore
from dspy_session.stores.records import ListQuery
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.journals import WatchedStore, chain_of, said
from tests.talk import QA, scripted

SECRET = "4929 1234 5678"


def conversation(**keywords: Any) -> tuple[MemoryStore, Archive, Held]:
    """Five turns, of which the third holds what is to be erased."""
    store = MemoryStore()
    archive = Archive(store, **keywords)
    held = archive.create("chat", start([{"question": "seed", "answer": "seed"}], id="chat"))
    for number, text in enumerate(["one", "two", f"My card is {SECRET}", "four", "five"]):
        held = archive.write(held, said(held.state, text, f"answer {number} to {text}"))
    return store, archive, held


def texts(store: MemoryStore, archive: Archive) -> str:
    """All that a store holds, decrypted."""
    assert store._tables is not None
    found = []
    for ref in store.refs(ListQuery()):
        found.append(str(archive.seal.open(ref.body, b"body:%d:" % ref.family + ref.id.encode())))
        for node in store._tables.nodes_of(ref.family).values():
            found.append(str(archive.seal.open(node.payload, about_node(node.key))))
    return "".join(found)


def without_the_third() -> SessionState:
    state = start([{"question": "seed", "answer": "seed"}], id="chat")
    for number, text in enumerate(["one", "two", "-", "four", "five"]):
        if text != "-":
            state = said(state, text, f"answer {number} to {text}")
    return state


# --- in the store ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_X12_erased_content_is_nowhere_and_all_else_is_as_it_was(keyed: bool) -> None:
    store, archive, held = conversation(seal=Seal(key=new_secret()) if keyed else None)
    held = archive.write(held, annotate(held.state, {2: (0.5, f"Do not say {SECRET}.")}))
    assert SECRET in texts(store, archive)
    digests = [node.digest for node in chain_of(store, "chat")]
    done = erase(archive, "chat", 2)
    assert (done.session_id, done.index, done.sessions) == ("chat", 2, ("chat",))
    assert SECRET not in texts(store, archive)
    state = archive.load("chat").state
    turn, was = state.turn(2), held.state.turn(2)
    assert (turn.erased, turn.inputs, turn.outputs, turn.feedback) == (True, {}, {}, None)
    assert (turn.id, turn.time, turn.score, turn.index) == (was.id, was.time, 0.5, 2)
    for index in (0, 1, 3, 4):
        assert state.turn(index).inputs == held.state.turn(index).inputs
        assert not state.turn(index).erased
    assert len(state.turn(4).history_snapshot.messages) == 4  # the seed, and three turns
    found = verify(archive, "chat")
    assert (found.ok, found.erased, found.turns) == (True, (2,), 5)
    assert str(found) == "Session 'chat': 5 turns checked, 1 of them erased, nothing damaged."
    assert [node.digest for node in chain_of(store, "chat")] == digests
    assert digests_of(state, seal=archive.seal) == tuple(digest.hex() for digest in digests)


def test_X12_erasing_once_more_changes_nothing() -> None:
    store, archive, _ = conversation()
    assert erase(archive, "chat", 2).rows == 1
    before = store.totals()
    again = erase(archive, "chat", 2)
    assert (again.rows, again.sessions) == (0, ("chat",))
    assert store.totals() == before
    assert verify(archive, "chat").erased == (2,)


def test_X12_every_session_that_shares_the_turn_has_it_erased_and_is_named() -> None:
    store, archive, held = conversation()
    archive.fork(held, "whole")
    archive.fork(held, "early", rewind(held.state, 2, redoable=False))
    late = archive.fork(held, "late", undo(held.state, 2)[1])
    late = archive.write(late, said(late.state, "elsewhere"))
    archive.write(late, annotate(late.state, {2: (1.0, f"{SECRET}?")}))
    copy = archive.create("copy", said(start(), f"My card is {SECRET}"))
    done = erase(archive, "whole", 2)
    assert done.sessions == ("chat", "late", "whole")
    for id in done.sessions:
        assert archive.load(id).state.turn(2).erased
        assert verify(archive, id).erased == (2,)
    assert verify(archive, "early").erased == ()
    assert archive.load("copy").state == copy.state  # equal text elsewhere is no shared turn
    archive.delete("copy")
    assert SECRET not in texts(store, archive)


def test_X12_other_answers_and_what_was_corrected_are_erased_with_it() -> None:
    store, archive, held = conversation()
    held = archive.write(held, replace_turn(held.state, 2, {"answer": "Thanks."}, id="b")[1])
    assert held.state.turn(3).history_snapshot.messages[3]["answer"].endswith(SECRET)
    again = said(undo(held.state, 2)[1], f"My card is {SECRET}", "Noted.", at=2)
    held = archive.write(held, again)
    assert len(held.state.ahead) == 1
    erase(archive, "chat", 2)
    assert SECRET not in texts(store, archive)
    state = archive.load("chat").state
    assert state.turn(2).erased
    assert state.alternatives[0].erased
    assert verify(archive, "chat").ok


def test_X12_what_a_later_turn_saw_of_it_is_erased_although_all_before_was_corrected() -> None:
    store, archive, held = conversation()
    for index in (1, 2):
        corrected = replace_turn(held.state, index, {"answer": "B"}, id=f"b{index}")[1]
        held = archive.write(held, corrected)
    store.vacuum()
    erase(archive, "chat", 2)
    assert SECRET not in texts(store, archive)
    assert verify(archive, "chat").ok


def test_X12_another_question_at_the_same_place_is_kept() -> None:
    _, archive, held = conversation()
    other = said(held.state, "Something else", "Fine.", at=2)
    held = archive.write(held, other)
    erase(archive, "chat", 2)
    state = archive.load("chat").state
    assert state.turn(2).erased
    assert state.alternatives[0].inputs == {"question": f"My card is {SECRET}"}


def test_X12_turns_of_sessions_within_the_program_are_erased_with_it() -> None:
    store = MemoryStore()
    archive = Archive(store)
    held, inner = archive.create("chat", start(id="chat")), start(id="inner")
    for text in ("one", f"card {SECRET}", "three"):
        inner = said(inner, f"inner: {text}")
        held = archive.write(held, said(held.state, text, nested={"inner": inner}))
    erase(archive, "chat", 1)
    assert SECRET not in texts(store, archive)
    nested = archive.load("chat").state.nested["inner"]
    assert [turn.erased for turn in nested] == [False, True, False]
    assert nested.turn(2).inputs == {"question": "inner: three"}
    assert verify(archive, "chat").ok


def test_X12_messages_that_waited_for_the_turn_are_erased_with_it() -> None:
    store = MemoryStore()
    archive = Archive(store)
    held = archive.create("chat", start(id="chat"))
    for role, text in (("user", f"card {SECRET}"), ("assistant", "Thanks."), ("user", "And?")):
        message = {"role": role, "content": text}
        held = archive.write(held, add_message(held.state, message, id=text)[1])
    assert SECRET in texts(store, archive)
    erase(archive, "chat", 0)
    assert SECRET not in texts(store, archive)
    assert [message.text for message in state_messages(archive.load("chat").state)] == ["And?"]
    assert verify(archive, "chat").ok


def test_X12_session_data_stays() -> None:
    store = MemoryStore()
    archive = Archive(store)
    held = archive.create("chat", write(start(id="chat"), {"cart": "x" * 300}))
    held = archive.write(held, said(held.state, data=lambda data: data.changed({"paid": True})))
    held = archive.write(held, said(held.state))
    erase(archive, "chat", 0)
    state = archive.load("chat").state
    assert state.data == held.state.data
    assert (state.turn(0).data, state.turn(0).data_before) == (
        held.state.turn(0).data,
        held.state.turn(0).data_before,
    )
    assert verify(archive, "chat").ok


def test_X12_a_conversation_goes_on_after_an_erasure() -> None:
    _, archive, before = conversation()
    erase(archive, "chat", 2)
    held = archive.load("chat", 1)
    held = archive.write(held, said(held.state, "six"))
    held = archive.write(held, replace_turn(held.state, 1, {"answer": "B"}, id="b")[1])
    held = archive.write(held, annotate(held.state, {2: (0.1, "Gone.")}))
    archive.create("copy", held.state)
    assert archive.load("chat").state == held.state
    assert archive.load("copy").state.turns == held.state.turns
    for id in ("chat", "copy"):
        assert verify(archive, id).erased == (2,)
        assert verify(archive, id).ok
    # Whoever had it in memory, has it until it is read again.
    assert before.state.turn(2).inputs == {"question": f"My card is {SECRET}"}
    assert archive.refresh(before).state.turn(2).erased


def test_X12_with_a_rotated_key_the_chain_stays_verifiable() -> None:
    first, second = new_secret(), new_secret()
    store, before, was = conversation(seal=Seal(key=first))
    before.fork(was, "fork")
    archive = Archive(store, seal=Seal(key=second, old_keys=[first]))
    held = archive.load("chat")
    archive.write(held, annotate(held.state, {2: (1.0, None)}))
    assert erase(archive, "chat", 2).sessions == ("chat", "fork")
    for id in ("chat", "fork"):
        found = verify(archive, id)
        assert (found.ok, found.erased) == (True, (2,))
    assert SECRET not in texts(store, archive)


@pytest.mark.parametrize("index", [-1, 5, 77, "2", None, True])
def test_X12_a_turn_that_is_not_there_cannot_be_erased(index: Any) -> None:
    _, archive, held = conversation()
    with pytest.raises(TurnIndexError, match=r"There is no turn .*: it has those from 0 to 4"):
        erase(archive, "chat", index)
    assert archive.load("chat").state == held.state
    with pytest.raises(SessionNotFoundError):
        erase(archive, "another", 0)


def test_X12_an_undone_turn_can_be_erased() -> None:
    store, archive, held = conversation()
    archive.write(held, undo(held.state, 3)[1])
    erase(archive, "chat", 2)
    assert SECRET not in texts(store, archive)
    assert archive.load("chat").state.undone[0].erased


def test_X12_a_summarised_turn_can_be_erased() -> None:
    store, archive, held = conversation()
    fork = archive.fork(held, "fork")
    again = held.state
    for number, keep in enumerate((2, 1)):  # the turn stays, then it is summarised, too
        again = summarized(again, seed_exchanges([{"question": "So far?", "answer": "A."}]), keep)
        again = said(again, f"after {number}", "yes")
    held = archive.write(held, again)
    assert (held.state.first, [len(each) for each in held.state.earlier]) == (5, [5, 3])
    for index, text in ((2, SECRET), (5, "after 0")):
        assert text in texts(store, archive)
        found = erase(archive, "chat", index)
        assert found.sessions == (("chat", "fork") if index == 2 else ("chat",))
        assert text not in texts(store, archive)
    loaded = archive.load("chat").state
    assert [[turn.index for turn in each if turn.erased] for each in loaded.earlier] == [[2], [5]]
    assert [turn.erased for turn in loaded] == [True, False]
    assert archive.load("fork").state.turns[2].erased
    assert verify(archive, "chat").ok
    assert verify(archive, fork.ref.id).ok
    before = texts(store, archive)
    for index in (-1, 7):
        with pytest.raises(TurnIndexError, match="those from 5 to 6"):
            erase(archive, "chat", index)
    assert texts(store, archive) == before


def test_X12_an_erasure_that_could_not_be_written_changed_nothing() -> None:
    inner, _, held = conversation()
    store = WatchedStore(inner)
    archive = Archive(store)
    store.failing = {"replace_payloads"}
    with pytest.raises(StoreError, match="cannot be reached"):
        erase(archive, "chat", 2)
    assert archive.load("chat").state == held.state


def test_X12_an_erased_turn_stays_erased_in_files_and_copies() -> None:
    _, archive, _ = conversation()
    erase(archive, "chat", 2)
    state = archive.load("chat").state
    again, _ = codec.decode(codec.encode(state, SessionOptions()))
    assert again == state
    assert [turn.erased for turn in again] == [False, False, True, False, False]
    assert replace_turn(state, 2, {"answer": "B"}, id="b")[0].details == {}


# --- in what a model is shown ---------------------------------------------------------------------


class Teller(dspy.Module):
    """Its second predictor fits no turn, so it is told of the conversation as text."""

    def __init__(self) -> None:
        super().__init__()
        self.tell = dspy.Predict("topic -> story")

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.tell(topic=question).story)


def done(prompt: Prompt) -> dict[str, Any]:
    """Answers as an agent that is at its end at once, or as any other predictor."""
    agents = {"next_tool_name": "finish", "next_tool_args": {}}
    return {name: agents.get(name, "Done.") for name in requested_fields(prompt)}


def prompts_of(state: SessionState, program: dspy.Module) -> list[Prompt]:
    lm = ScriptedLM(done)
    with dspy.context(lm=lm):
        step(state, program, {"question": "Now?"})
    return list(lm.prompts)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(lambda: dspy.Predict(QA), id="pairs"),
        pytest.param(Teller, id="text"),
        pytest.param(lambda: dspy.ReAct("question -> answer", tools=[]), id="agent"),
    ],
)
@pytest.mark.parametrize("newest", [None, 1])
def test_X12_the_next_call_is_that_of_a_conversation_without_the_turn(
    program: Any, newest: int | None
) -> None:
    _, archive, before = conversation()
    erase(archive, "chat", 2)
    made = program()
    now = prompts_of(archive.load("chat", newest).state, made)
    assert now == prompts_of(without_the_third(), made)
    assert now != prompts_of(before.state, made)
    assert SECRET not in str(now)


def test_X12_a_conversation_of_which_all_is_erased_shows_nothing() -> None:
    store = MemoryStore()
    archive = Archive(store)
    archive.create("chat", said(start(id="chat"), f"card {SECRET}"))
    erase(archive, "chat", 0)
    state = archive.load("chat").state
    for program in (dspy.Predict(QA), Teller()):
        assert prompts_of(state, program) == prompts_of(start(), program)
    window = visible_window(state, SessionOptions())
    assert (len(window), bool(window), window.messages()) == (0, False, [])


def test_X12_no_view_of_a_conversation_has_an_erased_turn() -> None:
    _, archive, before = conversation()
    before_count = token_count(before.state, SessionOptions())
    erase(archive, "chat", 2)
    state, bare = archive.load("chat").state, without_the_third()
    assert to_openai(state) == to_openai(bare)
    assert len(state_messages(state)) == 10
    assert token_count(state, SessionOptions()) == token_count(bare, SessionOptions())
    assert token_count(state, SessionOptions()) < before_count
    assert SECRET not in repr(state.turns)


def test_X12_an_erased_turn_is_no_example_and_is_not_scored() -> None:
    _, archive, held = conversation()
    archive.write(held, annotate(held.state, {2: (0.25, None)}))
    erase(archive, "chat", 2)
    state, options = archive.load("chat").state, SessionOptions()
    examples = examples_of(state, options, require_outputs=False)
    assert [example.question for example in examples] == ["one", "two", "four", "five"]
    assert [len(example.history.messages) for example in examples] == [1, 2, 3, 4]
    strict = examples_of(state, options, strict_trajectory=True)
    assert [example.question for example in strict] == ["one", "two"]
    seen = []

    def metric(example: Any, prediction: Any) -> float:
        seen.append(example.question)
        return 1.0

    _, after = scored(state, metric, options)
    assert seen == ["one", "two", "four", "five"]
    assert [turn.score for turn in after] == [1.0, 1.0, 0.25, 1.0, 1.0]


def test_X12_a_summary_is_made_without_an_erased_turn() -> None:
    _, archive, _ = conversation()
    erase(archive, "chat", 2)
    told = []
    for state in (archive.load("chat").state, without_the_third()):
        lm = ScriptedLM(done)
        with dspy.context(lm=lm):
            summarize_state(state, dspy.Predict(QA))
        told.append(lm.prompts[-1])
    assert told[0] == told[1]
    assert SECRET not in str(told)


def test_X12_a_session_over_an_erased_turn_answers_and_undoes() -> None:
    _, archive, _ = conversation()
    erase(archive, "chat", 2)
    session = Session.kept(Journal(archive, archive.load("chat", 1)), dspy.Predict(QA))
    with dspy.context(lm=scripted()):
        session(question="And?")
        assert session.turns[2].erased
        assert len(session.session_history.messages) == 6  # the seed, and five turns
        session.undo(4)
        session(question="Anew.")
    assert [turn.erased for turn in session.turns] == [False, False, False]
    assert verify(archive, "chat").ok


def test_X12_an_erased_turn_is_asked_again_with_other_inputs_only() -> None:
    _, archive, _ = conversation()
    erase(archive, "chat", 2)
    session = Session.kept(Journal(archive, archive.load("chat")), dspy.Predict(QA))
    before, lm = session.state, scripted()
    with dspy.context(lm=lm):
        for again in (session.regenerate, lambda index: asyncio.run(session.aregenerate(index))):
            with pytest.raises(CallError, match="Turn 2 was erased"):
                again(2)
            assert (session.state, lm.prompts) == (before, [])
        assert session.regenerate(2, question="another").answer == "answer to another"
    assert [turn.erased for turn in session.turns] == [False, False, False]


def test_X12_a_session_that_is_forked_meanwhile_has_it_erased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, archive, held = conversation()
    forks, replaced = [], store.replace_payloads

    def forked_before(family: int, payloads: Mapping[int, bytes]) -> None:
        forks.append(archive.fork(held, "fork"))
        replaced(family, payloads)

    monkeypatch.setattr(store, "replace_payloads", forked_before)
    assert erase(archive, "chat", 2).sessions == ("chat", "fork")
    fresh = archive.refresh(forks[0])
    assert fresh is not forks[0]
    assert fresh.state.turns[2].erased


@pytest.mark.parametrize("newest", [None, 1])
def test_X12_who_has_the_session_open_is_told_and_writes_no_text_again(newest: int | None) -> None:
    store = MemoryStore()
    archive = Archive(store)
    held = archive.create("chat", start(id="chat"))
    for text in ("one", "SECRET", "three"):
        held = archive.write(held, said(held.state, text, f"{text}!"))
    fork = archive.fork(held, "fork")
    late = said(held.state, "four", "4", seen=held.state)  # saw all of it, and is not stored yet
    erase(archive, "chat", 1)

    with pytest.raises(ConflictError):
        archive.write(held, late)
    with pytest.raises(ConflictError):
        archive.write(fork, said(fork.state, "four", "4"))
    fresh = archive.refresh(held, newest)
    assert [turn.erased for turn in fresh.state] == [False, True, False]
    assert "SECRET" not in str([turn.history_snapshot for turn in fresh.state])
    again = archive.write(fresh, said(fresh.state, "four", "4", seen=held.state))
    assert [turn.erased for turn in again.state] == [False, True, False, False]
    nodes = [*chain_of(store, "chat"), *chain_of(store, "fork")]
    assert not any(b"SECRET" in node.payload for node in nodes)
    assert verify(archive, "chat").ok
    assert verify(archive, "fork").ok
    loaded = archive.load("chat")
    assert "SECRET" not in str([turn.history_snapshot for turn in loaded.state])
