# Only what this project uses of DSPy, as DSPy 3.4 has it. tests/test_typings.py holds it to both.
# Any stands where DSPy itself takes or returns anything.
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, Literal, Self

from dspy.dsp.utils.settings import Settings
from dspy.primitives.module import ProgramMeta
from dspy.signatures.signature import SignatureMeta
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker
from pydantic import BaseModel
from pydantic.fields import FieldInfo

settings: Settings

def configure(**kwargs: Any) -> None: ...
def context(**kwargs: Any) -> AbstractContextManager[None]: ...
def track_usage() -> AbstractContextManager[UsageTracker]: ...
def configure_cache(
    enable_disk_cache: bool | None = True,
    enable_memory_cache: bool | None = True,
    disk_cache_dir: str | None = ...,
    disk_size_limit_bytes: int | None = ...,
    memory_max_entries: int = 1000000,
    restrict_pickle: bool = False,
    safe_types: list[type[Any]] | None = None,
) -> None: ...

cache: Any

def asyncify(program: Module) -> Callable[..., Awaitable[Any]]: ...
def syncify(program: Module, in_place: bool = True) -> Module: ...
def streamify(
    program: Module,
    status_message_provider: Any = None,
    stream_listeners: list[Any] | None = None,
    include_final_prediction_in_output_stream: bool = True,
    is_async_program: bool = False,
    async_streaming: bool = True,
) -> Callable[..., Any]: ...

# Signatures

class Signature(BaseModel, metaclass=SignatureMeta, init=False):
    # The metaclass sees to it: a call of Signature itself makes a class, not an instance.
    def __new__(  # type: ignore[misc]
        cls, signature: str | Mapping[str, Any], instructions: str | None = None
    ) -> type[Signature]: ...
    @classmethod
    def with_instructions(cls, instructions: str) -> type[Signature]: ...
    @classmethod
    def append(cls, name: str, field: Any, type_: Any = None) -> type[Signature]: ...
    @classmethod
    def prepend(cls, name: str, field: Any, type_: Any = None) -> type[Signature]: ...
    @classmethod
    def delete(cls, name: str) -> type[Signature]: ...
    @classmethod
    def with_updated_fields(
        cls, name: str, type_: type | None = None, **kwargs: Any
    ) -> type[Signature]: ...
    @classmethod
    def dump_state(cls) -> dict[str, Any]: ...

def InputField(**kwargs: Any) -> Any: ...
def OutputField(**kwargs: Any) -> Any: ...

# Values

class Type(BaseModel): ...

class Image(Type):
    url: str
    def __init__(
        self, source: Any = None, /, *, download: Any = ..., verify: Any = ..., **data: Any
    ) -> None: ...

class Audio(Type):
    def __init__(self, *args: Any, **data: Any) -> None: ...

class File(Type):
    def __init__(self, *args: Any, **data: Any) -> None: ...

Code: Any  # a class whose brackets take a language

class ToolCalls(Type):
    class ToolCall(Type):
        id: str | None
        name: str
        args: dict[str, Any]

    tool_calls: list[ToolCall]
    tool_call_results: ToolCallResults | None

class ToolCallResults(BaseModel):
    class ToolCallResult(BaseModel):
        value: Any

    tool_call_results: list[ToolCallResult]

class Tool(Type):
    func: Callable[..., Any]
    name: str | None
    desc: str | None
    args: dict[str, Any] | None
    arg_types: dict[str, Any] | None
    def __init__(
        self,
        func: Callable[..., Any],
        name: str | None = None,
        desc: str | None = None,
        args: dict[str, Any] | None = None,
        arg_types: dict[str, Any] | None = None,
        arg_desc: dict[str, str] | None = None,
    ) -> None: ...
    def format_as_litellm_function_call(self) -> dict[str, Any]: ...
    def __call__(self, **kwargs: Any) -> Any: ...
    async def acall(self, **kwargs: Any) -> Any: ...

class Reasoning(Type): ...

class History(BaseModel):
    messages: list[dict[str, Any]]

class Example:
    def __init__(self, base: Any = None, **kwargs: Any) -> None: ...
    def __getattr__(self, key: str) -> Any: ...
    def __setattr__(self, key: str, value: Any) -> None: ...
    def __getitem__(self, key: str) -> Any: ...
    def __setitem__(self, key: str, value: Any) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def items(self, include_dspy: bool = False) -> list[tuple[str, Any]]: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def with_inputs(self, *keys: str) -> Self: ...

class Prediction(Example):
    def set_lm_usage(self, value: dict[str, dict[str, Any]] | None) -> None: ...

# Programs

