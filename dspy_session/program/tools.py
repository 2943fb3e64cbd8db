"""Session tools: what models are told of them, and how a running turn hands them its data.

A tool that takes `session: SessionData` is handed the data of the turn that runs, wherever DSPy
calls it: in agents' loops, in DSPy's threads, awaited. What a model is told of a tool, DSPy reads
from its signature as soon as an agent is made, so a session tool has a signature without that
parameter.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, overload

import dspy
import msgspec

from dspy_session.core.session_data import SessionData
from dspy_session.errors import ToolError
from dspy_session.program.approvals import adecided, decided
from dspy_session.program.current import running_turn
from dspy_session.program.frame import Frame

__all__ = ["refuse_misplaced_tools", "session_tool"]


@overload
def session_tool(
    tool: dspy.Tool, /, *, approval: bool = ..., name: str | None = ..., desc: str | None = ...
) -> dspy.Tool: ...
@overload
def session_tool(
    tool: Callable[..., Any],
    /,
    *,
    approval: bool = ...,
    name: str | None = ...,
    desc: str | None = ...,
) -> Callable[..., Any]: ...
@overload
def session_tool(
    *, approval: bool = ..., name: str | None = ..., desc: str | None = ...
) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...
def session_tool(
    tool: Any = None,
    /,
    *,
    approval: bool = False,
    name: str | None = None,
    desc: str | None = None,
) -> Any:
    """Make a tool that is handed the session data of the running turn.

    The parameter that is annotated `SessionData` is filled in by the turn; no model sees it. Use it
    as `@session_tool` or `@session_tool(...)`, on functions and methods, plain or async, or call it
    with any callable or `dspy.Tool`.

    Args:
        tool: The tool.
        approval: Whether each call needs approval, see `ApprovalRequest`. Such a tool need not take
            session data.
        name: What models know the tool by; its own name if None.
        desc: What models are told of it; its docstring if None.

    Returns:
        A function, or a `dspy.Tool` for one, with the signature that models are to see. What was
        given stands in `__wrapped__`, to be called in tests of your own.

    Raises:
        ToolError: It cannot be a session tool. When called: no turn runs.

    Example:
        >>> @session_tool
        ... def remember(name: str, session: SessionData) -> str:
        ...     "Note the user's name."
        ...     session["name"] = name
        ...     return "Noted."
        >>> list(dspy.Tool(remember).args)
        ['name']
    """
    if tool is None:
        return functools.partial(session_tool, approval=approval, name=name, desc=desc)
    if not isinstance(tool, dspy.Tool):
        return _session_function(tool, approval, name, desc)
    function = _session_function(tool.func, approval, name or tool.name, desc or tool.desc)
    shown = inspect.signature(function).parameters
    hidden = inspect.signature(tool.func).parameters.keys() - shown.keys()

    def seen(told: dict[str, Any] | None) -> dict[str, Any]:
        return {name: value for name, value in (told or {}).items() if name not in hidden}

    return tool.model_copy(
        update={
            "func": function,
            "name": function.__name__,
            "desc": function.__doc__,
            "args": seen(tool.args),
            "arg_types": seen(tool.arg_types),
        }
    )


class _Handing(msgspec.Struct, frozen=True):
    """How a tool is called: with what the model gives, and with what the turn does.

    Attributes:
        name: The tool's name.
        private: Its whole signature.
        public: The signature without the parameter of the session data.
        parameter: That parameter's name; None if it takes none.
        approval: Whether each call needs approval.
    """

    name: str
    private: inspect.Signature
    public: inspect.Signature
    parameter: str | None
    approval: bool

    def to(self, args: Any, kwargs: Any) -> tuple[Frame, inspect.BoundArguments]:
        """Return the running turn, and the arguments that the call has in it."""
        frame = running_turn(f"The session tool {self.name!r}")
        if self.parameter in kwargs:  # a tool with **others would take it for the turn's
            raise TypeError(f"{self.name}() got an unexpected argument {self.parameter!r}")
        bound = self.public.bind(*args, **kwargs)
        if self.parameter is not None:
            arguments = {**bound.arguments, self.parameter: frame.session_data}
            bound = inspect.BoundArguments(self.private, arguments)
        return frame, bound

    def told(self, bound: inspect.BoundArguments) -> dict[str, Any]:
        """Return what a call says to whoever is to approve it: every argument, by name."""
        given = {n: v for n, v in bound.arguments.items() if n != self.parameter}
        whole = inspect.BoundArguments(self.public, given)
        whole.apply_defaults()
        told: dict[str, Any] = {}
        for number, (name, parameter) in enumerate(self.public.parameters.items()):
            if parameter.kind is parameter.VAR_KEYWORD:
                told.update(whole.arguments[name])
            elif number or name not in ("self", "cls"):  # whose method it is, is no argument
                told[name] = whole.arguments[name]
        return told


_MARK: Final = "__dspy_session_tool__"


def _session_function(
    function: Callable[..., Any], approval: bool, name: str | None, desc: str | None
) -> Callable[..., Any]:
    if not (isinstance(name, str | None) and isinstance(desc, str | None)):
        raise ToolError(
            f"A tool's name and description are text, not name={name!r} and desc={desc!r}."
        )
    source, private = _source(function), _signature(function)
    annotations = _annotations(source)
    parameter = _session_parameter(private, annotations, _called(function))
    if parameter is None and not approval:
        raise ToolError(
            f"{_called(function)} has no parameter for the session data, so there is nothing for "
            "session_tool to hand it: add one, session: SessionData. A tool without session data "
            "needs session_tool only to ask for approval: session_tool(approval=True)."
        )
    shown = [p for p in private.parameters.values() if p.name != parameter]
    handing = _Handing(
        name=name or _called(function),
        private=private,
        public=private.replace(parameters=shown),
        parameter=parameter,
        approval=approval,
    )
    tool = _async_tool(function, handing) if _awaits(function) else _sync_tool(function, handing)
    functools.update_wrapper(tool, function)
    tool.__name__ = handing.name
    tool.__doc__ = desc or source.__doc__
    tool.__annotations__ = {k: v for k, v in annotations.items() if k != parameter}
    tool.__signature__ = handing.public  # type: ignore[attr-defined]
    setattr(tool, _MARK, True)
    return tool


def _sync_tool(function: Callable[..., Any], handing: _Handing) -> Callable[..., Any]:
    def tool(*args: Any, **kwargs: Any) -> Any:
        frame, bound = handing.to(args, kwargs)
        if not handing.approval:
            return function(*bound.args, **bound.kwargs)
        asks = frame, handing.name, handing.told(bound)

        def finished(refusal: str | None) -> Any:
            return function(*bound.args, **bound.kwargs) if refusal is None else refusal

        async def later() -> Any:
            return finished(await adecided(*asks))

        return later() if _is_awaited() else finished(decided(*asks))

    return tool


def _async_tool(function: Callable[..., Any], handing: _Handing) -> Callable[..., Any]:
    async def tool(*args: Any, **kwargs: Any) -> Any:
        frame, bound = handing.to(args, kwargs)
        if handing.approval:
            refusal = await adecided(frame, handing.name, handing.told(bound))
            if refusal is not None:
                return refusal
        return await function(*bound.args, **bound.kwargs)

    return tool


_ACALL: Final = inspect.unwrap(dspy.Tool.acall).__code__


def _is_awaited() -> bool:
    """Whether the tool that asks was called by DSPy's way to await tools, plain ones included."""
    return sys._getframe(2).f_code is _ACALL


