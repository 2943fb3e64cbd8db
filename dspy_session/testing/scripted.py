"""A language model for tests and demonstrations, whose words come from a function.

The function is handed the prompt that DSPy really sends, message by message, so an answer can show
what was in it: a lost history shows in the answer. Only the words are scripted. Adapters, caching,
retries and usage are DSPy's own, through its engine interface.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage, response_to_events

__all__ = [
    "Prompt",
    "Reply",
    "ScriptedEngine",
    "ScriptedLM",
    "in_requested_format",
    "requested_fields",
    "scripted_lm",
]

Prompt = list[dict[str, str]]
"""The messages of one call: dicts with `role` and `content`, the system message first."""

Reply = Callable[[Prompt], "str | Mapping[str, Any]"]
"""From the prompt to the model's words, or to output fields, which are put into the format that
the prompt asks for."""


class ScriptedEngine:
    """A DSPy engine that answers with what a function makes of the prompt.

    Args:
        reply: See `Reply`.
        on_request: Called with each `dspy.lm15.Request`, if given.

    Attributes:
        prompts: Every prompt that was sent, in the order in which they came.
        requests: How many requests came.
    """

    def __init__(
        self, reply: Reply, *, on_request: Callable[[Request], object] | None = None
    ) -> None:
        self.prompts: list[Prompt] = []
        self._reply = reply
        self._on_request = on_request
        self._mutex = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _engine, (self._reply, self._on_request)  # without what was sent so far

    @property
    def requests(self) -> int:
        """How many requests came."""
        return len(self.prompts)

    def complete(self, request: Request) -> Response:
        """Answer one request.

        Args:
            request: What DSPy sends.
        """
        prompt = _prompt_of(request)
        with self._mutex:
            self.prompts.append(prompt)
        if self._on_request is not None:
            self._on_request(request)
        answer = self._reply(prompt)
        text = answer if isinstance(answer, str) else in_requested_format(prompt, answer)
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=_usage(prompt, text),
        )

    def stream(self, request: Request) -> Iterator[Any]:
        """Answer one request as stream events.

        Args:
            request: What DSPy sends.
        """
        yield from response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing is held open."""


def _engine(reply: Reply, on_request: Callable[[Request], object] | None) -> ScriptedEngine:
    """What a pickle of an engine makes of itself."""
    return ScriptedEngine(reply, on_request=on_request)


class _AsyncScriptedEngine:
    """The same engine for awaited calls."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def complete(self, request: Request) -> Response:
        return self._engine.complete(request)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        for event in self._engine.stream(request):
            yield event

    async def aclose(self) -> None:
        """Nothing is held open."""


class ScriptedLM(dspy.LM):
    """A `dspy.LM` whose words come from a function; nothing is cached.

    Args:
        reply: See `Reply`; without one, the answer to each output field says how many messages the
            prompt had.
        on_request: As in `ScriptedEngine`.

    Example:
        >>> lm = ScriptedLM(lambda prompt: {"answer": prompt[-1]["content"].splitlines()[1]})
        >>> with dspy.context(lm=lm):
        ...     dspy.Predict("question -> answer")(question="Hi").answer
        'Hi'
    """

    def __init__(
        self,
        reply: Reply | None = None,
        *,
        on_request: Callable[[Request], object] | None = None,
    ) -> None:
        engine = ScriptedEngine(reply or _count_messages, on_request=on_request)
        super().__init__(
            "scripted", engine=engine, async_engine=_AsyncScriptedEngine(engine), cache=False
        )

    @property
    def prompts(self) -> list[Prompt]:
        """Every prompt that was sent to this LM or to a copy of it, in the order they came."""
        prompts: list[Prompt] = self.engine.prompts
        return prompts

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedLM:
        return self  # so that what copies of a program send is seen too


def scripted_lm(reply: Reply | None = None) -> ScriptedLM:
    """Return a `ScriptedLM`.

    Args:
        reply: See `Reply`.
    """
    return ScriptedLM(reply)


def in_requested_format(prompt: Prompt, outputs: Mapping[str, Any]) -> str:
    """Return output fields in the format that the last message of a prompt asks for.

    Args:
        prompt: The messages.
        outputs: Field names and values.

    Example:
        >>> prompt = [{"role": "user", "content": "Respond with a JSON object"}]
        >>> in_requested_format(prompt, {"answer": 1})
        '{"answer": 1}'
    """
    asked = prompt[-1]["content"] if prompt else ""
    if "Respond with a JSON object" in asked:
        return json.dumps(dict(outputs), ensure_ascii=False, default=str)
    if "wrapped in XML tags" in asked:
        return "\n".join(
            f"<{name}>\n{_as_text(value).replace('&', '&amp;').replace('<', '&lt;')}\n</{name}>"
            for name, value in outputs.items()
        )
    blocks = [f"[[ ## {name} ## ]]\n{_as_text(value)}" for name, value in outputs.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


_ASKED_FIELDS: Final = re.compile(r"`\[\[ ## (\w+) ## \]\]`|`<(\w+)>`|`(\w+)`")


def requested_fields(prompt: Prompt) -> list[str]:
    """Return the names of the output fields that the last message of a prompt asks for.

    Args:
        prompt: The messages.
    """
    asked = prompt[-1]["content"].rpartition("Respond with")[2]
    found = ("".join(groups) for groups in _ASKED_FIELDS.findall(asked))
    return [name for name in dict.fromkeys(found) if name != "completed"]


def _count_messages(prompt: Prompt) -> dict[str, Any]:
    return {name: f"{len(prompt)} messages" for name in requested_fields(prompt)}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _prompt_of(request: Request) -> Prompt:
    prompt: Prompt = []
    if request.system is not None:
        system = request.system
        text = system if isinstance(system, str) else "".join(part.text for part in system)
        prompt.append({"role": "system", "content": text})
    for message in request.messages:
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        prompt.append({"role": message.role, "content": "\n".join(texts)})
    return prompt


def _usage(prompt: Prompt, text: str) -> Usage:
    """Usage in words instead of tokens: enough to add up."""
    sent = sum(len(message["content"].split()) for message in prompt)
    answered = len(text.split())
    return Usage(input_tokens=sent, output_tokens=answered, total_tokens=sent + answered)
