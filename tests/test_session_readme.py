"""The everyday uses of the session's contract, one scene each, called as its users call it."""

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspy_session
from dspy_session import Session, Turn, sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields


def speak(prompt: Prompt) -> dict[str, Any]:
    """Says in every field how many messages came; a ReAct agent finishes at once."""
    said = {name: f"{name} after {len(prompt)} messages" for name in requested_fields(prompt)}
    if "next_tool_name" in said:
        return {**said, "next_tool_name": "finish", "next_tool_args": {}}
    return said


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(speak))):
        yield lm


def text(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in prompt)


def test_D1_scene_1_an_agent_with_tools(lm: ScriptedLM) -> None:
    def evaluate(code: str) -> Any:
        """Evaluate a Python literal."""
        return ast.literal_eval(code)

    chat = sessionify(dspy.ReAct("user -> assistant", tools=[evaluate]))
    first = chat(user="Hello, I am Ada.")
    assert isinstance(first, dspy.Prediction)
    chat(user="Who am I?")
    assert all("Hello, I am Ada." in text(prompt) for prompt in lm.prompts[-2:])
    assert [(turn.index, turn.inputs) for turn in chat.turns] == [
        (0, {"user": "Hello, I am Ada."}),
        (1, {"user": "Who am I?"}),
    ]
    assert chat.turns[0].outputs["assistant"] == first.assistant
    assert chat.turns[0].history_snapshot.messages == []
    assert chat.turns[0].score is None
    (seen,) = chat.turns[1].history_snapshot.messages
    assert (seen["user"], seen["assistant"]) == ("Hello, I am Ada.", first.assistant)
    assert [m["user"] for m in chat.session_history.messages] == ["Hello, I am Ada.", "Who am I?"]
    assert str(chat.session_history).startswith("messages=[{'user': 'Hello, I am Ada.'")


