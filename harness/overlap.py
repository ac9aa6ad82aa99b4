"""Training rows that a benchmark's test items give away: equal texts, and runs of 13 words in common.

After Brown et al. 2020 (https://arxiv.org/abs/2005.14165, appendix C), who search words without case and punctuation for
runs of 13, too. Runs that many test items share are no item's own, such as an instruction that stands in all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from harness.contract import Completion, Conversation, Example, Labelled, SequenceToSequence, Text

RUN = 13  # words
SHARED = 10  # test items: a run that more of them have, or more than half of them, belongs to none


def overlaps(train: Sequence[Example], tests: Sequence[Example]) -> list[str]:
    """For each training row how it overlaps with the tests: "equal" (the same input), "run" (13 words), or ""."""
    inputs = {asked for example in tests if (asked := normal(_input(example)))}
    counts = Counter(run for example in tests for run in set(_runs(normal(_whole(example)))))
    own = {run for run, count in counts.items() if count <= min(SHARED, max(1, len(tests) / 2))}
    return [_overlap(example, inputs, own) for example in train]


def counted(found: Sequence[str], tests: int) -> dict[str, int]:
    """As a record has it: test items searched for, training rows with an equal input, and with a run of words."""
    return {"test_items": tests, "equal": found.count("equal"), "run": found.count("run")}


def normal(text: str) -> str:
    """The words of a text, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _overlap(example: Example, inputs: set[str], own: set[tuple[str, ...]]) -> str:
    if normal(_input(example)) in inputs:
        return "equal"
    return "run" if any(run in own for run in _runs(normal(_whole(example)))) else ""


def _runs(text: str) -> zip:
    words = text.split()
    return zip(*(words[start:] for start in range(RUN)), strict=False)


def _input(example: Example) -> str:
    """What a model is shown; "" for an image."""
    match example:
        case (
            Labelled(input=str() as text) | Completion(prompt=text) | SequenceToSequence(source=text) | Text(text=text)
        ):
            return text
        case Labelled(input=tuple() as texts):
            return "\n".join(texts)
        case Conversation(turns=turns):
            return "\n".join(content for role, content in turns if role != "assistant")
    return ""


def _whole(example: Example) -> str:
    """That, and what it should answer; a label is none of its words."""
    match example:
        case Completion(completion=answer) | SequenceToSequence(target=answer):
            return f"{_input(example)}\n{answer}"
        case Conversation(turns=turns):
            return "\n".join(content for _, content in turns)
    return _input(example)
