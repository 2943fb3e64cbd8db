"""A module around one program, which branches share until one of them changes it.

Whatever changes the program through a branch (`set_lm`, `load`, ...) gives that branch a copy of
its own first. Learned state goes in and out as the bare program's: the wrapper leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Self

import dspy

from dspy_session import codec
from dspy_session.core.options import CopyMode
from dspy_session.errors import FormatError
from dspy_session.files import AnyPath, is_conversation_file
from dspy_session.program.anatomy import copy_program

__all__ = ["Branch"]


class Branch(dspy.Module):
    """The part of a session that is the program; made by `Session`, not by hand.

    Attributes:
        module: The program.
    """

    module: dspy.Module

    def __init__(self, module: dspy.Module) -> None:
        super().__init__()
        self.module, self._shared = module, False

    def _share(self) -> Self:
        """Another branch over the same program."""
        self._shared = True
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.history, twin.callbacks = [], list(self.callbacks)
        twin._set_forward(vars(self).get("forward"))
        return twin

    def _set_program(self, module: dspy.Module) -> None:
        self.module, self._shared = module, False

    def _set_forward(self, replaced: Any) -> None:
        """Run what an optimizer put in the place of another branch's `forward`; None for one's own.

        Bound to the other branch, it would run there.
        """
        self.__dict__.pop("forward", None)
        if replaced is not None:
            function = getattr(replaced, "__func__", None)
            self.__dict__["forward"] = MethodType(function, self) if function else replaced

    def _own_program(self) -> None:
        """Give this branch its own copy of the program before changing it."""
        if self._shared:
            self._set_program(copy_program(self.module, CopyMode.DEEP))

    def set_lm(self, lm: dspy.BaseLM) -> None:
        """Set the LM of every predictor of this branch's program.

        Args:
            lm: The LM.
        """
        self._own_program()
        super().set_lm(lm)

    def map_named_predictors(self, func: Callable[[dspy.Predict], dspy.Predict]) -> Self:
        """Replace every predictor of this branch's program by what a function makes of it.

        Args:
            func: From the predictor to the new one.
        """
        self._own_program()
        super().map_named_predictors(func)
        return self

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Return the program's predictors under `module...`, also when the program is compiled."""
        if isinstance(self.module, dspy.Predict):
            return [("module", self.module)]
        return [(f"module.{name}", found) for name, found in self.module.named_parameters()]

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the program's learned state, as `module.dump_state()` does.

        It loads into the bare program and back. The conversation is not in it: see `save_state`.

        Args:
            json_mode: As in DSPy.
        """
        dumped: dict[str, Any] = self.module.dump_state(json_mode=json_mode)
        return dumped

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Load learned state into this branch's program.

        Args:
            state: What `dump_state` returned, of a session or of the bare program.
            allow_unsafe_lm_state: As in DSPy.

        Raises:
            FormatError: It is a conversation.
        """
        if codec.is_conversation(state):
            raise FormatError(_LOAD_HINT)
        self._own_program()
        self.module.load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def load(
        self, path: AnyPath, allow_pickle: bool = False, allow_unsafe_lm_state: bool = False
    ) -> None:
        """Load learned state, saved with `program.save(path)`, into this branch's program.

        Args:
            path: A file of a program's state.
            allow_pickle: As in DSPy.
            allow_unsafe_lm_state: As in DSPy.

        Raises:
            FormatError: It is a file of a conversation.
        """
        if is_conversation_file(path):
            raise FormatError(_LOAD_HINT)
        self._own_program()
        self.module.load(
            path, allow_pickle=allow_pickle, allow_unsafe_lm_state=allow_unsafe_lm_state
        )


_LOAD_HINT = (
    "This is a saved conversation, not a program's state. Open it with "
    "Session.load_from(path, module)."
)
