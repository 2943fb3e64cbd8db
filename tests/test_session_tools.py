"""Session tools: what models are told of them, what they are handed, and what becomes of it."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import threading
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import pytest
from cloudpickle import dumps, loads
from dspy import LocalInterpreter

from dspy_session import (
    SessionData,
    SessionOptions,
    SessionState,
    ToolError,
    astep,
    current_data,
    current_request,
    session_tool,
    sessionify,
    step,
)
from dspy_session.core import Scope
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.loopback import Body, Completion, LoopbackServer
from tests.matrix_parts import MODEL
from tests.modules import content, deprecated_modules
from tests.streams import SOON

if TYPE_CHECKING:
    import dspy_session as hidden

NAMED = "question -> answer"


@session_tool
def add(item: str, session: SessionData, quantity: int = 1) -> str:
    """Add an item to the cart."""
    session["cart"] = [*session.get("cart", []), [item, quantity]]
    return f"Added {quantity} {item}."


@session_tool
def view(session: SessionData) -> str:
    """Show the cart."""
    return f"cart: {session.get('cart', [])}"


@session_tool
async def add_later(item: str, *, session: SessionData) -> str:
    """Add an item, awaited."""
    await asyncio.sleep(0)
    session["cart"] = [*session.get("cart", []), [item, 1]]
    return f"Added {item} at last."


class Agent(ScriptedLM):
    """Makes the calls that it is given, a step each, then answers; for ReAct and ReActV2."""

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        self.calls = list(calls)
        self.done = 0

        def say(prompt: Prompt) -> dict[str, Any]:
            asked = requested_fields(prompt)
            said: dict[str, Any] = dict.fromkeys(asked, "said")
            if not {"next_tool_name", "tool_calls"}.intersection(asked):
                return said
            steps = [*self.calls, ("finish", {})]
            name, arguments = steps[self.done % len(steps)]
            self.done += 1
            last = {"name": "submit", "args": {"answer": "said"}}
            call = last if name == "finish" else {"name": name, "args": arguments}
            said |= {
                "next_tool_name": name,
                "next_tool_args": arguments,
                "tool_calls": {"tool_calls": [call]},
            }
            return {asked_for: said[asked_for] for asked_for in asked}

        super().__init__(say)


def run(
    program: dspy.Module, lm: ScriptedLM, state: SessionState | None = None, **given: Any
) -> SessionState:
    with dspy.context(lm=lm):
        _, after = step(state or SessionState(), program, {"question": "?"}, **given)
    return after


def words(prompt: Prompt) -> str:
    return "\n".join(map(content, prompt))


def told(state: SessionState) -> str:
    """What the tools of the last turn said, among the other details."""
    return str(state.turns[-1].details).replace("\\'", "'")


AGENTS: list[Callable[..., dspy.Module]] = [dspy.ReAct, dspy.ReActV2]
AGENT_NAMES = ["ReAct", "ReActV2"]


# --- what a model is told -------------------------------------------------------------------------


class Shop:
    """Tools as methods."""

    @session_tool
    def add(self, item: str, session: SessionData) -> str:
        """Add to this shop's cart."""
        session["cart"] = item
        return f"{item} from {type(self).__name__}"

    @staticmethod
    @session_tool
    def plain(item: str, session: SessionData) -> str:
        """Add without a shop."""
        session["cart"] = item
        return item


class Adder:
    """Adds, being an object."""

    def __call__(self, item: str, session: SessionData) -> str:
        """Add by an object."""
        session["cart"] = item
        return item


def plain_add(item: str, session: SessionData) -> str:
    """Add plainly."""
    session["cart"] = item
    return item


def hidden_add(item: str, session: hidden.SessionData) -> str:
    """Add, with an annotation that only type checkers can evaluate."""
    session["cart"] = item
    return item


def optional_add(item: str, session: SessionData | None = None) -> str:
    """Add, with a default."""
    assert session is not None
    session["cart"] = item
    return item


def annotated_add(session: Annotated[SessionData, "theirs"], /, item: str) -> str:
    """Add, the data first."""
    session["cart"] = item
    return item


def two(shelf: str, item: str, cart: SessionData) -> str:
    """Add from a shelf."""
    cart["cart"] = f"{shelf}{item}"
    return item


