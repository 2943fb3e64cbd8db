"""Session data in one turn: in with a call, out with its state, written from any thread (row K4).

And what else a turn is given and counts: requests, instructions, LM calls.
"""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dspy
import pytest

from dspy_session import (
    ApprovalRequest,
    CallError,
    Data,
    DataError,
    OptionError,
    SessionData,
    SessionOptions,
    SessionState,
    astep,
    current_data,
    current_request,
    session_tool,
    sessionify,
    step,
)
from dspy_session.core.data import DELETED, EMPTY_DATA
from dspy_session.core.profile import Instructions
from dspy_session.program.frame import current_frame
from dspy_session.program.turn_data import TurnData, differences
from dspy_session.testing import Prompt, ScriptedLM
from tests.loopback import LoopbackServer
from tests.streams import SOON
from tests.talk import QA, echo
from tests.ways import Way, every_step, every_way

PROGRAM = dspy.Predict(QA)
HI = {"question": "Hi"}


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(echo))):
        yield lm


class Writes(dspy.Module):
    """Does to the session data what a function says, then answers, or fails."""

    def __init__(self, write: Callable[[SessionData], object]) -> None:
        super().__init__()
        self.write = write

    def forward(self, question: str) -> Any:
        self.write(current_data())
        if question == "fail":
            raise LookupError("nothing found")
        return question


def count(data: SessionData) -> None:
    data["n"] = data.get("n", 0) + 1


def with_data(**data: Any) -> SessionState:
    return step(SessionState(), PROGRAM, HI, data=data)[1]


# --- in and out -----------------------------------------------------------------------------------


@every_way
def test_K4_data_comes_in_with_a_call_and_goes_out_with_its_state(run: Way) -> None:
    state = with_data(old=1)
    _, after = run(state, Writes(count), HI, data={"n": 4})
    assert after.data.to_dict() == {"n": 5}, "what came replaces what was there"
    turn = after.turns[-1]
    assert (turn.data_before.to_dict(), turn.data.to_dict()) == ({"n": 4}, {"n": 5})
    assert state.data.to_dict() == {"old": 1}


@every_step
@pytest.mark.parametrize("given", [{"n": 1}, Data({"n": 1}), SessionData({"n": 1})])
def test_K4_a_program_that_knows_nothing_of_data_still_works(
    run: Way, given: Mapping[str, Any]
) -> None:
    prediction, state = run(SessionState(), PROGRAM, HI, data=given)
    assert prediction.answer == "answer to Hi"
    assert state.data.to_dict() == {"n": 1}


def test_K4_no_data_in_a_call_empties_it() -> None:
    state = with_data(old=1)
    assert step(state, PROGRAM, HI)[1].data.to_dict() == {"old": 1}
    assert step(state, PROGRAM, HI, data={})[1].data.is_empty


@every_way
def test_K4_a_turn_that_fails_leaves_the_data_whatever_was_written(run: Way) -> None:
    state = with_data(n=1)
    with pytest.raises(LookupError, match="nothing found"):
        run(state, Writes(count), {"question": "fail"})
    assert state.data.to_dict() == {"n": 1}
    assert len(state) == 1


@every_step
def test_K4_a_call_that_records_nothing_keeps_no_data(run: Way) -> None:
    state = with_data(n=1)
    inputs = {**HI, "history": dspy.History(messages=[])}
    answer, after = run(state, Writes(count), inputs)
    assert answer == "Hi" or answer.output == "Hi"
    assert after is state


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not JSON": ({"data": {"cart": object()}}, DataError, "cart"),
    "no mapping": ({"data": ["cart"]}, DataError, "mapping"),
    "too large": ({"data": {"cart": "x" * 2000}}, DataError, "1000 bytes"),
    "keys not text": ({"data": {3: 1}}, DataError, "3"),
    "request not JSON": ({"request": {"lock": object()}}, DataError, "lock"),
    "approvals one text": ({"approvals": "abc"}, CallError, "approvals="),
    "approvals not ids": ({"approvals": [3]}, CallError, "approvals="),
    "approvals no list": ({"approvals": 3}, CallError, "approvals="),
    "instructions": ({"instructions": 3}, OptionError, "instructions must be text"),
    "instructions of a function": (
        {"instructions": lambda state: 3},
        OptionError,
        "function of the state must return text",
    ),
    "no instructions of a function": (
        {"instructions": lambda state: None},
        OptionError,
        "NoneType",
    ),
}


