"""`dspy-session chat` with a real `dspy.LM` over HTTP: answers, and all that can go wrong."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import dspy
import pytest

from tests.chats import Commands, opened, stored
from tests.commands import arguments_of, environment, process
from tests.loopback import (
    CONTEXT_WINDOW_EXCEEDED,
    NOT_JSON,
    SERVER_ERROR,
    Answer,
    Body,
    Completion,
    Failure,
    LoopbackServer,
)
from tests.streams import agent_answers, say

WRONG_KEY = Failure(401, "Incorrect API key provided.", "invalid_api_key")
WRONG_MODEL = Failure(404, "The model `scripted` does not exist.", "model_not_found")


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Commands]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSPY_SESSION_MODEL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before DSPy asks again
    before = dspy.settings.copy()
    yield Commands(monkeypatch, capsys)
    assert dspy.settings.copy() == before


def options(server: LoopbackServer) -> list[str]:
    return ["--model", "openai/scripted", "--api-base", server.url]


def failing_on(word: str, failure: Completion | Failure) -> Answer:
    """A server that fails for questions with this word, and else answers."""

    def answer(body: Body) -> str | Completion | Failure:
        return failure if word in body["messages"][-1]["content"] else say(body)

    return answer


def test_a_model_is_asked_with_the_conversation_and_its_settings(cli: Commands) -> None:
    with LoopbackServer(say) as server:
        ended = cli.chat("Hi", "Ho", options=[*options(server), "--temperature", "0.3"])
    assert ended == (0, "the answer to Hi\nthe answer to Ho\n", "")
    assert [len(request.messages) for request in server.received] == [2, 4]
    assert {request.body["temperature"] for request in server.received} == {0.3}
    assert all(request.body["stream"] for request in server.received)


def test_a_pipe_has_the_answer_without_the_reasoning(cli: Commands) -> None:
    with LoopbackServer(say) as server:
        given = [*options(server), "--reasoning"]
        assert cli.chat("Hi", options=given).out == "the answer to Hi\n"
        assert cli.chat("Ho", options=[*given, "--no-stream"]).out == "the answer to Ho\n"
        assert cli.typed("He", options=given).lines[3:] == [
            "> reasoning: the reasoning to He",
            "the answer to He",
            "> ",
        ]
    with opened() as manager:
        assert list(manager.turns("chat")[0].outputs) == ["reasoning", "answer"]


def test_the_model_of_the_environment(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackServer(say) as server:
        monkeypatch.setenv("DSPY_SESSION_MODEL", "openai/named-there")
        cli.chat("Hi", options=["--api-base", server.url])
    assert [request.model for request in server.received] == ["named-there"]


def test_a_question_that_was_taken_back_is_asked_anew(cli: Commands) -> None:
    with LoopbackServer(say) as server:
        cli.chat("Hi", "/undo", "Hi", options=options(server))
    assert len(server.received) == 2  # and not one, with the other from DSPy's cache


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (WRONG_KEY, "Incorrect API key provided. Check the provider's key in the environment"),
        (WRONG_MODEL, "does not exist. Check the model: --model provider/name"),
        (SERVER_ERROR, "while processing your request. Try again later, or check"),
        (NOT_JSON, "Engine stream ended without a completion"),
        (CONTEXT_WINDOW_EXCEEDED, "The conversation is too long for this model."),
        (Completion("[[ ## answer ## ]]\nOne two three", cut_after=5), "connection closed"),
        (Completion("I keep to no format."), "--no-stream lets DSPy ask again"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_failing_model_is_one_line_and_the_chat_goes_on(
    failure: Completion | Failure, said: str, cli: Commands
) -> None:
    with LoopbackServer(failing_on("wrong", failure)) as server:
        ended = cli.chat("Hi", "This goes wrong.", "Ho", options=options(server))
    assert ended.status == 1
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("dspy-session: ")
    assert said in ended.err
    assert (ended.lines[0], ended.lines[-1]) == ("the answer to Hi", "the answer to Ho")
    assert [question for question, _ in stored()] == ["Hi", "Ho"]


def test_no_network(cli: Commands) -> None:
    ended = cli.chat("Hi", options=["--model", "openai/x", "--api-base", "http://127.0.0.1:9/v1"])
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "failed to connect to 127.0.0.1:9" in ended.err
    assert "Check the network" in ended.err
    assert stored() == []


LOGGED: Final = """\
import logging

import dspy


