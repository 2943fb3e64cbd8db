from typing import Any

from dspy.signatures.signature import SignatureMeta

class _DSPyError(Exception):
    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        model: str | None = None,
        provider: str | None = None,
        provider_code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None: ...

class LMTransportError(_DSPyError): ...
class LMUnexpectedError(_DSPyError): ...
class LMProviderError(_DSPyError): ...
class LMAuthError(LMProviderError): ...
class LMServerError(LMProviderError): ...
class LMRateLimitError(LMProviderError): ...
class LMInvalidRequestError(LMProviderError): ...

class LMStreamAssemblyError(_DSPyError):
    def __init__(
        self,
        message: str = "",
        *,
        partial: Any = None,
        part_index: int | None = None,
        **kwargs: Any,
    ) -> None: ...

class ContextWindowExceededError(LMInvalidRequestError):
    def __init__(
        self, *, model: str | None = None, message: str = "Context window exceeded", **kwargs: Any
    ) -> None: ...

class AdapterParseError(_DSPyError):
    def __init__(
        self,
        adapter_name: str,
        signature: SignatureMeta,
        lm_response: str,
        message: str | None = None,
        parsed_result: str | None = None,
    ) -> None: ...
