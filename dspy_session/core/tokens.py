"""How much of a prompt a conversation takes: an estimate in tokens, and when that is too much.

Rules:

- What is counted is what the next call is shown of the conversation: the seed, the window's turns
  without the fields that are hidden, and the session's instructions. What an adapter writes around
  them, and the program's own instructions and demos, are not the conversation's.
- A counter is any function from text to a number of tokens. Without one, characters are counted,
  at as many tokens per character as the language models of the latest turns reported; a quarter,
  if none did.
- An exchange never changes, so what it counts is kept for as long as both exchange and counter are.
- Nothing is measured before somebody asks, or sets `summarize_after_tokens`.

This module knows no tokenizer, nor how a conversation is rendered for a model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import islice
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, visible_window
from dspy_session.core.turn import Turn
from dspy_session.core.window import Exchange, View
from dspy_session.errors import OptionError

__all__ = [
    "TokenCounter",
    "checked_counter",
    "summary_due",
    "token_count",
    "tokens_per_character",
]

TokenCounter = Callable[[str], int]
"""From a text to the number of its tokens."""

_USUAL: Final = 0.25  # tokens per character, of English under the tokenizers of the last years
_CALIBRATED_BY: Final = 8  # turns at most: the cost of a look back is the same at any length
_PROMPT_TOKENS: Final = ("prompt_tokens", "input_tokens")


def token_count(
    state: SessionState, options: SessionOptions, counter: TokenCounter | None = None
) -> int:
    """Return about how many tokens the next call will be shown of a conversation.

    Args:
        state: The conversation.
        options: The session's options: they say what is shown.
        counter: Counts the tokens of a text; None for characters, calibrated by what language
            models reported.

    Raises:
        OptionError: The counter cannot be one, or returned something else than a whole number.

    Example:
        >>> from dspy_session.core.state import start
        >>> state = start([{"question": "How deep is a fjord?", "answer": "Up to 1,300 metres."}])
        >>> token_count(state, SessionOptions())
        15
        >>> token_count(state, SessionOptions(), lambda text: len(text.split()))
        11
    """
    checked_counter(counter)
    window = visible_window(state, options)
    told = "" if state.instructions is None else state.instructions.text
    if counter is None:
        characters = _sizes(window, window.view, len) + len(told)
        return math.ceil(characters * tokens_per_character(state))
    return _sizes(window, window.view, counter) + (_counted(counter, told) if told else 0)


def tokens_per_character(state: SessionState) -> float:
    """Return how many tokens the language models of the latest turns made of a character.

    Args:
        state: The conversation; of one that was just summarised, the turns before that count too.

    Returns:
        The prompts' tokens by their characters, over the latest turns whose calls reported usage; a
        quarter if none did.
    """
    tokens = sent = 0
    for turn in islice(_latest(state), _CALIBRATED_BY):
        reported = _prompt_tokens(turn)
        if reported and turn.run.sent:
            tokens, sent = tokens + reported, sent + turn.run.sent
    return tokens / sent if sent else _USUAL


def summary_due(
    state: SessionState, options: SessionOptions, counter: TokenCounter | None = None
) -> bool:
    """Whether a conversation is past the length at which the options want it summarised.

    Args:
        state: The conversation.
        options: The session's options; see `summarize_after_turns` and `summarize_after_tokens`.
        counter: As in `token_count`.

    Raises:
        OptionError: As `token_count`.

    Example:
        >>> summary_due(SessionState(), SessionOptions(summarize_after_turns=10))
        False
    """
    turns, tokens = options.summarize_after_turns, options.summarize_after_tokens
    if (turns is None and tokens is None) or len(state) <= options.summarize_keep:
        return False
    if turns is not None and len(state) > turns:
        return True
    return tokens is not None and token_count(state, options, counter) > tokens


def checked_counter(counter: Any) -> TokenCounter | None:
    """Return a counter if it can be one.

    Args:
        counter: What was given; None for the default.

    Raises:
        OptionError: It cannot be called, or has to be awaited.
    """
    if counter is not None and not callable(counter):
        raise OptionError(
            "A token counter must be a function from text to a number of tokens, "
            f"not {type(counter).__name__}."
        )
    if inspect.iscoroutinefunction(counter):
        raise OptionError("A token counter must be a plain function, not one to be awaited.")
    return counter  # type: ignore[no-any-return]


def _latest(state: SessionState) -> Iterator[Turn]:
    """The turns, newest first, and those of the conversation that this one is a summary of."""
    for part in (state, *state.earlier[-1:]):
        for back in range(1, len(part) + 1):
            yield part.held[len(part) - back]


def _prompt_tokens(turn: Turn) -> int:
    total = 0
    for _, counts in turn.run.usage:
        reported = dict(counts)
        found = (reported.get(name) for name in _PROMPT_TOKENS)
        total += next((int(n) for n in found if isinstance(n, int | float) and n > 0), 0)
    return total


# --- what an exchange counts ----------------------------------------------------------------------

_Known = MutableMapping[Exchange, tuple[View, int]]
_known: Final[WeakKeyDictionary[TokenCounter, _Known]] = WeakKeyDictionary()


def _sizes(exchanges: Iterable[Exchange], view: View, counter: TokenCounter) -> int:
    known = _known_to(counter)
    total = 0
    for exchange in exchanges:
        found = known.get(exchange)
        if found is None or found[0] != view:
            found = known[exchange] = (view, _counted(counter, _text_of(exchange, view)))
        total += found[1]
    return total


def _known_to(counter: TokenCounter) -> _Known:
    try:
        return _known.setdefault(counter, WeakKeyDictionary())
    except TypeError:  # an object that cannot be held weakly: nothing is kept for it
        return {}


def _counted(counter: TokenCounter, text: str) -> int:
    count = counter(text)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise OptionError(
            f"A token counter must return a whole number from 0 up; {counter!r} returned {count!r}."
        )
    return count


def _text_of(exchange: Exchange, view: View) -> str:
    return "\n".join(f"{name}: {_as_text(value)}" for name, value in exchange.told(view).items())


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        # An image or a file says in its `repr` what it is; its `str` would be all of its bytes.
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001  # a value's own code, and what is no JSON: an estimate will do
        return repr(value)
