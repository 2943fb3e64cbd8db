"""Values of a program's own types and DSPy's: saved, loaded, and in the next prompt as before."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import pathlib
import pickle
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import dspy
import dspy.experimental
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_session import (
    FormatError,
    Session,
    SessionState,
    ValueCodec,
    ValueCodecError,
    codec,
    codec_for,
    program_codecs,
    register_value_codec,
    sessionify,
)
from dspy_session.core import SessionOptions, commit, from_plain, prepare, to_plain
from dspy_session.core.turn import Run
from dspy_session.program.types import ProgramCodecs
from dspy_session.testing import ScriptedLM
from tests.loopback import LoopbackServer
from tests.talk import refused
from tests.test_parity import EVIL, images, text_of

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAAA"


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Mood(enum.StrEnum):
    CALM = "calm"


class Place(pydantic.BaseModel):
    name: str
    country: str = pydantic.Field(default="Norway", alias="land")
    since: dt.date | None = None
    tags: set[str] = pydantic.Field(default_factory=set)
    model_config = pydantic.ConfigDict(populate_by_name=True)


class Harbour(Place):
    """A subclass that no annotation mentions."""

    depth: decimal.Decimal = decimal.Decimal("1.0")
    colour: Colour = Colour.BLUE


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    known: int = 0
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @functools.cached_property
    def double(self) -> int:
        return self.known * 2


class Parsed(pydantic.BaseModel):
    """Takes raw input only, counts how often it is made, and holds what it does not declare."""

    words: list[str]
    when: str
    made: list[int] = pydantic.Field(default_factory=list)

    @pydantic.field_validator("words", mode="before")
    @classmethod
    def split(cls, raw: Any) -> Any:
        return raw.split(",")

    @pydantic.field_validator("when", mode="after")
    @classmethod
    def parse(cls, text: str) -> Any:
        return dt.date.fromisoformat(text)

    @pydantic.model_validator(mode="after")
    def count(self) -> Parsed:
        MADE.append(self)
        return self


MADE: list[Any] = []
_T = TypeVar("_T")


class Box(pydantic.BaseModel, Generic[_T]):
    inside: _T


class Numbers(pydantic.RootModel[list[int]]):
    pass


@dataclasses.dataclass
class Trip:
    to: Place
    days: list[dt.date]
    cost: float = dataclasses.field(init=False, default=0.0)
    note: str = "none"

    def __post_init__(self) -> None:
        self.total = len(self.days)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: Any = None


@pydantic.dataclasses.dataclass
class Checked:
    n: Annotated[int, pydantic.Field(ge=0)]
    of: Point | None = None


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    a: Any
    b: list[int] = []


class Row(TypedDict):
    place: Place
    n: int


ABC = dspy.experimental.Choice[("a", "first"), ("b", "second")]
Python = dspy.Code["python"]
Things: tuple[Any, ...] = (
    *(Place, Open, Parsed, Numbers, Box[Point], Box[int], Trip, Checked, Pair, Wire, Row),
    *(Level, Rights, Mood, Python, ABC),
)


class Think(dspy.Signature):
    """Think."""

    thing: Any = dspy.InputField()
    answer: str = dspy.OutputField()


class Thinker(dspy.Module):
    """Says in `forward` what it takes; DSPy takes no structs and typed dicts into signatures."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(Think)

    def forward(self, thing: Any) -> Any:
        return self.ask(thing=thing)


Thinker.forward.__annotations__["thing"] = dict[str, tuple[Things]]  # type: ignore[valid-type]


def code(text: str, language: str | None = None) -> Any:
    kind = dspy.Code if language is None else dspy.Code[language]
    return kind.model_construct(code=text)  # unlike its validator, leaves what looks like a fence


def touched(model: Open) -> Open:
    assert model.double == model.known * 2  # kept in the model's `__dict__` from now on
    model._seen.append(5)
    return model


CITED = {"cited_text": "x", "document_index": 0, "start_char_index": 0, "end_char_index": 1}