class Module(metaclass=ProgramMeta):
    callbacks: list[Any]
    history: list[Any]
    _compiled: bool
    def __init__(self, callbacks: list[BaseCallback] | None = None) -> None: ...
    def __getstate__(self) -> dict[str, Any]: ...
    def __setstate__(self, state: dict[str, Any]) -> None: ...
    # DSPy says Prediction, and returns whatever the program's own `forward` returns.
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    async def acall(self, *args: Any, **kwargs: Any) -> Any: ...
    def named_parameters(self) -> list[tuple[str, Any]]: ...
    def predictors(self) -> list[Predict]: ...
    def named_predictors(self) -> list[tuple[str, Predict]]: ...
    def set_lm(self, lm: BaseLM) -> None: ...
    def get_lm(self) -> Any: ...
    def map_named_predictors(self, func: Callable[[Predict], Predict]) -> Self: ...
    def deepcopy(self) -> Self: ...
    def reset_copy(self) -> Self: ...
    def batch(
        self,
        examples: list[Example],
        num_threads: int | None = None,
        max_errors: int | None = None,
        return_failed_examples: bool = False,
        provide_traceback: bool | None = None,
        disable_progress_bar: bool = False,
        timeout: int = 120,
        straggler_limit: int = 3,
    ) -> Any: ...
    def dump_state(self, json_mode: bool = True) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Any: ...
    def save(
        self,
        path: str | PathLike[str],
        save_program: bool = False,
        modules_to_serialize: list[Any] | None = None,
    ) -> None: ...
    def load(
        self,
        path: str | PathLike[str],
        allow_pickle: bool = False,
        allow_unsafe_lm_state: bool = False,
    ) -> None: ...

class Predict(Module):
    def forward(self, **kwargs: Any) -> Any: ...
    stage: str
    signature: type[Signature]
    demos: list[Any]
    config: dict[str, Any]
    lm: BaseLM | None
    def __init__(
        self,
        signature: str | type[Signature],
        callbacks: list[BaseCallback] | None = None,
        **config: Any,
    ) -> None: ...

class ChainOfThought(Module):
    predict: Predict
    def __init__(
        self,
        signature: str | type[Signature],
        rationale_field: FieldInfo | None = None,
        rationale_field_type: type = ...,
        **config: Any,
    ) -> None: ...

class ReAct(Module):
    def __init__(
        self,
        signature: str | type[Signature],
        tools: Sequence[Callable[..., Any] | Tool],
        max_iters: int = 20,
    ) -> None: ...
    async def aforward(self, **input_args: Any) -> Any: ...

class BestOfN(Module):
    def __init__(
        self,
        module: Module,
        N: int,
        reward_fn: Callable[[dict[str, Any], Prediction], float],
        threshold: float,
        fail_count: int | None = None,
    ) -> None: ...

class ReActV2(Module):
    def __init__(
        self,
        signature: str | type[Signature],
        tools: Sequence[Callable[..., Any] | Tool],
        max_iters: int = 20,
    ) -> None: ...

class CodeAct(ReAct):
    def __init__(
        self,
        signature: str | type[Signature],
        tools: list[Callable[..., Any]],
        max_iters: int = 5,
        interpreter_factory: Callable[[], Any] = ...,
    ) -> None: ...

class ProgramOfThought(Module):
    def __init__(
        self,
        signature: str | type[Signature],
        max_iters: int = 3,
        interpreter_factory: Callable[[], Any] = ...,
    ) -> None: ...

class RLM(Module):
    def __init__(
        self,
        signature: str | type[Signature],
        max_iters: int = 20,
        max_llm_calls: int = 50,
        max_output_chars: int = 10_000,
        verbose: bool = False,
        tools: list[Callable[..., Any]] | None = None,
        sub_lm: LM | None = None,
        interpreter_factory: Callable[[], Any] = ...,
    ) -> None: ...

class Flex(Module):
    def __init__(
        self,
        signature: Any,
        *,
        tools: list[Any] | None = None,
        interpreter_factory: Callable[[], Any] = ...,
        max_predictor_calls: int | None = 100,
    ) -> None: ...

class KNN:
    def __init__(self, k: int, trainset: list[Example], vectorizer: Embedder) -> None: ...
    def __call__(self, **kwargs: Any) -> list[Example]: ...

class LocalInterpreter:
    def __init__(
        self,
        tools: dict[str, Callable[..., Any]] | None = None,
        output_fields: list[dict[str, Any]] | None = None,
        *,
        execution_timeout: float | None = None,
        callbacks: list[BaseCallback] | None = None,
    ) -> None: ...

class MultiChainComparison(Module):
    def __init__(
        self,
        signature: str | type[Signature],
        M: int = 3,
        temperature: float = 0.7,
        **config: Any,
    ) -> None: ...

