"""The session manager: sessions are made, opened, kept, branched, saved and deleted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    DELETED,
    CallError,
    ConflictError,
    DataError,
    FormatError,
    Hooks,
    Instructions,
    MemoryStore,
    ModuleTypeError,
    OptionError,
    SecretError,
    Session,
    SessionError,
    SessionExistsError,
    SessionManager,
    SessionNotFoundError,
    SessionSizeError,
    SessionStore,
    SessionTemplate,
    SQLStore,
    Store,
    StoreError,
    TurnIndexError,
    new_secret,
    sessionify,
)
from dspy_session.stores import Ref
from tests.managers import Counting, contents, manager_of, small_store, talk, unchanged
from tests.streams import SOON
from tests.talk import QA, past, questions, scripted


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with small_store(request.param, tmp_path) as opened:
        yield opened


# --- making and opening ---------------------------------------------------------------------------


def test_C1_a_session_is_made_stored_and_opened_again(store: Store) -> None:
    session = manager_of(store).open("ada")
    talk(session, "one", "two")

    again = manager_of(store).open("ada")
    assert (again.session_id, questions(again)) == ("ada", ["one", "two"])
    assert again.turns == session.turns
    talk(again, "three")
    assert questions(manager_of(store).load_session("ada")) == ["one", "two", "three"]


def test_C1_every_change_is_stored_when_it_returns(store: Store) -> None:
    manager = manager_of(store)
    session = manager.open("ada")
    talk(session, "one", "two")

    def stored() -> Session:
        return manager.load_session("ada")

    session.add_turn({"question": "three"}, {"answer": "3"})
    assert questions(stored()) == ["one", "two", "three"]
    session.undo(2)
    assert questions(stored()) == ["one"]
    session.redo()
    assert questions(stored()) == ["one", "two"]
    session.data["cart"] = ["tea"]
    assert stored().data.to_dict() == {"cart": ["tea"]}
    session.update_metadata({"topic": "tea"})
    assert stored().metadata.to_dict() == {"topic": "tea"}
    session.instructions = "Be brief."
    assert stored().instructions == Instructions("Be brief.")
    session.add_message({"role": "user", "content": "waits"})
    assert stored().messages[-1].text == "waits"
    session.reset()
    assert len(stored()) == 0
    assert stored().state == session.state


def test_C1_create_session_of_an_existing_name_opens_it(store: Store) -> None:
    manager = manager_of(store)
    talk(manager.create_session("ada"), "one")

    assert questions(manager.create_session("ada")) == ["one"]
    assert manager.count_sessions() == 1


def test_C14_a_missing_session_is_not_found(store: Store) -> None:
    manager = manager_of(store)
    with unchanged(store, SessionNotFoundError, "'ada'", "list_sessions"):
        manager.load_session("ada")
    assert issubclass(SessionNotFoundError, SessionError | LookupError)
    assert manager.get_session_info("ada") is None
    for read in (manager.messages, manager.turns, manager.export_session, manager.verify):
        with unchanged(store, SessionNotFoundError, "'ada'"):
            read("ada")
    with unchanged(store, SessionNotFoundError, "'ada'"):
        manager.update_metadata("ada", {"a": 1})
    with unchanged(store, SessionNotFoundError, "'ada'"):
        manager.erase("ada", 0)


def test_C1_a_deleted_session_is_gone(store: Store) -> None:
    manager = manager_of(store)
    session = manager.open("ada")
    talk(session, "one")

    assert manager.delete_session("ada") is True
    assert manager.delete_session("ada") is False
    assert store.totals().nodes == 0
    assert contents(store) == []
    with dspy.context(lm=scripted()), pytest.raises(ConflictError) as caught:
        session(question="two")  # who had it open is told, and keeps what was answered
    assert caught.value.prediction.answer == "answer to two"
    assert questions(session) == ["one"]


@pytest.mark.parametrize(
    "id", ['it\'s "quoted"', "a/b\\c", "../../etc", "🐳 Ünï", "%41?x=1#y", "{x}:*", "a" * 200, "0"]
)
def test_C1_ids_of_any_shape(store: Store, id: str) -> None:
    manager = manager_of(store)
    talk(manager.open(id), "one")

    assert questions(manager.load_session(id)) == ["one"]
    assert [info.session_id for info in manager.list_sessions()] == [id]
    assert manager.delete_session(id)


@pytest.mark.parametrize("id", ["", "a\0b", "line\nbreak", "x" * 10_240, None, 7, b"ada"])
def test_C1_ids_that_no_session_can_have(store: Store, id: Any) -> None:
    manager = manager_of(store)
    manager.open("ada")
    for work in (
        lambda: manager.open(id),
        lambda: manager.create_session(id, branch_from="ada"),
        lambda: manager.load_session(id),
        lambda: manager.delete_session(id),
        lambda: manager.get_session_info(id),
        lambda: manager.messages(id),
        lambda: manager.update_metadata(id, {"a": 1}),
    ):
        with unchanged(store, OptionError, "session id"):
            work()


def test_C1_what_a_session_begins_with_counts_when_it_is_made(store: Store) -> None:
    manager = manager_of(store, metadata={"app": "shop"}, data={"cart": []}, max_turns=3)
    session = manager.open("ada", metadata={"user": "ada"}, instructions="Be brief.")
    assert session.metadata.to_dict() == {"app": "shop", "user": "ada"}
    assert session.data.to_dict() == {"cart": []}
    session.data["cart"] = ["tea"]

    version = contents(store)
    again = manager.open("ada", metadata={"user": "eve"}, data={}, instructions="Rhyme.")
    assert again.data.to_dict() == {"cart": ["tea"]}
    assert again.metadata.to_dict() == {"app": "shop", "user": "ada"}
    assert again.instructions == Instructions("Be brief.")
    assert again.options.max_turns == 3
    assert contents(store) == version  # opening writes nothing


def test_C1_what_is_given_to_load_session_stands_in_for_what_is_stored(store: Store) -> None:
    manager = manager_of(store, metadata={"app": "shop"}, data={"cart": []})
    talk(manager.open("ada"), "one")
    changed = manager.load_session("ada", metadata={"vip": True}, data={"cart": [1]})

    assert changed.metadata.to_dict() == {"app": "shop", "vip": True}
    again = manager.load_session("ada")
    assert (again.data.to_dict(), questions(again)) == ({"cart": [1]}, ["one"])
    with unchanged(store, CallError, "messages"):
        manager.load_session("ada", messages=[{"role": "user", "content": "Hi"}])


def test_C1_what_the_manager_was_given_may_change_afterwards(store: Store) -> None:
    data: dict[str, Any] = {"cart": []}
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    manager = manager_of(store, data=data, messages=iter(said))
    data["cart"].append("stale")

    for id in ("ada", "bob"):
        session = manager.open(id)
        assert session.data.to_dict() == {"cart": []}
        assert [message.text for message in session.messages] == ["Hi", "Hello."]


def test_C1_options_and_code_are_given_at_each_opening(store: Store) -> None:
    told = []
    manager = manager_of(store, max_turns=1, on_turn=lambda _, turn: told.append(turn.index))
    talk(manager.open("ada", instructions=lambda state: f"{len(state)} turns"), "one", "two")
    assert told == [0, 1]

    stored = contents(store)
    session = manager.open("ada", max_turns=5, instructions=lambda state: f"{len(state)} turns")
    assert (session.options.max_turns, manager.open("ada").options.max_turns) == (5, 1)
    assert contents(store) == stored
    lm = scripted()
    with dspy.context(lm=lm):
        session(question="three")
    assert "2 turns" in lm.prompts[0][0]["content"]
    assert len(past(lm.prompts[0])) == 2


def test_C1_wrong_keywords_are_refused(store: Store) -> None:
    with unchanged(store, OptionError, "max_turn", "max_turns"):
        manager_of(store, max_turn=3)
    with unchanged(store, OptionError, "open(session_id)"):
        manager_of(store, session_id="ada")
    with unchanged(store, ModuleTypeError, "dspy.Module"):
        SessionManager("question -> answer", store)  # type: ignore[arg-type]
    wrongs: list[dict[str, Any]] = [
        {"on_conflict": "merge"},
        {"autosave": 1},
        {"max_session_size": 0},
        {"max_session_size": 1.5},
        {"read_turns": "all"},
        {"compress_over": -1},
    ]
    for wrong in wrongs:
        with unchanged(store, OptionError, *wrong):
            manager_of(store, **wrong)
    manager = manager_of(store)
    more: list[dict[str, Any]] = [
        {"max_turn": 3},
        {"copy_mode": "none"},
        {"on_conflict": "merge"},
        {"autosave": "yes"},
        {"template": "tutor"},
    ]
    for wrong in more:
        with unchanged(store, OptionError, *wrong):
            manager.open("ada", **wrong)
    with unchanged(store, OptionError, "branch_from"):
        manager.create_session("ada", at=0)


def test_C1_sessions_of_a_manager_share_its_program(store: Store) -> None:
    program = dspy.Predict(QA)
    manager = SessionManager(program, store)
    one, two = manager.open("ada"), manager.open("bob")

    assert one.module is two.module is manager.program is not program
    own = scripted()
    one.set_lm(own)  # whatever changes it gets a copy first
    assert one.module is not two.module
    assert dict(two.module.named_predictors())["self"].lm is None
    other = dspy.Predict(QA)
    two.update_module(other)
    assert two.module is not other

    assert SessionManager(program, store, copy_mode="none").open("ada").module is program


def test_C9_a_session_starts_from_a_template(store: Store) -> None:
    counted: list[Any] = []
    tutoring = SessionTemplate(
        name="tutoring",
        instructions="You teach {subject}.",
        data={"subject": "{subject}"},
        metadata={"subject": "{subject}"},
        hooks=Hooks(after=counted.append),
        options={"max_turns": 4},
        arguments=["subject"],
    )
    manager = manager_of(store, metadata={"app": "school"}, data={"x": 1}, exclude_fields=["hint"])
    session = manager.open("ada", template=tutoring, subject="Latin", metadata={"room": 3})

    assert session.instructions == Instructions("You teach Latin.")
    assert session.data.to_dict() == {"subject": "Latin"}
    assert session.metadata.to_dict() == {
        "app": "school",
        "template": "tutoring",
        "subject": "Latin",
        "room": 3,
    }
    assert (session.options.max_turns, session.options.exclude_fields) == (4, {"hint"})
    talk(session, "one")
    assert len(counted) == 1
    again = manager.open("ada", template=tutoring)  # there is one, so no argument is needed
    assert (again.options.max_turns, questions(again)) == (4, ["one"])
    assert manager.list_sessions({"template": "tutoring"})[0].session_id == "ada"
    with unchanged(store, OptionError, "subject"):
        manager.open("bob", template=tutoring)
    with unchanged(store, OptionError, "branch"):
        manager.create_session("bob", branch_from="ada", template=tutoring)


def test_C9_instructions_that_are_a_callable_belong_to_no_stored_session(store: Store) -> None:
    template = SessionTemplate(instructions=lambda state: f"Turn {len(state)}.", data={"x": 1})
    manager = manager_of(store, instructions="Be brief.")
    lm = scripted()
    with dspy.context(lm=lm):
        manager.open("ada", template=template)(question="one")
    assert "Turn 0." in lm.prompts[0][0]["content"]
    assert "Be brief." not in lm.prompts[0][0]["content"]
    assert manager.open("ada").instructions is None


# --- branching ------------------------------------------------------------------------------------


def test_C2_a_branch_shares_what_was_said_and_goes_its_own_way(store: Store) -> None:
    manager = manager_of(store)
    main = manager.open("main", metadata={"topic": "tea"})
    talk(main, "one", "two", "three")
    nodes = store.totals().nodes

    branch = manager.create_session("other", branch_from="main", metadata={"variant": "b"})
    assert store.totals().nodes == nodes  # nothing is copied
    assert branch.turns == main.turns
    assert branch.metadata.to_dict() == {"topic": "tea", "variant": "b"}
    info = manager.get_session_info("other")
    assert info is not None
    assert info.origin == "main"
    talk(branch, "four")
    assert questions(manager.load_session("main")) == ["one", "two", "three"]
    assert questions(manager.load_session("other")) == ["one", "two", "three", "four"]

    earlier = manager.create_session("earlier", branch_from="main", at=1)
    assert questions(earlier) == ["one"]
    assert earlier.redo() == ()
    assert manager.delete_session("main")
    assert questions(manager.load_session("earlier")) == ["one"]
    assert manager.verify("other").ok


@pytest.mark.parametrize("shown", [None, 1])
def test_C14_a_branch_before_a_damaged_turn(store: Store, shown: int | None) -> None:
    manager = manager_of(store, max_turns=shown)
    talk(manager.open("main"), "one", "two", "three")
    ref = store.ref("main")
    assert isinstance(ref, Ref)
    assert ref.tip is not None
    store.replace_payloads(ref.family, {ref.tip: b"\x10...."})
    for at in (None, 3):
        with unchanged(store, FormatError, "turn 2: ", "fork the session before it"):
            manager.create_session("saved", branch_from="main", at=at)
    for at in (2, 0):
        saved = manager.create_session(f"saved-{at}", branch_from="main", at=at, data={"at": at})
        talk(saved, "four")
        assert questions(manager.load_session(f"saved-{at}")) == [*["one", "two"][:at], "four"]
        assert manager.load_session(f"saved-{at}").data["at"] == at
        assert manager.verify(f"saved-{at}").ok


def test_C2_branches_that_cannot_be(store: Store) -> None:
    manager = manager_of(store)
    talk(manager.open("main"), "one")
    with unchanged(store, SessionExistsError, "'main'"):
        manager.create_session("main", branch_from="main")
    with unchanged(store, SessionNotFoundError, "'nobody'"):
        manager.create_session("other", branch_from="nobody")
    for at in (5, -1, True, "1"):
        with unchanged(store, TurnIndexError, repr(at)):
            manager.create_session("other", branch_from="main", at=at)  # type: ignore[arg-type]
    with unchanged(store, CallError, "messages"):
        manager.create_session("other", branch_from="main", messages=[])
    with unchanged(store, OptionError, "'colour'"):
        manager.create_session("other", branch_from="main", colour="red")


def test_C2_a_branch_of_a_long_conversation_reads_no_more_than_the_window(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(store, max_turns=2)
    session = manager.open("main", autosave=False)
    for number in range(200):
        session.add_turn({"question": f"q{number}"}, {"answer": "a"})
    manager.save_session(session)
    counting = Counting(store, monkeypatch)

    assert counting.during(lambda: manager.create_session("b", branch_from="main", at=199)) <= 4
    assert len(manager.open("b")) == 199


def test_C2_the_fork_of_a_session_is_stored_too(store: Store) -> None:
    manager = manager_of(store)
    session = manager.open("main")
    talk(session, "one")
    twin = session.fork(session_id="twin")
    talk(twin, "two")

    assert questions(manager.load_session("twin")) == ["one", "two"]
    with unchanged(store, SessionExistsError, "'twin'"):
        session.fork(session_id="twin")


# --- saving by hand -------------------------------------------------------------------------------


def test_C1_without_autosave_nothing_is_stored_until_it_is_saved(store: Store) -> None:
    manager = manager_of(store, autosave=False)
    session = manager.open("ada")
    talk(session, "one", "two")
    session.data["cart"] = ["tea"]

    assert len(manager.load_session("ada")) == 0
    with pytest.raises(CallError, match="not saved"):
        session.refresh()
    assert questions(session) == ["one", "two"]
    manager.save_session(session)
    stored = manager.load_session("ada")
    assert (questions(stored), stored.data.to_dict()) == (["one", "two"], {"cart": ["tea"]})
    version = contents(store)
    manager.save_session(session)
    assert contents(store) == version

    session.refresh()  # all is saved
    fresh = manager.open("bob")
    fresh.refresh()  # opening is no change
    talk(manager.open("ada", autosave=True), "three")
    assert len(manager.load_session("ada")) == 3


def test_C1_a_session_made_elsewhere_is_stored_and_kept_from_then_on(store: Store) -> None:
    manager = manager_of(store)
    session = sessionify(dspy.Predict(QA), session_id="ada", data={"cart": []}, max_turns=1)
    talk(session, "one")
    manager.save_session(session)
    talk(session, "two")
    session.undo()

    stored = manager.load_session("ada")
    assert stored.state == session.state
    assert [turn.inputs["question"] for turn in stored.state.undone] == ["two"]
    other = sessionify(dspy.Predict(QA), session_id="ada")
    with unchanged(store, SessionExistsError, "'ada'"):
        manager.save_session(other)
    talk(other, "mine")  # it is in no store
    assert len(manager.load_session("ada")) == 1


def test_C1_what_cannot_be_saved(store: Store) -> None:
    manager = manager_of(store)
    with unchanged(store, CallError, "str"):
        manager.save_session("ada")  # type: ignore[arg-type]
    with unchanged(store, CallError, "frozen", "fork()"):
        manager.save_session(sessionify(dspy.Predict(QA)).frozen())
    other = manager_of(MemoryStore())
    session = other.open("ada")
    with unchanged(store, CallError, "another store"):
        manager.save_session(session)
    talk(session, "one")
    assert questions(other.open("ada")) == ["one"]


# --- two writers ----------------------------------------------------------------------------------


def test_X5_on_conflict_is_chosen_for_the_manager_or_at_opening(store: Store) -> None:
    manager = manager_of(store, on_conflict="retry")
    one, two = manager.open("ada"), manager.open("ada")
    raising, branching = (manager.open("ada", on_conflict=way) for way in ("raise", "branch"))
    talk(one, "one")
    talk(two, "two")
    assert questions(two) == ["one", "two"]

    with dspy.context(lm=scripted()), pytest.raises(ConflictError) as caught:
        raising(question="three")
    assert caught.value.turn.inputs["question"] == "three"
    assert len(raising) == 0
    raising.refresh()
    assert questions(raising) == ["one", "two"]

    talk(branching, "four")
    assert branching.session_id != "ada"
    assert questions(manager.load_session(branching.session_id)) == ["four"]
    assert questions(manager.load_session("ada")) == ["one", "two"]


def test_X5_threads_that_open_one_new_session_make_it_once(store: Store) -> None:
    manager = manager_of(store, on_conflict="retry")
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            together.wait(SOON)
            manager.open("ada").add_turn({"question": f"q{number}"}, {"answer": "a"})
        except BaseException as error:  # noqa: BLE001  # it is shown below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(questions(manager.open("ada"))) == ["q0", "q1", "q2", "q3"]
    assert manager.count_sessions() == 1


def test_C5_metadata_is_merged_without_a_lost_update(store: Store) -> None:
    manager = manager_of(store)
    talk(manager.open("ada", metadata={"a": 1, "b": {"c": 2}}), "one")
    manager.update_metadata("ada", {"a": DELETED, "tags": ["x", "y"]})
    assert manager.load_session("ada").metadata.to_dict() == {"b": {"c": 2}, "tags": ["x", "y"]}

    threads = [
        threading.Thread(target=manager.update_metadata, args=("ada", {f"k{n}": n}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    info = manager.get_session_info("ada")
    assert info is not None
    assert {name: info.metadata[name] for name in info.metadata if name[0] == "k"} == {
        f"k{n}": n for n in range(8)
    }
    assert questions(manager.load_session("ada")) == ["one"]


@pytest.mark.parametrize("wrong", [{"x": object()}, {"x": {1, 2}}, {1: 2}, "x", None])
def test_C5_metadata_that_is_not_json_changes_nothing(store: Store, wrong: Any) -> None:
    manager = manager_of(store)
    manager.open("ada", metadata={"a": 1})
    with unchanged(store, DataError):
        manager.update_metadata("ada", wrong)
    if wrong is not None:
        with unchanged(store, DataError):
            manager.open("bob", metadata=wrong)
        with unchanged(store, DataError):
            manager.list_sessions(wrong)
    with unchanged(store, DataError, "1000000"):
        manager.update_metadata("ada", {"x": "y" * 2_000_000})


# --- sizes, keys ----------------------------------------------------------------------------------


def test_C13_a_session_that_is_full_is_refused_before_a_model_is_asked(store: Store) -> None:
    manager = manager_of(store, max_session_size=3000, compress_over=None)
    session = manager.open("ada")
    lm = scripted()
    with dspy.context(lm=lm):
        session(question="x" * 3000)
        before = session.state
        for work in (
            lambda: session(question="two"),
            lambda: asyncio.run(session.acall(question="two")),
            lambda: list(session.stream(question="two")),
            lambda: session.ask("two", record=True),
            lambda: asyncio.run(session.aask("two", record=True)),
        ):
            with unchanged(store, SessionSizeError, "3000", "max_session_size"):
                work()
    assert (len(lm.prompts), session.state) == (1, before)
    session.truncate(0)
    talk(session, "short")
    assert questions(manager.load_session("ada")) == ["short"]


def test_C13_of_a_session_that_is_saved_by_hand_what_is_stored_counts(store: Store) -> None:
    manager = manager_of(store, max_session_size=3000, compress_over=None, autosave=False)
    session = manager.open("ada")
    talk(session, "x" * 3000, "two")  # neither is stored yet
    manager.save_session(session)
    with unchanged(store, SessionSizeError, "3000", "and save it"):
        talk(session, "three")
    session.truncate(0)
    with unchanged(store, SessionSizeError, "3000", "and save it"):
        talk(session, "three")
    manager.save_session(session)
    talk(session, "short")
    assert questions(session) == ["short"]


def test_C13_long_turns_are_compressed(store: Store) -> None:
    said = {"question": "tea " * 20_000}
    sizes = []
    for over in (4096, None):
        manager = manager_of(store, compress_over=over)
        session = manager.open(f"over {over}")
        session.add_turn(said, {"answer": "a"})
        (info,) = (i for i in manager.list_sessions() if i.session_id == session.session_id)
        sizes.append(info.size_bytes)
        assert manager.open(session.session_id).turns[0].inputs == said
        assert len(manager.search("TEA TEA")) == len(sizes)
    assert sizes[0] * 20 < 80_000 < sizes[1]


def test_X12_what_is_stored_can_be_encrypted(tmp_path: Path) -> None:
    url, key = f"sqlite:///{tmp_path}/chats.db", new_secret()
    with manager_of(url, key=key) as manager:
        talk(manager.open("ada", data={"pin": "very secret"}), "a secret question")
        assert [hit.excerpt for hit in manager.search("SECRET QUEST")] == [
            "a secret question",
            "answer to a secret question",
        ]
    assert b"secret" not in (tmp_path / "chats.db").read_bytes()
    for wrong in ({}, {"key": new_secret()}):
        with manager_of(url, **wrong) as manager:
            for read in (manager.open, manager.messages, manager.search):
                with pytest.raises(SecretError, match="key"):
                    read("ada")
            assert manager.count_sessions() == 1
    with manager_of(url, key=new_secret(), old_keys=[key]) as manager:
        session = manager.open("ada")
        talk(session, "two")
        assert questions(session) == ["a secret question", "two"]


def test_X12_erasing_and_checking(store: Store) -> None:
    manager = manager_of(store)
    talk(manager.open("ada"), "one", "secret", "three")
    manager.create_session("bob", branch_from="ada")

    erased = manager.erase("ada", 1)
    assert set(erased.sessions) == {"ada", "bob"}
    assert manager.search("secret") == []
    verified = manager.verify("bob")
    assert (verified.ok, verified.erased) == (True, (1,))
    with unchanged(store, TurnIndexError, "7"):
        manager.erase("ada", 7)


def test_X12_vacuum_takes_what_was_left_behind(store: Store) -> None:
    manager = manager_of(store)
    session = manager.open("ada")
    talk(session, "one", "two")
    session.undo()
    talk(session, "three")
    session.reset()

    assert manager.vacuum() >= 0
    assert store.totals().nodes == 0
    assert manager.vacuum() == 0


# --- opening reads what the window needs ----------------------------------------------------------


def test_C13_opening_reads_what_the_window_needs_and_the_rest_when_someone_looks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(store, max_turns=5)
    session = manager.open("ada", autosave=False)
    for number in range(300):
        session.add_turn({"question": f"q{number}"}, {"answer": "a"})
    manager.save_session(session)
    counting = Counting(store, monkeypatch)
    opened: list[Session] = []

    assert counting.during(lambda: opened.append(manager.open("ada"))) == 5
    assert counting.during(lambda: talk(opened[0], "one", "two")) == 0
    assert counting.during(lambda: opened[0].undo(3)) == 0
    assert len(opened[0]) == 299
    assert counting.during(lambda: opened[0].turns[0]) == 295  # read once
    assert counting.during(lambda: opened[0].turns) == 0
    assert opened[0].turns[7].inputs["question"] == "q7"
    opened[0].redo(3)
    assert counting.during(lambda: manager.open("ada", max_turns=0)) == 1
    assert counting.during(lambda: manager.open("ada", max_turns=None)) == 302
    other = manager.open("ada")
    other.add_turn({"question": "elsewhere"}, {"answer": "a"})
    assert counting.during(opened[0].refresh) <= 5
    other.reset()
    for number in range(20):
        other.add_turn({"question": f"anew {number}"}, {"answer": "a"})
    assert counting.during(opened[0].refresh) <= 5
    assert len(opened[0]) == 20
    assert opened[0].turns == other.turns
    assert counting.during(lambda: manager_of(store, read_turns=20).open("ada")) <= 24


# --- async, threads, other stores -----------------------------------------------------------------


def test_C1_everything_can_be_awaited(store: Store, tmp_path: Path) -> None:
    async def conversation() -> None:
        async with manager_of(store) as manager:
            session = await manager.aopen("ada", metadata={"topic": "tea"})
            with dspy.context(lm=scripted()):
                await session.acall(question="one")
            await manager.aupdate_metadata("ada", {"done": True})
            assert [hit.session_id for hit in await manager.asearch("ONE")] == ["ada", "ada"]
            assert (await manager.alist_sessions({"done": True}))[0].turn_count == 1
            assert await manager.acount_sessions() == 1
            info = await manager.aget_session_info("ada")
            assert info is not None
            assert info.message_count == 2
            assert [m.role for m in await manager.amessages("ada")] == ["user", "assistant"]
            assert len(await manager.aturns("ada")) == 1
            other = await manager.acreate_session("bob", branch_from="ada")
            other.undo()
            assert len(await manager.aload_session("bob")) == 0
            mine = sessionify(dspy.Predict(QA), session_id="eve")
            await manager.asave_session(mine)
            document = await manager.aexport_session("ada", tmp_path / "ada.json")
            assert questions(await manager.aimport_session(document, session_id="ada2")) == ["one"]
            assert (await manager.astatistics()).session_count == 4
            assert sum((await manager.aactivity()).values()) >= 1
            assert (await manager.averify("ada")).ok
            assert (await manager.aerase("ada", 0)).sessions
            assert await manager.adelete_session("ada")
            await manager.avacuum()
            with pytest.raises(SessionNotFoundError):
                await manager.aload_session("ada")

    asyncio.run(conversation())


def test_C1_awaited_work_leaves_the_event_loop_free() -> None:
    released, waits = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def ref(self, id: str) -> Any:
            waits.set()
            assert released.wait(SOON)
            return super().ref(id)

    async def both() -> None:
        opening = asyncio.create_task(manager_of(Slow()).aopen("ada"))
        while not waits.is_set():
            await asyncio.sleep(0)
        assert not opening.done()
        released.set()
        assert (await opening).session_id == "ada"

    asyncio.run(both())


def test_C7_a_store_is_closed_by_whoever_opened_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chats.db"
    with manager_of(url) as manager:
        session = manager.open("ada")
    with pytest.raises(StoreError):
        manager.open("ada")
    with dspy.context(lm=scripted()), pytest.raises(StoreError) as caught:
        session(question="one")
    assert caught.value.prediction.answer == "answer to one"
    assert len(session) == 0

    store = MemoryStore()
    with manager_of(store) as manager:
        manager.open("ada")
    assert manager_of(store).count_sessions() == 1


class Own:
    """A store of one's own: four methods over plain dicts."""

    def __init__(self) -> None:
        self.saved: dict[str, dict[str, Any]] = {}

    def save(self, session_id: str, data: dict[str, Any]) -> None:
        self.saved[session_id] = data

    def load(self, session_id: str) -> dict[str, Any] | None:
        return self.saved.get(session_id)

    def delete(self, session_id: str) -> bool:
        return self.saved.pop(session_id, None) is not None

    def list_sessions(self) -> list[str]:
        return list(self.saved)


