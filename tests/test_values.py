"""Field values: what is copied, and what is written down comes back as it was."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import json
import math
import threading
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_session.core import (
    ValueCodec,
    from_plain,
    private_copy,
    register_value_codec,
    to_plain,
)
from dspy_session.core.copies import copy_fields
from dspy_session.errors import CallError, FormatError, ValueCodecError

thorough = settings(max_examples=500, deadline=None)


def ordered(value: Any) -> Any:
    """A value with its types, its key order, the sign of its zeros and its NaNs, to compare."""
    if isinstance(value, dict):
        return ("dict", [(ordered(key), ordered(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [ordered(item) for item in value])
    if isinstance(value, set | frozenset):
        return (type(value).__name__, sorted(repr(ordered(item)) for item in value))
    if isinstance(value, float | complex | decimal.Decimal):
        return (type(value).__name__, repr(value))
    if isinstance(value, dt.datetime | dt.time):
        return (type(value).__name__, value.isoformat(), value.fold)
    if type(value) is int:
        return ("int", hex(value))  # decimal digits have a limit
    return (type(value).__name__, value)


def through_json(value: Any) -> Any:
    return from_plain(msgspec.json.decode(msgspec.json.encode(to_plain(value))))


def through_python_json(value: Any) -> Any:
    return from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False)))


def through_msgpack(value: Any) -> Any:
    return from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(to_plain(value))))


TRIPS: list[Callable[[Any], Any]] = [through_json, through_python_json, through_msgpack]


def assert_comes_back(value: Any) -> None:
    was = ordered(value)
    for trip in TRIPS:
        assert ordered(trip(value)) == was
    assert ordered(value) == was


def equals_itself(value: Any) -> bool:
    if isinstance(value, decimal.Decimal):
        return not value.is_nan()
    return bool(value == value)


any_text = st.text(st.characters(exclude_categories=()), max_size=8)
offsets = st.integers(-80_000, 80_000).map(lambda s: dt.timezone(dt.timedelta(seconds=s)))
zones = st.none() | offsets | st.just(dt.UTC)
hashables = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | any_text
    | st.binary(max_size=8)
    | st.complex_numbers()
    | st.decimals()
    | st.datetimes(timezones=zones)
    | st.times(timezones=zones)
    | st.dates()
    | st.timedeltas()
    | st.sampled_from(["$type", "value", 2**63, -(2**63), 2**64, -0.0])
)
frozen = st.recursive(
    hashables.filter(equals_itself),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
keys = any_text | st.sampled_from(["$type", "value"]) | frozen
supported = st.recursive(
    hashables | frozen | st.sets(frozen, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(any_text, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@thorough
@given(supported)
def test_every_supported_value_comes_back_as_it_was(value: Any) -> None:
    assert_comes_back(value)


EDGES: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    [math.nan, {"deep": (math.inf,)}],
    complex(math.nan, -0.0),
    10**5000,
    -(10**5000),
    {10**5000},
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    "\ud800",
    "a\udfffb\U0001f600",
    {"\ud800": "\udc00"},
    {"$type": "tuple", "value": [1, 2]},
    {"$type": "no such tag"},
    {"$type": {"$type": {}}},
    {"value": 1, "$type": 2, "more": 3},
    {1: "one", "1": "text", None: 0, (1, (2,)): [], 2.5: set()},
    {"b": 1, "a": {"z": 1, "y": 2}},
    {frozenset({"a", "b", ("c",)}): frozenset()},
    b"\x00\xff",
    dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
    dt.datetime(2026, 1, 2, fold=1),  # noqa: DTZ001
    dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30, seconds=1))),
    dt.time(1, 2, 3, fold=1),
    dt.timedelta(days=-1, microseconds=1),
    decimal.Decimal("-0.00"),
    decimal.Decimal("sNaN12"),
    decimal.Decimal("1E+999999"),
]


@pytest.mark.parametrize("value", EDGES, ids=lambda value: type(value).__name__)
def test_edges_come_back_as_they_were(value: Any) -> None:
    assert_comes_back(value)


def test_plain_data_is_its_own_plain_form() -> None:
    plain = {"b": [1, 2.5, None, True, "ü"], "a": {"nested": {}}}
    assert to_plain(plain) == plain
    assert list(to_plain(plain)) == ["b", "a"]
    assert to_plain(plain) is not plain
    assert to_plain(plain)["b"] is not plain["b"]


def test_a_set_is_written_alike_whatever_the_hash_seed() -> None:
    names = [f"name {n}" for n in range(20)]
    written = [to_plain({frozenset(order)}) for order in (names, names[::-1])]
    assert written[0] == written[1]
    assert written[0]["value"][0]["value"] == sorted(names)


def test_an_aware_datetime_keeps_its_instant_and_offset() -> None:
    berlin = dt.datetime(2026, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    back = from_plain(to_plain(berlin))
    assert (back, back.utcoffset()) == (berlin, dt.timedelta(hours=2))
    with pytest.raises(ValueCodecError, match="time zone has no fixed offset"):
        to_plain(dt.time(12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")))


class Colour(enum.Enum):
    RED = 1


class Word(str):
    pass


class Number(float):
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


UNKNOWN: list[Any] = [
    object(),
    Colour.RED,
    Word("a"),
    Number(1),
    Pair(1, 2),
    collections.OrderedDict(a=1),
    collections.defaultdict(list),
    print,
    int,
    range(3),
    bytearray(b"a"),
]


@pytest.mark.parametrize("value", UNKNOWN, ids=lambda value: type(value).__name__)
def test_an_unknown_type_is_refused_by_name_with_the_way_out(value: Any) -> None:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    way_out = "register_value_codec(ValueCodec(tag, type, encode, decode))"
    for held in (value, [value], {"deep": ({1: value},)}):
        with pytest.raises(ValueCodecError) as caught:
            to_plain(held)
        assert f"type {name} has no written form" in str(caught.value)
        assert way_out in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    deep: Any = "bottom"
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, {"a": (loop,)}, deep):
        with pytest.raises(ValueCodecError, match="contains itself or is nested too deeply"):
            to_plain(value)
    with pytest.raises(FormatError, match="nested too deeply"):
        from_plain(deep)


DAMAGED: list[Any] = [
    {"$type": "tuple"},
    {"$type": "tuple", "value": 5},
    {"$type": "tuple", "value": [], "more": 1},
    {"$type": 5, "value": []},
    {"$type": None, "value": []},
    {"$type": [], "value": []},
    {"$type": "int", "value": "zz"},
    {"$type": "int", "value": 5},
    {"$type": "float", "value": "1.5"},
    {"$type": "float", "value": None},
    {"$type": "text", "value": "%%"},
    {"$type": "text", "value": "/////w=="},
    {"$type": "bytes", "value": "no base 64!"},
    {"$type": "bytes", "value": 7},
    {"$type": "dict", "value": [[[], 1]]},
    {"$type": "dict", "value": [[1]]},
    {"$type": "set", "value": [[]]},
    {"$type": "frozenset", "value": [{}]},
    {"$type": "complex", "value": [1, 2, 3]},
    {"$type": "decimal", "value": "one"},
    {"$type": "datetime", "value": "yesterday"},
    {"$type": "datetime", "value": ["2026-01-02", 7]},
    {"$type": "datetime", "value": []},
    {"$type": "date", "value": 20260102},
    {"$type": "time", "value": "25:00"},
    {"$type": "timedelta", "value": [10**12, 0, 0]},
    {"$type": "timedelta", "value": ["a", 0, 0]},
    [{"$type": "tuple", "value": [{"$type": "tuple"}]}],
]


@pytest.mark.parametrize("plain", DAMAGED, ids=str)
def test_damaged_plain_data_is_refused(plain: Any) -> None:
    with pytest.raises(FormatError, match=r"cannot be read|not \$type, value"):
        from_plain(plain)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.fixed_dictionaries(
            {
                "$type": st.sampled_from(
                    "int float text dict tuple set frozenset bytes complex decimal datetime date "
                    "time timedelta other".split()
                ),
                "value": inner,
            }
        )
    ),
)


@thorough
@given(json_values)
def test_any_json_is_read_or_refused(plain: Any) -> None:
    try:
        from_plain(plain)
    except FormatError as refused:
        assert len(str(refused)) > 20  # noqa: PT017


def test_an_unknown_tag_names_the_tag_and_the_way_out() -> None:
    with pytest.raises(FormatError, match=r"'spaceship'.*not registered.*register_value_codec"):
        from_plain([{"$type": "spaceship", "value": 1}])


# Codecs of one's own


class Celsius:
    def __init__(self, degrees: float, notes: tuple[str, ...] = ()) -> None:
        self.degrees, self.notes = degrees, notes


def test_a_registered_type_comes_back_and_may_encode_to_registered_types() -> None:
    register_value_codec(
        ValueCodec("test.celsius", Celsius, lambda c: (c.degrees, c.notes), lambda p: Celsius(*p))
    )
    for trip in TRIPS:
        (back,) = trip([Celsius(math.inf, ("hot",))])
        assert type(back) is Celsius
        assert (back.degrees, back.notes) == (math.inf, ("hot",))


def test_a_tag_means_one_type() -> None:
    class Mine:
        pass

    class Other:
        pass

    register_value_codec(ValueCodec("test.mine", Mine, lambda m: 1, lambda p: Mine()))
    register_value_codec(ValueCodec("test.mine", Mine, lambda m: 2, lambda p: Mine()))
    assert to_plain(Mine()) == {"$type": "test.mine", "value": 2}
    for tag in ("test.mine", "tuple"):
        with pytest.raises(ValueCodecError, match="already stands for"):
            register_value_codec(ValueCodec(tag, Other, lambda m: 3, lambda p: Other()))
    for codec in (ValueCodec(5, Other, repr, repr), ValueCodec("x", 5, repr, repr)):  # type: ignore[arg-type]
        with pytest.raises(ValueCodecError, match="a text as its tag and a class as its type"):
            register_value_codec(codec)
    with pytest.raises(ValueCodecError, match="Other has no written form"):
        to_plain(Other())
    assert to_plain(Mine())["value"] == 2
    assert to_plain(()) == {"$type": "tuple", "value": []}


def test_a_codec_that_raises_is_an_error_of_ours() -> None:
    class Broken:
        pass

    def broken(_: Any) -> Any:
        raise KeyError("inside")

    register_value_codec(ValueCodec("test.broken", Broken, broken, broken))
    with pytest.raises(ValueCodecError, match=r"'test.broken' failed to encode: KeyError"):
        to_plain([Broken()])
    with pytest.raises(FormatError, match=r"'test.broken' cannot be read: KeyError"):
        from_plain({"$type": "test.broken", "value": 1})

    class Endless:
        pass

    register_value_codec(ValueCodec("test.endless", Endless, lambda e: [e], repr))
    with pytest.raises(ValueCodecError, match="contains itself"):
        to_plain(Endless())


# Copies


def test_copies_share_nothing_that_can_change() -> None:
    value = {"a": [1, {"b": {2}}], "c": ({"d": []},)}
    mine = private_copy(value)
    assert ordered(mine) == ordered(value)
    mine["a"][1]["b"].add(3)
    mine["c"][0]["d"].append(4)
    assert value == {"a": [1, {"b": {2}}], "c": ({"d": []},)}


def test_a_value_with_a_part_that_cannot_be_copied_is_copied_around_it() -> None:
    lock = threading.Lock()
    table: collections.defaultdict[str, Any] = collections.defaultdict(list, a=[lock])
    for value in (
        [lock, [1]],
        {"lock": lock, "list": [1]},
        ([lock], [1]),
        Pair([lock], {"list": [1]}),
        table,
        [{(1, 2): ([lock], {"deep": [1]})}],
    ):
        mine = private_copy(value)
        assert type(mine) is type(value)
        assert mine == value
        assert mine is not value
    held = [lock, [1], {"x": {2}}]
    mine = private_copy(held)
    mine[1].append("more")
    mine[2]["x"].add("more")
    assert held == [lock, [1], {"x": {2}}]
    assert mine[0] is lock
    copied = private_copy(table)
    copied["new"].append(1)
    copied["a"].append(2)
    assert table == {"a": [lock]}
    members = {lock, 1}
    assert private_copy(members) == members
    assert private_copy(members) is not members


def test_an_uncopyable_value_is_welcome_as_it_is() -> None:
    class Uncopyable:
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies")

    one, generator = Uncopyable(), (n for n in [1])
    assert private_copy(one) is one
    assert private_copy(generator) is generator
    assert private_copy([one])[0] is one


def test_a_value_that_contains_itself_and_a_lock_is_copied() -> None:
    loop: list[Any] = [threading.Lock(), []]
    loop.append(loop)
    loop.append({"loop": loop})
    mine = private_copy(loop)
    assert mine is not loop
    assert mine[2] is mine
    assert mine[3]["loop"] is mine
    assert mine[1] is not loop[1]
    assert mine[0] is loop[0]


def test_a_value_nested_beyond_the_recursion_limit_is_kept() -> None:
    deep: Any = [threading.Lock()]
    for _ in range(100_000):
        deep = [deep]
    assert private_copy(deep) is deep


def test_fields_are_copied_in_order_under_plain_names() -> None:
    class Name(enum.StrEnum):
        ONE = "one"

    given = {"z": [1], Name.ONE: 2, Word("a"): 3}
    mine = copy_fields(given)
    assert list(mine) == ["z", "one", "a"]
    assert {type(name) for name in mine} == {str}
    given["z"].append(2)  # type: ignore[attr-defined]
    assert mine["z"] == [1]
    bad: Any
    for bad in (None, 5, "text", [("a", 1)], {"a"}):
        with pytest.raises(CallError, match="must be a mapping from field names to values"):
            copy_fields(bad)
    for bad in ({1: 2}, {None: 1}, {"a": 1, ("b",): 2}):
        with pytest.raises(CallError, match="must be named by text, but one name is"):
            copy_fields(bad)
