from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

@dataclass(frozen=True, slots=True)
class TextPart:
    text: str
    continuation: tuple[Any, ...] = ()
    type: Literal["text"] = field(default="text", init=False)

@dataclass(frozen=True, slots=True)
class ThinkingPart:
    text: str
    continuation: tuple[Any, ...] = ()
    type: Literal["thinking"] = field(default="thinking", init=False)

@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["user", "assistant", "tool", "developer"]
    parts: tuple[Any, ...]
    continuation: tuple[Any, ...] = ()
    @staticmethod
    def assistant(content: Any) -> Message: ...
    @property
    def text(self) -> str | None: ...

@dataclass(frozen=True, slots=True)
class _ModelRequest:
    model: str

@dataclass(frozen=True)
class Request(_ModelRequest):
    messages: tuple[Message, ...]
    system: str | tuple[Any, ...] | None = None
    tools: tuple[Any, ...] = ()
    config: Any = ...

@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None

@dataclass(frozen=True, slots=True)
class Response:
    id: str | None
    model: str
    message: Message
    finish_reason: Literal["stop", "length", "tool_call", "content_filter", "error"]
    usage: Usage
    logprobs: tuple[Any, ...] | None = None
    provider_data: Any = None
    adaptations: tuple[Any, ...] = ()
    logprobs_complete: bool = field(default=True, kw_only=True)

def response_to_events(response: Response) -> Iterator[Any]: ...
