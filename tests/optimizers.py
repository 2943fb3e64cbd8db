"""Every optimizer that DSPy ships, at work on a session; `python -m tests.optimizers` writes the
table of what came of it into the guide.

The model is scripted, and honest: it knows the roads and counts in miles. It answers in kilometres,
as the travellers want it, if an instruction says so or a demo shows it; and it can only tell what
"there" is from the conversation that it is shown.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import dspy

from dspy_session import Session, sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.house import PROJECT
from tests.talk import field

whole: Any = importlib.import_module("dspy")
teleprompt: Any = importlib.import_module("dspy.teleprompt")
experimental: Any = importlib.import_module("dspy.experimental")

GUIDE: Final = PROJECT / "docs" / "guide" / "optimizing.md"
BEGIN: Final = "<!-- written by `uv run python -m tests.optimizers` -->"
END: Final = "<!-- end of what is written -->"

LEARNED: Final = "Give every distance in kilometres."
ROADS: Final = {
    ("Oslo", "Hamar"): 128,
    ("Hamar", "Otta"): 183,
    ("Otta", "Dombas"): 47,
    ("Dombas", "Trondheim"): 191,
    ("Bergen", "Voss"): 107,
    ("Voss", "Flam"): 66,
    ("Flam", "Sogndal"): 74,
    ("Sogndal", "Lom"): 139,
    ("Lom", "Stryn"): 105,
    ("Bodo", "Fauske"): 62,
    ("Fauske", "Narvik"): 242,
    ("Narvik", "Tromso"): 232,
    ("Tromso", "Alta"): 293,
}
TALKS: Final = (
    ("Oslo", "Hamar", "Otta", "Dombas", "Trondheim"),
    ("Bergen", "Voss", "Flam", "Sogndal", "Lom", "Stryn"),
)
HELD_OUT: Final = ("Bodo", "Fauske", "Narvik", "Tromso", "Alta")


class Guide(dspy.Module):
    """A program that knows nothing of history."""

    def __init__(self) -> None:
        super().__init__()
        self.tell = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        return self.tell(question=question)


class Judge(dspy.Module):
    """A program whose output is a decision: what ReAnchor calibrates."""

    def __init__(self) -> None:
        super().__init__()
        far = dspy.OutputField(desc="Whether it takes longer than an hour.")
        fields = {"question": (str, dspy.InputField()), "far": (experimental.Noul, far)}
        self.tell = dspy.Predict(dspy.Signature(fields, "Judge the way."))

    def forward(self, question: str) -> Any:
        return self.tell(question=question)


# --- the model ------------------------------------------------------------------------------------


def is_demo(message: dict[str, str]) -> bool:
    """Whether a message shows an example: it has a history of its own, or says what it is."""
    return message["role"] == "user" and (
        "[[ ## history ## ]]" in message["content"]
        or message["content"].startswith("This is an example of the task")
    )


def shown(prompt: Prompt) -> list[tuple[dict[str, str], dict[str, str]]]:
    """The demos in a prompt, as pairs of messages."""
    return [(user, answer) for user, answer in itertools.pairwise(prompt) if is_demo(user)]


def asked(prompt: Prompt) -> list[str]:
    """The questions of a prompt's own conversation, the one to answer last."""
    users = [m["content"] for m in prompt if m["role"] == "user" and not is_demo(m)]
    return [question for text in users if (question := field(text, "question"))]


def distance(prompt: Prompt) -> int:
    """The way between the last two places that the conversation names; 0 if there are not two."""
    places = re.findall(r"\b(?:from|to) ([A-Z]\w+)", " ".join(asked(prompt)))
    return ROADS.get(tuple(places[-2:]), 0)


def answer(prompt: Prompt, in_kilometres: bool) -> str:
    """How far it is."""
    far = distance(prompt)
    if not far:
        return "From where?"
    return f"{far} km" if in_kilometres else f"{far / 1.609:.0f} miles"


def model(luck: int = 0) -> ScriptedLM:
    """The scripted model.

    Args:
        luck: If not 0, every so manieth answer is in kilometres without a reason.
    """
    proposals = {
        "proposed_instruction": LEARNED,
        "new_instruction": LEARNED,
        "natural_language_rules": LEARNED,
        "proposed_prefix_for_output_field": "Answer:",
        "module_advice": {"module.tell.predict": LEARNED},
    }
    count = iter(range(1_000_000))

    def reply(prompt: Prompt) -> dict[str, Any]:
        wanted = requested_fields(prompt)
        if "far" in wanted:  # it is all too sure that it is not
            return {"far": {"noul": 0.1 + distance(prompt) / 1000}}
        if "answer" not in wanted:
            return {name: proposals.get(name, "A guide to Norway.") for name in wanted}
        told = LEARNED in prompt[0]["content"]
        seen = any(" km" in demo["content"] for _, demo in shown(prompt))
        lucky = bool(luck) and next(count) % luck == 0
        return {"reasoning": "I know it.", "answer": answer(prompt, told or seen or lucky)}

    return ScriptedLM(reply)


