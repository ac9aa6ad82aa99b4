"""WikiText (Merity et al. 2016, https://arxiv.org/abs/1609.07843), 2 or 103 million words of Wikipedia, as running text.

A row is a paragraph with its tokenisation undone as lm-evaluation-harness's ``wikitext`` does; headings are left out.
Validation is the data set's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus, Text

from ._rows import check_split, chosen, read_rows
from ._wikitext import plain


@dataclass
class WikiText(Corpus):
    """Paragraphs."""

    limit: int = 0
    """Training paragraphs; 0: all."""

    tasks: ClassVar[tuple[str, ...]] = ("2", "103")
    assets: ClassVar[tuple[str, ...]] = ("wikitext-{task}",)
    evals: ClassVar[tuple[str, ...]] = ("wikitext-{task}",)
    label: ClassVar[str] = "WikiText-{task}"
    example: ClassVar[type] = Text

    def examples(self, split, data):
        check_split(split)
        return chosen(self._paragraphs(split, data), split, self.limit)

    def tests(self, data):
        return self._paragraphs("test", data)

    def _paragraphs(self, split: str, data) -> list[Text]:
        pages = read_rows(data(f"wikitext-{self.task}") / f"{split}.jsonl", ("page",))
        lines = [line.strip() for row in pages for line in plain(row["page"]).split("\n")]
        return [Text(line) for line in lines if " " in line and not line.startswith("=")]
