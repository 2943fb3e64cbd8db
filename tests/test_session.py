"""The everyday session: it remembers, shows what it remembers, and leaves the program alone."""

import asyncio
import copy
import logging
import tracemalloc
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspy_session import (
    HistoryError,
    ModuleTypeError,
    OptionError,
    Session,
    SessionOptions,
    SessionState,
    Turn,
    sessionify,
    step,
)
from dspy_session.testing import ScriptedLM
from tests.streams import SOON, until
from tests.talk import (
    QA,
    Asker,
    ask,
    asked,
    history,
    pairs,
    past,
    qa_session,
    questions,
    refused,
    scripted,
    shown,
)


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


# D1: it remembers


def test_D1_every_call_sees_the_turns_before_it(lm: ScriptedLM) -> None:
    session = qa_session()
    assert session(question="one").answer == "answer to one"
    ask(session, "two", "three")
    assert [past(prompt) for prompt in lm.prompts] == [pairs(), pairs("one"), pairs("one", "two")]
    assert [asked(prompt) for prompt in lm.prompts] == ["one", "two", "three"]


def test_D1_what_it_is_called(lm: ScriptedLM) -> None:
    class TravelAgent(Asker):
        pass

    session = sessionify(TravelAgent())
    assert isinstance(session, dspy.Module)
    assert repr(session) == "Session(TravelAgent, turns=0, history_field='history')"
    assert (len(session), bool(session), session.turns) == (0, True, ())
    ask(session, "one", "two")
    assert repr(session) == "Session(TravelAgent, turns=2, history_field='history')"
    assert (len(session), bool(session)) == (2, True)
    assert type(session.turns) is tuple
    assert all(type(turn) is Turn for turn in session.turns)
    assert session.session_id == session.state.id != ""


def test_D1_repr_of_a_turn() -> None:
    session = sessionify(Asker())
    ask(session, "one", "two")
    assert repr(session.turns[1]) == (
        "Turn(index=1, inputs={'question': 'two'}, outputs={'output': 'answer to two'}, "
        "history_snapshot=History(messages=[{'question': 'one', 'output': 'answer to one'}]), "
        "score=None)"
    )


def test_D1_values_read_as_plain_dicts_in_written_order() -> None:
    class Facts(dspy.Module):
        def forward(self, zebra: str, ant: dict[str, int]) -> dspy.Prediction:
            return dspy.Prediction(last=[{"z": 1, "a": 2}], first={"y": 1, "b": 2})

    session = sessionify(Facts())
    session(zebra="z", ant={"two": 2, "one": 1})
    turn = session.turns[0]
    (message,) = session.session_history.messages
    for fields in (turn.inputs, turn.outputs, message, turn.inputs["ant"], turn.outputs["last"][0]):
        assert type(fields) is dict
    assert list(turn.inputs) == ["zebra", "ant"]
    assert list(turn.inputs["ant"]) == ["two", "one"]
    assert list(turn.outputs) == ["last", "first"]
    assert list(turn.outputs["last"][0]) == ["z", "a"]
    assert list(message) == ["zebra", "ant", "last", "first"]
    assert str(session.session_history).startswith("messages=[{'zebra': 'z', 'ant': {'two'")


def test_D1_what_is_handed_out_is_a_copy() -> None:
    class Listing(dspy.Module):
        def forward(self, names: list[str]) -> dspy.Prediction:
            return dspy.Prediction(listing=[names])

    session, names = sessionify(Listing()), ["a"]
    prediction = session(names=names)
    names.append("b")
    prediction.listing.append("c")
    turn = session.turns[0]
    turn.inputs["names"].append("d")
    turn.outputs.clear()
    turn.history_snapshot.messages.append({})
    session.session_history.messages[0]["names"].append("e")
    assert (turn.inputs, turn.outputs) == ({"names": ["a"]}, {"listing": [["a"]]})
    assert turn.history_snapshot.messages == []
    assert session.session_history.messages == [{"names": ["a"], "listing": [["a"]]}]