# --- what a tool takes ----------------------------------------------------------------------------


def _called(function: Callable[..., Any]) -> str:
    inner = _source(function)
    return getattr(inner, "__name__", None) or type(inner).__name__


def _source(function: Callable[..., Any]) -> Any:
    """The function behind a callable: what has its name, its text and its annotations."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _awaits(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004  # what it is, not whether it is
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if isinstance(function, classmethod | staticmethod):
        raise ToolError(
            f"session_tool belongs under @{type(function).__name__}, next to the function."
        )
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ToolError(
            f"session_tool takes a function, another callable or a dspy.Tool, not {function!r}, "
            f"which does not say what it takes ({error})."
        ) from error


def _annotations(source: Any) -> dict[str, Any]:
    """The annotations of a callable, evaluated where they can be."""
    function = source if inspect.isroutine(source) else type(source).__call__
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001  # a user's code, with names that only type checkers may see
        return dict(getattr(function, "__annotations__", {}))


def _session_parameter(
    signature: inspect.Signature, annotations: Mapping[str, Any], name: str
) -> str | None:
    """The name of the parameter that takes the session data, or None."""
    found = [n for n in signature.parameters if _takes_data(annotations.get(n))]
    if len(found) > 1:
        raise ToolError(
            f"{name} has more than one parameter for the session data: {', '.join(found)}. There "
            "is one session; keep one of them."
        )
    if not found and "session" in signature.parameters:
        given = annotations.get("session")
        what = "has no annotation" if given is None else f"is annotated {given!r}"
        raise ToolError(
            f"The parameter 'session' of {name} {what}. Annotate it SessionData, which is what a "
            "session tool is handed: session: SessionData."
        )
    return next(iter(found), None)


def _takes_data(annotation: Any) -> bool:
    """Whether an annotation mentions `SessionData`; it may be text that cannot be evaluated."""
    if isinstance(annotation, str):
        return re.search(r"\bSessionData\b", annotation) is not None
    return annotation is SessionData or any(map(_takes_data, typing.get_args(annotation)))


# --- where no session tool can work ---------------------------------------------------------------


def refuse_misplaced_tools(path: str, module: dspy.Module) -> None:
    """Raise if a part of a program has a tool to which nobody can hand its session data.

    Args:
        path: The module's path in the program.
        module: The module.

    Raises:
        ToolError: A tool takes session data and is no session tool, or a CodeAct has one, whose
            tools run in another process.
    """
    if not isinstance(module, _HAVE_TOOLS):
        return
    where = f"the {type(module).__name__} {path!r}"
    for name, tool in getattr(module, "tools", {}).items():
        if any(map(_takes_data, (tool.arg_types or {}).values())):
            raise ToolError(
                f"The tool {name!r} of {where} takes session data, which its model would have to "
                "make up. Decorate the function with @session_tool, and make the agent of what "
                "that returns."
            )
        if isinstance(module, dspy.CodeAct) and getattr(tool.func, _MARK, False):
            raise ToolError(
                f"{name!r} is a session tool, and {where} runs its tools in another process, where "
                "there is no session. Use dspy.ReAct, dspy.ReActV2 or dspy.RLM, whose tools run in "
                "this one; or let forward read current_data() and pass plain values on."
            )


_HAVE_TOOLS: Final = (dspy.ReAct, dspy.ReActV2, dspy.RLM)  # a CodeAct is a ReAct
