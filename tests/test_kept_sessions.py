"""Sessions that are kept in a store: durable change by change, two writers, requests sent again."""

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pydantic
import pytest

from dspy_session import (
    CallError,
    Session,
    SessionState,
    Turn,
    TurnEvent,
    ValueCodecError,
    sessionify,
)
from dspy_session.core.state import start
from dspy_session.errors import (
    ConflictError,
    SessionExistsError,
    SessionNotFoundError,
    SessionSizeError,
    StoreError,
)
from dspy_session.journal.archive import Archive
from dspy_session.journal.erasing import erase
from dspy_session.journal.keeping import Journal, OnConflict
from dspy_session.journal.sealing import Seal, new_secret
from dspy_session.program.types import program_codecs
from dspy_session.stores.base import Store
from dspy_session.stores.memory import MemoryStore
from dspy_session.stores.opening import open_store
from dspy_session.testing import Prompt, ScriptedLM
from tests.optimizers import whole
from tests.talk import QA, Asker, asked, past, questions, scripted

Make = Callable[..., Session]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'chats.db'}"
    with open_store(url) as opened:
        yield opened


@pytest.fixture
def lm() -> Iterator[ScriptedLM]:
    lm = scripted()
    with dspy.context(lm=lm):
        yield lm


def opened(
    store: Store,
    id: str = "chat",
    program: dspy.Module | None = None,
    newest: int | None = None,
    **journal: Any,
) -> Session:
    """The session of that id, which is made if there is none."""
    program = dspy.Predict(QA) if program is None else program
    archive = Archive(store, codecs=program_codecs(program))
    found = store.ref(id)
    held = archive.create(id, start()) if found is None else archive.read(found, newest)
    return Session.kept(Journal(archive, held, newest=newest, **journal), program)


def stored(store: Store, id: str = "chat") -> SessionState:
    return Archive(store).load(id).state


