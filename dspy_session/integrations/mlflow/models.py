"""A session as an MLflow model: the program as MLflow keeps it, and the conversation beside it.

Rules:

- The conversation is JSON. To load it into a program that the caller brings, nothing is unpickled.
- The program is saved and loaded by MLflow, with DSPy's settings, by way of cloudpickle: to load it
  is to run code of whoever made the model. Of its LMs neither keys nor logs of calls are written.
- Served, a model answers each request from where the conversation was, and records nothing.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import dspy

from dspy_session.errors import FormatError
from dspy_session.files import AnyPath
from dspy_session.integrations.mlflow.contents import STATE_FILE, check_session, state_text
from dspy_session.integrations.mlflow.tracking import require_mlflow
from dspy_session.program.anatomy import check_module, walk
from dspy_session.session import Session

__all__ = ["load_model", "log_model"]

_FLAVOUR: Final = "dspy_session"


def log_model(
    session: Session, artifact_path: str | None = None, *, name: str | None = None, **keywords: Any
) -> Any:
    """Log a session to MLflow as a model: its program, and the conversation inside it.

    Args:
        session: The session. What it keeps private or redacts is not in the model.
        artifact_path: The model's name, as MLflow 2 called it.
        name: The model's name; `"session"` if neither is given.
        **keywords: Further keywords of `mlflow.dspy.log_model`, such as `registered_model_name`.
            Requirements are not guessed, which would run the model: unless you say them, they are
            DSPy and this package.

    Returns:
        MLflow's `ModelInfo`; its `model_uri` is for `load_model`.

    Raises:
        CallError: It is no session.
        OptionError: MLflow is not installed, or too old.
        ValueCodecError: A field holds a value of a type without written form; nothing is logged.
        MlflowException: MLflow refused.
    """
    check_session("log_model", session)
    require_mlflow()
    from mlflow.models import Model  # noqa: PLC0415  # an extra

    if not {"conda_env", "pip_requirements"} & keywords.keys():
        keywords["pip_requirements"] = _requirements(keywords.pop("extra_pip_requirements", None))
    flavour = _Flavour(session)
    return Model.log(None, flavor=flavour, name=name or artifact_path or "session", **keywords)


def load_model(model_uri: AnyPath, module: dspy.Module | None = None, **keywords: Any) -> Session:
    """Return the session that a model holds, to go on with.

    With `module`, the conversation is read into it and nothing else of the model is touched.
    Without, the program comes from the model, through `mlflow.dspy.load_model`: that unpickles it,
    which runs code of whoever made the model, and sets DSPy's settings to those of the time.

    Args:
        model_uri: `runs:/<run id>/<name>`, `models:/<name>/<version>`, any other address that
            MLflow knows, or a path.
        module: The program to go on with.
        **keywords: As for `Session.load_from`, such as `on_turn`.

    Raises:
        OptionError: MLflow is not installed, or too old.
        ModuleTypeError: `module` is no `dspy.Module`.
        FormatError: The model holds no conversation, or one that cannot be read.
        MlflowException: MLflow has no such model, or refused.
    """
    require_mlflow()
    import mlflow.artifacts  # noqa: PLC0415  # an extra

    if module is not None:
        check_module(module)
    path = mlflow.artifacts.download_artifacts(artifact_uri=os.fspath(model_uri))
    state = Path(path, STATE_FILE)
    if not state.is_file():
        raise FormatError(
            f"The model {os.fspath(model_uri)!r} holds no conversation: there is no {STATE_FILE} "
            "in it. Log sessions with dspy_session.integrations.mlflow.log_model."
        )
    if module is None:
        import mlflow.dspy  # noqa: PLC0415  # an extra

        module = mlflow.dspy.load_model(path)
    return Session.load_from(state, module, **keywords)


def _requirements(more: Sequence[str] | str | None) -> list[str]:
    """What a model needs, and what the caller says that it needs, too: a list, or a file."""
    own = [f"{name}=={version(name)}" for name in ("dspy", "dspy-session")]
    return [*own, f"-r {more}"] if isinstance(more, str) else [*own, *(more or ())]


class _Flavour:
    """What `Model.log` asks to write a model: MLflow's dspy flavour, and the conversation."""

    __name__ = _FLAVOUR

    def __init__(self, session: Session) -> None:
        self._program, self._state = _bare_program(session.module), state_text(session)

    def save_model(self, path: str, mlflow_model: Any, **keywords: Any) -> None:
        """Write the model to a new folder."""
        import mlflow.dspy  # noqa: PLC0415  # an extra

        lm = dspy.settings.lm
        with dspy.context(lm=_bare_lm(lm) if isinstance(lm, dspy.BaseLM) else lm):
            mlflow.dspy.save_model(self._program, path, mlflow_model=mlflow_model, **keywords)
        Path(path, STATE_FILE).write_text(self._state, "utf-8")
        mlflow_model.add_flavor(_FLAVOUR, version=version("dspy-session"))
        mlflow_model.flavors["python_function"]["loader_module"] = __name__
        mlflow_model.save(os.path.join(path, "MLmodel"))


def _bare_program(program: dspy.Module) -> dspy.Module:
    """A copy of a program whose LMs hold nothing that is to stay here."""
    held = (value for _, module in walk(program) for value in vars(module).values())
    bare = {id(lm): _bare_lm(lm) for lm in held if isinstance(lm, dspy.BaseLM)}
    return copy.deepcopy(program, bare)  # which takes them for copies that it has made already


def _bare_lm(lm: dspy.BaseLM) -> dspy.BaseLM:
    """A copy of an LM without the log of its calls, which holds prompts, and without its key."""
    bare: dspy.BaseLM = lm.copy(api_key=None)
    return bare


def _load_pyfunc(path: str) -> Any:
    """Return what `mlflow.pyfunc` serves: the program, answering from the conversation."""
    import mlflow.dspy  # noqa: PLC0415  # an extra

    served = mlflow.dspy._load_pyfunc(path)
    served.model = Session.load_from(Path(path, STATE_FILE), served.model).frozen()
    return served