def test_D1_session_history_is_what_the_next_call_sees(lm: ScriptedLM) -> None:
    session = qa_session(initial_history=history("seed"), max_turns=2)
    ask(session, "one", "two", "three")
    expected = session.session_history
    assert type(expected) is dspy.History
    session(question="four")
    assert past(lm.prompts[-1]) == [(m["question"], m["answer"]) for m in expected.messages]
    assert past(lm.prompts[-1]) == pairs("seed", "two", "three")
    assert session.turns[-1].history_snapshot == expected


def test_D1_the_program_is_not_changed(lm: ScriptedLM) -> None:
    program = Asker()
    signature, before = program.qa.signature, program.dump_state()
    session = sessionify(program)
    ask(session, "one", "two")
    assert program.qa.signature is signature
    assert list(session.module.qa.signature.input_fields) == ["question"]  # type: ignore[attr-defined]
    assert program.dump_state() == before
    assert program(question="bare") == "answer to bare"
    assert past(lm.prompts[-1]) == []


def test_D1_history_stays_the_log_of_lm_calls() -> None:
    session = qa_session()
    ask(session, "one", "two")
    assert [len(entry["messages"]) for entry in session.history] == [2, 4]
    assert session.fork().history == []


def test_D1_turns_say_how_they_ran() -> None:
    session = qa_session()
    ask(session, "one", "two")
    first, second = session.turns
    assert first.id != second.id
    assert first.time is not None
    assert second.time is not None
    assert first.time <= second.time
    assert (first.duration or 0) > 0
    assert list(first.usage) == ["scripted"]
    assert first.fingerprint == second.fingerprint
    added = session.add_turn({"question": "x"}, {"answer": "y"})
    assert (added.time, added.duration, added.usage, added.cost) == (None, None, {}, None)
    assert added.id not in ("", first.id, second.id)


def test_D1_lm_and_config_of_one_call(lm: ScriptedLM) -> None:
    requests: list[Any] = []
    other = ScriptedLM(lambda prompt: {"answer": "other"}, on_request=requests.append)
    session = qa_session()
    assert session(question="one", lm=other, config={"temperature": 0.25}).answer == "other"
    assert session(question="two").answer == "answer to two"
    assert requests[0].config.temperature == 0.25
    assert session.turns[0].inputs == {"question": "one"}
    assert past(lm.prompts[-1]) == [("one", "other")]


def test_D4_a_plain_return_is_passed_through_and_recorded_as_output(lm: ScriptedLM) -> None:
    session = sessionify(Asker())
    assert session(question="one") == "answer to one"
    assert session.turns[0].outputs == {"output": "answer to one"}
    session(question="two")
    assert past(lm.prompts[-1]) == pairs("one")


# D5, D22: the program's own history field


