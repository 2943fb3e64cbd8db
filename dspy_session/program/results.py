"""What a turn remembers of what went in and of what came back: inputs, outputs, run details.

One rule tells outputs from details. A module that answers a signature of its own has the outputs of
that signature; what its prediction holds beside them are details of its run: the `trajectory` of a
ReAct and the `reasoning` of its last step, the `history` of a ReActV2, the `final_reasoning` of an
RLM. So they are for the program, and they stay so for a program that hands such a value on under
its name. Everything else that a program returns is an output.

Of a history only what this run added to it is kept: the rest is the conversation itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dspy
from dspy.utils.callback import BaseCallback

from dspy_session.program.anatomy import is_agent, own_signature
from dspy_session.program.frame import Frame
from dspy_session.program.own_history import seen_part

__all__ = ["ResultWatch", "recorded_inputs", "results_of"]

# Arguments that DSPy's agents take beside the inputs of their signature.
_RUN_ARGUMENTS: Final = frozenset({"max_iters", "interpreter_factory"})


def recorded_inputs(program: dspy.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that are inputs, without those that only steer an agent's run.

    Args:
        program: The program.
        arguments: What it is to be called with.
    """
    signature = own_signature(program)
    if signature is None or not type(program).__module__.startswith("dspy."):
        return dict(arguments)
    steering = _RUN_ARGUMENTS - signature.input_fields.keys()
    return {name: value for name, value in arguments.items() if name not in steering}


def results_of(returned: Any, frame: Frame) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outputs and the details of a finished turn.

    Args:
        returned: What the program returned. The outputs are the fields of a Prediction that are no
            details; any other value is an output named `output`.
        frame: The turn.
    """
    if not isinstance(returned, dspy.Example):
        return {"output": returned}, {}
    _note(frame, frame.program, returned)
    outputs: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for name, value in returned.items():
        noted = any(value is known for known in frame.draft.beside.get(name, ()))
        if not noted and name != frame.options.history_field:
            outputs[name] = value
        elif not isinstance(value, dspy.History):
            details[name] = value
        elif added := value.messages[seen_part(value, frame) or 0 :]:
            details[name] = added
    return outputs, details


class ResultWatch(BaseCallback):
    """Notes what the agents inside a program leave beside their outputs.

    Args:
        frame: The turn in which the program runs.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._running: dict[str, dspy.Module] = {}

    # DSPy calls both by keyword, so an argument that is of no use here is named all the same.
    def on_module_start(
        self,
        call_id: str,
        instance: Any,
        inputs: dict[str, Any],  # noqa: ARG002
    ) -> None:
        """Remember which agent begins."""
        if is_agent(instance):
            self._running[call_id] = instance

    def on_module_end(
        self,
        call_id: str,
        outputs: Any,
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        """Note what it leaves."""
        agent = self._running.pop(call_id, None)
        if agent is not None:
            _note(self._frame, agent, outputs)


def _note(frame: Frame, module: dspy.Module, returned: Any) -> None:
    """Note what a module's prediction holds beside the outputs of the signature that it answers."""
    if isinstance(returned, dspy.Prediction):
        for name, value in _beside(module, returned):
            frame.draft.beside.setdefault(name, []).append(value)


def _beside(module: dspy.Module, prediction: dspy.Prediction) -> list[tuple[str, Any]]:
    fields, signature = prediction.items(), own_signature(module)
    if not is_agent(module):  # what a predictor was answered, such as log probabilities
        completions = prediction.completions
        signature = None if completions is None else completions.signature
        fields = [item for item in fields if completions is not None and item[0] in completions]
    if signature is None or not all(name in prediction for name in signature.output_fields):
        return []
    return [(name, value) for name, value in fields if name not in signature.output_fields]
