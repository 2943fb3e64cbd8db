"""Session data as a value and as a dict-like face: its laws, its types, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import math
import pickle
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, assert_type

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field
from pydantic.alias_generators import to_camel

from dspy_session import DELETED, Data, DataError, DataKeyError, OptionError, SessionData
from dspy_session.core.data import DEFAULT_MAX_BYTES, EMPTY_DATA, as_data
from dspy_session.core.json_values import MAX_DEPTH

Item = TypeVar("Item")

CART: dict[str, Any] = {"cart": ["tea", {"n": 2}], "user": "ada", "paid": None}

FACES: list[Callable[[Mapping[str, Any]], Data | SessionData]] = [Data, SessionData]


def written(value: object) -> str:
    """JSON by the standard library: it tells 1, 1.0 and True apart, and the order of keys."""
    return json.dumps(value)


# K1: the operations


@pytest.mark.parametrize("face", FACES)
def test_K1_reading(face: Callable[[Mapping[str, Any]], Data | SessionData]) -> None:
    data = face(CART)
    assert (data["user"], data.get("user"), data.get("nobody"), data.get("nobody", 7)) == (
        *("ada", "ada", None, 7),
    )
    assert data.get("paid", "a default is for absent keys only") is None
    assert (data.has("paid"), data.has("nobody")) == (True, False)
    strangers: list[Any] = ["nobody", "", 3, [], "\ud800"]
    assert [key in data for key in strangers] == [False] * 5
    assert "paid" in data
    assert list(data) == list(data.keys()) == ["cart", "user", "paid"]
    assert list(data.values()) == list(CART.values())
    assert list(data.items()) == list(CART.items())
    assert (len(data), bool(data), data.is_empty) == (3, True, False)
    assert data.to_dict() == dict(data) == {**data} == CART
    assert list(data.to_dict()) == list(CART)
    assert repr(data) == f"{type(data).__name__}({CART!r})"
    assert isinstance(data, Mapping)
    empty = face({})
    assert (len(empty), bool(empty), empty.is_empty, empty.to_dict()) == (0, False, True, {})


def test_K1_writing() -> None:
    data = SessionData()
    data.set("user", "ada")
    data["cart"] = ["tea"]
    data.update({"step": 1, "user": "ben"})
    assert list(data.items()) == [("user", "ben"), ("cart", ["tea"]), ("step", 1)]
    data.delete("cart")
    data.delete("cart")
    del data["step"]
    assert data.to_dict() == {"user": "ben"}
    data.clear()
    data.clear()
    assert data.is_empty


@pytest.mark.parametrize("operation", [SessionData.__getitem__, SessionData.__delitem__])
def test_K1_an_absent_key(operation: Callable[[SessionData, str], object]) -> None:
    data = SessionData(CART)
    with pytest.raises(DataKeyError, match="There is no 'nobody' in the session data") as caught:
        operation(data, "nobody")
    assert isinstance(caught.value, KeyError)
    assert data == CART
    with pytest.raises(DataKeyError, match="There is no 'nobody'"):
        Data(CART)["nobody"]


def test_K1_is_modified_compares_with_what_it_was_made_of() -> None:
    for data in (SessionData(CART), SessionData.from_dict(CART)):
        assert not data.is_modified
        data["user"] = "ada"
        data.delete("nobody")
        assert not data.is_modified
        data["user"] = "ben"
        assert data.is_modified
        data["user"] = "ada"
        assert not data.is_modified
        data["cart"] = ["tea", {"n": 2.0}]
        assert data.is_modified
    fresh = SessionData()
    fresh["user"] = "ada"
    assert fresh.is_modified
    fresh.clear()
    assert not fresh.is_modified


def test_K1_from_dict_of_to_dict() -> None:
    data = SessionData(CART)
    again = SessionData.from_dict(data.to_dict())
    assert again == data
    again["user"] = "ben"
    assert data["user"] == "ada"
    assert SessionData.from_dict(data) == SessionData.from_dict(Data(CART)) == data


@pytest.mark.parametrize("face", FACES)
def test_K1_what_is_handed_out_is_a_copy(
    face: Callable[[Mapping[str, Any]], Data | SessionData],
) -> None:
    mine: dict[str, Any] = copy.deepcopy(CART)
    data = face(mine)
    mine["cart"].append("changed after it was set")
    for cart in (
        data["cart"],
        data.get("cart"),
        data.to_dict()["cart"],
        next(iter(data.values())),
        next(iter(data.items()))[1],
        data.get("cart", [], as_type=list),
    ):
        cart.append("changed")
        cart[1]["n"] = 3
    assert data == CART


def test_K1_an_object_set_again_is_changed() -> None:
    data = SessionData(CART)
    cart = data["cart"]
    cart.append("bread")
    data["cart"] = cart
    assert data["cart"] == ["tea", {"n": 2}, "bread"]


def test_K1_keys_are_those_of_the_moment() -> None:
    data = SessionData(CART)
    keys, values, items = data.keys(), data.values(), data.items()
    for key in data:
        del data[key]
    assert data.is_empty
    assert (list(keys), list(values)) == (list(CART), list(CART.values()))
    assert list(items) == list(CART.items())


def test_K1_update_is_all_or_nothing() -> None:
    data = SessionData(CART)
    with pytest.raises(DataError, match=r"data\['tags'\]"):
        data.update({"user": "ben", "tags": {"a"}, "more": 1})
    assert data == CART
    assert not data.is_modified


def test_K1_update_takes_data() -> None:
    data = SessionData({"user": "ada"})
    data.update(Data({"a": 1.0}))
    data.update(SessionData({"b": (1, 2)}))
    data.update(data)
    data.update(MappingProxyType({"c": 3}))
    assert written(data.to_dict()) == written({"user": "ada", "a": 1.0, "b": [1, 2], "c": 3})


@pytest.mark.parametrize("given", [[("a", 1)], "text", 3, {"a"}])
def test_what_is_no_mapping(given: Any) -> None:
    data = SessionData(CART)
    for refused in (
        lambda: data.update(given),
        lambda: SessionData.from_dict(given),
        lambda: SessionData(given),
        lambda: Data(given),
        lambda: as_data(given),
    ):
        with pytest.raises(DataError, match=f"not by a {type(given).__name__}"):
            refused()
    with pytest.raises(DataError, match="not by a NoneType"):
        SessionData.from_dict(None)  # type: ignore[arg-type]
    assert data == CART
    assert as_data(None) is EMPTY_DATA


@pytest.mark.parametrize("key", ["", 1, None, b"cart", ("cart",), ["cart"]])
def test_keys_that_are_not_text(key: Any) -> None:
    data = SessionData(CART)
    for refused in (
        lambda: data.set(key, 1),
        lambda: data.delete(key),
        lambda: data.get(key, "default"),
        lambda: data.has(key),
        lambda: data[key],
        lambda: data.__setitem__(key, 1),
        lambda: data.__delitem__(key),
    ):
        with pytest.raises(DataError, match="is text that is not empty, not "):
            refused()
    assert data == CART


def test_keys_that_are_not_unicode() -> None:
    data = SessionData(CART)
    with pytest.raises(DataError, match="is not valid Unicode"):
        data["\ud800"] = 1
    assert data == CART
    assert "\ud800" not in data


def test_keys_become_plain_text() -> None:
    class Key(enum.StrEnum):
        USER = "user"

    data = SessionData({Key.USER: 1})
    assert [type(key) for key in data] == [str]
    assert data[Key.USER] == data["user"] == 1


# K2: typed values


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Tone(enum.StrEnum):
    WARM = "warm"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class CartItem(BaseModel):
    name: str
    price: float = 1.0


class Cart(BaseModel):
    items: list[CartItem] = Field(default_factory=list)
    code: str | None = None

    @property
    def total(self) -> float:
        return sum(item.price for item in self.items)


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    when: dt.datetime
    tags: set[str]
    pair: tuple[int, decimal.Decimal]
    camel: Camel

    @computed_field
    def shown(self) -> str:
        return "computed, so no field to read back"


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    item_count: int
    read_name: str = Field("x", validation_alias="readName", serialization_alias="writtenName")


class Page(BaseModel, Generic[Item]):
    items: list[Item]


class Numbers(RootModel[list[int]]):
    pass


class Point(NamedTuple):
    x: int
    y: float


class Order(TypedDict):
    number: int
    cart: Cart


@dataclasses.dataclass
class Inner:
    tags: set[str]
    colour: Colour = Colour.RED
    names: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings(Generic[Item]):
    inner: Inner
    first: Item
    cart: Cart | None = None
    when: dt.datetime | None = None
    id: uuid.UUID | None = None
    raw: bytes = b""
    days: dict[dt.date, Level] = dataclasses.field(default_factory=dict)
    made: int = dataclasses.field(init=False, default=3)
    others: tuple[Settings[Any], ...] = ()


class Struct(msgspec.Struct, tag="struct", rename="camel"):
    my_inner: Inner
    cart: Cart
    left_out: int | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True, tag=7):
    cart: Cart
    n: int = 0


@pydantic.dataclasses.dataclass
class Checked:
    n: int
    cart: Cart | None = None


NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
FULL = Cart(items=[CartItem(name="tea", price=2.5)])
CAMEL = Camel.model_validate({"itemCount": 2, "readName": "y"})
INNER = Inner({"b", "a", "c"}, Colour.RED, {1: "one"})
SETTINGS = Settings(
    INNER,
    1,
    FULL,
    NOON,
    uuid.UUID(int=1),
    b"\xff\x00",
    {NOON.date(): Level.LOW},
    (Settings(INNER, 2),),
)

TYPED: list[tuple[object, Any]] = [
    (FULL, Cart),
    (Cart(), Cart),
    (Strict(when=NOON, tags={"a", "b"}, pair=(1, decimal.Decimal("1.20")), camel=CAMEL), Strict),
    (CAMEL, Camel),
    (Numbers([1, 2]), Numbers),
    (Page[Cart](items=[FULL]), Page[Cart]),
    (INNER, Inner),
    (SETTINGS, Settings[int]),
    (Checked(1, FULL), Checked),
    (Struct(INNER, FULL), Struct),
    (Struct(INNER, FULL, 2), Struct),
    (Row(FULL, 2), Row),
    (Point(1, 2.5), Point),
    ({"number": 1, "cart": FULL}, Order),
    (Colour.RED, Colour),
    (Level.LOW, Level),
    (Tone.WARM, Tone),
    (Access.READ | Access.WRITE, Access),
    ([FULL, Cart()], list[Cart]),
    ({"a": FULL}, dict[str, Cart]),
    ({Tone.WARM: [INNER]}, dict[Tone, list[Inner]]),
    (FULL, Cart | None),
    (None, Cart | None),
    ((1, "a", FULL), tuple[int, str, Cart]),
    ("text", str),
    (3, int),
    (3, float),
    (True, bool),
    ([1, None], list[int | None]),
]


@pytest.mark.parametrize(("value", "kind"), TYPED)
def test_K2_typed_values_come_back(value: object, kind: Any) -> None:
    data = SessionData()
    data.set("value", value)
    plain = data.get("value")
    assert plain == json.loads(json.dumps(plain))
    assert data.get("value", as_type=kind) == value
    assert type(data.get("value", as_type=kind)) is (float if kind is float else type(value))
    again = SessionData.from_dict(data.to_dict())  # as it comes back from a client or a file
    assert again.get("value", "default", as_type=kind) == value
    data.set("deep", {"within": [value]})
    assert data.get("deep", as_type=dict[str, list[kind]]) == {"within": [value]}
    assert Data({"value": value}) == Data({"value": plain})


def test_K2_what_is_stored_is_plain() -> None:
    data = SessionData({"cart": FULL, "settings": SETTINGS, "struct": Struct(INNER, FULL)})
    cart = {"items": [{"name": "tea", "price": 2.5}], "code": None}
    inner = {"tags": ["a", "b", "c"], "colour": "red", "names": {"1": "one"}}
    assert data["cart"] == cart
    assert data["struct"] == {"type": "struct", "myInner": inner, "cart": cart}
    assert {**data["settings"], "others": []} == {
        "inner": inner,
        "first": 1,
        "cart": cart,
        "when": "2026-01-02T12:00:00Z",
        "id": str(SETTINGS.id),
        "raw": "/wA=",
        "days": {"2026-01-02": 1},
        "made": 3,
        "others": [],
    }
    assert SessionData({"row": Row(FULL, 2)})["row"] == [7, cart, 2]
    assert SessionData({"camel": CAMEL})["camel"] == {"item_count": 2, "read_name": "y"}
    loaded = data.get("cart", as_type=Cart)
    assert loaded is not None
    assert (loaded.total, loaded.items[0].name) == (2.5, "tea")


def test_K2_defaults() -> None:
    data = SessionData(CART)
    mine = Cart()
    assert data.get("absent", as_type=Cart) is None
    assert data.get("absent", mine, as_type=Cart) is mine
    assert (
        data.get("absent", "no Cart, and nobody looks", as_type=Cart) == "no Cart, and nobody looks"
    )
    assert data.get("absent", mine) is mine


def test_K2_a_client_may_write_names_or_aliases() -> None:
    data = SessionData({"name": {"item_count": 2}, "alias": {"itemCount": 2}})
    assert data.get("name", as_type=Camel) == data.get("alias", as_type=Camel)
    assert data.get("alias", as_type=Camel | None) == Camel.model_validate({"itemCount": 2})


def test_K2_subclasses_of_plain_types() -> None:
    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    data = SessionData(
        {
            "text": Text("täxt"),
            "int": type("Int", (int,), {})(3),
            "float": type("Float", (float,), {})(1.5),
            "default": defaultdict(list, a=[1]),
            "ordered": OrderedDict(b=1, a=(2,)),
            "list": type("List", (list,), {})([Text("x")]),
            "keys": {Text("k"): 1, Tone.WARM: 2, Colour.RED: 3},
        }
    )
    assert written(data.to_dict()) == written(
        {
            "text": "täxt",
            "int": 3,
            "float": 1.5,
            "default": {"a": [1]},
            "ordered": {"b": 1, "a": [2]},
            "list": ["x"],
            "keys": {"k": 1, "warm": 2, "red": 3},
        }
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Cart, "cannot be read as Cart: 1 validation error"),
        (Inner, "cannot be read as Inner: Object missing required field `tags`"),
        (Struct, "cannot be read as Struct: "),
        (Order, "cannot be read as Order: "),
        (int, "cannot be read as int: Expected `int`, got `object`"),
        (list[Cart], r"cannot be read as list\[.*Cart\]: "),
        (Colour, "cannot be read as Colour: "),
        (Cart | Inner, "cannot be read as .*Cart | .*Inner: .* not supported"),
        (object(), "cannot be read as <object"),
        ("Cart", "cannot be read as 'Cart'"),
        (functools.partial, "cannot be read as partial: there is no way"),
    ],
)
def test_K2_a_wrong_type(kind: Any, said: str) -> None:
    stored = {"cart": {"items": 1, "why": "x" * 1000}}
    data = SessionData(stored)
    with pytest.raises(DataError, match=rf"data\['cart'\] {said}") as caught:
        data.get("cart", Cart(), as_type=kind)
    assert 'What is stored is {"items":1,"why":"xxx' in str(caught.value)
    assert "x" * 300 not in str(caught.value).split("What is stored")[1]
    assert data == stored
    assert not data.is_modified


def test_K2_a_model_whose_own_code_fails() -> None:
    class Failing(BaseModel):
        n: int

        @pydantic.field_serializer("n")
        def write(self, n: int) -> int:
            return 1 // n

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            return n if n < 2 else 1 // 0

    data = SessionData({"n": {"n": 2}})
    with pytest.raises(
        DataError, match=r"data\['a'\]\[0\]: it is a Failing whose model_dump failed"
    ):
        data["a"] = [Failing(n=0)]
    with pytest.raises(DataError, match=r"data\['n'\] cannot be read as Failing: .*by zero"):
        data.get("n", as_type=Failing)
    assert data == {"n": {"n": 2}}


def test_typing() -> None:
    """What mypy, in strict mode, knows of what comes back."""
    data = SessionData({"cart": Cart(), "n": 1})
    assert_type(data.get("cart", as_type=Cart), Cart | None)
    assert_type(data.get("cart", None, as_type=Cart), Cart | None)
    assert_type(data.get("cart", Cart(), as_type=Cart), Cart)
    assert_type(data.get("cart", "none", as_type=Cart), Cart | str)
    assert_type(data.get("list", as_type=list[Cart]), list[Cart] | None)
    assert_type(data.get("list", [Cart()], as_type=list[Cart]), list[Cart])
    assert_type(data.get("order", as_type=Order), Order | None)
    assert_type(data.get("n", as_type=int), int | None)
    maybe: int | None = data.get("n", as_type=int | None)
    assert maybe == 1
    assert_type(data.get("n"), Any)
    assert_type(data.get("n", 0), Any)
    assert_type(data["n"], Any)
    assert_type(Data({"cart": Cart()}).get("cart", Cart(), as_type=Cart), Cart)
    assert_type(list(data.items()), list[tuple[str, Any]])


# K8: what is refused


@dataclasses.dataclass
class Holds:
    value: object


class HoldsToo(msgspec.Struct):
    value: object


class Reading:
    model = "with no model_dump"


class Duck:
    def model_dump(self, **_: object) -> object:
        return [NOON]


def looped() -> list[object]:
    loop: list[object] = [1]
    loop.append({"x": loop})
    return loop


def looped_record() -> Holds:
    holds = Holds(None)
    holds.value = [holds]
    return holds


def nested(depth: int) -> object:
    value: object = 0
    for level in range(depth):
        value = {"n": value} if level % 2 else [value]
    return value


REFUSED: list[tuple[Callable[[], object], str, str]] = [
    (lambda: {1}, "", "is of type set; store a list"),
    (lambda: frozenset(), "", "is of type frozenset; store a list"),
    (lambda: b"x", "", "is of type bytes; store text"),
    (lambda: bytearray(b"x"), "", "is of type bytearray; store text"),
    (lambda: NOON, "", "is of type datetime; store value.isoformat()"),
    (lambda: NOON.date(), "", "is of type date; store value.isoformat()"),
    (lambda: decimal.Decimal(1), "", "is of type Decimal; store str(value)"),
    (lambda: uuid.UUID(int=1), "", "is of type UUID; store str(value)"),
    (lambda: 1j, "", "is of type complex; store a list of two"),
    (lambda: math.nan, "", "is the float nan"),
    (lambda: -math.inf, "", "is the float -inf"),
    (lambda: type("Float", (float,), {})("nan"), "", "is the float nan"),
    (lambda: 2**64, "", "is an int beyond 64 bits; store text"),
    (lambda: -(2**63) - 1, "", "is an int beyond 64 bits; store text"),
    (lambda: "\ud800", "", "is text that is not valid Unicode"),
    (lambda: print, "", "is of type builtin_function_or_method; store plain JSON"),
    (lambda: Cart, "", "is of type ModelMetaclass; store plain JSON"),
    (lambda: Inner, "", "is of type type; store plain JSON"),
    (lambda: Struct, "", "is of type StructMeta; store plain JSON"),
    (lambda: Reading(), "", "is of type Reading; store plain JSON"),
    (lambda: iter([1]), "", "is of type list_iterator; store plain JSON"),
    (lambda: MappingProxyType({}), "", "is of type mappingproxy; store plain JSON"),
    (lambda: msgspec.Raw(b"1"), "", "is of type Raw; store plain JSON"),
    (lambda: msgspec.UNSET, "", "is of type UnsetType; store plain JSON"),
    (lambda: {"a": [0, {"b": {1}}]}, "['a'][1]['b']", "is of type set"),
    (lambda: (0, (1, NOON)), "[1][1]", "is of type datetime"),
    (lambda: {1: 2}, "[1]", "stands under a key of type int; use text"),
    (lambda: {"a": {None: 2}}, "['a'][None]", "stands under a key of type NoneType"),
    (lambda: {"a": {"\ud800": 2}}, "['a']['\\ud800']", "is text that is not valid Unicode"),
    (lambda: {"red": 1, Colour.RED: 2}, "[<Colour.RED: 'red'>]", "has the key 'red' as text"),
    (lambda: Holds({"a": [Reading()]}), ".value['a'][0]", "is of type Reading"),
    (lambda: [Holds(HoldsToo([math.nan]))], "[0].value.value[0]", "is the float nan"),
    (lambda: Holds({1: 2, "1": 3}), ".value['1']", "has the key '1' as text"),
    (lambda: Holds({Reading: 3}), f".value[{Reading!r}]", "stands under a key of type type"),
    (lambda: Holds({(1, 2): 3}), ".value[(1, 2)]", "stands under a key of type tuple"),
    (
        lambda: Holds({Point(1, 2): 3}),
        ".value[Point(x=1, y=2)]",
        "stands under a key of type Point",
    ),
    (lambda: Holds({Reading()}), ".value[0]", "is of type Reading"),
    (lambda: Holds(msgspec.Raw(b"1")), ".value", "is of type Raw"),
    (lambda: [Holds(Duck())], "[0].value[0]", "is of type datetime"),
    (lambda: Numbers([2**70]), "[0]", "is an int beyond 64 bits"),
    (lambda: CartItem(name="x", price=math.inf), "['price']", "is the float inf"),
    (looped, "", "contains itself"),
    (lambda: {"deep": looped()}, "['deep'][1]", "contains itself"),
    (looped_record, "", "contains itself"),
]


@pytest.mark.parametrize(("make", "path", "said"), REFUSED)
def test_K8_refused_when_set(make: Callable[[], object], path: str, said: str) -> None:
    data, value = SessionData(CART), make()
    before = Data(data)
    for refused in (
        lambda: data.set("bad key", value),
        lambda: data.__setitem__("bad key", value),
        lambda: data.update({"user": "ben", "bad key": value}),
        lambda: SessionData({"bad key": value}),
        lambda: before.changed({"bad key": value, "cart": DELETED}),
        lambda: as_data({"bad key": value}),
    ):
        with pytest.raises(DataError) as caught:
            refused()
        assert f"cannot hold data['bad key']{path}: it {said}" in str(caught.value)
    assert data == CART
    assert data == before
    assert not data.is_modified


@pytest.mark.parametrize(
    "value",
    [
        -(2**63),
        2**64 - 1,
        1e308,
        5e-324,
        -0.0,
        "",
        "\x00\u2028é🫖",
        [],
        {},
        {"": 0},
        nested(MAX_DEPTH),
    ],
)
def test_K8_what_is_just_allowed(value: object) -> None:
    data = SessionData({"value": value})
    assert written(data["value"]) == written(value)
    assert written(pickle.loads(pickle.dumps(data)).to_dict()) == written({"value": value})


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100_000])
def test_K8_nested_too_deep(depth: int) -> None:
    data = SessionData(CART)
    with pytest.raises(DataError, match=r"data\['a'\].*it is nested deeper than 100") as caught:
        data["a"] = nested(depth)
    assert len(str(caught.value)) < 400
    assert data == CART


def test_K8_one_object_twice_is_no_loop() -> None:
    shared = [1]
    data = SessionData({"value": [shared, shared, {"x": shared}]})
    assert data["value"] == [[1], [1], {"x": [1]}]


# The limit


def test_the_size_is_that_of_the_json() -> None:
    plain = {"ä": ["é", 1.5], 'quoted "key"\n': {"a": None}, "empty": ""}
    data = Data(plain)
    assert data.size == SessionData(plain).size == len(msgspec.json.encode(plain))
    assert EMPTY_DATA.size == len(b"{}")


def test_a_limit() -> None:
    data = SessionData({"a": "x" * 10}, max_bytes=30)
    kept = data.to_dict()
    for refused in (
        lambda: data.set("b", "y" * 10),
        lambda: data.update({"a": "", "b": "y" * 30}),
        lambda: SessionData({"a": "x" * 30}, max_bytes=30),
        lambda: SessionData.from_dict({"a": "x" * 30}, max_bytes=30),
        lambda: as_data({"a": "x" * 30}, 30),
        lambda: as_data(Data({"a": "x" * 30}), 30),
        lambda: as_data(SessionData({"a": "x" * 30}), 30),
    ):
        with pytest.raises(
            DataError, match="may have 30 bytes as JSON, and this would be "
        ) as caught:
            refused()
        assert "max_data_bytes" in str(caught.value)
        assert "max_bytes=" in str(caught.value)
        assert data == kept
    data.set("b", "y" * 5)  # just fits
    assert data.size == 30
    data.update({"b": DELETED, "c": "y" * 5})
    assert list(data) == ["a", "c"]


def test_too_large_data_may_get_smaller() -> None:
    large = Data({"a": "x" * 100, "b": "y" * 100})
    smaller = large.changed({"a": "x"}, max_bytes=50)
    assert (smaller.size > 50, smaller["a"]) == (True, "x")
    with pytest.raises(DataError, match="50 bytes"):
        smaller.changed({"a": "xx"}, max_bytes=50)
    assert smaller.changed({"b": DELETED}, max_bytes=50) == {"a": "x"}


def test_the_limit_unless_another_is_set() -> None:
    assert DEFAULT_MAX_BYTES == 1_000_000
    data = SessionData()
    with pytest.raises(DataError, match="1000000 bytes"):
        data["text"] = "x" * DEFAULT_MAX_BYTES
    assert data.is_empty
    unlimited = SessionData(max_bytes=None)
    unlimited["text"] = "x" * DEFAULT_MAX_BYTES
    assert unlimited.size > DEFAULT_MAX_BYTES
    assert Data({"text": "x" * DEFAULT_MAX_BYTES}).size == unlimited.size


@pytest.mark.parametrize("limit", ["1000", 1.5, True, -1])
def test_a_limit_that_is_no_number(limit: Any) -> None:
    with pytest.raises(OptionError, match="max_bytes= is a whole number of bytes, or None"):
        SessionData(max_bytes=limit)


# The value


def test_equality_tells_types_and_order() -> None:
    assert Data({"a": 1, "b": [2]}) == Data({"a": 1, "b": (2,)}) == SessionData({"a": 1, "b": [2]})
    for other in ({"a": 1.0, "b": [2]}, {"a": True, "b": [2]}, {"b": [2], "a": 1}, {"a": 1}, {}):
        assert Data({"a": 1, "b": [2]}) != Data(other)
        assert SessionData({"a": 1, "b": [2]}) != SessionData(other)
        assert SessionData({"a": 1, "b": [2]}) != Data(other)
    assert Data({"a": 1, "b": [2]}) == {"b": [2], "a": 1} == SessionData({"a": 1, "b": [2]})
    assert Data({"a": 1}) != {"a": 2}
    assert Data({"a": 1}) != [("a", 1)]
    assert SessionData({"a": 1}) != "a"


@pytest.mark.parametrize("face", FACES)
def test_data_has_no_hash(face: Callable[[Mapping[str, Any]], Data | SessionData]) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(face(CART))


def test_data_never_changes_and_shares() -> None:
    data = Data(CART)
    changed = data.changed({"user": DELETED, "step": 1})
    assert data == CART
    assert list(changed.items()) == [("cart", CART["cart"]), ("paid", None), ("step", 1)]
    assert changed.raw("cart") is data.raw("cart")
    for nothing in ({}, {"nobody": DELETED}, {"user": "ada"}, {"cart": ("tea", {"n": 2})}, data):
        assert data.changed(nothing) is data
    assert data.changed({"user": "ada", "paid": 0}).raw("cart") is data.raw("cart")
    assert EMPTY_DATA.changed(SessionData(data)).raw("cart") is data.raw("cart")
    assert data.without({"nobody"}) is data.without(()) is data
    assert list(data.without(frozenset({"user", "nobody"}))) == ["cart", "paid"]
    assert as_data(data, 1000) is data
    assert copy.copy(data) is copy.deepcopy(data) is data
    assert (Data(), as_data(None), as_data({})) == (EMPTY_DATA, EMPTY_DATA, EMPTY_DATA)
    assert repr(DELETED) == "DELETED"
    assert pickle.loads(pickle.dumps(DELETED)) == DELETED


def test_a_write_reads_nothing_of_what_is_there() -> None:
    """Values that were set before are neither decoded nor encoded again: they need not be JSON."""
    data = EMPTY_DATA.changed({"big": 1})
    data._raw["big"] = b"not JSON at all"
    assert data.changed({"small": 2}, max_bytes=100)["small"] == 2
    assert data.changed({"big": DELETED}) == {}


def test_sets_are_written_in_one_order() -> None:
    one = {f"{n}" for n in range(20)}
    other = {f"{n}" for n in reversed(range(20))}
    assert Data({"inner": Inner(one)}) == Data({"inner": Inner(other)})


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]
)
@pytest.mark.parametrize("face", [SessionData, lambda plain: SessionData.over(Held(Data(plain)))])
def test_a_copy_stands_alone(
    copied: Callable[[SessionData], SessionData], face: Callable[[Mapping[str, Any]], SessionData]
) -> None:
    data = face(CART)
    again = copied(data)
    assert again == data
    assert not again.is_modified
    again["user"] = "ben"
    assert again.is_modified
    assert data == CART


# A face of data that is held elsewhere


class Held:
    """As a session or a running turn holds it; notes what it was asked."""

    def __init__(self, data: Data) -> None:
        self.data = self.began = data
        self.changes: list[Mapping[str, Any]] = []

    def read(self) -> Data:
        return self.data

    def change(self, changes: Mapping[str, Any]) -> None:
        self.changes.append(dict(changes))
        self.data = self.data.changed(changes, 100)

    def base(self) -> Data:
        return self.began


def test_a_face_of_data_held_elsewhere() -> None:
    held = Held(Data({"user": "ada"}))
    one, other = SessionData.over(held), SessionData.over(held)
    one["cart"] = ["tea"]
    assert (other["cart"], other.is_modified, other.size) == (["tea"], True, held.data.size)
    other.update({"a": 1, "b": 2})
    other.delete("a")
    one.clear()
    assert held.changes == [
        {"cart": ["tea"]},
        {"a": 1, "b": 2},
        {"a": DELETED},
        {"user": DELETED, "cart": DELETED, "b": DELETED},
    ]
    assert one == other == {}
    with pytest.raises(DataError, match="100 bytes"):
        one["large"] = "x" * 100
    assert other.is_empty
    held.began = held.data
    assert not one.is_modified


# The laws

Plain = dict[str, Any]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["a", "b", "c", "ä", 'q"'])
MAPS = st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=4)


@given(MAPS)
def test_K1_law_from_dict_to_dict(plain: Plain) -> None:
    data = Data(plain)
    assert (
        written(data.to_dict()) == written(SessionData.from_dict(plain).to_dict()) == written(plain)
    )
    assert Data(data.to_dict()) == data == pickle.loads(pickle.dumps(data))
    assert data.size == len(msgspec.json.encode(plain))
    assert data == plain


@given(MAPS, MAPS)
def test_law_equal_if_and_only_if_the_json_is(one: Plain, other: Plain) -> None:
    assert (Data(one) == Data(other)) == (written(one) == written(other))


class Walk(RuleBasedStateMachine):
    """Operations on session data beside a plain dict that is copied in full."""

    def __init__(self) -> None:
        super().__init__()
        self.data = SessionData()
        self.plain: Plain = {}
        self.began = written({})
        self.snapshots: list[tuple[Data, str]] = []

    @initialize(plain=MAPS)
    def begin(self, plain: Plain) -> None:
        self.data, self.plain = SessionData(plain), copy.deepcopy(plain)
        self.began = written(plain)

    @rule(key=KEYS, value=VALUES, by_item=st.booleans())
    def set_value(self, key: str, value: Any, by_item: bool) -> None:
        if by_item:
            self.data[key] = value
        else:
            self.data.set(key, value)
        self.plain[key] = copy.deepcopy(value)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.data.delete(key)
        self.plain.pop(key, None)

    @rule(key=KEYS)
    def delete_item(self, key: str) -> None:
        if key in self.plain:
            del self.data[key]
            del self.plain[key]
        else:
            with pytest.raises(DataKeyError, match="There is no"):
                del self.data[key]

    @rule(values=st.dictionaries(KEYS, VALUES, max_size=4))
    def update(self, values: Plain) -> None:
        self.data.update(values)
        self.plain.update(copy.deepcopy(values))

    @rule(values=st.dictionaries(KEYS, VALUES, max_size=4), key=KEYS, at_end=st.booleans())
    def update_refused(self, values: Plain, key: str, at_end: bool) -> None:
        good = {name: value for name, value in values.items() if name != key}
        values = {**good, key: {1}} if at_end else {key: {1}, **good}
        with pytest.raises(DataError, match="is of type set"):
            self.data.update(values)

    @rule()
    def clear(self) -> None:
        self.data.clear()
        self.plain.clear()

    @rule(key=KEYS, value=VALUES)
    def change_in_place(self, key: str, value: Any) -> None:
        got = self.data.get(key)
        if isinstance(got, list):
            got.append(value)
        elif isinstance(got, dict):
            got["new"] = value

    @rule()
    def load_again(self) -> None:
        self.data = SessionData.from_dict(self.data.to_dict())
        self.began = written(self.plain)

    @rule()
    def keep(self) -> None:
        self.snapshots.append((as_data(self.data), written(self.plain)))

    @rule(keys=st.sets(KEYS))
    def leave_out(self, keys: set[str]) -> None:
        left = as_data(self.data).without(keys)
        expected = {key: value for key, value in self.plain.items() if key not in keys}
        assert written(left.to_dict()) == written(expected)
        assert left.size == len(msgspec.json.encode(expected))

    @invariant()
    def same(self) -> None:
        assert written(self.data.to_dict()) == written(self.plain)
        assert list(self.data) == list(self.plain)
        assert list(self.data.items()) == list(self.plain.items())
        assert (len(self.data), self.data.is_empty) == (len(self.plain), not self.plain)
        assert self.data.size == len(msgspec.json.encode(self.plain))
        assert self.data.is_modified == (written(self.plain) != self.began)

    @invariant()
    def nothing_kept_has_changed(self) -> None:
        for data, expected in self.snapshots:
            assert written(data.to_dict()) == expected


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
