"""Eight commonsense benchmarks as the hub has them, told as the instructions of LLM-Adapters (Hu et al. 2023).

https://arxiv.org/abs/2304.01933; DoRA and SMT train on 170,420 such rows and score all eight. The words of instructions
and answers are LLM-Adapters'; its prompt, that of Stanford Alpaca, stands without the indentation that its source had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ._rows import read_rows

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{0}\n\n### Response:"
)
COLUMNS = {
    "boolq": ("question", "passage", "label"),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "siqa": ("context", "question", "answerA", "answerB", "answerC", "label"),
    "hellaswag": ("activity_label", "ctx", "ctx_a", "ctx_b", "endings", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "arc-easy": ("question", "choices", "answerKey"),
    "arc-challenge": ("question", "choices", "answerKey"),
    "openbookqa": ("question_stem", "choices", "answerKey"),
}
TASKS = tuple(COLUMNS)
TEST = {"arc-easy": "test.jsonl", "arc-challenge": "test.jsonl", "openbookqa": "test.jsonl"}
"""The file that is scored; ``validation.jsonl`` where a data set's test labels are secret."""
OPENINGS = {
    "boolq": "Please answer the following question with true or false, question: ",
    "piqa": "Please choose the correct solution to the question: ",
    "hellaswag": "Please choose the correct ending to complete the given sentence: ",
    "winogrande": "Please choose the correct answer to fill in the blank to complete the given sentence: ",
}
ANSWER = "Please choose the correct answer to the question: "


@dataclass(frozen=True)
class Question:
    """``text`` with its possible ``answers`` (in boolq true and false); ``gold`` is the index of the right one."""

    text: str
    answers: tuple[str, ...]
    gold: int


def questions(task: str, folder: Path) -> Iterator[tuple[dict, Question]]:
    """Each scored row with its question. Raises ValueError naming file and line of a row that is no such question."""
    path = folder / TEST.get(task, "validation.jsonl")
    for number, row in enumerate(read_rows(path, COLUMNS[task]), 1):
        try:
            question = _question(task, row)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: no {task} question ({type(error).__name__}: {error})") from None
        if not 0 <= question.gold < len(question.answers):
            raise ValueError(f"{path}:{number}: its label names none of its {len(question.answers)} answers")
        yield row, question


def words(task: str, count: int) -> tuple[str, ...]:
    """What the ``count`` answers are called."""
    if task == "boolq":
        return "true", "false"
    name = {"piqa": "solution", "hellaswag": "ending", "winogrande": "option"}.get(task, "answer")
    return tuple(f"{name}{number}" for number in range(1, count + 1))


def instruction(task: str, question: Question) -> str:
    """The question with its numbered answers and the form that the answer should have."""
    called = words(task, len(question.answers))
    listed = [f"{word.capitalize()}: {text}" for word, text in zip(called, question.answers, strict=True)]
    body = ("\n\n" if task == "piqa" else " ").join(listed)
    body = "" if task == "boolq" else f"\n\n{body}"
    last = " " if task == "winogrande" else "\n\n"
    return f"{OPENINGS.get(task, ANSWER)}{question.text}{body}{last}Answer format: {'/'.join(called)}"


def _question(task: str, row: dict) -> Question:
    if task == "boolq":
        return Question(f"{row['question']}?", ("true", "false"), 1 - int(row["label"]))
    if task == "piqa":
        return Question(row["goal"], (row["sol1"], row["sol2"]), int(row["label"]))
    if task == "siqa":
        answers = row["answerA"], row["answerB"], row["answerC"]
        return Question(f"{row['context']} {row['question']}", answers, int(row["label"]) - 1)
    if task == "hellaswag":
        return Question(f"{row['activity_label']}: {row['ctx']}", tuple(row["endings"]), int(row["label"]))
    if task == "winogrande":
        return Question(row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1)
    text = row["question_stem" if task == "openbookqa" else "question"]
    return Question(text, tuple(row["choices"]["text"]), row["choices"]["label"].index(row["answerKey"].strip()))
