"""From URLs, paths and objects to stores; what `DocumentStore` makes of documents."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_session.stores
from dspy_session import FormatError, OptionError, Session, sessionify
from dspy_session.errors import StoreError
from dspy_session.stores import (
    DamagedRef,
    DocumentStore,
    ListQuery,
    MemoryStore,
    Node,
    RedisStore,
    Ref,
    SessionStore,
    SQLStore,
    Store,
    new_key,
    open_store,
)
from dspy_session.stores.opening import StoreLike
from dspy_session.testing import ScriptedLM
from dspy_session.testing.contract_cases import chain, ref_to, rewritten
from tests import house
from tests.documents import Dicts, Folder

# Opening


def stored(store: Store) -> Ref:
    nodes = chain(new_key(), 2)
    ref = ref_to("ada", nodes)
    assert store.put(ref, None, nodes)
    return ref


@pytest.mark.parametrize("url", ["memory:", "memory://", "MEMORY:"])
def test_a_url_of_memory(url: str) -> None:
    with open_store(url) as store, open_store(url) as other:
        assert type(store) is MemoryStore
        stored(store)
        assert other.ref("ada") is None


def test_a_url_of_a_sqlite_file(tmp_path: Path) -> None:
    for scheme in ("sqlite", "sqlite+pysqlite", "SQLite"):
        with open_store(f"{scheme}:///{tmp_path}/{scheme}.db") as store:
            assert type(store) is SQLStore
            ref = stored(store)
        with open_store(tmp_path / f"{scheme}.db") as store:
            assert store.ref("ada") == ref


@pytest.mark.parametrize("name", ["chats.db", "a ?b%20#c&d=e.db", "ünï 🙂.sqlite", "x:y@z"])
def test_a_path_is_that_file_whatever_its_name(name: str, tmp_path: Path) -> None:
    with open_store(tmp_path / name) as store:
        assert type(store) is SQLStore
        stored(store)
        assert (tmp_path / name).exists()
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {name}


def test_a_url_of_postgresql(postgres_url: str) -> None:
    rest = postgres_url.partition("://")[2]
    for scheme in ("postgresql+psycopg", "postgresql", "postgres"):
        with open_store(f"{scheme}://{rest}") as store:
            assert type(store) is SQLStore
            stored(store)
            assert store.delete("ada")


def test_a_url_of_redis(redis_url: str) -> None:
    with open_store(redis_url) as store:
        assert type(store) is RedisStore
        ref = stored(store)
        assert store.ref("ada") == ref


def test_a_store_is_itself_and_four_methods_make_one(tmp_path: Path) -> None:
    store = MemoryStore()
    assert open_store(store) is store
    for own in (Dicts(), Folder(tmp_path)):
        assert isinstance(own, SessionStore)
        opened = open_store(own)
        assert type(opened) is DocumentStore
        assert opened.own is own
        ref = stored(opened)
        assert open_store(own).ref("ada") == ref


SECRET = "tell-nobody"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("chats.db", "the text has no scheme. Give the file of a SQLite store as a pathlib.Path"),
        ("", "the text has no scheme"),
        (":memory:", "the text has no scheme"),
        ("C:\\\\chats.db", "the text has no scheme"),
        (f"redsi://u:{SECRET}@host/0", "Did you mean 'redis'?"),
        (f"postgresqll://u:{SECRET}@host/0", "Did you mean 'postgresql'?"),
        (f"mysql://u:{SECRET}@host/0", "No store has URLs of the scheme 'mysql'. The schemes are"),
        ("sqlite:chats.db", "The URL begins with 'sqlite', but is not whole"),
        ("memory:chats", "The URL begins with 'memory', but is not whole"),
        ("redis:", "The URL begins with 'redis', but is not whole"),
        (None, "not NoneType"),
        (3, "not int"),
        ({}, "not dict"),
        (Dicts, "not the class Dicts"),
        (MemoryStore, "not the class MemoryStore"),
    ],
)
def test_what_is_no_store(wrong: Any, told: str) -> None:
    with pytest.raises(OptionError) as raised:
        open_store(wrong)
    assert told in str(raised.value)
    assert "sqlite:///chats.db" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_no_driver_is_loaded_before_it_is_needed() -> None:
    for statement in (
        "import dspy_session.stores",
        "import dspy_session.stores as s; s.open_store('memory:'); s.DocumentStore",
    ):
        loaded = house.loaded_by(statement)
        assert not {"sqlalchemy", "redis", "psycopg", "dspy", "cryptography"} & loaded
    loaded = house.loaded_by("import dspy_session.stores as s; s.open_store('sqlite://')")
    assert "sqlalchemy" in loaded
    assert not {"redis", "psycopg", "dspy"} & loaded


def test_exports() -> None:
    assert house.export_complaints(dspy_session.stores) == []


# Documents


class Clumsy(Dicts):
    """Raises an error of its own when told to."""

    failing = ""

    def save(self, session_id: str, data: dict[str, Any]) -> None:
        self._fail("save")
        super().save(session_id, json.loads(json.dumps(data)))

    def load(self, session_id: str) -> dict[str, Any] | None:
        self._fail("load")
        return copy.deepcopy(super().load(session_id))

    def delete(self, session_id: str) -> bool:
        self._fail("delete")
        return super().delete(session_id)

    def list_sessions(self) -> list[str]:
        self._fail("list_sessions")
        return super().list_sessions()

    def _fail(self, name: str) -> None:
        if self.failing == name:
            raise OSError("the disk is gone")


def test_an_object_that_lacks_a_method() -> None:
    class Three:
        def save(self, session_id: str, data: dict[str, Any]) -> None: ...
        def load(self, session_id: str) -> None: ...
        def delete(self, session_id: str) -> None: ...

    with pytest.raises(OptionError, match="not Three, which lacks list_sessions"):
        DocumentStore(Three())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="not Three"):
        open_store(Three())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failing", "ask"),
    [
        ("load", lambda store, ref: store.ref("ada")),
        ("load", lambda store, ref: store.put(rewritten(ref), ref.version)),
        ("save", lambda store, ref: store.put(rewritten(ref), ref.version)),
        ("delete", lambda store, ref: store.delete("ada")),
        ("list_sessions", lambda store, ref: store.refs(ListQuery())),
        ("list_sessions", lambda store, ref: store.relatives(ref.family)),
    ],
)
def test_errors_of_the_object_are_the_stores(
    failing: str, ask: Callable[[Store, Ref], object]
) -> None:
    own = Clumsy()
    store = DocumentStore(own)
    ref = stored(store)
    before = copy.deepcopy(own.data)
    own.failing = failing
    with pytest.raises(StoreError, match=f"{failing}.* raised OSError: the disk is gone") as raised:
        ask(store, ref)
    assert isinstance(raised.value.__cause__, OSError)
    own.failing = ""
    assert own.data == before
    assert store.ref("ada") == ref
    assert store.put(rewritten(ref), ref.version)


def test_a_document_is_plain_json() -> None:
    own = Clumsy()
    ref = stored(DocumentStore(own))
    document = json.loads(json.dumps(own.data["ada"]))
    assert document == own.data["ada"]
    assert (document["kind"], document["version"]) == ("dspy-session stored", 1)
    assert document["session"]["id"] == "ada"
    assert [node["depth"] for node in document["nodes"]] == [0, 1]
    own.data = {"ada": document}
    assert DocumentStore(own).ref("ada") == ref


def without(*path: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for step in path[:-1]:
            inner = inner[step]
        del inner[path[-1]]

    return change


def with_value(value: Any, *path: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_value(2, "version"), "written in version 2 of the format; this library reads"),
        (with_value(0, "version"), "its version is 0"),
        (with_value("1", "version"), ""),
        (without("version"), ""),
        (without("session"), ""),
        (without("nodes"), ""),
        (without("session", "tip"), "a ref lacks tip"),
        (without("nodes", 0, "payload"), "a node lacks payload"),
        (without("nodes", 1), "its newest node is missing"),
        (with_value(None, "nodes"), ""),
        (with_value([1], "nodes"), ""),
        (with_value(7, "nodes"), ""),
        (with_value([], "session"), ""),
        (with_value("x", "session", "family"), ""),
        (with_value("not base64!", "nodes", 0, "payload"), ""),
        (with_value(5, "nodes", 0, "family"), "it has nodes of another family"),
        (with_value("bob", "session", "id"), "it is session 'bob'"),
        (with_value(1, "more"), ""),
    ],
)
def test_a_damaged_document_is_named_and_left_as_it_is(
    change: Callable[[dict[str, Any]], object], told: str
) -> None:
    own = Clumsy()
    store = DocumentStore(own)
    ref = stored(store)
    others = chain(ref.family, 1, label="a")
    other = ref_to("other", others)
    assert store.put(other, None, others)
    change(own.data["ada"])
    before = copy.deepcopy(own.data)
    fresh = DocumentStore(own)
    for expected in (ref.version, None):
        with pytest.raises(FormatError, match="Session 'ada' is damaged") as raised:
            fresh.put(rewritten(ref), expected)
        assert told in str(raised.value)
        assert own.data == before
    assert not fresh.delete("ada", ref.version)
    found = fresh.ref("ada")
    assert isinstance(found, DamagedRef)
    assert told in found.damaged
    listed = {each.id: each for each in fresh.refs(ListQuery())}
    assert listed == {"ada": found, "other": other}
    assert fresh.totals().sessions == 2
    assert own.data == before
    assert fresh.ref("other") == other  # the rest is readable
    assert fresh.walk(other.family, others[0].key, 0) == others
    assert fresh.labelled(other.family, "a") == others
    assert fresh.delete("ada")
    assert fresh.refs(ListQuery()) == [other]


@pytest.mark.parametrize("foreign", [{}, {"kind": "dspy-session"}, {"turns": []}])
def test_what_somebody_else_saved_is_left_alone(foreign: dict[str, Any]) -> None:
    own = Clumsy()
    store = DocumentStore(own)
    ref = stored(store)
    own.data["mine"] = dict(foreign)
    for ask in (
        lambda: store.ref("mine"),
        lambda: store.put(rewritten(ref, id="mine"), None),
        lambda: store.delete("mine"),
    ):
        with pytest.raises(
            FormatError, match=r"'mine' is no session that a store wrote.*from_dict"
        ):
            ask()
        assert own.data["mine"] == foreign
    assert store.refs(ListQuery()) == [ref]
    assert store.totals().sessions == 1
    assert store.relatives(ref.family) == [ref]


def test_what_load_cannot_read_is_damaged_and_other_errors_are_the_stores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Clumsy()
    ref = stored(DocumentStore(own))
    nodes = chain(new_key(), 1)
    other = ref_to("other", nodes)
    assert DocumentStore(own).put(other, None, nodes)
    load = own.load

    def load_or(error: Exception) -> Callable[[str], Any]:
        def loaded(id: str) -> Any:
            if id == "ada":
                raise error
            return load(id)

        return loaded

    monkeypatch.setattr(own, "load", load_or(json.JSONDecodeError("Unterminated", "{", 1)))
    store = DocumentStore(own)
    found = store.ref("ada")
    assert isinstance(found, DamagedRef)
    assert "load() says: Unterminated" in found.damaged
    assert {each.id: each for each in store.refs(ListQuery())} == {"ada": found, "other": other}
    with pytest.raises(FormatError, match="'ada' is damaged"):
        store.put(rewritten(ref), ref.version)
    monkeypatch.setattr(own, "load", load_or(OSError("the disk is gone")))
    for ask in (lambda: store.ref("ada"), lambda: store.refs(ListQuery())):
        with pytest.raises(StoreError, match="the disk is gone"):
            ask()
    monkeypatch.setattr(own, "load", load_or(ValueError("no JSON")))
    assert store.delete("ada")
    assert own.data.keys() == {"other"}


@pytest.mark.parametrize("loaded", [[], "text", 3])
def test_what_is_no_dict(loaded: Any) -> None:
    own = Clumsy()
    own.data["ada"] = loaded
    with pytest.raises(FormatError, match="'ada': expected the dict that was saved, but load"):
        DocumentStore(own).ref("ada")
    assert own.data == {"ada": loaded}


def test_a_session_saved_by_hand_lives_beside_stored_ones(tmp_path: Path) -> None:
    """The four methods, used as they are."""
    own = Folder(tmp_path)
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(program)
        session(question="Hi")
    own.save(session.session_id, session.to_dict())
    with pytest.raises(FormatError, match=r"open it with Session\.from_dict"):
        open_store(own).ref(session.session_id)
    data = own.load(session.session_id)
    assert data is not None
    assert Session.from_dict(data, program).turns == session.turns


def test_a_fork_is_found_by_another_handle() -> None:
    own = Dicts()
    one, other = DocumentStore(own), DocumentStore(own)
    nodes = chain(new_key(), 3)
    ref = ref_to("ada", nodes)
    assert one.put(ref, None, nodes)
    assert other.put(rewritten(ref, id="fork"), None)
    more = chain(ref.family, 1, nodes[-1], label="new")
    fork = other.ref("fork")
    assert fork is not None
    assert other.put(rewritten(fork, tip=more[0].key, head=more[0].key), fork.version, more)
    assert one.labelled(ref.family, "new") == more
    assert [each.id for each in one.relatives(ref.family)] == ["ada", "fork"]
    assert one.delete("ada")
    assert one.walk(ref.family, more[0].key, 0) == nodes + more


def test_a_write_saves_one_document_and_an_unshared_one_loads_no_other() -> None:
    class Counting(Clumsy):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def _fail(self, name: str) -> None:
            self.asked.append(name)

    own = Counting()
    store = DocumentStore(own)
    for n in range(20):
        nodes = chain(new_key(), 2)
        assert store.put(ref_to(str(n), nodes), None, nodes)
    own.asked.clear()
    fresh = DocumentStore(own)
    ref = fresh.ref("7")
    assert ref is not None
    assert ref.tip is not None
    assert len(fresh.walk(ref.family, ref.tip, 0)) == 2
    (node,) = chain(ref.family, 1, Node(key=ref.tip, family=ref.family, depth=1))
    assert fresh.put(rewritten(ref, tip=node.key), ref.version, [node])
    assert own.asked == ["load", "load", "load", "save"]


def test_types(tmp_path: Path) -> None:
    accepted: list[StoreLike] = ["memory:", tmp_path / "a.db", MemoryStore(), Dicts()]
    for each in accepted:
        open_store(each).close()
