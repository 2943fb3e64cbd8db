"""What stores are made of: nodes that are reached, keys that nobody else has, metadata's terms."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_session.errors import FormatError
from dspy_session.stores.reach import Bone, unreached
from dspy_session.stores.records import (
    DamagedRef,
    ListQuery,
    Node,
    Ref,
    Span,
    has_metadata,
    metadata_terms,
    new_key,
    term_of,
)
from dspy_session.testing.contract_cases import chain, in_threads, ref_to
from dspy_session.testing.contract_deletion import needed
from tests.house import PROJECT

# What refs reach


def bones_of(nodes: Mapping[int, Node]) -> dict[int, Bone]:
    return {n.key: Bone(n.key, n.parent, n.depth, n.low, n.links) for n in nodes.values()}


@st.composite
def families(draw: st.DrawFn) -> tuple[list[Ref], dict[int, Node]]:
    """Any nodes, any refs: links that go round, lows and firsts anywhere, keys that are gone."""
    count = draw(st.integers(0, 12))
    keys = st.integers(0, count)  # `count` itself is nobody's
    spans = st.builds(Span, keys, st.integers(0, 8))
    links = st.sampled_from([0, 0, 0, 0, 1, 2]).flatmap(lambda n: st.tuples(*[spans] * n))
    nodes: dict[int, Node] = {}

    def parents(key: int) -> st.SearchStrategy[int | None]:
        """Mostly the one before, so that there are chains long enough to be cut."""
        some = [*range(key)]
        return st.sampled_from([*[key - 1] * 3 * len(some), *some, None]) if key else st.none()

    for key in range(count):
        parent = draw(parents(key))
        before = None if parent is None else nodes.get(parent)
        depth = draw(st.sampled_from([0, 0, 0, 1, 3])) if before is None else before.depth + 1
        nodes[key] = Node(
            key=key,
            family=1,
            parent=parent,
            depth=depth,
            low=draw(st.sampled_from([depth, depth, *range(depth)])),
            links=draw(links),
        )
    for key in draw(st.sets(st.sampled_from(range(count)), max_size=2)) if count else ():
        del nodes[key]
    refs = [
        Ref(
            id=str(n),
            family=1,
            version=n,
            tip=draw(st.sampled_from([None, *range(count + 1), *[count - 1] * 6])),
            first=draw(st.integers(0, 8)),
            links=draw(links),
        )
        for n in range(draw(st.integers(1, 3)))
    ]
    return refs, nodes


def lacks(spans: Iterable[Span], nodes: Mapping[int, Node]) -> bool:
    """Whether a node of a stretch is gone."""
    for span in spans:
        node, depth = nodes.get(span.key), span.floor + 1
        while node is not None and node.depth >= span.floor:
            depth = node.depth
            node = None if node.parent is None else nodes.get(node.parent)
        if node is None and depth > span.floor:
            return True
    return False


def is_whole(refs: list[Ref], nodes: dict[int, Node]) -> bool:
    """Whether all is there that refs need."""
    spans = [span for key in needed(refs, nodes) for span in nodes[key].links]
    for ref in refs:
        spans += ref.links if ref.tip is None else (*ref.links, Span(ref.tip, ref.first))
    return not lacks(spans, nodes)


@given(families())
@settings(max_examples=300, deadline=None)
def test_reach_is_what_its_definition_says(family: tuple[list[Ref], dict[int, Node]]) -> None:
    refs, nodes = family
    if is_whole(refs, nodes):
        assert unreached(refs, bones_of(nodes)) == nodes.keys() - needed(refs, nodes)
    else:
        with pytest.raises(FormatError, match="not all there, so what is needed cannot be told"):
            unreached(refs, bones_of(nodes))


def test_of_what_is_damaged_it_is_not_known_what_it_reaches() -> None:
    nodes = {node.key: node for node in chain(1, 3)}
    ref = ref_to("ada", list(nodes.values()))
    damaged = DamagedRef(id="eve", family=1, version=1, damaged="on purpose")
    assert unreached([ref], bones_of(nodes)) == set()
    with pytest.raises(FormatError, match="'eve' is damaged"):
        unreached([ref, damaged], bones_of(nodes))


@given(families().filter(lambda family: is_whole(*family)), st.randoms())
@settings(max_examples=100, deadline=None)
def test_reach_knows_no_order(family: tuple[list[Ref], dict[int, Node]], random: Any) -> None:
    refs, nodes = family
    found = unreached(refs, bones_of(nodes))
    mixed, keys = list(refs), list(nodes)
    random.shuffle(mixed)
    random.shuffle(keys)
    assert unreached(mixed, bones_of({key: nodes[key] for key in keys})) == found


class Counting(dict[int, Bone]):
    """Bones that count how often each is looked at."""

    def __init__(self, bones: Mapping[int, Bone]) -> None:
        super().__init__(bones)
        self.looks: Counter[int] = Counter()

    def get(self, key: int, default: Any = None) -> Any:
        self.looks[key] += 1
        return super().get(key, default)


LENGTH = 400


def looks(refs: list[Ref], lows: list[int], links: Mapping[int, tuple[Span, ...]] = {}) -> int:
    """How often the bone was looked at that was looked at most."""
    bones = Counting(
        {
            depth: Bone(depth, depth - 1 if depth else None, depth, low, links.get(depth, ()))
            for depth, low in enumerate(lows)
        }
    )
    unreached(refs, bones)
    return max(bones.looks.values())


def at(tip: int, first: int = 0) -> Ref:
    return Ref(id=f"{tip} {first}", family=1, version=1, tip=tip, first=first)


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize(
    ("what", "refs"),
    [
        ("one tip", [at(LENGTH - 1) for _ in range(50)]),
        ("tips along the way", [at(LENGTH - 1 - n) for n in range(50)]),
        ("firsts along the way", [at(LENGTH - 1 - n, n * 4) for n in range(50)]),
        ("one tip, many firsts", [at(LENGTH - 1, n * 7) for n in range(50)]),
    ],
)
@pytest.mark.parametrize(
    "lows",
    [
        list(range(LENGTH)),
        [0] * LENGTH,
        [max(0, depth - 20) for depth in range(LENGTH)],
        [depth % 7 and depth for depth in range(LENGTH)],
    ],
    ids=["none", "all", "window", "some"],
)
def test_reach_looks_at_each_node_a_few_times(
    what: str, refs: list[Ref], lows: list[int], forwards: bool
) -> None:
    most = looks(refs if forwards else refs[::-1], lows)
    tips = max(Counter(ref.tip for ref in refs).values())  # a look for each ref that points there
    assert most <= tips + 4, what


@pytest.mark.parametrize("turn", [1, -1])
def test_reach_looks_at_what_is_linked_a_few_times(turn: int) -> None:
    """Turns that each saw another stretch of a path that was left."""
    half = LENGTH // 2
    floors = range(half)[::turn]
    links = {half + n: (Span(half - 1 - n, floor),) for n, floor in enumerate(floors)}
    assert looks([at(LENGTH - 1, half)], list(range(LENGTH)), links) <= 8


def test_reach_does_not_follow_the_same_link_again() -> None:
    links = {depth: (Span(LENGTH // 2, 0),) for depth in range(LENGTH // 2, LENGTH)}
    assert looks([at(LENGTH - 1)], list(range(LENGTH)), links) <= LENGTH // 2 + 4
    chained = {depth: (Span(depth - 1, 0),) for depth in range(1, LENGTH)}
    assert looks([at(LENGTH - 1, LENGTH - 1)], list(range(LENGTH)), chained) <= 6


# Keys


def test_keys_rise_in_a_thread_and_fit_into_a_column() -> None:
    keys = [new_key() for _ in range(10_000)]
    assert keys == sorted(set(keys))
    assert 0 < keys[0] <= keys[-1] < 2**63


def test_keys_of_threads_differ() -> None:
    drawn: list[list[int]] = []
    in_threads([lambda: drawn.append([new_key() for _ in range(2_000)])] * 8)
    assert all(keys == sorted(keys) for keys in drawn)
    assert len(set(itertools.chain(*drawn))) == 16_000


DRAWING = """
import json, os
from dspy_session.stores.records import new_key