class Declared(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    history: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


class Chat(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    chat: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


class Loose(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    history: list = dspy.InputField()  # type: ignore[type-arg]
    answer: str = dspy.OutputField()


class TakesHistory(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Declared)
        self.given: list[Any] = []

    def forward(self, question: str, history: dspy.History) -> Any:
        self.given.append(history)
        return self.qa(question=question, history=history)


class TakesChat(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Chat)

    def forward(self, question: str, earlier: dspy.History) -> Any:
        return self.qa(question=question, chat=earlier)


class TakesAnything(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Chat)
        self.given: list[set[str]] = []

    def forward(self, **kwargs: Any) -> Any:
        self.given.append(set(kwargs))
        return self.qa(**kwargs)


class PassesItsOwn(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Declared)

    def forward(self, question: str) -> Any:
        return self.qa(question=question, history=history("own"))


def test_D5_a_program_with_a_history_argument(lm: ScriptedLM) -> None:
    session = sessionify(TakesHistory(), copy_mode="none")
    ask(session, "one", "two")
    assert past(lm.prompts[-1]) == pairs("one")
    given = session.module.given  # type: ignore[attr-defined]
    assert [type(value) for value in given] == [dspy.History, dspy.History]
    assert [len(value.messages) for value in given] == [0, 1]
    assert session.turns[1].inputs == {"question": "two"}


@pytest.mark.parametrize(
    ("program", "name"),
    [(dspy.Predict(Chat), "chat"), (TakesChat(), "earlier"), (TakesAnything(), "chat")],
)
def test_D5_another_name_is_found(program: dspy.Module, name: str, lm: ScriptedLM) -> None:
    session = sessionify(program)
    assert session.options.history_field == name
    assert f"history_field={name!r}" in repr(session)
    ask(session, "one", "two")
    assert past(lm.prompts[-1]) == pairs("one")
    assert session.turns[1].inputs == {"question": "two"}
    session(question="three", **{name: history("given")})
    assert past(lm.prompts[-1]) == pairs("given")
    assert len(session) == 2
    assert set(session.to_examples()[1].inputs().keys()) == {"question", name}


def test_D5_kwargs_without_a_declared_history_get_none(lm: ScriptedLM) -> None:
    class Open(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, **kwargs: Any) -> Any:
            assert set(kwargs) == {"question"}
            return self.qa(**kwargs)

    session = sessionify(Open())
    ask(session, "one", "two")
    assert past(lm.prompts[-1]) == pairs("one")


def test_D5_an_inner_call_that_passes_its_own_history_keeps_it(lm: ScriptedLM) -> None:
    session = sessionify(PassesItsOwn())
    ask(session, "one", "two")
    assert past(lm.prompts[-1]) == pairs("own")


def test_D22_history_field_renames_the_argument_and_the_example_field(lm: ScriptedLM) -> None:
    session = qa_session(history_field="memory")
    assert repr(session) == "Session(Predict, turns=0, history_field='memory')"
    ask(session, "one")
    session(question="two", memory=history("given"))
    assert past(lm.prompts[-1]) == pairs("given")
    assert len(session) == 1
    assert set(session.to_examples()[0].inputs().keys()) == {"question", "memory"}


def test_D22_strict_takes_only_fields_annotated_exactly(lm: ScriptedLM) -> None:
    strict = sessionify(dspy.Predict(Chat), strict_history_annotation=True)
    ask(strict, "one", "two")
    assert strict.options.history_field == "chat"
    assert past(lm.prompts[-1]) == pairs("one")
    loose = sessionify(dspy.Predict(Loose))
    ask(loose, "one", "two")
    assert past(lm.prompts[-1]) == pairs("one")
    with refused(None, HistoryError, "strict_history_annotation", "'history'", "history_field="):
        sessionify(dspy.Predict(Loose), strict_history_annotation=True)
    with refused(strict, HistoryError, "strict_history_annotation", "'history'"):
        strict.update_module(dspy.Predict(Loose))


def test_D22_an_output_cannot_be_the_history() -> None:
    with refused(None, HistoryError, "'history'", "history_field="):
        sessionify(dspy.Predict("question -> history"))
    assert len(sessionify(dspy.Predict("question -> history"), history_field="past")) == 0


# D22: copies


def test_D22_copy_modes() -> None:
    program = Asker()
    program.callbacks = [callback := object()]
    program.qa.callbacks = [inner := object()]
    before = dict(vars(program))
    deep, shallow, same = (sessionify(program, copy_mode=m) for m in ("deep", "shallow", "none"))
    modules: list[Any] = [deep.module, shallow.module, same.module]
    assert [module is program for module in modules] == [False, False, True]
    assert [module.qa is program.qa for module in modules] == [False, True, True]
    assert [module.callbacks for module in modules] == [[callback]] * 3
    assert [module.qa.callbacks for module in modules] == [[inner]] * 3
    assert vars(program) == before
    shallow.module.qa = None  # type: ignore[attr-defined]
    assert program.qa is before["qa"]


def test_D22_update_module_copies_likewise() -> None:
    program = Asker()
    for mode, same_root, same_parts in (("deep", 0, 0), ("shallow", 0, 1), ("none", 1, 1)):
        session = sessionify(dspy.Predict(QA), copy_mode=mode)
        session.update_module(program)
        module: Any = session.module
        assert (module is program, module.qa is program.qa) == (same_root, same_parts)


def test_D22_without_copies_a_session_is_small() -> None:
    program = dspy.Predict(QA)
    kept = [sessionify(program, copy_mode="none")]
    tracemalloc.start()
    kept += [sessionify(program, copy_mode="none") for _ in range(100)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {id(session.module) for session in kept} == {id(program)}
    assert size < 100 * 4_000


# D8: the seed


def test_D8_a_seed_is_seen_not_counted_and_survives_reset(lm: ScriptedLM) -> None:
    messages = [{"question": "before", "answer": "answer to before"}]
    seed = dspy.History(messages=messages)
    session = qa_session(initial_history=seed)
    messages[0]["answer"] = seed.messages[0]["answer"] = "changed"
    seed.messages.append({"question": "late"})
    session(question="one")
    assert past(lm.prompts[-1]) == pairs("before")
    assert (len(session), len(session.session_history.messages)) == (1, 2)
    session.reset()
    assert (len(session), shown(session)) == (0, pairs("before"))
    session(question="two")
    assert past(lm.prompts[-1]) == pairs("before")
    assert session.turns[0].index == 0


# D15, and what one branch does to its program


def test_D15_update_module_swaps_the_program_and_keeps_the_conversation(lm: ScriptedLM) -> None:
    session = qa_session()
    ask(session, "one", "two")
    before, program = session.state, dspy.ChainOfThought(QA)
    session.update_module(program)
    assert session.state is before
    assert session(question="three").reasoning == "reasoning to three"
    assert past(lm.prompts[-1]) == pairs("one", "two")
    assert repr(session) == "Session(ChainOfThought, turns=3, history_field='history')"


def test_D15_update_module_finds_the_new_programs_field(lm: ScriptedLM) -> None:
    session = qa_session()
    session.update_module(dspy.Predict(Chat))
    assert session.options.history_field == "chat"
    session.update_module(dspy.Predict(QA))
    assert session.options.history_field == "history"


def test_D15_a_refused_program_changes_nothing() -> None:
    session = qa_session()
    ask(session, "one")
    module, options = session.module, session.options
    with refused(session, ModuleTypeError, "dspy.Module", "Predict is the class"):
        session.update_module(dspy.Predict)  # type: ignore[arg-type]
    with refused(session, HistoryError, "'history'"):
        session.update_module(dspy.Predict("question -> history"))
    assert session.module is module
    assert session.options is options


def program_of(session: Session) -> tuple[Any, ...]:
    """The parts of an Asker that a branch can change."""
    program: Any = session.module
    return program, program.qa, program.qa.lm, program.qa.demos


def test_D15_each_branch_changes_its_own_program() -> None:
    def load_state(session: Session) -> None:
        program = Asker()
        program.qa.demos = [dspy.Example(question="demo", answer="demo")]
        session.load_state(program.dump_state())

    def replace_predictors(session: Session) -> None:
        assert session.map_named_predictors(lambda predictor: dspy.Predict(QA)) is session

    changes = [
        lambda s: s.update_module(Asker()),
        lambda s: s.set_lm(scripted()),
        load_state,
        replace_predictors,
    ]
    for change in changes:
        trunk = sessionify(Asker())
        ask(trunk, "one")
        left, right = trunk.fork(), trunk.fork()
        before = program_of(trunk)
        assert program_of(left) == program_of(right) == before
        change(left)
        own = program_of(left)
        assert own[0] is not before[0]
        assert own[1] is not before[1]
        assert program_of(trunk) == program_of(right) == before
        left.set_lm(scripted())
        assert left.module is own[0]  # it was the branch's own already
        change(trunk)
        assert program_of(right) == before
        assert right(question="two") == "answer to two"


def test_D15_set_lm_reaches_the_branch(lm: ScriptedLM) -> None:
    trunk = sessionify(Asker())
    branch, other = trunk.fork(), ScriptedLM(lambda prompt: {"answer": "other"})
    branch.set_lm(other)
    assert branch(question="one") == "other"
    assert trunk(question="one") == "answer to one"
    assert branch.get_lm() is other


# D18: hooks


def test_D18_on_turn_gets_the_session_and_every_recorded_turn() -> None:
    seen: list[tuple[Session, Turn]] = []
    session = qa_session(on_turn=lambda s, t: seen.append((s, t)))
    ask(session, "one")
    session(question="replayed", history=history("given"))  # history_policy="override"
    session.add_turn({"question": "added"}, {"answer": "by hand"})
    session.replace_turn(0, {"answer": "edited"})
    session.undo(1)
    session.redo(1)
    with pytest.raises(Exception, match="the model is out"):
        session(question="fail")
    asyncio.run(session.acall(question="two"))
    assert [(s, t.index, t.inputs) for s, t in seen] == [
        (session, 0, {"question": "one"}),
        (session, 2, {"question": "two"}),
    ]
    assert session.turns[2] is seen[1][1]


def test_D18_it_runs_when_the_turn_is_there_and_may_use_the_session() -> None:
    found: list[Any] = []

    def on_turn(session: Session, turn: Turn) -> None:
        found.append((session.turns[-1] is turn, session.session_history.messages[-1]))
        if turn.index == 0:
            session(question="from the hook")

    for lock in ("none", "thread"):
        session = qa_session(on_turn=on_turn, lock=lock)
        ask(session, "one")
        assert questions(session) == ["one", "from the hook"]
    assert [own for own, _ in found] == [True] * 4


def test_D18_an_error_in_it_is_logged_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def on_turn(session: Session, turn: Turn) -> None:
        raise ValueError("the hook is out")

    session = qa_session(on_turn=on_turn)
    with caplog.at_level(logging.WARNING, logger="dspy_session"):
        assert session(question="one").answer == "answer to one"
    assert questions(session) == ["one"]
    (record,) = [r for r in caplog.records if r.name == "dspy_session"]
    assert record.levelno == logging.WARNING
    assert "turn 0" in record.message
    assert "the hook is out" in caplog.text


def test_D18_forks_and_copies_share_it() -> None:
    seen: list[Session] = []
    session = qa_session(on_turn=lambda s, t: seen.append(s))
    branches = [session.fork(), session.fork(at=0), copy.deepcopy(session), session]
    for branch in branches:
        assert branch.on_turn is session.on_turn
        ask(branch, "one")
    assert all(a is b for a, b in zip(seen, branches, strict=True))


def test_D18_an_async_hook_would_never_be_awaited() -> None:
    async def on_turn(session: Session, turn: Turn) -> None: ...

    with refused(None, OptionError, "on_turn", "never be awaited", "task"):
        qa_session(on_turn=on_turn)


# D21, D23: a session from a state, and in a program


def test_D23_a_session_goes_on_from_a_state(lm: ScriptedLM) -> None:
    _, state = step(SessionState(), dspy.Predict(QA), {"question": "one"})
    session = Session.from_state(state, dspy.Predict(QA), max_turns=5)
    assert session.turns == state.turns
    assert session.session_id
    assert session.options.max_turns == 5
    ask(session, "two")
    assert past(lm.prompts[-1]) == pairs("one")
    assert len(state) == 1
    twin = Session.from_state(session.state, dspy.Predict(QA), max_stored_turns=1)
    assert [turn.index for turn in twin.turns] == [1]
    assert twin.session_id == session.session_id


def test_D21_predictors_are_found_also_when_the_program_is_compiled() -> None:
    program = Asker()
    program._compiled = True
    session = sessionify(program)
    assert [name for name, _ in session.named_predictors()] == ["module.qa"]
    assert [name for name, _ in qa_session().named_predictors()] == ["module"]

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(Asker())

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    outer = Outer()
    assert [name for name, _ in outer.named_predictors()] == ["inner.module.qa"]
    outer(question="one")
    outer(question="two")
    assert questions(outer.inner) == ["one", "two"]


def test_D21_what_optimizers_leave_on_a_program_does_not_hide_a_method() -> None:
    session = qa_session()
    ask(session, "one")
    session.score = 87.5  # type: ignore[assignment, method-assign]  # MIPROv2 does
    assert session.score(lambda example, prediction: 1) == [1.0]
    assert session.best_score == 87.5  # type: ignore[attr-defined]


def test_D21_deepcopy_is_a_branch_with_its_own_program() -> None:
    session = sessionify(Asker(), max_turns=3)
    ask(session, "one")
    twin = copy.deepcopy(session)
    assert twin.state is session.state
    assert twin.options == session.options
    assert twin.module is not session.module
    ask(twin, "two")
    assert (len(session), len(twin)) == (1, 2)
    assert len(session.deepcopy()) == len(session.reset_copy()) == 1


# Options, once a session lives


def test_D7_options_can_be_set_as_one_value(lm: ScriptedLM) -> None:
    session = qa_session()
    ask(session, "one", "two", "three")
    session.options = session.options.replace(max_turns=1, max_stored_turns=2)
    assert questions(session) == ["two", "three"]
    ask(session, "four")
    assert past(lm.prompts[-1]) == pairs("three")
    before = session.options
    with refused(session, OptionError, "session.options = session.options.replace(max_turns=...)"):
        session.max_turns = 5
    with refused(session, OptionError, "SessionOptions", "dict"):
        session.options = {"max_turns": 5}  # type: ignore[assignment]
    with refused(session, OptionError, "max_turns", "-1"):
        session.options = SessionOptions(max_turns=-1)
    with refused(session, HistoryError, "output", "'answer'"):
        session.options = SessionOptions(history_field="answer", max_stored_turns=0)
    assert session.options is before
    own = sessionify(dspy.Predict(Chat))
    own.options = SessionOptions(max_turns=1)
    assert own.options == SessionOptions(max_turns=1, history_field="chat")


# A14: a call that fails adds nothing


def test_A14_a_failing_call_leaves_the_very_same_state(lm: ScriptedLM) -> None:
    for policy in ("override", "use_if_provided", "replace_session"):
        session = qa_session(history_policy=policy)
        ask(session, "one", "two")
        session.undo(1)
        before = session.state
        for given in ({}, {"history": history("given")}):
            with pytest.raises(Exception, match="the model is out"):
                session(question="fail", **given)
            with pytest.raises(Exception, match="the model is out"):
                asyncio.run(session.acall(question="fail", **given))
        assert session.state is before
        assert questions(session) == ["one"]
        assert len(session.redo(1)) == 1
        session(question="three")
        assert past(lm.prompts[-1]) == pairs("one", "two")


def test_A14_an_interrupted_call_leaves_the_very_same_state() -> None:
    def interrupt(prompt: Any) -> str:
        raise KeyboardInterrupt

    session = qa_session()
    ask(session, "one")
    before = session.state
    with pytest.raises(KeyboardInterrupt):
        session(question="two", lm=ScriptedLM(interrupt))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(session.acall(question="two", lm=ScriptedLM(interrupt)))
    assert session.state is before
    ask(session, "three")
    assert questions(session) == ["one", "three"]


def test_A14_a_cancelled_call_leaves_the_very_same_state() -> None:
    class Waits(dspy.Module):
        async def aforward(self, question: str) -> Any:
            await asyncio.sleep(3600)

    async def cancel(session: Session) -> None:
        task = asyncio.create_task(session.acall(question="two"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for lock in ("none", "async"):
        session = sessionify(Waits(), lock=lock)
        session.add_turn({"question": "one"}, {"answer": "by hand"})
        before = session.state
        asyncio.run(cancel(session))
        assert session.state is before


def test_A14_a_cancelled_sync_program_does_not_record_later() -> None:
    import threading

    started, go, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(dspy.Module):
        def forward(self, question: str) -> str:
            started.set()
            assert go.wait(SOON)
            ended.set()
            return "late"

    async def cancel(session: Session) -> None:
        task = asyncio.create_task(session.acall(question="two"))
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await until(ended.is_set)

    session = sessionify(Slow())
    before = session.state
    asyncio.run(cancel(session))
    assert session.state is before