@every_step
@pytest.mark.parametrize("name", BAD)
def test_K4_bad_input(run: Way, name: str, lm: ScriptedLM) -> None:
    keywords, kind, message = BAD[name]
    state = SessionState()
    with pytest.raises(kind, match=message):
        run(state, PROGRAM, HI, SessionOptions(max_data_bytes=1000), **keywords)
    assert state == SessionState()
    assert not lm.prompts


@every_step
def test_K4_a_program_cannot_write_more_than_the_limit(run: Way) -> None:
    state = SessionState()
    program = Writes(lambda data: data.set("cart", "x" * 2000))
    with pytest.raises(DataError, match="1000 bytes"):
        run(state, program, HI, SessionOptions(max_data_bytes=1000))
    assert state.data.is_empty


# --- threads and overlapping turns ----------------------------------------------------------------


def test_K4_two_tools_at_once_are_merged_per_key_and_the_last_write_wins() -> None:
    """In threads that DSPy starts: both are in the middle of their work at the same time."""
    meet, second = threading.Barrier(2), threading.Event()

    def tool(name: str) -> None:
        data = current_data()
        meet.wait(SOON)
        data[name] = "mine"
        if name == "late":
            assert second.wait(SOON)
        data["last"] = name
        second.set()

    class Both(dspy.Module):
        def forward(self, question: str) -> Any:
            runner = dspy.Parallel(num_threads=2, disable_progress_bar=True)
            runner([(dspy.Tool(tool), {"name": name}) for name in ("early", "late")])
            return question

    _, state = step(SessionState(), Both(), HI)
    assert state.data.to_dict() == {"early": "mine", "last": "late", "late": "mine"} or dict(
        state.data
    ) == {"late": "mine", "early": "mine", "last": "late"}


def test_K4_many_threads_lose_no_write() -> None:
    class Slow:
        """A value that lets other threads go on while it is written."""

        def model_dump(self, **_: Any) -> str:
            time.sleep(0.0005)
            return "slow"

    def write(number: int) -> None:
        data = current_data()
        for turn in range(20):
            data.update({f"{number}-{turn}": Slow(), "shared": number})

    class Many(dspy.Module):
        def forward(self, question: str) -> Any:
            runner = dspy.Parallel(num_threads=8, disable_progress_bar=True)
            runner([(write, {"number": number}) for number in range(8)])
            return question

    _, state = step(SessionState(), Many(), HI)
    assert len(state.data) == 8 * 20 + 1


def test_K4_tasks_of_one_turn_write_to_the_same_data() -> None:
    class Tasks(dspy.Module):
        async def aforward(self, question: str) -> Any:
            async def write(name: str) -> None:
                await asyncio.sleep(0)
                current_data()[name] = True

            await asyncio.gather(*map(write, "abc"))
            return question

    _, state = asyncio.run(astep(SessionState(), Tasks(), HI))
    assert sorted(state.data) == ["a", "b", "c"]


def test_K4_overlapping_turns_are_merged_per_key() -> None:
    """Each sees the data of when it began; what both deleted or wrote is decided by the later."""
    began, first_done = threading.Barrier(2), threading.Event()

    class Meets(dspy.Module):
        def forward(self, question: str) -> Any:
            data = current_data()
            began.wait(SOON)
            if question == "late":
                assert first_done.wait(SOON)
                assert data.to_dict() == {"shared": 0, "gone": 0}
                data["shared"] = "late"
                data.delete("gone")
            else:
                data.update({"shared": "early", "early": True, "gone": "early"})
            return question

    session = sessionify(Meets(), data={"shared": 0, "gone": 0})

    async def main() -> None:
        late = asyncio.create_task(session.acall(question="late"))
        await session.acall(question="early")
        first_done.set()
        await late

    asyncio.run(main())
    assert [turn.inputs["question"] for turn in session.turns] == ["early", "late"]
    assert session.data.to_dict() == {"shared": "late", "early": True}
    session.undo()
    assert session.data.to_dict() == {"shared": "early", "gone": "early", "early": True}


