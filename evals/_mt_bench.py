"""MT-Bench's questions, asked in two turns, and a judge's prompts filled in: shared by ratings and comparisons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from corpora._rows import read_rows
from harness.contract import Eval, Generate
from harness.judge import judge

from ._rows import subsample

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # others: greedy
REFERENCED = ("math", "reasoning", "coding")
STOPS = ("<|im_end|>", "\nuser:")


@dataclass
class Conversations(Eval):
    """Open questions of two turns, judged."""

    limit: int = 0
    """Questions asked; 0: all."""
    max_tokens: int = 1024
    judge: str = ""
    """Who judges; "": nobody yet."""
    judgings: int = 1
    """How often each answer is judged."""

    assets: ClassVar[tuple[str, ...]] = ("mt-bench",)
    grading_fields: ClassVar[tuple[str, ...]] = ("judge", "judgings")
    prompt_names: ClassVar[tuple[str, str]] = ("single-v1", "single-math-v1")
    """Of the first turn, without and with a reference; the second's end in "-multi-turn"."""

    def __post_init__(self) -> None:
        if self.judgings < 1:
            raise ValueError(f"judgings: {self.judgings}: at least 1")
        self._judge = judge(self.judge) if self.judge else None

    def pending(self) -> str:
        return "" if self.judge else "no judge given: set judge: of this eval in the suite's evals: and score again"

    def items(self, data):
        folder = data("mt-bench")
        references = answers(folder / "reference_answer_gpt-4.jsonl")
        prompts = {row["name"]: row for row in read_rows(folder / "judge_prompts.jsonl", ("name", "prompt_template"))}
        items = [
            {
                "id": str(row["question_id"]),
                "category": row["category"],
                "turns": row["turns"],
                "reference": references.get(str(row["question_id"])) if row["category"] in REFERENCED else None,
            }
            for row in read_rows(folder / "question.jsonl", ("question_id", "category", "turns"))
        ]
        for item in items:
            kind = self.prompt_names[bool(item["reference"])]
            chosen = (prompts[kind], prompts[f"{kind}-multi-turn"])
            item["prompts"] = [[row.get("system_prompt", ""), row["prompt_template"]] for row in chosen]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        if len(outputs) == len(item["turns"]):
            return []
        said = [output["texts"][0].strip() for output in outputs]
        turns = []
        for number, question in enumerate(item["turns"][: len(said) + 1]):
            turns += [("user", question)] + ([("assistant", said[number])] if number < len(said) else [])
        return [Generate.conversation(turns, STOPS, self.max_tokens, TEMPERATURES.get(item["category"], 0.0))]

    def signatures(self):
        return {"judge": self.judge or "none", "judgings of each answer": str(self.judgings)}


def answers(path: Path) -> dict[str, list[str]]:
    """The turns of each question's first answer in a file of FastChat's form. Raises ValueError naming line or question."""
    found = {}
    for row in read_rows(path, ("question_id", "choices")):
        try:
            found[str(row["question_id"])] = row["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{path}: question {row['question_id']} has no choices[0].turns") from None
    return found


def filled(item: dict, number: int, values: dict[str, str]) -> list[tuple[str, str]]:
    """The prompt of turn ``number`` with the item's questions and references and these ``values`` in their places."""
    system, template = item["prompts"][number]
    values = {"question": item["turns"][0], **values}
    values |= {f"question_{turn}": question for turn, question in enumerate(item["turns"], 1)}
    values |= {f"ref_answer_{turn}": reference for turn, reference in enumerate(item["reference"] or (), 1)}
    # One pass, so that braces in an answer are text.
    text = re.sub(r"\{(\w+)\}", lambda found: values.get(found.group(1), found.group()), template)
    return [*([("system", system)] if system else []), ("user", text)]