MADE: dict[str, Any] = {
    "function": session_tool(plain_add),
    "hidden": session_tool(hidden_add),
    "optional": session_tool(optional_add),
    "positional": session_tool(annotated_add),
    "method": Shop().add,
    "bound": session_tool(vars(Shop)["add"].__wrapped__.__get__(Shop())),
    "static": Shop.plain,
    "object": session_tool(Adder()),
    "partial": session_tool(functools.partial(two, "")),
    "tool": session_tool(dspy.Tool(plain_add)),
    "tool of one": dspy.Tool(session_tool(plain_add)),
    "called": session_tool()(plain_add),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_K3_no_model_sees_the_parameter(made: Any) -> None:
    tool = made if isinstance(made, dspy.Tool) else dspy.Tool(made)
    assert tool.args == {"item": {"type": "string"}}
    assert tool.arg_types == {"item": str}
    for agent in (dspy.ReAct(NAMED, tools=[made]), dspy.ReActV2(NAMED, tools=[made])):
        lm = Agent((str(tool.name), {"item": "tea"}))
        state = run(agent, lm)
        assert state.data == {"cart": "tea"}
        assert lm.prompts
        for prompt in lm.prompts:
            assert "session" not in words(prompt)
            assert "SessionData" not in words(prompt)


def test_K3_nor_does_a_provider_with_tool_calls_of_its_own() -> None:
    def answer(body: Body) -> Completion:
        said = [message for message in body["messages"] if message["role"] == "tool"]
        call = ("submit", {"answer": said[-1]["content"]}) if said else ("add", {"item": "tea"})
        return Completion(tool_calls=[call])

    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    with LoopbackServer(answer) as server, dspy.context(lm=server.lm(MODEL), adapter=adapter):
        program = dspy.ReActV2(NAMED, tools=[add])
        prediction, state = step(SessionState(), program, {"question": "?"})
    assert "Added 1 tea." in prediction.answer
    assert state.data == {"cart": [["tea", 1]]}
    for request in server.received:
        told = {tool["function"]["name"]: tool["function"] for tool in request.body["tools"]}
        assert told["add"]["parameters"]["properties"] == {
            "item": {"type": "string"},
            "quantity": {"type": "integer", "default": 1},
        }
        assert b"SessionData" not in request.raw


def test_K3_a_session_tool_keeps_its_name_and_text() -> None:
    assert add.__name__ == "add"
    assert add.__doc__ == "Add an item to the cart."
    assert str(inspect.signature(add)) == "(item: 'str', quantity: 'int' = 1) -> 'str'"
    assert typing.get_type_hints(add) == {"item": str, "quantity": int, "return": str}
    named = session_tool(name="put", desc="Put it there.")(plain_add)
    assert (dspy.Tool(named).name, dspy.Tool(named).desc) == ("put", "Put it there.")
    tool = session_tool(dspy.Tool(plain_add, name="first", desc="One."), desc="Two.")
    assert (tool.name, tool.desc) == ("first", "Two.")
    assert list(inspect.signature(plain_add).parameters) == ["item", "session"]


def test_K3_a_session_tool_survives_copying_and_pickling() -> None:
    program = dspy.ReAct(NAMED, tools=[add, Shop().add])
    for copied in (copy.deepcopy(program), program.deepcopy(), loads(dumps(program))):
        state = run(copied, Agent(("add", {"item": "tea"})))
        assert len(state.data["cart"]) in (1, 3)


# --- what cannot be one ---------------------------------------------------------------------------


def no_data(item: str) -> str:
    return item


def bare(item: str, session) -> str:  # type: ignore[no-untyped-def]
    return item


def other(item: str, session: dict[str, Any]) -> str:
    return item


def twice(session: SessionData, more: SessionData) -> str:
    return ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (no_data, "no_data has no parameter for the session data"),
        (add, "add has no parameter for the session data"),
        (bare, "'session' of bare has no annotation. Annotate it SessionData"),
        (other, "'session' of other is annotated dict"),
        (twice, "more than one parameter for the session data: session, more"),
        (
            classmethod(plain_add),  # type: ignore[arg-type]
            "belongs under @classmethod",
        ),
        (staticmethod(plain_add), "belongs under @staticmethod"),
        ("a text", "takes a function, another callable or a dspy.Tool, not 'a text'"),
        (dspy.Tool(no_data), "no_data has no parameter"),
    ],
)
def test_K3_what_cannot_be_a_session_tool_is_refused_at_once(given: Any, message: str) -> None:
    for decorate in (session_tool, session_tool(name="named")):
        with pytest.raises(ToolError) as refused:
            decorate(given)
        assert message in str(refused.value)
    if given is not no_data and not isinstance(given, dspy.Tool) and given is not add:
        with pytest.raises(ToolError):
            session_tool(approval=True)(given)


def test_K3_a_name_and_a_description_are_text() -> None:
    for wrong in ({"name": 3}, {"desc": ["a"]}):
        with pytest.raises(ToolError, match="are text"):
            session_tool(plain_add, **wrong)