OWN: dict[str, Any] = {
    "a model": Place(name="Bergen", since=dt.date(1070, 1, 1), tags={"a", "b"}),
    "by alias": Place(name="Oslo", land="N"),
    "a subclass": Harbour(name="Ålesund", depth=decimal.Decimal("9.50"), colour=Colour.RED),
    "extra and private": touched(Open.model_validate({"known": 2, "$type": (1,), "é": {2}})),
    "an open one": Open(),
    "parsed": Parsed(words="a,b", when="2026-01-02"),  # type: ignore[arg-type]
    "incomplete": Place.model_construct(since="never"),
    "a root": Numbers([1, 2]),
    "a generic": Box[Point](inside=Point(1, (2, {3}))),
    "a generic of another": Box[int](inside=1),
    "a dataclass": Trip(Place(name="x"), [dt.date(2026, 1, 1)]),
    "frozen with slots": Point(1, {"k": Point(2)}),
    "a pydantic dataclass": Checked(1, Point(2)),
    "a named tuple": Pair(1, [Pair(Colour.RED)]),
    "a struct": Wire(a=(1, Point(3)), b=[1]),
    "a typed dict": {"place": Place(name="y"), "n": 1},
    "enums": [Level.HIGH, Rights.READ, Rights.READ | Rights.WRITE, Rights(0), Mood.CALM],
    "dates": {"a": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "b": b"\x00", "c": {dt.date.min}},
    "common": [uuid.UUID(int=5), pathlib.Path("/a/b"), pydantic.HttpUrl("https://a.example/x")],
    "keys": {Point(1): Level.LOW, Colour.RED: {Point(2), Point(3)}},
}
DSPYS: dict[str, Any] = {
    "image": dspy.Image(PIXEL),
    "image by link": dspy.Image("https://host.example/a.png"),
    "audio": dspy.Audio(data="UklGRg==", audio_format="wav"),
    "file": dspy.File(file_data="data:text/plain;base64,YQ==", filename="a.txt"),
    "document": dspy.experimental.Document.model_validate(
        {"data": "text", "title": "t", "context": "c"}
    ),
    "citations": dspy.experimental.Citations.model_validate({"citations": [CITED]}),
    "code": code("print(1)"),
    "code in a language": code("x = '```a\nb```'", "python"),
    "code in another": code("SELECT 1", "sql"),
    "reasoning": dspy.Reasoning.model_validate("because"),
    "tool calls": dspy.ToolCalls.model_validate(
        {"tool_calls": [{"id": "7", "name": "f", "args": {"p": dt.date.min}}]}
    ),
    "tool results": dspy.ToolCallResults.model_validate(
        {"tool_call_results": [{"name": "f", "value": {"x": 1}}]}
    ),
    "choice": ABC(value="a", confidence=1),
    "history": dspy.History(messages=[{"q": dspy.Image(PIXEL)}]),
    "nested": {"deep": [(dspy.Image(PIXEL), {"k": dspy.Image("https://host.example/b.png")})]},
}
ALL = OWN | DSPYS
MADE_ON_THE_FLY = ("code in a language", "code in another", "choice")  # no class that pickle finds


def program() -> dspy.Module:
    return Thinker()