# --- the examples ---------------------------------------------------------------------------------


def talk(session: Session, places: tuple[str, ...]) -> Session:
    """Ask for the way from place to place; only the first question says from where."""
    session(question=f"How far is it from {places[0]} to {places[1]}?")
    for place in places[2:]:
        session(question=f"And from there to {place}?")
    return session


def corrected(
    places: tuple[str, ...], program: Callable[[], dspy.Module] = Guide
) -> list[dspy.Example]:
    """The examples of a talk whose answers were corrected afterwards: each saw what was said."""
    session = talk(sessionify(program()), places)
    for turn in session.turns:
        way = ROADS[places[turn.index : turn.index + 2]]  # type: ignore[index]
        right: dict[str, Any] = (
            {"far": way > 100} if "far" in turn.outputs else {"answer": f"{way} km"}
        )
        session.replace_turn(turn.index, {**turn.outputs, **right})
    return session.to_examples()


def metric(
    example: dspy.Example, prediction: dspy.Prediction, trace: Any = None, *further: Any
) -> float:
    if "far" in example:
        return float(bool(prediction.far) == example.far)
    return float(prediction.answer == example.answer)


# --- the optimizers -------------------------------------------------------------------------------

Compile = Callable[[Session, list[dspy.Example]], Any]


def _labeled(session: Session, trainset: list[dspy.Example]) -> Any:
    return teleprompt.LabeledFewShot(k=3).compile(session, trainset=trainset)