@pytest.mark.parametrize("kind", [*AGENTS, dspy.RLM], ids=[*AGENT_NAMES, "RLM"])
def test_K3_an_agent_with_a_bare_tool_is_refused(kind: Callable[..., dspy.Module]) -> None:
    class Inside(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agents = [kind(NAMED, tools=[plain_add])]

    for program in (kind(NAMED, tools=[plain_add]), Inside()):
        state = SessionState()
        for call in (
            lambda program=program: sessionify(program),
            lambda program=program, state=state: step(state, program, {"question": "?"}),
        ):
            with pytest.raises(ToolError, match="Decorate the function with @session_tool"):
                call()
        assert len(state) == 0
        assert state.data == {}
    session = sessionify(kind(NAMED, tools=[add]))
    before = session.state
    with pytest.raises(ToolError, match="'plain_add' of the"):
        session.update_module(kind(NAMED, tools=[plain_add]))
    assert session.state is before


def test_K3_a_code_act_says_that_its_tools_run_elsewhere() -> None:
    with deprecated_modules():
        program = dspy.CodeAct(NAMED, tools=[add], interpreter_factory=LocalInterpreter)
    for call in (
        lambda: sessionify(program),
        lambda: step(SessionState(), program, {"question": "?"}),
        lambda: asyncio.run(astep(SessionState(), program, {"question": "?"})),
    ):
        with pytest.raises(ToolError, match="runs its tools in another process") as refused:
            call()
        assert "'add' is a session tool, and the CodeAct 'self'" in str(refused.value)


# --- what a tool is handed ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS, ids=AGENT_NAMES)
@pytest.mark.parametrize("awaited", [False, True])
def test_K3_a_tool_is_handed_the_data_of_the_turn(
    kind: Callable[..., dspy.Module], awaited: bool
) -> None:
    program = kind(NAMED, tools=[add, view, add_later])
    calls = [("add", {"item": "tea", "quantity": 2}), ("view", {})]
    if awaited:
        calls[1:1] = [("add_later", {"item": "milk"})]
    lm, state = Agent(*calls), SessionState()
    for turn in range(2):
        with dspy.context(lm=lm):
            if awaited:
                _, state = asyncio.run(astep(state, program, {"question": "?"}))
            else:
                _, state = step(state, program, {"question": "?"})
        each = [["tea", 2], ["milk", 1]] if awaited else [["tea", 2]]
        assert state.data == {"cart": each * (turn + 1)}
        assert f"cart: {each * (turn + 1)}" in str(state.turns[turn].details)
    assert state.turns[0].data_before == {}
    assert state.turns[0].data == state.turns[1].data_before
    assert state.turns[1].data == state.data


def test_K3_an_async_tool_works_in_a_sync_program_as_in_dspy() -> None:
    program = dspy.ReAct(NAMED, tools=[add_later])
    with dspy.context(allow_tool_async_sync_conversion=True):
        state = run(program, Agent(("add_later", {"item": "tea"})))
    assert state.data == {"cart": [["tea", 1]]}


@pytest.mark.filterwarnings("ignore:Passing OpenAI-style:DeprecationWarning")  # Flex does so
def test_K3_a_tool_that_code_calls_is_handed_it_too() -> None:
    """In an RLM and a Flex, code runs in another process, and tools in this one."""

    def say(prompt: Prompt) -> dict[str, Any]:
        code = "print(add(item='tea'))" if "Added" not in words(prompt) else "SUBMIT(answer='x')"
        return {"reasoning": "so", "code": code, "answer": "x"}

    program: dspy.Module = dspy.RLM(
        NAMED, tools=[add, add_later], interpreter_factory=LocalInterpreter
    )
    assert run(program, ScriptedLM(say)).data == {"cart": [["tea", 1]]}
    program = dspy.Flex(NAMED, tools=[add], interpreter_factory=LocalInterpreter)
    everybody = SessionOptions(scope=Scope.ALL)
    assert run(program, ScriptedLM(say), options=everybody).data == {"cart": [["tea", 1]]}


def test_K3_defaults_and_more_arguments_come_through() -> None:
    seen: list[Any] = []

    @session_tool
    def many(first: int, /, session: SessionData, *rest: int, last: str = "z", **more: Any) -> str:
        seen.append((first, rest, last, more, session.to_dict()))
        return ""

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            many(1)
            many(1, 2, 3, last="l", other="o")
            with pytest.raises(TypeError, match="missing a required argument: 'first'"):
                many()
            with pytest.raises(TypeError, match="unexpected argument 'session'"):
                many(1, session={"made": "up"})
            with pytest.raises(TypeError):
                view(session=SessionData())
            return "done"

    run(Program(), ScriptedLM())
    assert seen == [(1, (), "z", {}, {}), (1, (2, 3), "l", {"other": "o"}, {})]


def test_K3_what_a_model_makes_up_for_the_session_is_not_taken() -> None:
    state = run(dspy.ReAct(NAMED, tools=[add]), Agent(("add", {"item": "x", "session": {"a": 1}})))
    assert "Arg session is not in the tool's args" in told(state)
    assert state.data == {}


def test_K3_a_tool_that_fails_is_told_to_the_model_and_its_writes_stay() -> None:
    @session_tool
    def half(session: SessionData) -> str:
        """Write, then fail."""
        session["began"] = True
        raise ValueError("no more")

    @session_tool
    def wrong(session: SessionData) -> str:
        """Write what JSON cannot hold."""
        session.update({"fine": 1, "object": object()})
        return "never"

    state = run(dspy.ReAct(NAMED, tools=[half, wrong]), Agent(("half", {}), ("wrong", {})))
    assert "no more" in told(state)
    assert "Session data cannot hold data['object']" in told(state)
    assert state.data == {"began": True}  # as the model was told; nothing of a refused write


class Failing(dspy.Module):
    """Uses its tool, then fails."""

    def __init__(self, tool: Callable[..., Any] = add) -> None:
        super().__init__()
        self.tool = tool

    def forward(self, question: str) -> Any:
        self.tool(item="tea")
        current_data()["more"] = 1
        raise ConnectionError("the shop is closed")


def test_K3_a_turn_that_fails_leaves_nothing_of_what_its_tools_wrote() -> None:
    before = run(dspy.ReAct(NAMED, tools=[add]), Agent(("add", {"item": "milk"})))
    with pytest.raises(ConnectionError):
        run(Failing(), ScriptedLM(), before)
    assert before.data == {"cart": [["milk", 1]]}
    session = sessionify(Failing())
    state = session.state
    with pytest.raises(ConnectionError):
        session(question="?")
    assert session.state is state
    assert session.data == {}


def test_K3_outside_of_a_turn_a_tool_says_where_it_works() -> None:
    for call, name in (
        (lambda: add("tea"), "The session tool 'add'"),
        (lambda: asyncio.run(add_later(item="tea")), "The session tool 'add_later'"),
        (lambda: dspy.Tool(add)(item="tea"), "The session tool 'add'"),
        (current_data, "current_data()"),
        (current_request, "current_request()"),
    ):
        with pytest.raises(ToolError, match="where no turn of a session runs") as refused:
            call()
        assert str(refused.value).startswith(name)
        assert "contextvars.copy_context().run" in str(refused.value)
    data = SessionData()
    assert add.__wrapped__("tea", data) == "Added 1 tea."  # type: ignore[attr-defined]
    assert data == {"cart": [["tea", 1]]}


# --- in programs ----------------------------------------------------------------------------------


class Counter(dspy.Module):
    """Counts its calls, without an LM."""

    def forward(self, question: str) -> Any:
        data = current_data()
        data["calls"] = data.get("calls", 0) + 1
        return data["calls"]

    async def aforward(self, question: str) -> Any:
        await asyncio.sleep(0)
        return self.forward(question)


def test_K5_a_program_reads_and_writes_the_data_in_forward() -> None:
    _, one = step(SessionState(), Counter(), {"question": "?"})
    counted, two = asyncio.run(astep(one, Counter(), {"question": "?"}))
    assert counted == 2
    assert one.data == {"calls": 1}
    assert two.data == {"calls": 2}
    counted, changed = step(two, Counter(), {"question": "?"}, data={"calls": 10})
    assert counted == 11
    assert changed.data == {"calls": 11}
    assert two.data == {"calls": 2}


def test_K5_a_program_that_knows_nothing_of_data_leaves_it() -> None:
    state = run(dspy.Predict(NAMED), ScriptedLM(), data={"user": "ada"})
    assert run(dspy.ReAct(NAMED, tools=[no_data]), Agent(), state).data == {"user": "ada"}


class InParallel(dspy.Module):
    """Runs a tool for each item, in threads that DSPy starts; all are in it at once."""

    def __init__(self, *keys: str) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, question: str) -> Any:
        together = threading.Barrier(len(self.keys))

        @session_tool
        def write(key: str, value: int, session: SessionData) -> str:
            """Write under a key, at the same time as the others."""
            seen = session.get(key)
            together.wait(SOON)
            session[key] = value
            together.wait(SOON)
            assert session.has(key)
            return f"{seen}"

        tool, rounds = dspy.Tool(write), []
        for number, key in enumerate(self.keys):
            rounds.append((tool, {"key": key, "value": number}))
        return dspy.Parallel(num_threads=len(self.keys), disable_progress_bar=True)(rounds)