def walk_through(manager: SessionManager) -> None:
    session = manager.open("ada", metadata={"topic": "tea"}, data={"cart": []})
    talk(session, "one", "two")
    session.undo()
    session.data["cart"] = ["tea"]
    branch = manager.create_session("bob", branch_from="ada")
    talk(branch, "Drei")
    again = manager.load_session("ada")
    assert (questions(again), again.data.to_dict()) == (["one"], {"cart": ["tea"]})
    assert again.redo() == ()
    assert [i.session_id for i in manager.list_sessions({"topic": "tea"})] == ["bob", "ada"]
    assert [hit.session_id for hit in manager.search("drei", limit=1)] == ["bob"]
    assert manager.messages("bob", last=1)[0].text == "answer to Drei"
    manager.update_metadata("bob", {"done": True})
    assert manager.count_sessions({"done": True}) == 1
    assert manager.verify("bob").ok
    assert manager.statistics().session_count == 2
    copied = manager.import_session(manager.export_session("bob"), session_id="copy")
    assert copied.turns == manager.load_session("bob").turns
    assert manager.delete_session("ada")
    assert questions(manager.load_session("bob")) == ["one", "Drei"]
    assert manager.delete_session("bob")
    assert manager.delete_session("copy")
    assert manager.statistics().session_count == manager.statistics().turn_count == 0