before = [new_key() for _ in range(10)]
readable, writable = os.pipe()
child = os.fork() == 0
drawn = [new_key() for _ in range(500)]
if child:
    os.write(writable, json.dumps(drawn).encode())
    os._exit(0)
os.wait()
print(json.dumps([before, drawn, json.loads(os.read(readable, 1 << 20))]))
"""


def test_processes_draw_different_keys_and_so_do_forks() -> None:
    """Three processes at the same time, each of which forks after it drew some."""
    running = [
        subprocess.Popen([sys.executable, "-c", DRAWING], stdout=subprocess.PIPE, cwd=PROJECT)
        for _ in range(3)
    ]
    drawn: list[list[int]] = []
    for process in running:
        drawn += json.loads(process.communicate()[0])
    assert [len(keys) for keys in drawn] == [10, 500, 500] * 3
    assert all(keys == sorted(keys) for keys in drawn)
    assert len(set(itertools.chain(*drawn))) == 3_030


# Metadata

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["a", "b", ""]), JSON), st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_wanted_is_found_through_its_term(metadata: dict[str, Any], data: Any) -> None:
    wanted = {
        name: data.draw(st.sampled_from([value, *value] if isinstance(value, list) else [value]))
        for name, value in metadata.items()
        if data.draw(st.booleans())
    }
    assert has_metadata(metadata, wanted)
    assert {(name, term_of(value)) for name, value in wanted.items()} <= metadata_terms(metadata)


@given(st.dictionaries(st.sampled_from("ab"), JSON), st.dictionaries(st.sampled_from("ab"), JSON))
@settings(max_examples=150, deadline=None)
def test_what_has_it_has_its_terms(metadata: dict[str, Any], wanted: dict[str, Any]) -> None:
    if has_metadata(metadata, wanted):
        terms = {(name, term_of(value)) for name, value in wanted.items()}
        assert terms <= metadata_terms(metadata)


def test_terms() -> None:
    assert metadata_terms({}) == frozenset()
    assert metadata_terms({"a": None, "b": [1, "1", [2]], "c": {"y": 1, "x": 2}}) == {
        ("a", "null"),
        ("b", '[1,"1",[2]]'),
        ("b", "1"),
        ("b", '"1"'),
        ("b", "[2]"),
        ("c", '{"x":2,"y":1}'),
    }
    assert term_of({"x": 2, "y": 1}) == term_of({"y": 1, "x": 2})
    long = "x" * 1_000
    assert term_of(long) == term_of(long + "y")
    assert len(term_of(long)) == 200
    assert not has_metadata({"a": long}, {"a": long + "y"})


def test_1_and_true_and_text_are_three_values() -> None:
    values: list[Any] = [1, True, "1", [1], None, "", [], {}, 0, False]
    for held, wanted in itertools.product(values, values):
        same = json.dumps(held) == json.dumps(wanted)
        listed = isinstance(held, list) and any(
            json.dumps(item) == json.dumps(wanted) for item in held
        )
        assert has_metadata({"a": held}, {"a": wanted}) == (same or listed)
    assert not has_metadata({}, {"a": None})


def test_the_newest_come_first_by_default() -> None:
    assert (ListQuery().order, ListQuery().descending, ListQuery().limit) == ("updated", True, None)