def pictured(value: Any) -> str:
    """A value with the types and the whole state of its parts, as text to compare."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{pictured(k)}: {pictured(v)}' for k, v in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"{type(value)}{sorted(map(pictured, value))}"
    if isinstance(value, pydantic.BaseModel):
        fields = {k: v for k, v in vars(value).items() if k != "double"}
        state = [fields, value.__pydantic_extra__, value.__pydantic_private__]
        return f"{type(value).__qualname__}{pictured(state)}{sorted(value.model_fields_set)}"
    if isinstance(value, list | tuple):
        return f"{type(value)}[{', '.join(map(pictured, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        more = pictured(getattr(value, "__dict__", {}))
        return f"{type(value)}{[pictured(getattr(value, name, None)) for name in names]}{more}"
    if isinstance(value, msgspec.Struct):
        return f"{type(value)}{pictured(msgspec.structs.asdict(value))}"
    return f"{type(value)}{value!r}"


def through_file(session: Session, folder: pathlib.Path) -> Session:
    session.save(folder / "talk.json")
    return Session.load_from(folder / "talk.json", program())


def through_dict(session: Session, _: pathlib.Path) -> Session:
    return Session.load_from(json.loads(json.dumps(session.save_state())), program())


def through_msgpack(session: Session, _: pathlib.Path) -> Session:
    codecs = program_codecs(session.module)
    data = codec.encode(session.state, session.options, "msgpack", codecs)
    state, options = codec.decode(data, "msgpack", program_codecs(program()))
    return Session.from_state(state, program(), **msgspec.structs.asdict(options))


def through_pickle(session: Session, _: pathlib.Path) -> Session:
    again: Session = pickle.loads(pickle.dumps(session))
    return again


TRIPS: list[Callable[[Session, pathlib.Path], Session]] = [
    through_file,
    through_dict,
    through_msgpack,
]


class Flat:
    """Shows blocks to the model as text, for it takes some kinds of them only."""

    def format(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        messages = super().format(*args, **kwargs)  # type: ignore[misc]
        return [{**message, "content": str(message["content"])} for message in messages]


class FlatChat(Flat, dspy.ChatAdapter):
    pass


class FlatJSON(Flat, dspy.JSONAdapter):
    pass


class FlatXML(Flat, dspy.XMLAdapter):
    pass


ADAPTERS: list[Callable[[], dspy.Adapter]] = [FlatChat, FlatJSON, FlatXML]


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("kind", ALL)
def test_D12_values_of_every_type_come_back_as_they_were(
    kind: str, trip: Callable[[Session, pathlib.Path], Session], tmp_path: pathlib.Path
) -> None:
    value = ALL[kind]
    session = sessionify(program())
    session.add_turn({"thing": value}, {"answer": [value], "more": {"k": (value,)}})
    made = len(MADE)
    loaded = trip(session, tmp_path)
    assert len(MADE) == made  # nobody's validator ran
    for mine, again in zip(session.turns, loaded.turns, strict=True):
        assert pictured(again.inputs) == pictured(mine.inputs) == pictured({"thing": value})
        assert pictured(again.outputs) == pictured(mine.outputs)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in MADE_ON_THE_FLY])
def test_pickling_keeps_them_as_before(kind: str, tmp_path: pathlib.Path) -> None:
    session = sessionify(program())
    session.add_turn({"thing": ALL[kind]}, {"answer": "a"})
    again = through_pickle(session, tmp_path)
    assert pictured(again.turns[0].inputs) == pictured(session.turns[0].inputs)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of what holds odd content
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ALL)
def test_D12_the_next_prompt_is_the_same_before_and_after(
    kind: str, adapter: Callable[[], dspy.Adapter], tmp_path: pathlib.Path
) -> None:
    lm = ScriptedLM(lambda prompt: {"answer": "yes"})
    value = ALL[kind]
    with dspy.context(lm=lm, adapter=adapter()):
        session = sessionify(program())
        session(thing=value)
        loaded = through_file(session, tmp_path)
        session(thing="next")
        loaded(thing="next")
    assert len(lm.prompts[-1]) == 4
    assert lm.prompts[-1] == lm.prompts[-2]


class Look(dspy.Signature):
    """Look."""

    question: str = dspy.InputField()
    picture: dspy.Image = dspy.InputField()
    answer: str = dspy.OutputField()


def test_D12_a_loaded_image_is_sent_as_an_image_and_text_like_one_as_text(
    tmp_path: pathlib.Path,
) -> None:
    with LoopbackServer(lambda body: "[[ ## answer ## ]]\nHi\n\n[[ ## completed ## ]]") as server:
        with dspy.context(lm=server.lm()):
            session = sessionify(dspy.Predict(Look))
            session(question=EVIL, picture=dspy.Image(PIXEL))
            session.save(tmp_path / "talk.json")
            loaded = Session.load_from(tmp_path / "talk.json", dspy.Predict(Look))
            assert loaded.turns[0].inputs["question"] == EVIL
            for one in (session, loaded):
                one(question="again", picture=dspy.Image("https://host.example/2.png"))
        before, after = (request.messages for request in server.received[-2:])
    assert before == after
    assert images(after) == [PIXEL, "https://host.example/2.png"]
    assert EVIL in text_of(after[1])


def test_D12_seeds_and_undone_turns_come_back_too(tmp_path: pathlib.Path) -> None:
    history = dspy.History(messages=[{"thing": Place(name="seed"), "answer": "a"}])
    session = sessionify(program(), initial_history=history)
    session.add_turn({"thing": 1}, {"answer": Point(1)})
    session.replace_turn(0, {"answer": Point(2)})
    session.undo()
    loaded = through_file(session, tmp_path)
    assert loaded.session_history.messages == session.session_history.messages
    assert type(loaded.session_history.messages[0]["thing"]) is Place
    loaded.redo()
    assert loaded.turns[0].outputs == {"answer": Point(2)}


# --- what a program knows -------------------------------------------------------------------------


@dataclasses.dataclass
class Weather:
    degrees: float


@dataclasses.dataclass
class Asked:
    where: str


class Animal:
    """Has no fields; those that have are below."""


@dataclasses.dataclass
class Cat(Animal):
    toy: Toy


@dataclasses.dataclass
class Toy:
    name: str


class Planner(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.agents = [dspy.ReAct("question -> answer", tools=[forecast])]

    def forward(
        self, asked: Asked | None, moods: dict[str, list[Literal[Colour.RED]]], *pets: Animal
    ) -> list[Weather]:
        return []


def forecast(day: Point) -> Checked:
    """Tell the weather."""
    return Checked(day.x)


def test_types_come_from_forward_tools_literals_subclasses_and_their_fields() -> None:
    codecs = program_codecs(Planner())
    for value in (Asked("x"), Weather(1), Colour.BLUE, Cat(Toy("mouse")), Point(1), Checked(2)):
        (back,) = from_plain(to_plain([value], codecs), program_codecs(Planner()))
        assert back == value
        assert type(back) is type(value)


class Unmentioned(pydantic.BaseModel):
    n: int


def test_D12_a_type_that_no_annotation_names_is_refused_with_the_way_out() -> None:
    session = sessionify(dspy.Predict("question -> answer"))
    session.add_turn({"question": [Unmentioned(n=1)]}, {"answer": "a"})
    words = ("turn 0", "input 'question'", "Unmentioned has no written form", "annotation")
    with refused(session, ValueCodecError, *words, "register_value_codec"):
        session.save_state()


def test_D12_a_type_that_the_loading_program_does_not_know_is_refused_by_name() -> None:
    session = sessionify(program())
    session.add_turn({"thing": {"a": [Point(1)]}}, {"answer": "a"})
    saved = session.save_state()
    for load in (
        lambda: Session.load_from(saved, dspy.Predict("thing -> answer")),
        lambda: codec.from_wire(saved),
    ):
        with pytest.raises(FormatError) as caught:
            load()
        said = str(caught.value)
        assert "turn 0: input 'thing'" in said
        assert "'tests.test_types:Point'" in said
        assert "register_value_codec" in said
        assert "Nothing was loaded" in said


def test_nothing_is_imported_because_a_file_names_it() -> None:
    codecs = program_codecs(program())
    for tag in ("os:system", "antigravity:x", "dspy:Tool", "dspy:Predict", "builtins:object", ":"):
        with pytest.raises(FormatError, match="not registered"):
            from_plain({"$type": tag, "value": {"fields": {}}}, codecs)
    import sys  # to look, not to use

    assert "antigravity" not in sys.modules


def test_a_registered_codec_serves_a_type_that_nothing_names() -> None:
    @dataclasses.dataclass
    class Silent:
        n: int

    register_value_codec(codec_for(Silent, tag="test.silent"))
    plain = to_plain([Silent(1)])
    assert plain == [{"$type": "test.silent", "value": {"fields": {"n": 1}}}]
    assert from_plain(plain) == [Silent(1)]
    for wrong in (int, object, Animal, Word, MishapError, 5):
        with pytest.raises(ValueCodecError, match="ValueCodec"):
            codec_for(wrong)  # type: ignore[arg-type]


class Word(str):
    pass


@dataclasses.dataclass
class MishapError(Exception):
    """Holds more than its fields say."""

    n: int


def test_a_registered_codec_beats_the_programs_type() -> None:
    @dataclasses.dataclass
    class Both:
        n: int

    codecs = program_codecs(taking(Both))
    written = to_plain(Both(1), codecs)
    register_value_codec(ValueCodec("test.both", Both, lambda b: b.n, Both))
    assert to_plain(Both(1), codecs) == {"$type": "test.both", "value": 1}
    assert from_plain(written, codecs) == Both(1)


def taking(*kinds: Any) -> dspy.Module:
    """A program with an input of each type."""
    fields = {f"f{n}": (kind, dspy.InputField()) for n, kind in enumerate(kinds)}
    return dspy.Predict(dspy.Signature({**fields, "answer": (str, dspy.OutputField())}))


def test_a_cyclic_or_unresolvable_annotation_does_no_harm() -> None:
    class Node(pydantic.BaseModel):
        label: str
        children: list[Node] = []

    @dataclasses.dataclass
    class Odd:
        known: Point
        there: NoSuchName  # type: ignore[name-defined]  # noqa: F821

    Node.model_rebuild(_types_namespace={"Node": Node})
    codecs = program_codecs(taking(Node, Odd))
    tree = Node(label="a", children=[Node(label="b")])
    assert from_plain(to_plain(tree, codecs), codecs) == tree
    odd = Odd(Point(1), 2)
    with pytest.raises(ValueCodecError, match="Point has no written form"):
        to_plain(odd, codecs)
    tree.children.append(tree)
    with pytest.raises(ValueCodecError, match="contains itself"):
        to_plain(tree, codecs)


# --- classes that have changed since --------------------------------------------------------------


def made(fields: dict[str, Any], base: type[pydantic.BaseModel] = pydantic.BaseModel) -> Any:
    """A model class, always under one name."""
    model = pydantic.create_model("Changing", __base__=base, **fields)
    model.__module__ = "elsewhere"
    return model


class Closed(pydantic.BaseModel, extra="forbid"):
    pass


NOW: dict[str, tuple[Any, str]] = {
    "a field was renamed": (made({"title": (str, ...), "n": (int, 1)}), "'name'"),
    "a field was added": (made({"name": (str, ...), "n": (int, 1), "m": (int, ...)}), "needs.*'m'"),
    "a type was changed": (made({"name": (str, ...), "n": (list[int], [])}), "valid list"),
    "a bound came": (
        made({"name": (str, ...), "n": (Annotated[int, pydantic.Field(le=5)], 1)}),
        "less than or equal to 5",
    ),
    "choices went": (made({"name": (Literal["x"], ...), "n": (int, 1)}), "should be 'x'"),
}


@pytest.mark.parametrize("change", NOW)
def test_a_model_that_does_not_fit_what_is_stored_is_refused(change: str) -> None:
    then = made({"name": (str, ...), "n": (int, 1)})
    now, why = NOW[change]
    plain = to_plain(then(name="a", n=7), program_codecs(taking(then)))
    with pytest.raises(FormatError, match=f"(?s)elsewhere.Changing.*{why}.*register a codec"):
        from_plain(plain, program_codecs(taking(now)))


def test_a_new_field_with_a_default_takes_it() -> None:
    then = made({"name": (str, ...)})
    now = made({"name": (str, ...), "tags": (list[int], pydantic.Field(default_factory=list))})
    back = from_plain(
        to_plain(then(name="a"), program_codecs(taking(then))), ProgramCodecs(taking(now))
    )
    assert (back, back.model_fields_set) == (now(name="a"), {"name"})


def test_content_that_did_not_fit_when_it_was_saved_need_not_fit_now() -> None:
    kind = made({"name": (str, ...), "n": (int, 1)})
    odd = kind.model_construct(n="seven")
    codecs = program_codecs(taking(kind))
    back = from_plain(to_plain(odd, codecs), codecs)
    assert vars(back) == {"n": "seven"}


def test_a_model_that_takes_no_extra_any_more_is_refused() -> None:
    def kind(**config: Any) -> Any:
        base = type("Base", (pydantic.BaseModel,), {"model_config": config, "__module__": "x"})
        return made({"n": (int, 1)}, base)

    then, now = kind(extra="allow"), kind(extra="forbid")
    plain = to_plain(then(more=1), program_codecs(taking(then)))
    with pytest.raises(FormatError, match="no place for 'more'"):
        from_plain(plain, program_codecs(taking(now)))


def gone(names: str) -> Any:
    kind: Any = enum.Enum
    return kind("Gone", names, module="elsewhere")


def test_an_enum_member_that_is_gone_is_refused() -> None:
    then, now = (gone(names) for names in ("A B", "A"))
    plain = to_plain(then.B, program_codecs(taking(then)))
    with pytest.raises(FormatError, match=r"elsewhere\.Gone has 'A', but not 'B'"):
        from_plain(plain, program_codecs(taking(now)))


def test_a_class_that_was_moved_is_found_by_its_name_if_there_is_one_only() -> None:
    here, there = made({"n": (int, 1)}), made({"n": (int, 1)})
    here.__module__, there.__module__ = "old", "new"
    plain = to_plain(here(n=2), program_codecs(taking(here)))
    assert plain["$type"] == "old:Changing"
    assert from_plain(plain, program_codecs(taking(there))) == there(n=2)
    other = made({"n": (int, 1)})
    with pytest.raises(FormatError, match=r"'old:Changing'.*2 classes of that name"):
        from_plain(plain, program_codecs(taking(there, other)))
    assert type(from_plain(plain, program_codecs(taking(there, other, here)))) is here


def test_two_classes_of_one_name_are_never_mistaken_for_each_other() -> None:
    one, two = made({"n": (int, 1)}), made({"n": (int, 1)})
    session = sessionify(taking(one))
    session.add_turn({"f0": two(n=2)}, {"answer": "a"})
    with refused(session, ValueCodecError, "turn 0", "more than one class elsewhere.Changing"):
        session.save_state()
    with pytest.raises(ValueCodecError, match="more than one class"):
        to_plain(one(n=2), program_codecs(taking(one, two)))
    plain = to_plain(one(n=2), program_codecs(taking(one)))
    with pytest.raises(FormatError, match="2 classes of that name"):
        from_plain(plain, program_codecs(taking(one, two)))


DAMAGED: list[Any] = [
    None,
    [],
    "text",
    {},
    {"fields": []},
    {"fields": {"name": "a"}, "unset": 5},
    {"fields": {"name": "a"}, "more": 1},
    {"fields": {"name": "a", "no such": 1}},
    {"fields": {"country": "b"}},
    {"fields": {"name": 5}},
    {"fields": {"name": "a"}, "extra": {"x": 1}},
    {"fields": {"name": "a"}, "private": {"_x": 1}},
]


@pytest.mark.parametrize("value", DAMAGED, ids=str)
def test_damaged_values_are_refused_and_nothing_is_loaded(value: Any) -> None:
    session = sessionify(program())
    session.add_turn({"thing": 1}, {"answer": "a"})
    session.add_turn({"thing": Place(name="a")}, {"answer": "a"})
    saved = session.save_state()
    saved["conversation"]["turns"][1]["inputs"]["thing"]["value"] = value
    with pytest.raises(FormatError, match=r"turn 1: input 'thing'.*Nothing was loaded"):
        Session.load_from(saved, program())


# --- laws -----------------------------------------------------------------------------------------

names = st.text(max_size=4)
leaves = (
    st.none()
    | st.integers()
    | st.text(max_size=4)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from([*Colour, *Level, *Mood, Rights.READ | Rights.WRITE])
    | st.builds(Place, name=names, since=st.none() | st.dates(), tags=st.sets(names, max_size=2))
    | st.builds(Harbour, name=names, depth=st.decimals(allow_nan=False, allow_infinity=False))
    | st.builds(code, names, st.sampled_from([None, "python", "sql"]))
    | st.builds(lambda t: dspy.Image(f"https://host.example/{t}.png"), st.integers(0, 9))
)
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("$type"), inner, max_size=3)
        | st.builds(Point, inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(lambda a: Wire(a=a), inner)
        | st.builds(
            lambda extra: Open.model_validate({"known": 1, **extra}),
            st.dictionaries(st.sampled_from(["a", "$type", "ü"]), inner, max_size=2),
        )
        | st.builds(lambda a: dspy.History(messages=[{"x": a}]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(nested)
def test_values_come_back_whatever_they_are_nested_in(value: Any) -> None:
    codecs, others = CODECS
    for trip in (msgspec.json, msgspec.msgpack):
        plain = trip.decode(trip.encode(to_plain(value, codecs)))
        assert pictured(from_plain(plain, others)) == pictured(value)


CODECS = (program_codecs(program()), program_codecs(program()))


def test_states_of_step_are_stored_with_the_programs_codecs() -> None:
    options, codecs = SessionOptions(), program_codecs(program())
    step = prepare(SessionState(), {"thing": Point(1)}, options)
    _, state = commit(
        SessionState(),
        step,
        {"answer": Colour.RED},
        Run(id="a"),
        options,
        details={"trajectory": [Pair(1)]},
    )
    with pytest.raises(ValueCodecError, match="turn 0"):
        codec.encode(state, options)
    again, _ = codec.decode(codec.encode(state, options, codecs=codecs), codecs=codecs)
    assert again.turns[0].inputs == {"thing": Point(1)}
    assert again.turns[0].outputs == {"answer": Colour.RED}
    assert pictured(again.turns[0].details) == pictured({"trajectory": [Pair(1)]})


# --- what is passed by, and what is not -----------------------------------------------------------


def seen(value: int) -> int:
    MADE.append(value)
    return value


class Watched(pydantic.BaseModel):
    n: Annotated[int, pydantic.AfterValidator(seen)]
    m: list[Annotated[int, pydantic.BeforeValidator(seen)]]


class Doubling(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        self.n *= 2


@dataclasses.dataclass
class Lazy:
    n: int

    @functools.cached_property
    def worker(self) -> object:
        return object()  # has no written form, and needs none


@dataclasses.dataclass
class OnlyInBrackets:
    n: int


def test_validators_in_annotations_do_not_run() -> None:
    codecs, value = program_codecs(taking(Watched)), Watched(n=1, m=[2])
    before = len(MADE)
    assert from_plain(to_plain(value, codecs), codecs) == value
    assert len(MADE) == before


def test_what_a_constructor_makes_of_a_struct_is_not_made_twice() -> None:
    codec = codec_for(Doubling)
    value = Doubling(3)
    assert value.n == 6
    assert codec.decode(codec.encode(value)) == value


def test_what_a_value_can_compute_again_is_not_written() -> None:
    codec, value = codec_for(Lazy), Lazy(1)
    assert value.worker is value.worker
    assert codec.encode(value) == {"fields": {"n": 1}}


def test_a_type_in_the_brackets_of_a_generic_model_is_known() -> None:
    codecs = program_codecs(taking(Box[OnlyInBrackets]))
    value = Box[OnlyInBrackets](inside=OnlyInBrackets(1))
    assert from_plain(to_plain(value, codecs), codecs) == value


def test_code_in_a_language_of_which_there_is_no_class_yet() -> None:
    plain = {"$type": "dspy:Code_cobol", "value": {"fields": {"code": "STOP RUN."}}}
    back = from_plain(plain, program_codecs(program()))
    assert (back.code, back.language, issubclass(type(back), dspy.Code)) == (
        *("STOP RUN.", "cobol"),
        True,
    )