def test_K3_what_parallel_tools_write_is_merged_by_key() -> None:
    keys = [f"key_{number}" for number in range(4)]
    _, state = step(SessionState(), InParallel(*keys), {"question": "?"}, data={"old": 0})
    assert state.data.to_dict() == {"old": 0} | {key: n for n, key in enumerate(keys)}


def test_K3_of_two_that_write_one_key_the_last_wins() -> None:
    first_wrote = threading.Event()

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            @session_tool
            def early(session: SessionData) -> str:
                """Write first."""
                session.update({"who": "early", "early": True})
                first_wrote.set()
                return ""

            @session_tool
            def late(session: SessionData) -> str:
                """Write last."""
                assert first_wrote.wait(SOON)
                session.update({"who": "late", "late": True})
                return ""

            pairs: list[Any] = [(dspy.Tool(late), {}), (dspy.Tool(early), {})]
            return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)

    _, state = step(SessionState(), Program(), {"question": "?"})
    assert state.data == {"early": True, "who": "late", "late": True}


def test_K3_tools_of_tasks_see_what_the_others_wrote() -> None:
    class Program(dspy.Module):
        async def aforward(self, question: str) -> Any:
            return await asyncio.gather(*(add_later(item=item) for item in "abc"))

    _, state = asyncio.run(astep(SessionState(), Program(), {"question": "?"}))
    assert sorted(state.data["cart"]) == [["a", 1], ["b", 1], ["c", 1]]