def test_X6_a_change_is_stored_when_it_returns(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session(question="one")
    assert stored(store) == session.state
    changes: list[Callable[[], Any]] = [
        lambda: session.add_turn({"question": "by hand"}, {"answer": "yes"}),
        lambda: session.data.set("user", "ada"),
        lambda: session(question="two"),
        lambda: session.undo(2),
        lambda: session.redo(1),
        lambda: session.rewind(1),
        lambda: session.update_metadata({"topic": "fjords"}),
        lambda: session.score(lambda example, prediction: 0.5),
        lambda: session.replace_turn(0, {"answer": "better"}),
        lambda: session.regenerate(),
        lambda: setattr(session, "instructions", "Be brief."),
        lambda: session.add_message({"role": "user", "content": "waiting"}),
        lambda: session(question="three"),
        lambda: session.truncate(1),
        lambda: session.clear(),
        lambda: session(question="three"),
        lambda: session.reset(),
    ]
    for change in changes:
        before = session.state
        change()
        assert session.state is not before
        assert stored(store) == session.state


def test_C1_a_session_opened_again_goes_on_where_it_was(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session(question="one")
    session(question="two")
    again = opened(store, newest=1)
    again(question="three")
    assert [question for question, _ in past(lm.prompts[-1])] == ["one", "two"]
    assert questions(again) == ["one", "two", "three"]


@pytest.mark.parametrize("mode", ["call", "acall", "stream", "astream"])
def test_X5_a_stale_writer_is_told_and_loses_nothing(
    store: Store, lm: ScriptedLM, mode: str
) -> None:
    session, other = opened(store), opened(store)
    session(question="first")
    before = other.state
    with pytest.raises(ConflictError) as caught:
        run(other, mode, question="late")
    error = caught.value
    assert isinstance(error.turn, Turn)
    assert (error.session_id, error.turn.inputs) == ("chat", {"question": "late"})
    assert error.prediction.answer == error.turn.outputs["answer"]
    assert other.state is before
    assert questions(session) == [t.inputs["question"] for t in stored(store)] == ["first"]
    other.refresh()
    run(other, mode, question="late")
    assert [turn.inputs["question"] for turn in stored(store)] == ["first", "late"]


def test_X5_other_changes_of_a_stale_writer_are_refused_too(store: Store, lm: ScriptedLM) -> None:
    def told(state: SessionState) -> str:
        return f"{len(state)} turns"

    session, other = opened(store), opened(store)
    other.instructions = told  # belongs to no state, so it is not stored
    session(question="first")
    for change in (
        lambda: setattr(other, "instructions", "Be brief."),
        lambda: other.data.set("a", 1),
        lambda: other.update_metadata({"a": 1}),
        lambda: other.add_turn({"question": "q"}, {"answer": "a"}),
    ):
        before = other.state
        with pytest.raises(ConflictError) as caught:
            change()
        assert caught.value.prediction is None
        assert other.state is before
    assert stored(store) == session.state
    assert other.instructions is told


@pytest.mark.parametrize("policy", list(OnConflict))
@pytest.mark.parametrize("key", [None, new_secret()], ids=["plain", "encrypted"])
def test_X5_metadata_that_was_merged_meanwhile_is_no_conflict(
    store: Store, lm: ScriptedLM, policy: OnConflict, key: str | None
) -> None:
    archive = Archive(store, seal=Seal(key=key))
    held = archive.create("chat", start())
    one, two = (
        Session.kept(Journal(archive, held, on_conflict=policy), dspy.Predict(QA)) for _ in range(2)
    )
    one(question="first")
    two.refresh()
    one.update_metadata({"seen": 1})
    calls = len(lm.prompts)
    two(question="second")
    assert len(lm.prompts) == calls + 1  # what the model said is kept
    assert questions(two) == ["first", "second"]
    assert two.metadata.to_dict() == {"seen": 1}
    one.refresh()
    two.update_metadata({"more": 2})
    one.undo()
    assert (questions(one), one.metadata.to_dict()) == (["first"], {"seen": 1, "more": 2})
    assert archive.load("chat").state == one.state
    assert store.totals().sessions == 1


def test_X5_metadata_and_a_turn_are_a_conflict(store: Store, lm: ScriptedLM) -> None:
    session, other = opened(store), opened(store)
    session.update_metadata({"seen": 1})
    session(question="first")
    before = other.state
    with pytest.raises(ConflictError):
        other(question="late")
    assert other.state is before
    assert stored(store) == session.state


def test_X5_retry_appends_after_the_newer_turns(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    other = opened(store, on_conflict=OnConflict.RETRY, newest=1)
    session(question="first")
    session.data["user"] = "ada"
    other(question="late")
    assert questions(other) == ["first", "late"]
    assert other.turns[-1].history_snapshot.messages == []  # what it really saw
    assert other.data.to_dict() == {"user": "ada"}
    assert stored(store) == other.state
    session.refresh()
    other.data["seen"] = True
    opened(store, on_conflict=OnConflict.RETRY).data["more"] = 1
    other.undo()
    assert stored(store) == other.state
    assert questions(other) == ["first"]


def test_X5_retry_takes_back_nothing_that_its_writer_has_not_seen(
    store: Store, lm: ScriptedLM
) -> None:
    session = opened(store)
    session(question="shared")
    other = opened(store, on_conflict=OnConflict.RETRY)
    session(question="unseen")
    changes: list[Callable[[], Any]] = [
        other.undo,
        other.reset,
        other.clear,
        other.regenerate,
        lambda: other.rewind(0),
        lambda: other.truncate(0),
    ]
    for change in changes:
        before = other.state
        with pytest.raises(ConflictError):
            change()
        assert other.state is before
    assert stored(store) == session.state
    session.undo()
    other.undo()  # what is left, it has seen
    assert len(stored(store)) == 0


def test_X5_branch_goes_on_beside_the_other(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session(question="shared")
    other = opened(store, on_conflict=OnConflict.BRANCH)
    session(question="first")
    other(question="late")
    assert other.session_id.startswith("chat-")
    assert questions(other) == ["shared", "late"]
    assert stored(store, other.session_id) == other.state
    assert stored(store) == session.state
    assert Archive(store).ref(other.session_id).origin == "chat"
    other(question="later")
    assert [t.inputs["question"] for t in stored(store, other.session_id)][-1] == "later"


def test_X5_branch_and_fork_go_on_although_the_path_they_were_on_is_gone(
    store: Store, lm: ScriptedLM
) -> None:
    session = opened(store)
    session(question="left")
    stale, other = opened(store), opened(store, on_conflict=OnConflict.BRANCH)
    session.undo()
    session(question="taken")
    store.vacuum()
    other(question="late")
    fork = stale.fork()
    assert questions(other) == ["left", "late"]
    assert stored(store, other.session_id) == other.state
    assert stored(store, fork.session_id).turns == stale.turns
    assert stored(store) == session.state

    store.delete("chat")
    left = store.totals().sessions
    with pytest.raises(ConflictError):
        stale.fork()
    assert store.totals().sessions == left


@pytest.mark.parametrize("newest", [None, 1])
def test_X12_whoever_goes_his_own_way_is_told_of_an_erasure(
    store: Store, lm: ScriptedLM, newest: int | None
) -> None:
    """Nobody else would ever tell him: what goes its own way is written by nobody else."""
    session = opened(store)
    for question in ("SECRET", "two", "three"):
        session(question=question)
    stale = opened(store, newest=newest)
    other = opened(store, on_conflict=OnConflict.BRANCH, newest=newest)
    gone = opened(store, "gone")
    gone(question="TOO")
    left = gone.fork(session_id="left")
    assert questions(other) == questions(stale) == ["SECRET", "two", "three"]
    erase(Archive(store), "chat", 0)
    erase(Archive(store), "gone", 0)
    store.delete("gone")

    forks = [stale.fork(), stale.fork(at=2), gone.fork()]
    other(question="late")
    assert [len(each) for each in (*forks, other)] == [3, 2, 1, 4]
    for each in (*forks, other):
        assert [turn.erased for turn in each.turns][:2] == [True, False][: len(each)]
        assert stored(store, each.session_id) == each.state
        each(question="What did I say?")
        assert not any(text in str(lm.prompts[-1]) for text in ("SECRET", "TOO"))
    left.refresh()
    assert left.turns[0].erased
    assert questions(stale) == ["SECRET", "two", "three"]  # until it is refreshed


def test_X12_what_was_erased_is_not_written_again(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session(question="SECRET")
    session(question="two")
    stale, other = opened(store), opened(store, on_conflict=OnConflict.BRANCH)
    erase(Archive(store), "chat", 0)
    session.refresh()
    session.reset()
    store.vacuum()
    left = store.totals()
    with pytest.raises(ConflictError) as caught:
        other(question="late")
    assert caught.value.turn.inputs == {"question": "late"}
    with pytest.raises(ConflictError):
        stale.fork()
    assert store.totals() == left
    assert (other.session_id, questions(other)) == ("chat", ["SECRET", "two"])
    assert stored(store) == session.state


def test_X5_a_deleted_session_keeps_no_turn_but_loses_none(store: Store, lm: ScriptedLM) -> None:
    session = opened(store, on_conflict=OnConflict.RETRY)
    session(question="one")
    store.delete("chat")
    with pytest.raises(ConflictError) as caught:
        session(question="two")
    assert caught.value.turn is not None
    assert questions(session) == ["one"]
    with pytest.raises(SessionNotFoundError):
        session.refresh()


def run(session: Session, mode: str, request_id: str | None = None, **inputs: Any) -> Any:
    """Call a session in one of four ways."""
    call = session if request_id is None else session.using(request_id=request_id)
    if mode == "call":
        return call(**inputs)
    if mode == "acall":
        return asyncio.run(call.acall(**inputs))
    if mode == "stream":
        last = [*call.stream(**inputs)][-1]
    else:

        async def read() -> Any:
            return [event async for event in call.astream(**inputs)][-1]

        last = asyncio.run(read())
    assert isinstance(last, TurnEvent)
    return last.prediction


@pytest.mark.parametrize("mode", ["call", "acall", "stream", "astream"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_request_sent_again_is_answered_from_the_record(
    lm: ScriptedLM, mode: str, kept: bool
) -> None:
    store = MemoryStore()
    session = opened(store) if kept else sessionify(dspy.Predict(QA))
    first = run(session, mode, "r-1", question="one")
    run(session, mode, "r-2", question="two")
    calls, before = len(lm.prompts), session.state
    again = run(session, mode, "r-1", question="one")
    assert again.answer == first.answer
    assert len(lm.prompts) == calls
    assert session.state is before
    if kept:
        assert run(opened(store), mode, "r-2", question="two").answer is not None
        assert len(lm.prompts) == calls


def test_a_plain_answer_is_returned_again_as_it_was(lm: ScriptedLM) -> None:
    store = MemoryStore()
    session = opened(store, program=Asker())
    first = session.using(request_id="r")(question="one")
    assert isinstance(first, str)
    assert opened(store, program=Asker()).using(request_id="r")(question="one") == first
    assert len(lm.prompts) == 1


def test_a_request_that_was_undone_is_asked_anew(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session.using(request_id="r")(question="one")
    session.undo()
    session.using(request_id="r")(question="one")
    assert len(lm.prompts) == 2
    session.fork(session_id="alt").using(request_id="r")(question="one")
    assert len(lm.prompts) == 2


@pytest.mark.parametrize("autosave", [True, False])
def test_X12_a_request_whose_answer_was_erased_is_asked_anew(
    store: Store, lm: ScriptedLM, autosave: bool
) -> None:
    session = opened(store)
    session.using(request_id="r")(question="one")
    erase(Archive(store), "chat", 0)
    in_memory = Session.from_state(stored(store), dspy.Predict(QA))
    again = opened(store, autosave=autosave)
    again.data["unsaved"] = not autosave
    for number, asking in enumerate((in_memory, again), 2):
        assert asking.using(request_id="r")(question="one").answer == "answer to one"
        assert len(lm.prompts) == number
        assert asking.using(request_id="r")(question="one").answer == "answer to one"
        assert len(lm.prompts) == number
        assert [turn.erased for turn in asking.turns] == [True, False]


def test_two_answers_to_one_request_at_once_are_one_turn(store: Store) -> None:
    """The second comes back with what the first was answered, although a model was asked twice."""
    session, other = opened(store), opened(store, on_conflict=OnConflict.RETRY)
    answers = iter("ab")

    def answer(prompt: Prompt) -> dict[str, Any]:
        mine = next(answers)
        if mine == "a":
            session.using(request_id="r")(question="one")
        return {"answer": mine}

    with dspy.context(lm=ScriptedLM(answer)):
        got = other.using(request_id="r")(question="one")
    assert got.answer == session.turns[-1].outputs["answer"] == "b"
    assert len(stored(store)) == 1


def test_X1_a_fork_of_a_stored_session_is_stored(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session(question="one")
    session(question="two")
    alt = session.fork(at=1, session_id="alt")
    alt(question="other")
    session(question="three")
    assert [t.inputs["question"] for t in stored(store, "alt")] == ["one", "other"]
    assert stored(store, "alt") == alt.state
    assert stored(store) == session.state
    with pytest.raises(SessionExistsError):
        session.fork(session_id="alt")


def test_copies_and_trials_are_in_memory_only(store: Store, lm: ScriptedLM) -> None:
    session = opened(store)
    session(question="one")
    before = stored(store)
    for twin in (copy.deepcopy(session), session.frozen(), pickle.loads(pickle.dumps(session))):
        twin(question="elsewhere")
        with pytest.raises(CallError, match="memory only"):
            twin.refresh()
    examples = [dspy.Example(question="q").with_inputs("question")]
    whole.Evaluate(devset=examples, metric=lambda *_: 1.0, num_threads=1)(session)
    assert stored(store) == before == session.state
    assert store.totals().sessions == 1


def test_saved_by_hand(store: Store, lm: ScriptedLM) -> None:
    session = opened(store, autosave=False)
    session(question="one")
    session.data["user"] = "ada"
    assert len(stored(store)) == 0
    with pytest.raises(CallError, match="not saved"):
        session.refresh()
    assert questions(session) == ["one"]
    save(session)
    assert stored(store) == session.state
    session(question="two")
    session.refresh(discard=True)
    assert questions(session) == ["one"]


def save(session: Session) -> None:
    assert session._journal is not None
    session._journal.save(lambda: session._state, session._publish)


def test_saved_by_hand_after_another_writer(store: Store, lm: ScriptedLM) -> None:
    late = opened(store, autosave=False, on_conflict=OnConflict.RETRY)
    late(question="late")
    late.data["late"] = True
    opened(store)(question="first")
    save(late)
    assert questions(late) == ["first", "late"]
    assert stored(store) == late.state
    strict = opened(store, autosave=False)
    strict(question="strict")
    opened(store)(question="another")
    before = strict.state
    with pytest.raises(ConflictError):
        save(strict)
    assert strict.state is before


class _Failing(MemoryStore):
    """A store that can be out of reach."""

    out = False

    def put(self, *args: Any, **keywords: Any) -> bool:
        if self.out:
            raise StoreError("the store is out of reach")
        return super().put(*args, **keywords)


@pytest.mark.parametrize("mode", ["call", "acall", "stream", "astream"])
def test_X6_a_turn_that_could_not_be_stored_is_not_acknowledged(lm: ScriptedLM, mode: str) -> None:
    store = _Failing()
    heard: list[Turn] = []
    archive = Archive(store)
    journal = Journal(archive, archive.create("chat", start()))
    session = Session.kept(journal, dspy.Predict(QA), on_turn=lambda _, turn: heard.append(turn))
    run(session, mode, question="one")
    before, store.out = session.state, True
    with pytest.raises(StoreError, match="out of reach") as caught:
        run(session, mode, question="two")
    assert caught.value.prediction.answer is not None
    assert caught.value.turn.inputs == {"question": "two"}
    assert session.state is before
    assert len(heard) == 1
    store.out = False
    run(session, mode, question="two")
    assert questions(session) == ["one", "two"]
    assert stored(store) == session.state


def test_C13_a_full_session_refuses_before_a_model_is_called(store: Store, lm: ScriptedLM) -> None:
    session = opened(store, max_bytes=2_000)
    while store.ref("chat").size < 2_000:  # type: ignore[union-attr]  # it is there
        session(question="x" * 300)
    calls, before = len(lm.prompts), session.state
    for mode in ("call", "acall", "stream", "astream"):
        with pytest.raises(SessionSizeError, match="2000"):
            run(session, mode, question="more")
    with pytest.raises(SessionSizeError):
        session.add_turn({"question": "more"}, {"answer": "more"})
    with pytest.raises(SessionSizeError):
        session.add_message({"role": "user", "content": "more"})
    assert (len(lm.prompts), session.state) == (calls, before)
    session.truncate(1)
    session(question="short")
    assert questions(session)[-1] == "short"


class Mood(pydantic.BaseModel):
    word: str


class Feels(dspy.Signature):
    """Tell the mood."""

    question: str = dspy.InputField()
    mood: Mood = dspy.OutputField()


def test_values_of_the_programs_own_types(store: Store) -> None:
    session = opened(store)
    mood = ScriptedLM(lambda prompt: {"answer": "fine", "mood": '{"word": "glad"}'})
    with dspy.context(lm=mood):
        session(question="one")
        session.update_module(dspy.Predict(Feels))
        session(question="How are you?")
    back = opened(store, program=dspy.Predict(Feels))
    assert back.turns[-1].outputs["mood"] == Mood(word="glad")


def test_a_value_without_written_form_is_refused_and_the_session_is_as_it_was(
    store: Store, lm: ScriptedLM
) -> None:
    session = opened(store)
    session(question="one")
    before = session.state
    with pytest.raises(ValueCodecError, match="turn 1"):
        session.add_turn({"question": object()}, {"answer": "x"})
    assert session.state is before
    assert stored(store) == before


def test_text_that_no_store_can_hold_is_refused_and_the_session_is_as_it_was(store: Store) -> None:
    session = opened(store)
    session.add_turn({"question": "\ud800"}, {"answer": "values may be any text"})
    before = session.state
    with pytest.raises(ValueCodecError, match="no valid text"):
        session.add_turn({"\ud800": "a name"}, {"answer": "x"})
    with pytest.raises(ValueCodecError, match="no valid text"):
        session.instructions = "\ud800"
    assert session.state is before
    assert stored(store) == before


class Team(dspy.Module):
    """A program with a session of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sessionify(dspy.Predict(QA))

    def forward(self, question: str) -> Any:
        return self.inner(question=question)


def test_sessions_within_the_program_are_stored_with_it(store: Store, lm: ScriptedLM) -> None:
    team = opened(store, program=Team())
    team(question="one")
    team(question="two")
    again = opened(store, program=Team(), newest=1)
    again(question="three")
    assert [question for question, _ in past(lm.prompts[-1])] == ["one", "two"]
    (inner,) = again.state.nested.values()
    assert [turn.inputs["question"] for turn in inner] == ["one", "two", "three"]
    again.undo(2)
    again(question="other")
    assert [question for question, _ in past(lm.prompts[-1])] == ["one"]
    assert stored(store) == again.state


def test_the_program_asks_and_the_journal_sees_one_session(store: Store, lm: ScriptedLM) -> None:
    """A stored session inside a program that runs in a turn belongs to that turn."""
    inner = opened(store, "inner")
    inner(question="before")
    team = Team()
    team.inner = inner
    outer = sessionify(team, copy_mode="none")
    outer(question="within")
    assert asked(lm.prompts[-1]) == "within"
    assert [t.inputs["question"] for t in stored(store, "inner")] == ["before"]
    outer.undo()
    inner(question="after")
    assert [t.inputs["question"] for t in stored(store, "inner")] == ["before", "after"]