class Refine(Module):
    def __init__(
        self,
        module: Module,
        N: int,
        reward_fn: Callable[[dict[str, Any], Prediction], float],
        threshold: float,
        fail_count: int | None = None,
    ) -> None: ...

class Parallel:
    def __init__(
        self,
        num_threads: int | None = None,
        max_errors: int | None = None,
        access_examples: bool = True,
        return_failed_examples: bool = False,
        provide_traceback: bool | None = None,
        disable_progress_bar: bool = False,
        timeout: int = 120,
        straggler_limit: int = 3,
    ) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

def load(path: str | PathLike[str], allow_pickle: bool = False) -> Any: ...

# Adapters

class Adapter:
    def __init__(
        self,
        callbacks: list[BaseCallback] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: list[type[Type]] | None = None,
        parallel_tool_calls: bool | None = None,
    ) -> None: ...
    def __call__(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]: ...
    async def acall(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]: ...
    def format(
        self, signature: type[Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]: ...
    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]: ...
    def format_task_description(self, signature: type[Signature]) -> str: ...
    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str: ...
    def format_assistant_message_content(
        self,
        signature: type[Signature],
        outputs: dict[str, Any],
        missing_field_message: str | None = None,
    ) -> str: ...
    def format_conversation_history(
        self, signature: type[Signature], history_field_name: str, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]: ...

class ChatAdapter(Adapter):
    def __init__(
        self,
        callbacks: list[BaseCallback] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: list[type[Type]] | None = None,
        use_json_adapter_fallback: bool = True,
        parallel_tool_calls: bool | None = None,
    ) -> None: ...
    def user_message_output_requirements(self, signature: type[Signature]) -> str: ...
    def _make_json_adapter_fallback(self) -> Adapter: ...

class JSONAdapter(ChatAdapter):
    def __init__(
        self,
        callbacks: list[BaseCallback] | None = None,
        use_native_function_calling: bool = True,
        parallel_tool_calls: bool | None = None,
    ) -> None: ...

class XMLAdapter(ChatAdapter): ...

class TwoStepAdapter(Adapter):
    def __init__(self, extraction_model: BaseLM, **kwargs: Any) -> None: ...

# Language models

class BaseLM:
    history: list[dict[str, Any]]
    kwargs: dict[str, Any]
    def __init__(
        self,
        model: str,
        model_type: Literal["chat", "text", "responses"] = "chat",
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = True,
        callbacks: list[BaseCallback] | None = None,
        num_retries: int = 3,
        **kwargs: Any,
    ) -> None: ...
    def __call__(
        self,
        prompt: str | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any: ...
    def copy(self, **kwargs: Any) -> Any: ...
    def update_history(self, entry: dict[str, Any]) -> None: ...

class LM(BaseLM):
    def __init__(
        self,
        model: str,
        model_type: Literal["chat", "text", "responses"] = "chat",
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = True,
        callbacks: list[BaseCallback] | None = None,
        num_retries: int = 3,
        provider: Any = None,
        finetuning_model: str | None = None,
        launch_kwargs: dict[str, Any] | None = None,
        train_kwargs: dict[str, Any] | None = None,
        use_developer_role: bool = False,
        engine: Any = "auto",
        async_engine: Any = None,
        prompt_cache: Any = None,
        **kwargs: Any,
    ) -> None: ...
    @property
    def engine(self) -> Any: ...

class Embedder:
    def __init__(
        self,
        model: str | Callable[..., Any],
        batch_size: int = 200,
        caching: bool = True,
        **kwargs: Any,
    ) -> None: ...

# Optimizers

class BootstrapFewShot:
    def __init__(
        self,
        metric: Callable[..., Any] | None = None,
        metric_threshold: float | None = None,
        teacher_settings: dict[str, Any] | None = None,
        max_bootstrapped_demos: int = 4,
        max_labeled_demos: int = 16,
        max_rounds: int = 1,
        max_errors: int | None = None,
    ) -> None: ...
    def compile(
        self, student: Module, *, teacher: Module | None = None, trainset: list[Example]
    ) -> Any: ...

class LabeledFewShot:
    def __init__(self, k: int = 16) -> None: ...
    def compile(self, student: Module, *, trainset: list[Example], sample: bool = True) -> Any: ...

class COPRO:
    def __init__(
        self,
        prompt_model: BaseLM | None = None,
        metric: Callable[..., Any] | None = None,
        breadth: int = 10,
        depth: int = 3,
        init_temperature: float = 1.4,
        track_stats: bool = False,
        **_kwargs: Any,
    ) -> None: ...
    def compile(
        self,
        student: Module,
        *,
        trainset: list[Example],
        eval_kwargs: dict[str, Any] | None = None,
    ) -> Any: ...

# Errors

class LMError(Exception): ...