class Logged(dspy.Module):
    def forward(self, question):
        logging.getLogger("dspy.predict.any").warning("The answer\\nwas cut.\\n\\nA traceback.")
        logging.getLogger("dspy.clients.model_metadata").warning("Prices cannot be fetched.")
        return dspy.Prediction(answer="Hi.")
"""


def test_what_dspy_logs_is_a_line_and_of_prices_none(cli: Commands) -> None:
    Path("logged.py").write_text(LOGGED)
    logger = logging.getLogger("dspy")
    before = logger.handlers[:]
    options = ["--program", "logged:Logged"]
    assert cli.chat("Hi", options=options) == (0, "Hi.\n", "dspy-session: The answer was cut.\n")
    assert cli.typed("Hi", options=options).lines[3:] == ["> The answer was cut.", "Hi.", "> "]
    assert logger.handlers == before


def test_prices_that_cannot_be_fetched_leave_the_answer_alone(tmp_path: Path) -> None:
    with LoopbackServer(say) as server:
        given = [*options(server), "--no-stream", "--model", "openai/gpt-4o-mini"]
        done = process(
            arguments_of(str(tmp_path / "chats.db"), "chat", *given),
            stdin=None,
            input=b"Hi\n",
            env=environment(
                OPENAI_API_KEY="none",
                LITELLM_LOCAL_MODEL_COST_MAP="false",
                LITELLM_MODEL_COST_MAP_URL="http://127.0.0.1:9/prices.json",
            ),
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"the answer to Hi\n", b"")


def test_no_key(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    ended = cli.chat("Hi", options=["--model", "openai/x"])
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "Set OPENAI_API_KEY in the environment" in ended.err
    assert stored() == []


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--model", "openai/x", "--scripted"], "Give either --model or --scripted."),
        (["--api-base", "http://127.0.0.1:9/v1"], "--api-base is for a model: give --model, too."),
        (["--temperature", "1"], "--temperature is for a model"),
        (["--model", "openai/x", "--api-base", "localhost"], "takes a URL, such as http://"),
    ],
)
def test_options_that_do_not_go_together(given: list[str], complaint: str, cli: Commands) -> None:
    ended = cli.chat("Hi", options=given)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert complaint in ended.err


def test_without_streaming_dspy_may_ask_again_in_another_format(cli: Commands) -> None:
    def answer(body: Body) -> str:
        return '{"answer": "So."}' if "JSON object" in str(body["messages"]) else "So."

    with LoopbackServer(answer) as server:
        ended = cli.chat("Hi", options=[*options(server), "--no-stream"])
    assert (ended.status, ended.out) == (0, "So.\n")
    assert stored() == [("Hi", "So.")]


def test_a_model_that_keeps_to_no_format_at_all(cli: Commands) -> None:
    with LoopbackServer(lambda body: "So.") as server:
        ended = cli.chat("Hi", options=[*options(server), "--no-stream"])
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "--no-stream" not in ended.err
    assert ended.err.endswith("this one does not keep to the format.\n")
    assert stored() == []


AGENT = """
import dspy

from tests.streams import look_up

agent = dspy.ReAct("question -> answer", tools=[look_up])
"""


def test_the_steps_of_an_agent_show_to_a_person(cli: Commands) -> None:
    name = f"agent_{id(cli)}"
    Path(f"{name}.py").write_text(AGENT)
    with LoopbackServer(agent_answers) as server:
        given = [*options(server), "--program", f"{name}:agent"]
        seen = cli.typed("Which colour?", options=given)
        assert cli.chat("Which colour?", options=given).out == "Blue.\n"
    assert [line.removeprefix("> ") for line in seen.lines[1:7]] == [
        "next_thought: I look for fjord.",
        "look_up: fjord",
        "next_thought: I look for nothing.",
        "look_up: nothing",
        "next_thought: Enough.",
        "reasoning: It says so.",
    ]
    assert seen.lines[7] == "Blue."


def test_what_another_chat_adds_during_a_turn_stands_before_it(cli: Commands) -> None:
    def answer(body: Body) -> str:
        if "Slow" in body["messages"][-1]["content"]:
            with opened() as manager:
                turn = {"question": "Quick"}, {"answer": "From elsewhere."}
                manager.load_session("chat").add_turn(*turn)
        return say(body)

    with LoopbackServer(answer) as server:
        ended = cli.chat("Hi", "Slow", options=options(server))
    assert ended.status == 0
    assert "(1 turn came from elsewhere before this one.)" in ended.err
    assert [question for question, _ in stored()] == ["Hi", "Quick", "Slow"]
