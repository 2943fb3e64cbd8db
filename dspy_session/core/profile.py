"""What belongs to a session as a whole: its instructions, its metadata, the data it starts with.

Rules:

- A profile is no moment of the conversation: undo, redo and rewinding leave it as it is.
- Forks take it along; each may then go on with another.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from dspy_session.core.data import EMPTY_DATA, Data
from dspy_session.errors import OptionError

__all__ = ["NO_PROFILE", "Instructions", "Place", "Profile", "as_instructions"]


class Place(enum.StrEnum):
    """Where a session's instructions stand."""

    AFTER = "after"
    """After the signature's own instructions."""
    BEFORE = "before"
    """In front of the signature's own instructions."""


class Instructions(msgspec.Struct, frozen=True):
    r"""What every predictor of the program is told beside its signature's own instructions.

    Attributes:
        text: The words.
        place: Where they stand; also given as text.

    Raises:
        OptionError: `text` is no text, or `place` no place.

    Example:
        >>> Instructions("Be brief.").around("Answer the question.")
        'Answer the question.\n\nBe brief.'
    """

    text: str
    place: Place | Literal["before", "after"] = Place.AFTER

    def __post_init__(self) -> None:
        """Check both, and take the text of an enumeration's member for the member."""
        if not isinstance(self.text, str):
            raise OptionError(
                f"instructions must be text, not {type(self.text).__name__}; for example "
                'instructions="You are a patient tutor."'
            )
        try:
            place = Place(self.place)
        except ValueError:
            raise OptionError(
                f"Instructions stand 'before' or 'after' the signature's own, not {self.place!r}."
            ) from None
        msgspec.structs.force_setattr(self, "place", place)

    def around(self, own: str) -> str:
        """Return a signature's instructions with these in their place.

        Args:
            own: The signature's own instructions.
        """
        texts = [self.text, own] if self.place is Place.BEFORE else [own, self.text]
        return "\n\n".join(text for text in texts if text.strip())


def as_instructions(given: Instructions | str | None) -> Instructions | None:
    """Return instructions as a value; None for none, and for text that says nothing.

    Args:
        given: Instructions, or their text.

    Raises:
        OptionError: It is neither.
    """
    if given is None or isinstance(given, Instructions):
        return given
    made = Instructions(given)
    return made if made.text.strip() else None


class Profile(msgspec.Struct, frozen=True, eq=False):
    """What belongs to a session as a whole.

    Attributes:
        instructions: What its predictors are told; None for nothing.
        metadata: What an application notes about the session.
        start: The session data that `reset` goes back to.
        system: The chat message that the instructions came from, as it came; None if they did not.
    """

    instructions: Instructions | None = None
    metadata: Data = EMPTY_DATA
    start: Data = EMPTY_DATA
    system: Mapping[str, Any] | None = None

    def same_as(self, other: Profile) -> bool:
        """Whether both say the same.

        Args:
            other: What to compare with.
        """
        return self is other or (
            self.instructions == other.instructions
            and self.metadata == other.metadata
            and self.start == other.start
            and self.system == other.system
        )


NO_PROFILE: Final = Profile()