def test_K4_a_write_after_the_turn_is_refused() -> None:
    kept: list[SessionData] = []
    _, state = step(SessionState(), Writes(kept.append), HI)
    with pytest.raises(DataError, match="has ended"):
        kept[0]["late"] = True
    assert kept[0].to_dict() == {}
    assert state.data.is_empty


def test_K4_a_turns_data_as_a_value() -> None:
    began = Data({"a": 1, "b": 2, "c": 3})
    turn = TurnData(began, max_bytes=40)
    turn.change({"a": 10, "b": DELETED, "d": 4})
    assert turn.read().to_dict() == {"a": 10, "c": 3, "d": 4}
    assert turn.base() is began
    with pytest.raises(DataError):
        turn.change({"e": "x" * 40, "a": 11})
    assert turn.read()["a"] == 10
    writes = turn.end()
    assert writes.applied(began) is writes.now
    newest = Data({"b": 20, "c": 30, "f": "x" * 100})
    assert writes.applied(newest).to_dict() == {"c": 30, "f": "x" * 100, "a": 10, "d": 4}


def test_K4_differences_lead_from_one_data_to_the_other() -> None:
    before, after = Data({"a": 1, "b": 2, "c": [1]}), Data({"a": 1.0, "c": [1], "d": None})
    changes = differences(before, after)
    assert changes == {"b": DELETED, "a": 1.0, "d": None}
    assert before.changed(changes) == after
    assert differences(before, before) == {}
    assert differences(EMPTY_DATA, Data()) == {}


def test_K4_an_untouched_turn_shares_its_data_with_the_one_before() -> None:
    state = with_data(n=1)
    _, after = step(state, PROGRAM, HI)
    assert after.data is state.data
    assert after.turns[-1].beside is state.beside


# --- what else comes with a call ------------------------------------------------------------------


@every_way
def test_K4_other_keys_of_a_request_are_there_to_read(run: Way) -> None:
    class Reads(dspy.Module):
        def forward(self, question: str) -> Any:
            request = current_request()
            request["user"]["name"] = "spoilt"
            with pytest.raises(TypeError):
                request["user"] = 3  # type: ignore[index]
            return dspy.Prediction(answer=request["user"]["name"])

    given = {"user": {"name": "ada"}}
    prediction, state = run(SessionState(), Reads(), HI, request=given)
    assert prediction.answer == "ada"
    assert given == {"user": {"name": "ada"}}
    assert state.data.is_empty


def test_K4_approvals_and_approver_reach_the_running_turn() -> None:
    seen: list[Any] = []

    def approver(request: Any) -> bool:
        return bool(request)

    class Looks(dspy.Module):
        def forward(self, question: str) -> Any:
            frame = current_frame()
            assert frame is not None
            seen.append((frame.approvals, frame.approver))
            return question

    step(SessionState(), Looks(), HI, approvals=["a", "b"], approver=approver)
    step(SessionState(), Looks(), HI)
    assert seen == [(frozenset("ab"), approver), (frozenset(), None)]


def test_K4_an_approvers_error_ends_the_turn_though_the_program_goes_on() -> None:
    @session_tool(approval=True)
    def refund(amount: int) -> str:
        return f"{amount} is on its way"

    class Forgives(dspy.Module):
        def forward(self, question: str) -> Any:
            with contextlib.suppress(LookupError):
                dspy.Tool(refund)(amount=5)
            return "All is well."

    def approver(request: ApprovalRequest) -> bool:
        raise LookupError(f"nobody to ask about {request.name}")

    state = SessionState()
    with pytest.raises(LookupError, match="nobody to ask about refund"):
        step(state, Forgives(), HI, approver=approver)
    assert state == SessionState()


def system(prompt: Prompt) -> str:
    return prompt[0]["content"]


@every_step
def test_K4_instructions_of_one_call(run: Way, lm: ScriptedLM) -> None:
    _, state = run(SessionState(), PROGRAM, HI, instructions="Rhyme.")
    assert "Rhyme." in system(lm.prompts[-1])
    assert state.instructions is None
    run(state, PROGRAM, HI)
    assert "Rhyme." not in system(lm.prompts[-1])


