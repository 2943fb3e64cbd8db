"""Prompt drift: stored conversations rendered under the present DSPy, adapter and program.

    drift_baseline("prompts.json", session)            # once, and when a change is wanted
    sys.exit(bool(drift(session, None, "prompts.json")))    # in CI; no model is called

A turn keeps no prompts. What it keeps is enough to render them again: what went in, what its call
saw, and what came out, which stands in for the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy

from dspy_session.core.options import SessionOptions
from dspy_session.errors import CallError
from dspy_session.files import AnyPath
from dspy_session.program.fingerprints import fingerprints
from dspy_session.program.prompts import Prompter
from dspy_session.program.run import Told
from dspy_session.program.settings import call_settings
from dspy_session.program.stand_ins import Sent
from dspy_session.prompt_changes import Drift, compared
from dspy_session.prompt_values import Prompt, Prompts, TurnPrompts
from dspy_session.setups import Recorded, setup_for

__all__ = ["drift", "drift_baseline", "render_prompts"]


def render_prompts(
    conversations: Recorded | Iterable[Recorded],
    program: dspy.Module | None = None,
    *,
    adapter: dspy.Adapter | None = None,
    lm: dspy.BaseLM | None = None,
    instructions: Told = None,
    options: SessionOptions | None = None,
) -> Prompts:
    """Render the prompts of recorded conversations, as they would be sent now; none is sent.

    The program runs on each turn, with the recorded outputs in the place of what a model says and
    of what the tools of an agent return. What it does beside that, it does.

    Args:
        conversations: A session or a state, or several.
        program: The program; None for the sessions' own. A copy of it runs.
        adapter: The adapter; None for the active one.
        lm: The LM whose abilities adapters ask for (such as function calling); None for the active
            one. It is not called.
        instructions: What every predictor is told; None for what each conversation says.
        options: How the conversations are held; None for what each recorded call saw.

    Raises:
        CallError: Something was given that cannot be it.
        OptionError: `instructions` are none.
        ModuleTypeError: `program` is not a `dspy.Module`.
        HistoryError: No conversation can reach the program.

    Example:
        >>> from dspy_session import sessionify
        >>> session = sessionify(dspy.Predict("question -> answer"), session_id="ada")
        >>> turn = session.add_turn({"question": "Hi"}, {"answer": "Hello."})
        >>> prompts = render_prompts(session)
        >>> [message["role"] for message in prompts.turns[0].prompts[0].messages]
        ['system', 'user']
    """
    if not isinstance(adapter, dspy.Adapter | None):
        raise CallError(f"adapter must be a dspy.Adapter, not {type(adapter).__name__}.")
    call_settings(lm=lm)  # which refuses what is none
    one = isinstance(conversations, Recorded) or not isinstance(conversations, Iterable)
    given: list[Recorded] = [conversations] if one else list(conversations)  # type: ignore[list-item, arg-type]
    turns: list[TurnPrompts] = []
    digests: dict[str, str] = {}
    names: set[str] = set()
    messages: dict[Any, dict[str, Any]] = {}
    prompters: dict[Any, Prompter] = {}
    for number, conversation in enumerate(given):
        setup = setup_for(conversation, program, options, instructions)
        key = (id(setup.program), setup.options, id(setup.instructions), setup.as_seen)
        prompter = prompters.get(key)
        if prompter is None:
            prompter = prompters[key] = Prompter(
                setup.program,
                setup.options,
                as_seen=setup.as_seen,
                adapter=adapter,
                lm=lm,
                instructions=setup.instructions,
            )
            digests |= fingerprints(setup.program)
        name = setup.state.id or str(number)
        while name in names:
            name = f"{name} ({number})"
        names.add(name)
        for turn in setup.state:
            if not turn.erased:
                sent, why = prompter.prompts_of(setup.state, turn)
                rendered = tuple(_prompt(one, messages) for one in sent)
                turns.append(TurnPrompts(name, turn.index, rendered, why))
    active = adapter or dspy.settings.adapter or dspy.ChatAdapter()
    return Prompts(tuple(turns), digests, type(active).__name__, version("dspy"))


def drift_baseline(
    path: AnyPath,
    conversations: Recorded | Iterable[Recorded],
    program: dspy.Module | None = None,
    **keywords: Any,
) -> Prompts:
    """Render the prompts of recorded conversations, and write them to a file for `drift`.

    Args:
        path: The file; the folder must exist.
        conversations: As in `render_prompts`.
        program: As in `render_prompts`.
        **keywords: As in `render_prompts`.

    Raises:
        SessionError: As `render_prompts`; nothing is written.
        OSError: The file cannot be written.
    """
    prompts = render_prompts(conversations, program, **keywords)
    prompts.save(path)
    return prompts


def drift(
    conversations: Recorded | Iterable[Recorded],
    program: dspy.Module | None,
    baseline: Prompts | Mapping[str, Any] | AnyPath,
    **keywords: Any,
) -> Drift:
    """Compare the prompts of recorded conversations with a baseline; no model is called.

    Args:
        conversations: As in `render_prompts`.
        program: As in `render_prompts`.
        baseline: What `render_prompts` returned, its `to_dict`, or a file that `drift_baseline`
            wrote.
        **keywords: As in `render_prompts`.

    Returns:
        The differences: false, and of length 0, if there are none.

    Raises:
        SessionError: As `render_prompts`; also a `FormatError` for a file of another kind.
        OSError: The baseline cannot be read.

    Example:
        >>> from dspy_session import sessionify
        >>> session = sessionify(dspy.Predict("question -> answer"))
        >>> turn = session.add_turn({"question": "Hi"}, {"answer": "Hello."})
        >>> baseline = render_prompts(session)
        >>> bool(drift(session, None, baseline))
        False
        >>> bool(drift(session, None, baseline, adapter=dspy.JSONAdapter()))
        True
    """
    return compared(_read(baseline), render_prompts(conversations, program, **keywords))


def _prompt(sent: Sent, known: dict[Any, dict[str, Any]]) -> Prompt:
    """A prompt whose messages are those of the prompts before it, where they are the same."""
    messages = tuple(known.setdefault(_key(message), message) for message in sent.messages)
    return Prompt(sent.predictor, messages, sent.settings, sent.placeholders)


def _key(message: dict[str, Any]) -> Any:
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):
        return message.get("role"), content
    return json.dumps(message)


def _read(baseline: Prompts | Mapping[str, Any] | AnyPath) -> Prompts:
    if isinstance(baseline, Prompts):
        return baseline
    if isinstance(baseline, Mapping):
        return Prompts.from_dict(baseline)
    if not Path(baseline).exists():
        raise FileNotFoundError(
            f"There is no baseline {str(baseline)!r} to compare with. Write one first: "
            "drift_baseline(path, conversations, program)."
        )
    return Prompts.load(baseline)