def test_K5_awaited_sync_programs_have_it_in_their_thread() -> None:
    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            current_data()["thread"] = threading.current_thread() is threading.main_thread()
            return "done"

    _, state = asyncio.run(astep(SessionState(), Program(), {"question": "?"}))
    assert state.data == {"thread": False}


def test_K5_the_request_of_a_call_is_there_to_read() -> None:
    seen: list[Any] = []

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            request = current_request()
            seen.append(dict(request))
            request["roles"].append("admin")
            with pytest.raises(TypeError):
                request["user"] = "eve"  # type: ignore[index]
            assert dict(current_request()) == seen[-1]
            return "done"

    given = {"user": "ada", "roles": ["buyer"]}
    step(SessionState(), Program(), {"question": "?"}, request=given)
    assert seen == [{"user": "ada", "roles": ["buyer"]}]
    assert given == {"user": "ada", "roles": ["buyer"]}
    with pytest.raises(KeyError):
        step(SessionState(), Program(), {"question": "?"})


def test_K5_within_a_nested_session_the_data_is_its_own() -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(Counter())

        def forward(self, question: str) -> Any:
            current_data()["outer"] = True
            return self.inner(question=question)

    _, state = step(SessionState(), Outer(), {"question": "?"})
    assert state.data == {"outer": True}
    assert state.nested["inner"].data == {"calls": 1}


def test_K3_a_trial_writes_nothing() -> None:
    session = sessionify(Counter())
    session(question="?")
    before = session.state
    assert session.frozen()(question="?") == 2
    assert session.state is before
    assert before.data == {"calls": 1}


def test_K3_attempts_write_into_the_turn_in_which_they_are() -> None:
    program = dspy.BestOfN(
        dspy.ReAct(NAMED, tools=[add]), N=2, reward_fn=lambda a, p: 0.0, threshold=1.0
    )
    assert run(program, Agent(("add", {"item": "tea"}))).data == {"cart": [["tea", 1]] * 2}


def test_K3_what_undo_takes_back_it_takes_with_its_data() -> None:
    session = sessionify(dspy.ReAct(NAMED, tools=[add, view]), max_turns=2)
    with dspy.context(lm=Agent(("add", {"item": "tea"}))):
        session(question="?")
        branch = session.fork()
        session(question="?")
    assert session.data == {"cart": [["tea", 1]] * 2}
    session.undo()
    assert session.data == branch.data == {"cart": [["tea", 1]]}
    session.redo()
    assert session.data == {"cart": [["tea", 1]] * 2}


def test_K3_the_examples_of_turns_know_nothing_of_the_tools_data() -> None:
    assert SessionOptions().private_data == frozenset()
    state = run(dspy.ReAct(NAMED, tools=[add]), Agent(("add", {"item": "tea"})))
    assert list(state.turns[0].outputs) == ["answer"]
