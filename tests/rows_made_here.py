"""Small data sets in the sources' own columns, made here, for tests of corpora and evals."""

from __future__ import annotations

import json
from pathlib import Path

COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
CLASSES = dict.fromkeys(COLUMNS, 2) | {"mnli": 3}
NUMBERS = {"eng": "{0} plus {1}", "deu": "{0} und {1}", "fra": "{0} et {1}"}


def _choices(count: int) -> dict:
    return {"text": [f"thing {k} of it" for k in range(count)], "label": list("ABCDE"[:count])}


COMMONSENSE = {
    "boolq": lambda n: {"question": f"is {n} a number", "passage": f"The {n} numbers.", "label": n % 2, "idx": n},
    "piqa": lambda n: {"goal": f"Cook {n} eggs", "sol1": "Boil them.", "sol2": "Look at them.", "label": n % 2},
    "siqa": lambda n: {"context": f"Ann saw {n} cats.", "question": "Why?", "answerA": "they came", "answerB": "she looked",
                       "answerC": "no reason", "label": str(1 + n % 3)},
    "hellaswag": lambda n: {"activity_label": f"Run {n}", "ctx": "A man starts. he", "ctx_a": "A man starts.", "ctx_b": "he",
                            "endings": ["runs [title] fast.", " stops  here.", "[step] sings.", "sits."], "label": str(n % 4)},
    "winogrande": lambda n: {"sentence": f"The {n} cups beat the mugs as _ are light .", "option1": "cups", "option2": "mugs",
                             "answer": str(1 + n % 2)},
    "arc-easy": lambda n: {"id": f"e{n}", "question": f"What has {n} legs?", "choices": _choices(4), "answerKey": "ABCD"[n % 4]},
    "arc-challenge": lambda n: {"id": f"c{n}", "question": f"Why {n}?", "choices": _choices(3 + n % 3), "answerKey": "C"},
    "openbookqa": lambda n: {"id": f"o{n}", "question_stem": f"Fog {n} lies over", "choices": _choices(4), "answerKey": " B"},
}  # fmt: skip
"""Rows of the commonsense data sets, by number."""


PAGE = (
    ' = Cup {0} = \n \n The cup ( {0} ) is a well @-@ known cup , of 1 @,@ 200 kinds . It \'s " blue " ; or so . \n'
    " = = Use = = \n \n They drink ' tea ' in 3 @.@ 5 ° heat : always ! \n"
)


def _spans(n: int) -> list[str]:
    return [] if n % 3 == 2 else ["blue", "the blue one"][: 1 + (n % 4 == 0)]


class Assets:
    """``data`` for ``examples`` and ``items``: folders of assets under ``root``, filled by the methods below."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, name: str) -> Path:
        return self.root / name

    def write(self, asset: str, file: str, rows: list[dict]) -> None:
        path = self.root / asset / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def glue(self, task: str, train: int = 200, validation: int = 30) -> Assets:
        names = {"mnli": ("validation_matched", "validation_mismatched")}.get(task, ("validation",))
        for split, count in {"train": train, **dict.fromkeys(names, validation)}.items():
            rows = [
                {**{c: f"{split} {c} {{}} {n} words. " for c in COLUMNS[task]}, "label": _label(task, n), "idx": n}
                for n in range(count)
            ]
            self.write(f"glue-{task}", f"{split}.jsonl", rows)
        return self

    def commonsense(self, count: int = 6) -> Assets:
        """Test rows of all eight tasks in the hub's columns, labels going through all answers; and training rows."""
        for task, made in COMMONSENSE.items():
            file = "test.jsonl" if task in ("arc-easy", "arc-challenge", "openbookqa") else "validation.jsonl"
            self.write(f"commonsense-{task}", file, [made(number) for number in range(count)])
        rows = [
            {"instruction": f"Is {n} even?", "input": "", "output": "the correct answer is true"} for n in range(200)
        ]
        self.write("commonsense-170k", "train.jsonl", rows)
        return self

    def squad(self) -> Assets:
        """Every third question has no answer, every fourth two."""
        for split, count in (("train", 200), ("validation", 12)):
            rows = [
                {"id": f"{split}{n}", "title": f"{split} {n // 4}", "context": f"The {n}th cup is {split} blue.",
                 "question": f"What is cup {n}?", "answers": {"text": _spans(n), "answer_start": [0] * len(_spans(n))}}
                for n in range(count)
            ]  # fmt: skip
            self.write("squad-v2", f"{split}.jsonl", rows)
        return self

    def wikitext(self) -> Assets:
        for split, count in (("train", 20), ("validation", 3), ("test", 3)):
            rows = [{"page": PAGE.format(f"{split} {n}")} for n in range(count)]
            self.write("wikitext-2", f"{split}.jsonl", rows)
        return self

    def gsm8k(self, train: int = 200, test: int = 30) -> Assets:
        for split, count in (("train", train), ("test", test)):
            rows = [
                {"question": f"{split}: {n}+{n}?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
                for n in range(count)
            ]
            self.write("gsm8k", f"{split}.jsonl", rows)
        return self

    def multi30k(self) -> Assets:
        for split, count in (("train", 50), ("validation", 10), ("test", 12)):
            rows = [
                {"en": f"A {split} dog {n}.", "de": f"Ein {split} Hund {n}.", "fr": f"Un chien {split} {n}."}
                for n in range(count)
            ]
            self.write("multi30k", f"{split}.jsonl", rows)
        return self

    def headlines(self, count: int = 400) -> Assets:
        texts = [f"man number {n} does thing {n % 7}" for n in range(count)]
        texts += ["Man Number 3, does thing 3!", texts[4]]  # the same words again
        rows = [
            {"input": [{"role": "system", "content": "?"}, {"role": "user", "content": text}], "ideal": str(n % 2)}
            for n, text in enumerate(texts)
        ]
        self.write("headlines", "samples.jsonl", rows)
        return self

    def problems(self) -> Assets:
        for language, pattern in NUMBERS.items():
            folder = self.root / "gsm-symbolic-templates" / language / "symbolic"
            folder.mkdir(parents=True, exist_ok=True)
            for n in range(100):
                sentences = [
                    pattern.format(n, "one") + ".",
                    f"{language}: in total {n // 3}?",
                ]  # three problems share one
                if n == 7 and language == "deu":
                    sentences.append("Ja?")  # a question that cannot be aligned
                text = f'question = "{" ".join(sentences)}"\nanswer = """\nSum.\n#### {n + 1}\n"""\n'
                (folder / f"{n:04d}.toml").write_text(text, encoding="utf-8")
        return self


def _label(task: str, number: int) -> int | float:
    return number % 26 / 5 if task == "stsb" else number % CLASSES[task]
