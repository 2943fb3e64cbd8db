"""`RedisStore` on a real server and on a real cluster of one node.

What every store does is in the contract; here is what only Redis has: slots, scripts, crashes
between two slots, round trips, and its ways to fail.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
import pytest
import redis
from redis.cluster import RedisCluster

from dspy_session.errors import FormatError, OptionError, SessionError, StoreError
from dspy_session.stores.records import DamagedRef, ListQuery, Node, Ref, Span, new_key
from dspy_session.stores.redis import RedisStore
from dspy_session.testing import store_contract
from tests import servers
from tests.house import PROJECT, run_python
from tests.servers import APPEND_ONLY, RedisServer

_numbers = count()


def contract_store() -> RedisStore:
    return RedisStore(servers.redis_database(), prefix=f"contract {next(_numbers)}")


def same_data(store: RedisStore) -> RedisStore:
    return RedisStore(servers.redis_database(), prefix=store._prefix)


@cache
def cluster() -> Any:
    return RedisCluster.from_url(servers.started(servers.RedisCluster))


def contract_store_on_a_cluster() -> RedisStore:
    return RedisStore(cluster(), prefix=f"contract {next(_numbers)}")


def same_data_on_the_cluster(store: RedisStore) -> RedisStore:
    return RedisStore(cluster(), prefix=store._prefix)


TestContract = store_contract(contract_store, reopen=same_data)
TestContractOnACluster = store_contract(
    contract_store_on_a_cluster, reopen=same_data_on_the_cluster
)


# Parts


def chain(family: int, length: int, after: Node | None = None, **fields: Any) -> list[Node]:
    nodes: list[Node] = []
    for _ in range(length):
        after = Node(
            key=new_key(),
            family=family,
            parent=None if after is None else after.key,
            depth=0 if after is None else after.depth + 1,
            payload=b"payload",
            **fields,
        )
        nodes.append(after)
    return nodes


def pointing(id: str, nodes: list[Node], **fields: Any) -> Ref:
    return Ref(
        id=id,
        family=nodes[-1].family,
        version=new_key(),
        tip=nodes[-1].key,
        head=nodes[-1].key,
        **fields,
    )


def again(ref: Ref, **fields: Any) -> Ref:
    return msgspec.structs.replace(ref, **{"version": new_key(), **fields})


def added(store: RedisStore, id: str, length: int = 2, **fields: Any) -> tuple[Ref, list[Node]]:
    nodes = chain(new_key(), length)
    ref = pointing(id, nodes, **fields)
    assert store.put(ref, None, nodes)
    return ref, nodes


def dump(url: str) -> dict[bytes, bytes | None]:
    """All that a server holds."""
    with redis.Redis.from_url(url) as client:
        return {name: client.dump(name) for name in client.keys("*")}


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    with RedisStore(redis_url) as store:
        yield store


@pytest.fixture
def clustered(cluster_url: str) -> Iterator[RedisStore]:
    with RedisStore(cluster()) as store:
        yield store


class LosesTheAnswer(redis.Redis):
    """Asks, and then does not get the next answer to a script."""

    losing = False

    def execute_command(self, *command: Any, **options: Any) -> Any:
        parent: Any = super()
        said = parent.execute_command(*command, **options)
        if self.losing and command[0] == "EVALSHA":
            type(self).losing = False
            raise redis.ConnectionError("Connection closed by server.")
        return said


class Counting(redis.Connection):
    """Counts what is sent at once."""

    sent: ClassVar[list[bytes]] = []

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self.sent.append(b"".join(command) if isinstance(command, list) else command)
        parent: Any = super()
        parent.send_packed_command(command, check_health=check_health)


@pytest.fixture
def counted(redis_url: str) -> Iterator[RedisStore]:
    pool = redis.ConnectionPool.from_url(redis_url, connection_class=Counting)
    with redis.Redis(connection_pool=pool) as client, RedisStore(client) as store:
        yield store


def round_trips(function: Callable[[], object]) -> int:
    Counting.sent.clear()
    function()
    return len(Counting.sent)


# Round trips


def test_C3_append_fork_undo_and_walk_are_one_round_trip_each(counted: RedisStore) -> None:
    ref, nodes = added(counted, "ada", 30)
    counted.walk(ref.family, nodes[-1].key, 20)  # the server knows all scripts now
    counted.replace_payloads(ref.family, {})
    (node,) = chain(ref.family, 1, nodes[-1])
    longer = again(ref, tip=node.key, head=node.key)
    assert round_trips(lambda: counted.put(longer, ref.version, [node])) == 1
    undone = again(longer, head=nodes[-1].key)
    assert round_trips(lambda: counted.put(undone, longer.version)) == 1
    assert round_trips(lambda: counted.put(again(undone, id="fork"), None)) == 1
    assert round_trips(lambda: counted.walk(ref.family, node.key, 20)) == 1
    assert round_trips(lambda: counted.ref("ada")) == 1
    assert round_trips(lambda: counted.nodes(ref.family, [node.key, nodes[0].key])) == 1
    assert round_trips(lambda: counted.labelled(ref.family, "none")) <= 2
    assert counted.ref("ada") == undone


def test_a_page_costs_what_it_shows(counted: RedisStore) -> None:
    for number in range(20):
        added(counted, f"session {number:02}", updated=float(number), metadata={"user": number % 4})
    page = ListQuery(limit=5, offset=5)
    assert [ref.updated for ref in counted.refs(page)] == [14.0, 13.0, 12.0, 11.0, 10.0]
    assert round_trips(lambda: counted.refs(page)) == 3
    assert sum(sent.count(b"HGET\r\n") for sent in Counting.sent) == 5
    assert round_trips(lambda: counted.refs(ListQuery(metadata={"user": 1}))) == 4
    assert sum(sent.count(b"HGET\r\n") for sent in Counting.sent) == 5


def test_a_long_walk_takes_turns_with_others(store: RedisStore) -> None:
    nodes = chain(new_key(), 10_003)
    assert store.put(pointing("ada", nodes), None, nodes)
    assert store.walk(nodes[0].family, nodes[-1].key, 0) == nodes
    assert store.walk(nodes[0].family, nodes[-1].key, 3) == nodes[3:]
    assert store.walk(nodes[0].family, nodes[-1].key, 2) == nodes[2:]
    assert store.totals().nodes == 10_003
    assert store.delete("ada")


def test_a_walk_over_large_nodes_takes_turns_too(counted: RedisStore) -> None:
    family, after = new_key(), None
    nodes: list[Node] = []
    for _ in range(20):
        (after,) = chain(family, 1, after)
        nodes.append(msgspec.structs.replace(after, payload=b"large" * 400_000))
    assert counted.put(pointing("ada", nodes), None, nodes)
    counted.walk(family, nodes[0].key, 0)
    found: list[Node] = []
    assert round_trips(lambda: found.extend(counted.walk(family, nodes[-1].key, 0))) == 2
    assert found == nodes


# Slots


def test_the_keys_of_a_family_are_in_one_slot(clustered: RedisStore, cluster_url: str) -> None:
    ref, nodes = added(clustered, "ada", metadata={"user": "ada"})
    (node,) = chain(ref.family, 1, nodes[-1], label="request")
    assert clustered.put(again(ref, tip=node.key), ref.version, [node])
    slots: dict[bytes, set[int]] = {}
    for name in dump(cluster_url):
        slots.setdefault(name.partition(b"}")[0], set()).add(cluster().keyslot(name))
    assert {len(each) for each in slots.values()} == {1}
    assert set(slots) == {b"{dspy-session", b"{dspy-session:%d" % ref.family}


def test_a_plain_client_may_ask_one_node_of_a_cluster(cluster_url: str) -> None:
    with RedisStore(cluster_url) as store:
        ref, nodes = added(store, "ada")
        assert store.put(again(ref, updated=5.0), ref.version)
        assert [found.updated for found in store.refs(ListQuery())] == [5.0]
    with RedisStore(cluster_url) as store:
        assert store.delete("ada")
        assert store.count(ListQuery()) == 0
        assert store.nodes(ref.family, [nodes[0].key]) == {}


# Crashes between two slots


def crash(store: RedisStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Makes a change and stops before the catalogue is told."""

    def stop(*arguments: Any) -> None:
        raise redis.ConnectionError("Connection closed by server.")

    with monkeypatch.context() as patch:
        patch.setattr("dspy_session.stores.redis_catalogue.Catalogue.enter", stop)
        with pytest.raises(StoreError):
            change()


