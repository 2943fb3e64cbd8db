"""X6: whatever is killed and whenever, no change whose call had returned is lost.

A killed process cannot show that the disk was synchronised: what it had written is in the system's
memory, and survives. That SQLite and Redis are told to synchronise is a setting, which
`tests/test_store_sql.py` looks at; it would take a loss of power to see it work.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dspy
import pytest

from dspy_session import Session, sessionify
from dspy_session.errors import StoreError
from dspy_session.manager import SessionManager
from dspy_session.stores.memory import MemoryStore
from dspy_session.stores.records import Node, Ref
from dspy_session.testing import ScriptedLM
from tests.servers import APPEND_ONLY, PostgresServer, RedisServer
from tests.writers import (
    LM,
    SHARED,
    WINDOW,
    Change,
    World,
    Writer,
    Writers,
    changes,
    crash_writes,
    manager,
)

Picture = Mapping[str, Any]
"""All that can be seen of some sessions, by id."""

_ROUNDS_PER_FILE: Final = 8


def picture(session: Session) -> object:
    """All that can be seen of a session, but for ids and times."""
    state = session.state
    return (
        [(turn.index, turn.inputs, turn.outputs, turn.data.to_dict()) for turn in state.turns],
        [(turn.index, turn.inputs, turn.outputs, turn.data.to_dict()) for turn in state.undone],
        state.data.to_dict(),
        state.metadata.to_dict(),
    )


def pictures(sessions: Mapping[str, Session]) -> Picture:
    return {id: picture(session) for id, session in sessions.items()}


def in_memory(sessions: Mapping[str, Session] | None = None) -> World:
    """The same world without a store; of the sessions of another such world, it has copies."""

    def begin(id: str) -> Session:
        return sessionify(dspy.Predict("question -> answer"), session_id=id, max_turns=WINDOW)

    copies = {id: session.fork() for id, session in (sessions or {}).items()}
    return World(copies, begin, lambda id: None)


def stored(url: str) -> Picture:
    """All sessions of a store, each verified."""
    with manager(url) as kept:
        ids = [info.session_id for info in kept.list_sessions()]
        for id in ids:
            found = kept.verify(id)
            assert found.ok, str(found)
        return pictures({id: kept.open(id) for id in ids})


def heard_until_killed(writer: Writer, drawn: random.Random) -> list[Change]:
    """What a writer had told when it was killed: at once, or after some changes."""
    assert writer.hear() == "begun"
    heard = []
    if drawn.random() < 0.7:
        heard = [writer.hear() for _ in range(drawn.randrange(1, 12))]
    time.sleep(drawn.random() / drawn.choice((25, 500)))
    writer.kill()
    return heard + writer.hear_all()


def test_X6_no_change_that_had_returned_is_lost_when_its_process_is_killed(
    tmp_path: Path, kills: int
) -> None:
    drawn = random.Random(kills)
    model, url, none, on_top = in_memory(), "", 0, 0
    with Writers() as writers, dspy.context(lm=LM):
        for seed in range(kills):
            if seed % _ROUNDS_PER_FILE == 0:  # so that the making of files is interrupted, too
                model, url = in_memory(), f"sqlite:///{tmp_path / f'{seed}.db'}"
            told = heard_until_killed(writers.start(crash_writes, url, seed), drawn)
            planned = changes(seed)
            assert told == list(itertools.islice(planned, len(told)))
            for change in told:
                model.make(change)
            further = in_memory(model.sessions)
            further.make(next(planned))
            found = stored(url)
            assert found in (pictures(model.sessions), pictures(further.sessions)), told
            none += not told
            if found != pictures(model.sessions):
                model, on_top = further, on_top + 1
    assert kills < 100 or (none and on_top)  # it was killed early and while it wrote, too


# --- killed servers -------------------------------------------------------------------------------


def postgres() -> PostgresServer:
    return PostgresServer()


def durable_redis() -> RedisServer:
    return RedisServer(*APPEND_ONLY)


servers = pytest.mark.parametrize("new_server", [postgres, durable_redis])


def request(session: Session, id: str) -> Any:
    with dspy.context(lm=LM):
        return session.using(request_id=id)(question=id)


def failure_of(session: Session, id: str) -> StoreError | None:
    """Why a request failed, if it did."""
    try:
        request(session, id)
    except StoreError as error:
        return error
    return None


def request_ids(url: str) -> list[str | None]:
    """What is stored, seen by somebody else."""
    with manager(url) as kept:
        found = kept.verify(SHARED)
        assert found.ok, str(found)
        return [turn.request_id for turn in kept.open(SHARED).turns]


@servers
def test_X6_no_turn_that_had_returned_is_lost_when_the_server_is_killed(
    new_server: Callable[[], PostgresServer | RedisServer], kills: int
) -> None:
    drawn, answered = random.Random(kills), list[str]()
    with new_server() as server, manager(server.url) as kept:
        session = kept.open(SHARED)
        for kill in range(kills // 5):
            killing = threading.Timer(drawn.random() / 10, server.kill)
            killing.start()
            number, before, failed = 0, session.turns, failure_of(session, f"{kill}.0")
            while failed is None:
                answered.append(f"{kill}.{number}")
                number, before = number + 1, session.turns
                failed = failure_of(session, f"{kill}.{number}")
            killing.join()
            assert failed.__cause__ is not None
            assert session.turns == before
            server.start()
            request(session, f"{kill}.{number}")  # the caller cannot know whether it was stored
            answered.append(f"{kill}.{number}")
            assert request_ids(server.url) == answered


@servers
def test_X6_a_server_that_is_lost_in_the_middle_of_a_turn_costs_no_answer(
    new_server: Callable[[], PostgresServer | RedisServer],
) -> None:
    with new_server() as server, manager(server.url) as kept:
        session = kept.open(SHARED)
        request(session, "first")
        before = session.state
        lm = ScriptedLM(lambda prompt: {"answer": "Paid."}, on_request=lambda _: server.kill())
        with dspy.context(lm=lm), pytest.raises(StoreError) as caught:
            session.using(request_id="second")(question="second")
        assert caught.value.prediction.answer == "Paid."
        assert caught.value.turn.outputs == {"answer": "Paid."}
        assert session.state is before
        with pytest.raises(StoreError) as caught:
            request(session, "second")
        assert caught.value.turn is None  # nothing was asked
        assert session.state is before
        server.start()
        request(session, "second")
        request(session, "second")
        assert request_ids(server.url) == ["first", "second"]


class Forgetful(MemoryStore):
    """Writes, and while `silent` nobody hears what became of it."""

    silent = False

    def ref(self, id: str) -> Ref | None:
        if self.silent:
            raise StoreError("The connection was lost.")
        return super().ref(id)

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        done = super().put(ref, expected, nodes, needs)
        if self.silent:
            raise StoreError("The connection was lost.")
        return done


def test_X6_a_turn_whose_acknowledgement_was_lost_is_found_by_its_request() -> None:
    store = Forgetful()
    session = SessionManager(dspy.Predict("question -> answer"), store).open(SHARED)

    def go_silent(_: object) -> None:
        store.silent = True

    lm = ScriptedLM(on_request=go_silent)
    with dspy.context(lm=lm):
        with pytest.raises(StoreError) as caught:
            session.using(request_id="r1")(question="Hi")
        assert (len(session), len(lm.prompts)) == (0, 1)
        store.silent = False
        again = session.using(request_id="r1")(question="Hi")
    assert again == caught.value.prediction
    assert (len(session), len(lm.prompts)) == (1, 1)


def test_X6_an_acknowledgement_that_was_lost_is_looked_up_if_the_store_answers_again() -> None:
    class Hiccup(Forgetful):
        def ref(self, id: str) -> Ref | None:
            self.silent = False
            return super().ref(id)

    store = Hiccup()
    kept = SessionManager(dspy.Predict("question -> answer"), store)
    session = kept.open(SHARED)
    store.silent = True
    with dspy.context(lm=LM):
        session(question="Hi")
        session(question="And?")
    assert kept.open(SHARED).turns == session.turns
    assert len(session) == 2