@every_step
def test_K4_instructions_may_be_a_function_of_the_state_without_private_data(
    run: Way, lm: ScriptedLM
) -> None:
    seen: list[SessionState] = []

    def told(state: SessionState) -> str | Instructions:
        seen.append(state)
        return f"Turn {len(state)} of {sorted(state.data)}."

    options = SessionOptions(private_data={"token"})
    state = with_data(user="ada", token="secret")
    _, after = run(state, PROGRAM, HI, options, instructions=told)
    assert "Turn 1 of ['user']." in system(lm.prompts[-1])
    assert after.data.to_dict() == {"user": "ada", "token": "secret"}
    run(state, PROGRAM, HI, options, instructions=told, data={"token": 1, "new": 2})
    assert "Turn 1 of ['new']." in system(lm.prompts[-1])


def test_K4_an_error_in_a_function_of_the_state_is_an_error_of_the_turn() -> None:
    def told(state: SessionState) -> str:
        raise LookupError("no tone")

    session = sessionify(PROGRAM, instructions=told)
    state = session.state
    with pytest.raises(LookupError, match="no tone"):
        session(question="Hi")
    assert session.state is state
    assert len(session.attempts) == 1


# --- what a turn counts ---------------------------------------------------------------------------


class Three(dspy.Module):
    """Three LM calls, two of them in DSPy's threads."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        runner = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        runner([(self.qa, {"question": question}) for _ in range(2)])
        return self.qa(question=question)


class ThreeAwaited(Three):
    async def aforward(self, question: str) -> Any:
        one, _, _ = await asyncio.gather(*(self.qa.acall(question=question) for _ in range(3)))
        return one


LOGS: dict[str, dict[str, Any]] = {
    "log": {},
    "no log": {"disable_history": True},
    "empty log": {"max_history_size": 0},
}


@every_step
@pytest.mark.parametrize("program", [Three(), ThreeAwaited()], ids=["threads", "tasks"])
@pytest.mark.parametrize("log", LOGS)
def test_C11_lm_calls_are_counted_with_and_without_dspys_log(
    run: Way, program: dspy.Module, log: str
) -> None:
    with dspy.context(**LOGS[log]):
        _, state = run(SessionState(), program, HI)
    turn = state.turns[0]
    assert turn.lm_calls == 3
    assert (turn.run.sent > 0) == (log == "log")


def test_C11_lm_calls_of_a_program_that_tracks_usage_itself() -> None:
    class Tracks(dspy.Module):
        def forward(self, question: str) -> Any:
            with dspy.track_usage():
                PROGRAM(question=question)
                return PROGRAM(question=question)

    with dspy.context(disable_history=True):
        _, state = step(SessionState(), Tracks(), HI)
    assert state.turns[0].lm_calls == 2


def test_C11_sent_counts_the_prompts_that_were_paid_for(lm: ScriptedLM) -> None:
    _, state = step(SessionState(), PROGRAM, HI)
    _, state = step(state, PROGRAM, HI)
    lengths = [sum(len(message["content"]) for message in prompt) for prompt in lm.prompts]
    assert [turn.run.sent for turn in state.turns] == lengths


def test_C11_a_cached_answer_is_a_call_that_sent_nothing() -> None:
    question = {"question": f"Asked twice: {uuid.uuid4()}"}  # the cache is also on disk
    with (
        LoopbackServer(lambda body: "[[ ## answer ## ]]\nHello.") as server,
        dspy.context(lm=server.lm().copy(cache=True)),
    ):
        _, first = step(SessionState(), PROGRAM, question)
        _, again = step(SessionState(), PROGRAM, question)
    assert len(server.received) == 1
    assert first.turns[0].run.sent > 0
    assert (again.turns[0].lm_calls, again.turns[0].run.sent, again.turns[0].usage) == (1, 0, {})


def test_C11_parts_of_a_message_that_are_no_text_count_nothing(lm: ScriptedLM) -> None:
    picture = dspy.Predict("picture: dspy.Image, question -> answer")
    image = dspy.Image("data:image/png;base64," + "A" * 4000)
    _, state = step(SessionState(), picture, {"picture": image, **HI})
    assert 0 < state.turns[0].run.sent < 4000
