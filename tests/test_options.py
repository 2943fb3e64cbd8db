"""Options: one frozen value that is valid if it exists, and says what is wrong if it cannot."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_session.core import (
    CopyMode,
    HistoryPolicy,
    Lock,
    OnMetricError,
    Scope,
    SessionOptions,
    View,
    make_options,
)
from dspy_session.errors import OptionError, SessionError

COUNTS: list[Any] = [-1, 1.0, True, False, "3", [3], float("inf")]
COLLECTIONS: list[Any] = ["context", 5, True, print]
NAMES: list[Any] = [[1], {2}, b"ab", [["a"]], [{}], [None]]
SWITCHES: list[Any] = [1, 0, None, "yes", []]
CHOICES: list[Any] = ["sometimes", "", 5, None, [], "DEEP", True]

ENUMERATIONS: dict[str, Any] = {
    "history_policy": HistoryPolicy,
    "on_metric_error": OnMetricError,
    "copy_mode": CopyMode,
    "lock": Lock,
    "scope": Scope,
}

WRONG: list[tuple[str, Any, str]] = [
    *[("history_field", value, "Python identifier") for value in ("", "two words", "1st", 5, None)],
    *[
        (name, value, "None (no limit) or a whole number from 0 up")
        for name in ("max_turns", "max_stored_turns")
        for value in COUNTS
    ],
    *[
        (name, value, "collection of field names")
        for name in ("exclude_fields", "history_input_fields")
        for value in COLLECTIONS
    ],
    *[
        (name, value, "must hold field names (text)")
        for name in ("exclude_fields", "history_input_fields")
        for value in NAMES
    ],
    *[
        (name, value, ", ".join(repr(member.value) for member in kind))
        for name, kind in ENUMERATIONS.items()
        for value in CHOICES
    ],
    *[("strict_history_annotation", value, "True or False") for value in SWITCHES],
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG, ids=str)
def test_a_wrong_value_is_named_with_what_was_expected(
    name: str, value: Any, expected: str
) -> None:
    options, given = SessionOptions(), {name: value}
    makes: list[Callable[[], SessionOptions]] = [
        lambda: SessionOptions(**given),
        lambda: make_options(given),
        lambda: options.replace(**given),
    ]
    for make in makes:
        with pytest.raises(OptionError) as refused:
            make()
        message = str(refused.value)
        assert message.startswith(name)
        assert expected in message
        assert isinstance(refused.value, ValueError)
        assert isinstance(refused.value, SessionError)
    assert options == SessionOptions()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_turn", "max_turns"),
        ("max_stored_turn", "max_stored_turns"),
        ("exclude_field", "exclude_fields"),
        ("historyfield", "history_field"),
        ("input_fields_override", "input_field_override"),
        ("locks", "lock"),
        ("colour", None),
        ("", None),
        (5, None),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_likely_one(name: Any, meant: str | None) -> None:
    unknown: dict[Any, Any] = {name: 1}
    with pytest.raises(OptionError) as refused:
        make_options(unknown)
    message = str(refused.value)
    assert f"Unknown option {name!r}." in message
    assert (f"Did you mean {meant!r}?" in message) if meant else ("Did you mean" not in message)
    for known in SessionOptions.__struct_fields__:
        assert known in message
    if isinstance(name, str):
        with pytest.raises(OptionError, match="Unknown option"):
            SessionOptions().replace(**unknown)
        with pytest.raises(TypeError):  # Python's own, as for every constructor
            SessionOptions(**unknown)


def test_D7_the_alias_means_the_option() -> None:
    assert make_options({"input_field_override": ["q"]}).history_input_fields == {"q"}
    assert make_options({"input_field_override": None}).history_input_fields is None
    both = {"input_field_override": None, "history_input_fields": {"q"}}
    assert make_options(both).history_input_fields == {"q"}
    other = {"input_field_override": ["q"], "history_input_fields": None}
    assert make_options(other).history_input_fields == {"q"}
    kept = {"input_field_override": ["q"]}
    make_options(kept)
    assert kept == {"input_field_override": ["q"]}
    narrow = SessionOptions(history_input_fields={"old"})
    assert narrow.replace(input_field_override={"q"}).history_input_fields == {"q"}
    assert narrow.replace(input_field_override=None).history_input_fields is None


def test_D7_an_option_together_with_its_alias_is_an_error() -> None:
    for left, right in ((["q"], ["q"]), ([], ["q"]), (["q"], [])):
        both = {"input_field_override": left, "history_input_fields": right}
        with pytest.raises(OptionError, match="alias of history_input_fields; give one"):
            make_options(both)
        with pytest.raises(OptionError, match="alias of history_input_fields; give one"):
            SessionOptions().replace(**both)


def test_text_is_accepted_for_every_enumeration() -> None:
    for name, kind in ENUMERATIONS.items():
        for member in kind:
            text, given_member = {name: member.value}, {name: member}
            options = SessionOptions(**text)
            assert getattr(options, name) is member
            assert options == SessionOptions(**given_member)
            assert getattr(options, name) == member.value


def test_collections_of_names_become_frozensets_of_plain_text() -> None:
    for named in (["a", "b"], ("a", "b"), {"a", "b"}, {"a": 1, "b": 2}, (n for n in "ab")):
        options = make_options({"exclude_fields": named})
        assert options.exclude_fields == frozenset({"a", "b"})
        assert type(options.exclude_fields) is frozenset
    assert make_options({"exclude_fields": None}).exclude_fields == frozenset()
    names = ["a"]
    options = make_options({"exclude_fields": names, "history_input_fields": names})
    names.append("b")
    assert (options.exclude_fields, options.history_input_fields) == ({"a"}, {"a"})
    (name,) = make_options({"exclude_fields": [Lock.NONE]}).exclude_fields
    assert (name, type(name)) == ("none", str)


def test_options_are_frozen_hashable_and_compared_by_value() -> None:
    options = SessionOptions(max_turns=3, exclude_fields={"a"})
    for name in SessionOptions.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(options, name, getattr(options, name))
    with pytest.raises(AttributeError):
        options.max_turn = 5  # type: ignore[attr-defined]
    assert options == SessionOptions(max_turns=3, exclude_fields={"a"})
    assert hash(options) == hash(SessionOptions(max_turns=3, exclude_fields={"a"}))
    assert options != SessionOptions(max_turns=3)
    for same in (copy.deepcopy(options), pickle.loads(pickle.dumps(options)), options.replace()):
        assert same == options
    with pytest.raises(TypeError):
        SessionOptions("history")  # type: ignore[call-arg]


def test_replace_changes_what_is_named_and_checks_it() -> None:
    options = SessionOptions(max_turns=3, lock=Lock.ASYNC)
    changed = options.replace(max_turns=None, copy_mode="none")
    assert (changed.max_turns, changed.lock, changed.copy_mode) == (None, "async", "none")
    assert options == SessionOptions(max_turns=3, lock=Lock.ASYNC)


def test_D7_the_view_is_what_the_filters_say() -> None:
    assert SessionOptions().view == View(frozenset(), None)
    options = SessionOptions(exclude_fields={"a"}, history_input_fields=set())
    assert options.view == View(frozenset({"a"}), frozenset())


def test_options_hold_nothing_that_cannot_be_written() -> None:
    options = SessionOptions(exclude_fields={"a"}, history_input_fields={"b"}, max_turns=0)
    plain = msgspec.json.decode(msgspec.json.encode(options))
    assert set(plain) == set(SessionOptions.__struct_fields__)
    assert make_options(plain) == options


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=2)
    | st.lists(st.text(max_size=2) | st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.none(), max_size=2)
    | st.sampled_from([*HistoryPolicy, *CopyMode, *Lock, *OnMetricError])
    | st.builds(object)
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*SessionOptions.__struct_fields__, "input_field_override", "other"]),
        anything,
        max_size=3,
    )
)
def test_whatever_is_given_is_valid_or_an_option_error(chosen: dict[str, Any]) -> None:
    try:
        options = make_options(chosen)
    except OptionError as refused:
        assert len(str(refused)) > 30  # noqa: PT017
    else:
        assert make_options(msgspec.structs.asdict(options)) == options
        assert hash(options) == hash(options.replace())
