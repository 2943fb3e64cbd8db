"""What readers tell of a field is at any moment the beginning of what the adapter will parse."""

import json
from itertools import pairwise
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from hypothesis import example, given
from hypothesis import strategies as st

from dspy_session.program.adapter import ConversationAdapter
from dspy_session.program.field_text import reader_for
from dspy_session.program.rendering import rendering_adapter
from dspy_session.testing import in_requested_format

ASKS = {
    dspy.ChatAdapter: "Respond with the corresponding output fields",
    dspy.JSONAdapter: "Respond with a JSON object",
    dspy.XMLAdapter: "Respond with the corresponding output fields wrapped in XML tags",
    BAMLAdapter: "Respond with a JSON object",
}
"""What the last message of a prompt says, by adapter."""

ALL_ADAPTERS = pytest.mark.parametrize("kind", ASKS)


class Advice(dspy.Signature):
    """Give advice."""

    question: str = dspy.InputField()
    plan: str = dspy.OutputField()
    answer: str = dspy.OutputField()


def written(kind: type[dspy.Adapter], outputs: dict[str, Any]) -> str:
    return in_requested_format([{"role": "user", "content": ASKS[kind]}], outputs)


def pieces(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:stop] for start, stop in pairwise(ends)]


def read(adapter: Any, tokens: list[str], fields: tuple[str, ...] = ("plan", "answer")) -> Any:
    """What is told, and after every token the whole of what was told until then."""
    told = dict.fromkeys(fields, "")

    def tell(field: str, text: str) -> None:
        assert text
        told[field] += text

    reader = reader_for(adapter, fields, tell)
    assert reader is not None
    moments = []
    for token in tokens:
        reader.read(token)
        moments.append(dict(told))
    return told, moments


SIGNS = st.sampled_from(
    [*"\n\r\t \u2028é😀x[]{},:&", "[[ ## ", "[[ ## plan", " ## ]]", '"', "\\", "<b>", "answer"]
)
VALUES = st.lists(SIGNS, min_size=1, max_size=12).map("".join).filter(str.strip)


@ALL_ADAPTERS
@given(plan=VALUES, answer=VALUES, cuts=st.lists(st.integers(0, 10_000), max_size=60))
@example(plan="a", answer="b", cuts=[])
@example(plan="a", answer="b", cuts=list(range(400)))
@example(plan="[[ ## \n[[ ## x", answer='{"answer": "no"}', cuts=list(range(400)))
def test_A5_told_is_the_beginning_of_what_will_be_parsed(
    kind: type[dspy.Adapter], plan: str, answer: str, cuts: list[int]
) -> None:
    adapter = kind()
    text = written(kind, {"plan": plan, "answer": answer})
    parsed = adapter.parse(Advice, text)
    told, moments = read(adapter, pieces(text, cuts))
    assert told == parsed
    for moment in moments:
        for field, text_so_far in moment.items():
            assert parsed[field].startswith(text_so_far)


@ALL_ADAPTERS
def test_A5_text_is_told_as_soon_as_it_is_there(kind: type[dspy.Adapter]) -> None:
    text = written(kind, {"plan": "Go north, then east.", "answer": "The harbour."})
    for value in ("Go north", "Go north, then", "The", "The harbour"):
        told, _ = read(kind(), list(text.partition(value)[0] + value))
        assert any(said.endswith(value) for said in told.values())


@ALL_ADAPTERS
def test_A5_only_the_fields_asked_for_are_told(kind: type[dspy.Adapter]) -> None:
    text = written(kind, {"plan": "Go north.", "other": "Nothing.", "answer": "The harbour."})
    told, _ = read(kind(), list(text), ("answer",))
    assert told == {"answer": "The harbour."}


def test_A5_a_header_may_stand_before_its_text_on_the_same_line() -> None:
    text = "Well:\n[[ ## plan ## ]] Go.  \nNow.\n[[ ## plan ## ]]\nno\n[[ ## answer ## ]]   \nYes"
    told, _ = read(dspy.ChatAdapter(), list(text))
    assert told == dspy.ChatAdapter().parse(Advice, text) == {"plan": "Go.\nNow.", "answer": "Yes"}


def test_A5_json_strings_are_decoded_and_inner_objects_are_none_of_the_fields() -> None:
    inner = {"list": [{"answer": "no"}, "answer", '"answer": "no"'], "plan": 'é 😀 \n \\ " {'}
    outputs = {"first": inner, "plan": inner["plan"], "answer": "yes"}
    for text in (json.dumps(outputs), json.dumps(outputs, ensure_ascii=False, indent=2)):
        for tokens in (list(text), [text]):
            told, _ = read(dspy.JSONAdapter(), ["```json\n", *tokens, "\n```"])
            assert told == {"plan": inner["plan"], "answer": "yes"}


def test_A5_values_of_other_types_are_not_told() -> None:
    told, _ = read(dspy.JSONAdapter(), list('{"plan": 5, "answer": ["a", "b"]}'))
    assert told == {"plan": "", "answer": ""}


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (dspy.XMLAdapter, "<plan>Go</plan> & <answer>no</answer>", {"plan": "Go", "answer": ""}),
        (dspy.XMLAdapter, "<plan>Go <b>up</b> now</plan>", {"plan": "Go", "answer": ""}),
        (dspy.XMLAdapter, "<plan>G\ud800</plan>", {"plan": "G", "answer": ""}),
        (dspy.JSONAdapter, '{"plan": "Go\\ud83d", "answer": "no"}', {"plan": "Go", "answer": ""}),
        (dspy.JSONAdapter, '{"plan": "Go \\uZ', {"plan": "Go ", "answer": ""}),
        (dspy.ChatAdapter, "no header at all", {"plan": "", "answer": ""}),
    ],
)
def test_A5_where_a_reader_cannot_go_on_it_tells_no_more(
    kind: type[dspy.Adapter], text: str, told: dict[str, str]
) -> None:
    assert read(kind(), list(text))[0] == told


def test_A5_a_reader_belongs_to_a_parse_method() -> None:
    class OwnFormat(dspy.JSONAdapter):
        def format(self, *args: Any) -> Any:
            return super().format(*args)

    class OwnParse(dspy.ChatAdapter):
        def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
            return dict.fromkeys(signature.output_fields, completion)

    def known(adapter: Any) -> bool:
        return reader_for(adapter, ["answer"], lambda field, text: None) is not None

    assert known(OwnFormat())
    assert known(rendering_adapter(OwnFormat()))
    assert known(ConversationAdapter(OwnFormat()))
    assert not known(OwnParse())
    assert not known(ConversationAdapter(OwnParse()))
    assert not known(dspy.TwoStepAdapter(dspy.BaseLM("none")))
