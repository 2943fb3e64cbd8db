"""A conversation to take pictures of: `python -m tests.pictures [folder]` takes them.

In light, in dark, and as wide as a phone. It needs Chromium and its driver, see `tests.browser`.
docs/images/conversation.png, in docs/guide/looking.md, is the first of them.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspy_session.core import (
    Data,
    Instructions,
    Profile,
    Run,
    SessionOptions,
    SessionState,
    annotate,
    as_data,
    commit,
    prepare,
    start,
    undo,
    with_id,
    write,
)
from dspy_session.pictures import ConversationTree, tree_of
from tests.browser import browser

OPTIONS = SessionOptions(exclude_fields={"reasoning"})
BEGIN = 1_767_261_600.0  # 1 January 2026, 10:00 UTC
MODEL = "openai/gpt-4o-mini"
PICTURES = {
    "conversation": (900, 1360, False),
    "conversation-dark": (900, 1360, True),
    "conversation-phone": (390, 1360, False),
}
"""The width and the height of each, and whether it is dark."""


def say(
    state: SessionState,
    question: str,
    answer: str,
    *,
    id: str,
    at: int | None = None,
    writes: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    reasoning: str = "",
) -> SessionState:
    """The conversation after one more turn, as a run of so much work would leave it."""
    number = len(state) if at is None else at
    tokens = 180 + 140 * number + len(answer)
    run = Run(
        id=id,
        time=BEGIN + 47.0 * number,
        duration=0.8 + len(answer) / 90,
        usage=((MODEL, (("prompt_tokens", tokens - len(answer) // 4), ("total_tokens", tokens))),),
        cost=tokens * 2.1e-6,
        lm_calls=1 if details is None else 3,
    )
    outputs = {"reasoning": reasoning, "answer": answer} if reasoning else {"answer": answer}
    changes = dict(writes or {})

    def written(data: Data) -> Data:
        return data.changed(changes)

    step = prepare(state, {"question": question}, OPTIONS, at=at)
    _, after = commit(state, step, outputs, run, OPTIONS, details=details, data=written)
    return after


def tea_shop() -> ConversationTree:
    """A customer of a tea shop, who changes her mind; and a fork for another."""
    state = start(
        id="ada",
        data=as_data({"customer": "ada"}),
        profile=Profile(
            instructions=Instructions("You work in a tea shop. Be brief, and never push."),
            metadata=as_data({"channel": "web", "language": "en"}),
        ),
    )
    state = say(
        state,
        "Hello! I look for a tea for the evening, without caffeine.",
        "Good evening. For the evening I would take a rooibos: it has no caffeine, and tastes of "
        "honey and vanilla. A mint is fresher, if you like that better.",
        id="t-1",
        reasoning="No caffeine rules out black and green tea. Rooibos and mint are in stock.",
    )
    state = say(
        state,
        "Rooibos, please. Two packs, and a mug.",
        "Both are in your cart: two packs of rooibos and one mug, for 17.50 euros.",
        id="t-2",
        writes={"cart": {"rooibos": 2, "mug": 1}},
        details={
            "trajectory": {
                "thought_0": "She wants two packs of rooibos.",
                "tool_name_0": "add_to_cart",
                "tool_args_0": {"item": "rooibos", "quantity": 2},
                "observation_0": "In the cart: 2 x rooibos, for 8.00 euros.",
                "thought_1": "And a mug.",
                "tool_name_1": "add_to_cart",
                "tool_args_1": {"item": "mug", "quantity": 1},
                "observation_1": "In the cart: 2 x rooibos, 1 x mug, for 17.50 euros.",
            }
        },
    )
    fork = with_id(state, "ada-2")
    fork = say(
        fork,
        "On second thought, no mug.",
        "The mug is out again. Two packs of rooibos are 8.00 euros.",
        id="t-5",
        writes={"cart": {"rooibos": 2}},
    )
    state = write(state, {"coupon": "WINTER"})
    fork = say(fork, "And a tin for the tea?", "A tin is 6.50 euros.", id="t-6")
    _, fork = undo(fork)
    state = say(
        state,
        "Do you gift-wrap?",
        "We do not.",
        id="t-3",
    )
    state = say(
        state,
        "Do you gift-wrap?",
        "Yes, free of charge. Shall I wrap both together?",
        id="t-4",
        at=2,
        writes={"coupon": "WINTER", "wrapped": True},
    )
    state = annotate(state, {0: (1.0, None), 1: (1.0, None), 2: (0.5, "True, but asks too soon.")})
    return tree_of([state, fork])


def take(tree: ConversationTree, folder: Path) -> None:
    """Take the pictures of a tree's page."""
    with tempfile.TemporaryDirectory() as scratch, browser() as window:
        page = Path(scratch) / "conversation.html"
        tree.to_html(page, title="Tea shop")
        for name, (width, height, dark) in PICTURES.items():
            window.open(page, width=width, height=height, dark=dark)
            (folder / f"{name}.png").write_bytes(window.picture())


def main(arguments: list[str]) -> int:
    """Take the pictures of the tea shop."""
    folder = Path(arguments[0] if arguments else ".").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    take(tea_shop(), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