def _bootstrap(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.BootstrapFewShot(
        metric=metric, max_bootstrapped_demos=2, max_labeled_demos=2
    )
    return optimizer.compile(session, trainset=trainset)


def _random_search(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.BootstrapFewShotWithRandomSearch(
        metric=metric, max_bootstrapped_demos=2, max_labeled_demos=2, num_candidate_programs=1
    )
    return optimizer.compile(session, trainset=trainset)


def _optuna(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.BootstrapFewShotWithOptuna(
        metric=metric, max_bootstrapped_demos=2, max_labeled_demos=2, num_candidate_programs=2
    )
    return optimizer.compile(session, max_demos=2, trainset=trainset)


def _copro(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.COPRO(metric=metric, breadth=2, depth=1)
    return optimizer.compile(session, trainset=trainset, eval_kwargs={"display_progress": False})


def _mipro(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.MIPROv2(
        metric=metric,
        auto=None,
        num_candidates=2,
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
    )
    return optimizer.compile(session, trainset=trainset, num_trials=3, minibatch=False)


def _mipro_demos(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.MIPROv2(
        metric=metric,
        auto=None,
        num_candidates=4,
        max_bootstrapped_demos=2,
        max_labeled_demos=2,
    )
    return optimizer.compile(session, trainset=trainset, num_trials=4, minibatch=False)


def _gepa(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.GEPA(metric=metric, max_metric_calls=40, reflection_lm=dspy.settings.lm)
    return optimizer.compile(session, trainset=trainset, valset=trainset)


def _simba(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.SIMBA(
        metric=metric, bsize=4, num_candidates=2, max_steps=2, num_threads=1
    )
    with dspy.context(lm=model(luck=3)):
        return optimizer.compile(session, trainset=trainset)


def _simba_rules(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.SIMBA(
        metric=metric, bsize=4, num_candidates=2, max_steps=2, max_demos=0, num_threads=1
    )
    with dspy.context(lm=model(luck=3)):
        return optimizer.compile(session, trainset=trainset)


def letters(texts: list[str]) -> Any:
    """An embedding for KNN: how often each letter comes."""
    import numpy as np

    counts = [[text.lower().count(letter) for letter in map(chr, range(97, 123))] for text in texts]
    return np.array(counts, dtype=np.float32)


def _knn(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.KNNFewShot(
        k=3, trainset=trainset, vectorizer=whole.Embedder(letters), metric=metric
    )
    return optimizer.compile(session)


def _infer_rules(session: Session, trainset: list[dspy.Example]) -> Any:
    optimizer = teleprompt.InferRules(
        num_candidates=1, metric=metric, max_bootstrapped_demos=0, max_labeled_demos=0
    )
    return optimizer.compile(session, trainset=trainset)


def _better_together(session: Session, trainset: list[dspy.Example]) -> Any:
    session.set_lm(dspy.settings.lm)
    optimizer = teleprompt.BetterTogether(
        metric=metric,
        few=teleprompt.BootstrapFewShot(metric=metric, max_labeled_demos=2),
        rules=teleprompt.COPRO(metric=metric, breadth=2, depth=1),
    )
    return optimizer.compile(
        session,
        trainset=trainset,
        valset=trainset,
        strategy="few -> rules",
        optimizer_compile_args={"rules": {"eval_kwargs": {"display_progress": False}}},
    )


def _reanchor(session: Session, trainset: list[dspy.Example]) -> Any:
    with warnings.catch_warnings(action="ignore"):  # it is experimental, and says so
        optimizer = experimental.ReAnchor(metric, num_threads=1, require_cache=False)
    return optimizer.compile(session, trainset=trainset)


def _ensemble(session: Session, trainset: list[dspy.Example]) -> Any:
    """Its result is a program of programs: the session goes around it, with the given turns."""
    parts = [_labeled(session, trainset).module, _copro(session, trainset).module]
    together = teleprompt.Ensemble(reduce_fn=whole.majority).compile(parts)
    return Session.from_state(session.state, together)


OPTIMIZERS: Final[dict[str, Compile]] = {
    "LabeledFewShot": _labeled,
    "BootstrapFewShot": _bootstrap,
    "BootstrapFewShotWithRandomSearch": _random_search,
    "BootstrapFewShotWithOptuna": _optuna,
    "KNNFewShot": _knn,
    "COPRO": _copro,
    "MIPROv2, instructions": _mipro,
    "MIPROv2, with demos": _mipro_demos,
    "GEPA": _gepa,
    "SIMBA, demos": _simba,
    "SIMBA, rules": _simba_rules,
    "InferRules": _infer_rules,
    "BetterTogether": _better_together,
    "ReAnchor": _reanchor,
    "Ensemble": _ensemble,
}


def program_for(name: str) -> Callable[[], dspy.Module]:
    """What an optimizer is given in a session."""
    return Judge if name == "ReAnchor" else Guide


# --- the trials -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What an optimizer did to a session.

    Attributes:
        before: The score of the session on held-out turns.
        after: That of the session that the optimizer returned.
        session: The session that was given to it.
        compiled: What it returned, after one more turn.
        prompts: The prompts of that turn.
    """

    before: float
    after: float
    session: Session
    compiled: Any
    prompts: list[Prompt]

    @property
    def instructed(self) -> bool:
        """Whether a prompt of the later turn says what was learned."""
        return any(LEARNED in prompt[0]["content"] for prompt in self.prompts)

    @property
    def demos(self) -> int:
        """How many demos a prompt of the later turn shows."""
        return max(len(shown(prompt)) for prompt in self.prompts)

    @property
    def learned(self) -> list[str]:
        """What of it shows in the later turn."""
        found = ["the instruction"] * self.instructed
        found += [f"{self.demos} demo{'s' * (self.demos > 1)}"] * bool(self.demos)
        for predictor in self.compiled.predictors():
            found += [f"the threshold of `{name}`" for name in predictor.fields]
        return found


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without progress bars and logs, which optimizers write on their own."""
    nowhere = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def run(name: str) -> Trial:
    """Let an optimizer compile a session, and go on talking to what it returns."""
    lm = model()
    with dspy.context(lm=lm), quietly():
        program = program_for(name)
        trainset = [example for places in TALKS for example in corrected(places, program)]
        session = talk(sessionify(program()), ("Oslo", "Hamar"))
        held_out = corrected(HELD_OUT, program)
        evaluate = whole.Evaluate(devset=held_out, metric=metric, num_threads=2)
        before = evaluate(session).score
        compiled = OPTIMIZERS[name](session, trainset)
        after = evaluate(compiled).score
        lm.prompts.clear()
        compiled(question="And from there to Otta?")
        return Trial(before, after, session, compiled, list(lm.prompts))


# --- the table ------------------------------------------------------------------------------------


def table() -> str:
    """What came of every optimizer, as the guide shows it."""
    lines = [
        "| Optimizer | Before | After | At work in a later turn |",
        "|---|---|---|---|",
    ]
    for name in OPTIMIZERS:
        trial = run(name)
        learned = ", ".join(trial.learned)
        lines.append(f"| {name} | {trial.before:g} % | {trial.after:g} % | {learned} |")
    return "\n".join(lines)


def split_guide() -> tuple[str, str, str]:
    """The guide before the table, the table, and the guide after it."""
    before, _, rest = GUIDE.read_text("utf-8").partition(f"{BEGIN}\n")
    written, _, after = rest.partition(f"\n{END}")
    return before, written, after


def write_table() -> None:
    """Write the table into the guide."""
    before, _, after = split_guide()
    GUIDE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    write_table()