def test_a_session_that_was_not_entered_is_not_there(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = chain(new_key(), 2)
    ref = pointing("ada", nodes)
    crash(clustered, monkeypatch, lambda: clustered.put(ref, None, nodes))
    assert clustered.ref("ada") is None
    assert clustered.refs(ListQuery()) == clustered.relatives(ref.family) == []
    assert clustered.count(ListQuery()) == 0
    assert not clustered.delete("ada")
    newer, _ = added(clustered, "ada")
    assert clustered.ref("ada") == newer
    assert clustered.vacuum() == 2
    assert clustered.nodes(ref.family, [node.key for node in nodes]) == {}
    assert clustered.refs(ListQuery()) == [newer]


def test_what_was_not_entered_is_entered_by_vacuum_if_its_id_is_free(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = chain(new_key(), 2)
    ref = pointing("ada", nodes, metadata={"user": "ada"})
    crash(clustered, monkeypatch, lambda: clustered.put(ref, None, nodes))
    assert clustered.vacuum() == 0
    assert clustered.ref("ada") == ref
    assert clustered.refs(ListQuery(metadata={"user": "ada"})) == [ref]


def test_a_write_that_is_tried_again_is_entered(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = chain(new_key(), 2)
    ref = pointing("ada", nodes)
    crash(clustered, monkeypatch, lambda: clustered.put(ref, None, nodes))
    assert clustered.put(ref, None, nodes)
    assert clustered.ref("ada") == ref
    assert clustered.totals().nodes == 2


def test_a_deleted_session_that_was_not_struck_off_is_not_there(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in ("ada", "bob"):
        added(clustered, id)
        crash(clustered, monkeypatch, lambda id=id: clustered.delete(id))  # type: ignore[misc]
    assert clustered.ref("ada") is None
    newer, _ = added(clustered, "ada")
    assert clustered.refs(ListQuery()) == [newer]
    assert clustered.count(ListQuery()) == 1
    crash(clustered, monkeypatch, lambda: clustered.delete("ada"))
    clustered.vacuum()
    assert clustered.count(ListQuery()) == 0


def test_a_list_after_a_crash_shows_what_is_there(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, _ = added(clustered, "ada", updated=1.0, metadata={"state": "open"})
    other, _ = added(clustered, "bob", updated=2.0, metadata={"state": "open"})
    newer = again(ref, updated=3.0, metadata={"state": "closed"})
    crash(clustered, monkeypatch, lambda: clustered.put(newer, ref.version))
    assert clustered.ref("ada") == newer
    assert clustered.refs(ListQuery(metadata={"state": "open"})) == [other]
    assert clustered.count(ListQuery(metadata={"state": "open"})) == 1
    assert clustered.refs(ListQuery()) == [newer, other]  # which repairs what it came across
    assert clustered.refs(ListQuery(metadata={"state": "closed"})) == [newer]


@pytest.mark.parametrize("repair", ["vacuum", "write"])
def test_a_stale_entry_is_repaired(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch, repair: str
) -> None:
    ref, _ = added(clustered, "ada", metadata={"state": "open"})
    newer = again(ref, metadata={"state": "closed"})
    crash(clustered, monkeypatch, lambda: clustered.put(newer, ref.version))
    if repair == "vacuum":
        clustered.vacuum()
    else:
        newest = again(newer)
        assert clustered.put(newest, newer.version)
        newer = newest
    assert clustered.refs(ListQuery(metadata={"state": "closed"})) == [newer]
    assert clustered.refs(ListQuery(metadata={"state": "open"})) == []


@pytest.mark.parametrize("key", ["catalogue", "id", "updated", "created", "terms"])
def test_vacuum_brings_back_what_is_missing_in_the_catalogue(
    store: RedisStore, redis_url: str, key: str
) -> None:
    ref, _ = added(store, "ada", metadata={"user": "ada"})
    with redis.Redis.from_url(redis_url) as client:
        before = client.dump(f"{{dspy-session}}:{key}")
        client.delete(f"{{dspy-session}}:{key}")
        store.vacuum()
        assert client.dump(f"{{dspy-session}}:{key}") == before
    assert store.refs(ListQuery(metadata={"user": "ada"})) == [ref]
    assert store.refs(ListQuery()) == store.refs(ListQuery(order="id")) == [ref]


@pytest.mark.parametrize("left", [0, 1, 7, 8, 12, 16, 23])
def test_an_entry_that_was_cut_short_costs_no_session(
    store: RedisStore, redis_url: str, left: int
) -> None:
    ref, nodes = added(store, "ada", metadata={"user": "ada"})
    catalogue = "{dspy-session}:catalogue"
    with redis.Redis.from_url(redis_url) as client, RedisStore(redis_url) as other:
        entry = client.hget(catalogue, "ada")
        assert isinstance(entry, bytes)
        client.hset(catalogue, "ada", entry[:left])
        assert store.ref("ada") == ref  # who knows where it is needs no entry
        if left < 16:
            assert not other.delete("ada")
            assert other.ref("ada") is None
        assert other.vacuum() == 0
        assert client.hget(catalogue, "ada") == entry
        assert other.refs(ListQuery(metadata={"user": "ada"})) == [ref]
        assert other.walk(ref.family, nodes[-1].key, 0) == nodes
        client.hset(catalogue, "ada", entry[: min(left, 15)])
        newer, _ = added(other, "ada")  # an id that points to nothing is free
        assert other.refs(ListQuery()) == [newer]


def test_an_entry_whose_id_is_no_text_is_in_the_way_of_no_other(
    store: RedisStore, redis_url: str
) -> None:
    ref, _ = added(store, "ada")
    other, _ = added(store, "eve")
    catalogue = "{dspy-session}:catalogue"
    with redis.Redis.from_url(redis_url) as client:
        entry = client.hget(catalogue, "ada")
        assert isinstance(entry, bytes)
        client.hset(catalogue, mapping={b"\xff": entry})
        client.hdel(catalogue, "ada")
    assert store.vacuum() == 0
    damaged, *found = sorted(store.refs(ListQuery()), key=lambda each: each.id)
    assert isinstance(damaged, DamagedRef)
    assert (damaged.id, found) == (r"\xff", [ref, other])


def lose(url: str, ref: Ref) -> None:
    """Removes a ref, and leaves its entry."""
    with redis.Redis.from_url(url) as client:
        client.delete(f"{{dspy-session:{ref.family}}}:refs")


def test_an_entry_that_points_to_nothing_is_taken_over(store: RedisStore, redis_url: str) -> None:
    ref, _ = added(store, "ada")
    lose(redis_url, ref)
    assert store.ref("ada") is None
    assert store.count(ListQuery()) == 1
    newer, _ = added(store, "ada")
    assert store.refs(ListQuery()) == [newer]
    assert store.vacuum() == 2
    assert store._families.stored() == {newer.family}


def test_what_is_deleted_while_vacuum_enters_it(
    clustered: RedisStore, cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = chain(new_key(), 2)
    ref = pointing("ada", nodes)
    crash(clustered, monkeypatch, lambda: clustered.put(ref, None, nodes))
    meanwhile(monkeypatch, clustered, lambda: lose(cluster_url, ref))
    clustered.vacuum()
    assert clustered.count(ListQuery()) == 0


def test_vacuum_with_nothing_to_do_changes_nothing(store: RedisStore, redis_url: str) -> None:
    ref, _ = added(store, "ada", metadata={"user": "ada"})
    assert store.put(again(ref, id="fork"), None)
    before = dump(redis_url)
    assert store.vacuum() == 0
    assert dump(redis_url) == before


# Writers that meet


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    store: RedisStore,
    change: Callable[[], object],
    *,
    call: int = 0,
) -> None:
    """Makes a change right before the catalogue is told of another one for the n-th time."""
    enter, calls = store._catalogue.enter, count()

    def late(*arguments: Any) -> bytes | None:
        if next(calls) == call:
            change()
        return enter(*arguments)

    monkeypatch.setattr(store._catalogue, "enter", late)


def test_entries_that_are_written_in_the_wrong_order(
    clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, _ = added(clustered, "ada", updated=1.0, metadata={"turn": 1})
    second = again(ref, updated=2.0, metadata={"turn": 2})
    third = again(ref, updated=3.0, metadata={"turn": 3})
    with RedisStore(cluster()) as other:
        meanwhile(monkeypatch, clustered, lambda: other.put(third, second.version))
        assert clustered.put(second, ref.version)
        assert other.ref("ada") == third
        (entry,) = other._catalogue.entries([b"ada"])
        assert entry is not None
        assert entry.version == third.version.to_bytes(8, "big")
        assert other.refs(ListQuery(metadata={"turn": 3})) == [third]


def test_two_that_take_over_an_id(clustered: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    added(clustered, "ada")
    crash(clustered, monkeypatch, lambda: clustered.delete("ada"))
    nodes = chain(new_key(), 2)
    quicker: list[Ref] = []
    with RedisStore(cluster()) as other:
        meanwhile(monkeypatch, clustered, lambda: quicker.append(added(other, "ada")[0]), call=1)
        assert not clustered.put(pointing("ada", nodes), None, nodes)
        assert other.ref("ada") == quicker[0]
        assert other.nodes(nodes[0].family, [node.key for node in nodes]) == {}
        assert other._families.stored() == {quicker[0].family}


def test_a_family_that_changes_while_it_is_deleted_from(
    store: RedisStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, nodes = added(store, "ada", 4)
    fork = again(ref, id="fork", tip=nodes[1].key, head=nodes[1].key)
    late = again(ref, id="late", tip=nodes[2].key, head=nodes[2].key)
    assert store.put(fork, None)
    meanwhile = [late]
    unreached = store._families.skeleton

    def skeleton(family: int) -> Any:
        found = unreached(family)
        if meanwhile:
            with RedisStore(redis_url) as other:
                assert other.put(meanwhile.pop(), None)
        return found

    monkeypatch.setattr(store._families, "skeleton", skeleton)
    assert store.delete("ada")
    assert store.walk(ref.family, nodes[2].key, 0) == nodes[:3]
    assert store.nodes(ref.family, [nodes[3].key]) == {}
    assert store.relatives(ref.family) == [fork, late]


def test_a_session_that_somebody_made_anew(store: RedisStore, redis_url: str) -> None:
    with RedisStore(redis_url) as other:
        for read in (True, False):
            old, _ = added(store, "ada")
            assert other.delete("ada")
            newer, _ = added(other, "ada")
            if read:
                assert store.ref("ada") == newer
            assert not store.put(again(newer), old.version)
            assert store.put(again(newer), newer.version)
            assert store.delete("ada")


def test_a_family_that_changes_all_the_time(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, nodes = added(store, "ada", 2)
    monkeypatch.setattr(store._families, "remove", lambda *arguments: None)
    with pytest.raises(StoreError, match="nothing was deleted: try again"):
        store.delete("ada")
    assert store.ref("ada") == ref
    assert store.walk(ref.family, nodes[-1].key, 0) == nodes


def test_a_write_whose_answer_was_lost_is_there_once(redis_url: str) -> None:
    with LosesTheAnswer.from_url(redis_url) as client, RedisStore(client) as store:
        ref, nodes = added(store, "ada")
        (node,) = chain(ref.family, 1, nodes[-1], label="request")
        longer = again(ref, tip=node.key)
        LosesTheAnswer.losing = True
        with pytest.raises(StoreError, match="not acknowledged"):
            store.put(longer, ref.version, [node])
        assert store.ref("ada") == longer
        before = dump(redis_url)
        assert store.put(longer, ref.version, [node])
        assert dump(redis_url) == before
        fork = again(longer, id="fork")
        LosesTheAnswer.losing = True
        with pytest.raises(StoreError, match="not acknowledged"):
            store.put(fork, None)
        assert store.put(fork, None)
        assert store.relatives(ref.family) == [longer, fork]


def test_what_is_asked_is_not_asked_again() -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        asked.append(connection.recv(1_000))

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with pytest.raises(StoreError, match="not acknowledged"):
            RedisStore(f"redis://127.0.0.1:{listening.getsockname()[1]}")
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
    assert len(asked) == 1


FORKS = """
import os, sys
from dspy_session.stores.records import Ref, new_key
from dspy_session.stores.redis import RedisStore

store = RedisStore(sys.argv[1])
for id in ("parent", "child"):
    assert store.put(Ref(id=id, family=new_key(), version=1), None)
child = os.fork()
id = "parent" if child else "child"
for version in range(1, 100):
    ref = store.ref(id)
    assert ref.version == version, (id, ref)
    assert store.put(Ref(id=id, family=ref.family, version=version + 1), version)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_sockets_of_its_own(store: RedisStore, redis_url: str) -> None:
    done = run_python(PROJECT, "-c", FORKS, redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert {ref.id: ref.version for ref in store.refs(ListQuery())} == {"parent": 100, "child": 100}


def test_prefixes_keep_stores_apart(redis_url: str) -> None:
    with RedisStore(redis_url, prefix="a*[b]") as one, RedisStore(redis_url, prefix="axb") as two:
        mine, _ = added(one, "ada")
        theirs, nodes = added(two, "ada", 3)
        assert two.put(again(theirs, tip=nodes[0].key), theirs.version)
        assert one.vacuum() == 0
        assert one.delete("ada")
        assert two.vacuum() == 2
        assert two.count(ListQuery()) == 1
        assert one.nodes(mine.family, [mine.tip or 0]) == {}


def test_labels_of_deleted_nodes_are_gone(store: RedisStore, redis_url: str) -> None:
    ref, nodes = added(store, "ada", 1)
    own = [chain(ref.family, 1, nodes[0], label="same")[0] for _ in range(3)]
    for number, node in enumerate(own):
        fork = pointing(f"fork {number}", [node], links=(Span(nodes[0].key, 0),))
        assert store.put(fork, None, [node])
    assert store.labelled(ref.family, "same") == own[::-1]
    assert store.delete("fork 1")
    assert store.labelled(ref.family, "same") == [own[2], own[0]]
    with redis.Redis.from_url(redis_url) as client:
        index = f"{{dspy-session:{ref.family}}}:labels"
        assert len(client.hget(index, "=same") or b"") == 2 * 8
        assert store.delete("fork 0")
        assert store.delete("fork 2")
        assert store.ref("ada") == ref
        assert client.hgetall(index) == {}


# Servers that fail


def test_a_server_that_lost_its_scripts(store: RedisStore, redis_url: str) -> None:
    ref, nodes = added(store, "ada")
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    assert store.put(again(ref), ref.version)
    assert store.walk(ref.family, nodes[-1].key, 0) == nodes


def test_a_server_that_goes_away_and_comes_back() -> None:
    with RedisServer(*APPEND_ONLY) as server, RedisStore(server.url) as store:
        ref, nodes = added(store, "ada")
        newer = again(ref)
        server.kill()
        with pytest.raises(StoreError, match="check that it runs, and try again") as caught:
            store.put(newer, ref.version)
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        with pytest.raises(StoreError, match="check that it runs"):
            store.ref("ada")
        server.start()
        assert store.ref("ada") == ref
        assert store.put(newer, ref.version)
        assert store.walk(ref.family, nodes[-1].key, 0) == nodes


def test_a_server_that_forgot_all(redis_url: str) -> None:
    with RedisStore(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        ref, _ = added(store, "ada")
        client.flushdb()
        assert store.ref("ada") is None
        assert not store.put(again(ref), ref.version)
        added(store, "ada")
        assert client.get("{dspy-session}:format") == b"1"


def test_a_server_without_memory() -> None:
    with RedisServer() as server, RedisStore(server.url) as store:
        ref, nodes = added(store, "ada")
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)
            (node,) = chain(ref.family, 1, nodes[-1])
            with pytest.raises(StoreError, match="memory is full, and nothing was written"):
                store.put(again(ref, tip=node.key), ref.version, [node])
            assert store.ref("ada") == ref
            assert store.nodes(ref.family, [node.key]) == {}
            client.config_set("maxmemory", 0)
        assert store.put(again(ref, tip=node.key), ref.version, [node])


def test_a_read_only_replica(redis_url: str) -> None:
    primary = urlsplit(redis_url)
    assert primary.hostname
    with RedisServer() as server, RedisStore(server.url) as replica:
        with redis.Redis.from_url(server.url) as client:
            client.replicaof(primary.hostname, str(primary.port))
            while client.info("replication")["master_link_status"] != "up":
                time.sleep(0.01)  # while it reads what the primary has, it says that instead
        with pytest.raises(StoreError, match="read-only replica") as caught:
            added(replica, "ada")
        assert isinstance(caught.value.__cause__, redis.RedisError)
        assert replica.count(ListQuery()) == 0


def test_a_password() -> None:
    with RedisServer("requirepass sesame-7") as server:
        address = server.url.removeprefix("redis://")
        with RedisStore(f"redis://:sesame-7@{address}") as store:
            assert "sesame" not in repr(store)
            added(store, "ada")
        for wrong, advice in (
            ("redis://", "wants a password"),
            ("redis://:sesame-8@", "check user and password"),
            ("redis://ada:sesame-8@", "check user and password"),
        ):
            with pytest.raises(StoreError, match=advice) as caught:
                RedisStore(wrong + address)
            assert "sesame" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sesame/7@127.0.0.1:6379",
        "redis://:sesame@127.0.0.1:sesame",
        "redis://:sesame@127.0.0.1:6379/0?colour=sesame",
        "http://:sesame@127.0.0.1",
        "sesame",
        "redis://:sesame@127.0.0.1/0?socket_timeout=sesame",
    ],
)
def test_what_is_no_url_is_not_shown(url: str) -> None:
    with pytest.raises(SessionError) as caught:
        RedisStore(url)
    assert "sesame" not in str(caught.value)


def test_nobody_there() -> None:
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1/0: it cannot be reached") as caught:
        RedisStore("redis://:sesame@127.0.0.1:1")
    assert "sesame" not in str(caught.value)


def test_options(redis_url: str) -> None:
    for prefix in ("", "a{b", "a}"):
        with pytest.raises(OptionError, match="prefix"):
            RedisStore(redis_url, prefix=prefix)
    with pytest.raises(OptionError, match="not int"):
        RedisStore(7)  # type: ignore[arg-type]
    decoding = redis.Redis.from_url(redis_url, decode_responses=True)
    with decoding, pytest.raises(OptionError, match="decode_responses=False"):
        RedisStore(decoding)
    assert dump(redis_url) == {}


def test_a_client_stays_open(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        with RedisStore(client) as store:
            added(store, "ada")
        with pytest.raises(StoreError, match="closed"):
            store.ref("ada")
        assert client.ping()


@pytest.mark.parametrize(("found", "advice"), [("2", "upgrade it"), ("x", "another prefix")])
def test_data_of_another_format(redis_url: str, found: str, advice: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("{dspy-session}:format", found)
    before = dump(redis_url)
    with pytest.raises(StoreError, match=advice):
        RedisStore(redis_url)
    assert dump(redis_url) == before


@pytest.mark.parametrize(
    "key",
    ["catalogue", "id", "created", "updated", "terms", "7:refs", "7:nodes", "7:labels", "7:meta"],
)
def test_keys_that_are_somebody_elses(redis_url: str, key: str) -> None:
    tag, _, part = key.rpartition(":")
    name = f"{{dspy-session{':' + tag if tag else ''}}}:{part}"
    nodes = chain(7, 2, label="request")
    with RedisStore(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        client.set(name, "mine")
        before = dump(redis_url)
        with pytest.raises(StoreError, match="choose another prefix") as caught:
            store.put(pointing("ada", nodes, metadata={"user": "ada"}), None, nodes)
        assert isinstance(caught.value.__cause__, redis.ResponseError)
        assert dump(redis_url) == before


def test_a_damaged_node_is_named_and_the_rest_is_readable(
    store: RedisStore, redis_url: str
) -> None:
    ref, nodes = added(store, "ada", 3)
    with redis.Redis.from_url(redis_url) as client:
        name = f"{{dspy-session:{ref.family}}}:nodes"
        client.hset(name, nodes[1].key.to_bytes(8, "big"), b"damaged")
    with pytest.raises(FormatError, match=str(nodes[1].key)):
        store.nodes(ref.family, [node.key for node in nodes])
    assert store.nodes(ref.family, [nodes[0].key, nodes[2].key]).keys() == {
        nodes[0].key,
        nodes[2].key,
    }
    assert store.ref("ada") == ref


def test_text_that_is_none(store: RedisStore, redis_url: str) -> None:
    nodes = chain(new_key(), 1)
    before = dump(redis_url)
    for ref in (
        pointing("\ud800", nodes),
        pointing("ada", nodes, metadata={"user": "\ud800"}),
        pointing("ada", nodes, origin="\ud800"),
    ):
        with pytest.raises(StoreError, match="UTF-8"):
            store.put(ref, None, nodes)
    with pytest.raises(StoreError, match="UTF-8"):
        store.ref("\ud800")
    assert dump(redis_url) == before


def test_without_redis_py() -> None:
    script = (
        "import sys\n"
        "sys.modules['redis'] = None\n"
        "from dspy_session.stores.redis import RedisStore\n"
        "try:\n"
        "    RedisStore('redis://localhost')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = run_python(PROJECT, "-c", script)
    assert done.stdout == (
        'StoreError a Redis store needs redis-py: pip install "dspy-session[redis]"\n'
    )