def test_D1_scene_2_a_program_that_knows_nothing_of_history(lm: ScriptedLM) -> None:
    signature = dspy.Signature("question -> travel_advice")
    signature.instructions = "Give brief travel advice."

    class TravelAgent(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.advisor = dspy.Predict(signature)

        def forward(self, question: str) -> Any:
            return self.advisor(question=question).travel_advice

    travel = sessionify(TravelAgent())
    assert repr(travel) == "Session(TravelAgent, turns=0, history_field='history')"
    assert travel(question="Two weeks in Iceland?") == "travel_advice after 2 messages"
    assert travel(question="What do I pack?") == "travel_advice after 4 messages"
    first, second = travel.turns
    assert repr(first) == (
        "Turn(index=0, inputs={'question': 'Two weeks in Iceland?'}, "
        "outputs={'output': 'travel_advice after 2 messages'}, "
        "history_snapshot=History(messages=[]), score=None)"
    )
    assert second.history_snapshot.messages == [{**first.inputs, **first.outputs}]
    assert text(lm.prompts[-1]).count("travel_advice after 2 messages") == 1


class RAGAnswer(dspy.Signature):
    """Answer from the context."""

    question: str = dspy.InputField()
    context: str = dspy.InputField(desc="What was found")
    answer: str = dspy.OutputField()


def test_D7_scene_3_lean_history(lm: ScriptedLM) -> None:
    session = sessionify(dspy.Predict(RAGAnswer), exclude_fields={"context"}, max_turns=10)
    session(question="What is a generator?", context="[PEP 255] Simple generators ...")
    session(question="And an example?", context="[docs] def count(): yield 1 ...")
    for message in session.session_history.messages:
        assert str(message.keys()) == "dict_keys(['question', 'answer'])"
    assert str(session.turns[0].inputs.keys()) == "dict_keys(['question', 'context'])"
    assert "PEP 255" not in text(lm.prompts[-1])
    session = sessionify(dspy.Predict(RAGAnswer), history_input_fields={"question"})
    session(question="What is a generator?", context="[PEP 255] Simple generators ...")
    assert list(session.session_history.messages[0]) == ["question", "answer"]


def test_D9_scene_4_training_data_for_optimizers(lm: ScriptedLM) -> None:
    class Tutor(dspy.Signature):
        """Explain step by step."""

        question: str = dspy.InputField()
        explanation: str = dspy.OutputField()

    session = sessionify(dspy.Predict(Tutor))
    session(question="What is a limit?")
    session(question="And a derivative?")
    session(question="Of x squared?")
    session(question="Of its sine?")
    examples = session.to_examples()
    assert len(examples) == 4
    assert examples[0].question == "What is a limit?"
    assert len(examples[0].history.messages) == 0
    assert examples[0].explanation[:11] == "explanation"
    assert examples[2].question == "Of x squared?"
    assert len(examples[2].history.messages) == 2
    optimized = dspy.BootstrapFewShot().compile(session, trainset=examples)
    prediction = optimized(question="Of its cube?")
    assert isinstance(prediction, dspy.Prediction)
    demos = optimized.predictors()[0].demos
    assert len(demos) == 4
    assert len(lm.prompts[-1]) == 1 + 2 * 4 + 2 * 4 + 1
    assert (len(session), len(optimized)) == (4, 5)


class CodeHelp(dspy.Signature):
    """Help with code; show some."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def test_D9_scene_5_filtering_and_merging() -> None:
    def helps(prompt: Prompt) -> dict[str, Any]:
        hello = "Hello" in prompt[-1]["content"]
        return {"answer": "Hi!" if hello else "import csv"}

    def has_code(example: Any, pred: Any, trace: Any = None) -> float:
        return 1.0 if "import " in pred.answer else 0.0

    with dspy.context(lm=ScriptedLM(helps)):
        session = sessionify(dspy.Predict(CodeHelp))
        session(question="Hello")
        session(question="How do I read a CSV file?")
        session(question="A large one?")
        session(question="Only some rows?")
        ada, bob = (sessionify(dspy.Predict(CodeHelp)) for _ in range(2))
        for one in (ada, bob):
            one(question="How do I sort?")
            one(question="By a key?")
    good = session.to_examples(metric=has_code, min_score=0.5)
    strict = session.to_examples(metric=has_code, min_score=0.5, strict_trajectory=True)
    assert (len(good), len(session.turns), len(strict)) == (3, 4, 0)
    assert session.score(has_code) == [0.0, 1.0, 1.0, 1.0]
    assert len(Session.merge_examples(ada, bob)) == 4
    assert len(Session.merge_examples(ada, bob, metric=has_code, min_score=0.5)) == 4
    assert len(session.to_trainset()) == 4


class Coach(dspy.Signature):
    """Be kind, and ask back."""

    message: str = dspy.InputField()
    response: str = dspy.OutputField()


def test_D12_scene_6_save_load_and_resume(tmp_path: Path, lm: ScriptedLM) -> None:
    session = sessionify(dspy.Predict(Coach))
    session(message="I cannot sleep.")
    session(message="It is the work.")
    path = str(tmp_path / "coaching.json")
    session.save(path)
    restored = dspy_session.Session.load_from(path, dspy.Predict(Coach))
    assert len(restored.turns) == 2
    out = restored(message="I went for a walk, as you said.")
    assert out.response == "response after 6 messages"
    assert "I cannot sleep." in text(lm.prompts[-1])


def test_D8_scene_6_a_seed(lm: ScriptedLM) -> None:
    seed = dspy.History(
        messages=[
            {"message": "I fear the stage.", "response": "Many do."},
            {"message": "I have to speak on Monday.", "response": "Let us practise."},
        ]
    )
    session = sessionify(dspy.Predict(Coach), initial_history=seed)
    session(message="I practised.")
    assert len(session.turns) == 1
    assert len(session.session_history.messages) == 3
    assert "I fear the stage." in text(lm.prompts[-1])


def test_D13_scene_7_fork() -> None:
    session = sessionify(dspy.Predict("prompt -> continuation"))
    session(prompt="A lighthouse keeper finds a bottle.")
    session(prompt="There is a map in it.")
    branch_a = session.fork()
    branch_b = session.fork()
    branch_a(prompt="The map shows the cellar.")
    branch_b(prompt="The map is blank.")
    assert [len(s.turns) for s in (session, branch_a, branch_b)] == [2, 3, 3]
    assert branch_a.turns[2].inputs == {"prompt": "The map shows the cellar."}


class QA(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def test_D14_scene_8_editing_by_hand(lm: ScriptedLM) -> None:
    session = sessionify(dspy.Predict(QA))
    session.add_turn(
        inputs={"question": "The capital of Peru?"},
        outputs={"answer": "Lima."},
    )
    out = session(question="And of Chile?")
    assert out.answer == "answer after 4 messages"
    assert "Lima." in text(lm.prompts[-1])
    session.pop_turn()
    assert len(session.turns) == 1
    session.undo(steps=1)
    assert len(session.turns) == 0
    assert session.pop_turn() is None


def test_D15_scene_9_another_program_in_the_same_conversation(lm: ScriptedLM) -> None:
    session = sessionify(dspy.Predict(CodeHelp))
    session(question="I cannot log in.")
    session(question="I did reset it.")
    optimized = dspy.BootstrapFewShot().compile(
        dspy.Predict(CodeHelp), trainset=session.to_examples()
    )
    session.update_module(optimized)
    out = session(question="No mail came.")
    assert len(session.turns) == 3
    assert out.answer.startswith("answer after")
    assert len(lm.prompts[-1]) == 1 + 2 * len(optimized.demos) + 4 + 1
    assert "I did reset it." in lm.prompts[-1][-3]["content"]


def test_D16_scene_10_async(lm: ScriptedLM) -> None:
    async def main() -> int:
        session = sessionify(dspy.Predict(Coach), lock="async")
        out1 = await session.acall(message="Which language first?")
        out2 = await session.acall(message="Why that one?")
        assert (out1.response, out2.response) == (
            "response after 2 messages",
            "response after 4 messages",
        )
        return len(session.turns)

    assert asyncio.run(main()) == 2


def test_D17_scene_11_policies_for_an_explicit_history() -> None:
    given = dspy.History(messages=[{"question": "Hi!", "answer": "Hello!"}])
    session = sessionify(dspy.Predict(QA), history_policy="override")
    session(question="Hi!")
    session(question="Follow-up", history=given)
    assert len(session.turns) == 1
    session2 = sessionify(dspy.Predict(QA), history_policy="use_if_provided")
    session2(question="Follow-up", history=given)
    assert len(session2.turns) == 1
    session3 = sessionify(dspy.Predict(QA), history_policy="replace_session")
    session3(question="Turn 1")
    session3(question="Turn 2")
    assert len(session3.turns) == 2
    session3(question="Fresh start", history=given)
    assert len(session3.turns) == 1
    assert session3.session_history.messages[0] == {"question": "Hi!", "answer": "Hello!"}


def test_D18_scene_12_on_turn() -> None:
    log: list[str] = []

    def log_turn(session: Session, turn: Turn) -> None:
        log.append(f"[{turn.index}] {turn.inputs['question']} -> {turn.outputs['answer']}")
        log.append(f"  after {len(turn.history_snapshot.messages)}")

    session = sessionify(dspy.Predict(QA), on_turn=log_turn)
    session(question="What is Python?")
    session(question="Who made it?")
    assert log == [
        "[0] What is Python? -> answer after 2 messages",
        "  after 0",
        "[1] Who made it? -> answer after 4 messages",
        "  after 1",
    ]


def test_D1_the_whole_keyword_surface() -> None:
    session = Session(
        dspy.Predict(QA),
        history_field="history",
        max_turns=None,
        max_stored_turns=None,
        exclude_fields=None,
        history_input_fields=None,
        initial_history=None,
        history_policy="override",
        on_metric_error="zero",
        strict_history_annotation=False,
        copy_mode="deep",
        lock="none",
        on_turn=None,
    )
    plain = sessionify(dspy.Predict(QA))
    assert session.options == plain.options
    assert session(question="Hi").answer == "answer after 2 messages"
    for name in (
        "turns session_history forward acall aforward reset fork add_turn pop_turn undo redo "
        "rewind replace_turn score to_examples to_trainset merge_examples save save_state "
        "load_from update_module state from_state"
    ).split():
        assert hasattr(Session, name)