def test_A11_a_store_of_ones_own_needs_four_methods() -> None:
    own = Own()
    assert isinstance(own, SessionStore)
    walk_through(manager_of(own))
    assert own.saved == {}


def test_C7_memory_and_sqlite(store: Store) -> None:
    walk_through(manager_of(store))


def test_C7_urls(tmp_path: Path) -> None:
    walk_through(manager_of("memory:"))
    walk_through(manager_of(f"sqlite:///{tmp_path}/chats.db"))
    walk_through(manager_of(tmp_path / "other.db"))
    assert isinstance(SQLStore(f"sqlite:///{tmp_path}/other.db"), Store)


def test_C7_postgresql(postgres_url: str) -> None:
    with manager_of(postgres_url) as manager:
        walk_through(manager)


def test_C7_redis(redis_url: str) -> None:
    with manager_of(redis_url) as manager:
        walk_through(manager)


def test_C7_a_place_that_is_no_store() -> None:
    for wrong in ("chats.db", "sqlit:///x.db", object(), None):
        with pytest.raises(OptionError):
            manager_of(wrong)


# --- damage ---------------------------------------------------------------------------------------


def test_C14_a_damaged_turn_is_named_and_the_rest_can_be_read(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(store, max_turns=1)
    talk(manager.open("ada"), "one", "two", "three")
    talk(manager.open("bob"), "two")
    ref = store.ref("ada")
    assert ref is not None
    assert ref.head is not None
    node = store.walk(ref.family, ref.head, 0)[1]
    store.replace_payloads(ref.family, {node.key: node.payload[:-1] + b"?"})

    session = manager.open("ada")
    assert session.state.last is not None
    assert session.state.last.inputs["question"] == "three"
    with pytest.raises(FormatError, match="turn 1"):
        manager.messages("ada")
    with pytest.raises(FormatError, match="turn 1"):
        session.turns  # noqa: B018  # it is read here
    assert manager.messages("ada", last=2)[0].text == "three"
    assert manager.turns("ada", 0, 1)[0].inputs["question"] == "one"
    for branch in (
        manager.create_session("before", branch_from="ada", at=1),
        manager.open("ada").fork(at=1),
    ):
        assert questions(branch) == ["one"]
        assert manager.delete_session(branch.session_id)
    assert manager.verify("ada").first_bad == 1
    found = {(hit.session_id, hit.turn_index) for hit in manager.search("o")}
    assert found == {("ada", 0), ("bob", 0), ("ada", 2)}
    assert "turn 1" in caplog.text


def test_C14_a_session_whose_newest_turn_is_lost_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No store writes such a session; whoever tries again for ever would hang."""
    store = MemoryStore()
    manager = manager_of(store)
    talk(manager.open("ada"), "one")
    monkeypatch.setattr(store, "put", lambda *_: False)

    with unchanged(store, StoreError, "verify()"):
        manager.update_metadata("ada", {"a": 1})
    with unchanged(store, ConflictError, "'ada'"):
        manager.create_session("bob", branch_from="ada")
    for policy in ("raise", "retry"):
        session = manager.open("ada", on_conflict=policy)
        with unchanged(store, ConflictError, "'ada'"):
            talk(session, "two")
