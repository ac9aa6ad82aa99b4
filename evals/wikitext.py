"""WikiText (Merity et al. 2016, https://arxiv.org/abs/1609.07843): how well the test pages are predicted.

Pages, tokenisation undone and measures are those of lm-evaluation-harness's ``wikitext``: a page's likelihood is read in
windows of the model's length, and divided by its words or bytes *before* the tokenisation was undone. ``token_perplexity``
divides by the model's own tokens: comparable between methods, not between models. A document-level page without context
cannot be compared with the word perplexities of older language models, which saw ``<unk>``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows
from corpora._wikitext import plain
from harness.contract import Eval, Reference

from ._reference import reference_counts
from ._rows import subsample


@dataclass
class WikiText(Eval):
    """Perplexity of whole pages."""

    limit: int = 0
    """Pages scored; 0: all."""

    tasks: ClassVar[tuple[str, ...]] = ("2", "103")
    assets: ClassVar[tuple[str, ...]] = ("wikitext-{task}",)
    label: ClassVar[str] = "WikiText-{task}"
    headline: ClassVar[str] = "word_perplexity"
    corpus_level: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {
        "word_perplexity": "per word",
        "byte_perplexity": "per byte",
        "bits_per_byte": "bits",
        "token_perplexity": "per token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = (
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "token_perplexity",
    )

    def items(self, data):
        rows = read_rows(data(f"wikitext-{self.task}") / "test.jsonl", ("page",))
        items = [
            {
                "id": str(number),
                "text": plain(row["page"]),
                "words": len(re.split(r"\s+", row["page"])),
                "bytes": len(row["page"].encode()),
            }
            for number, row in enumerate(rows)
        ]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        return [] if outputs else [Reference("", item["text"])]

    def grade(self, item, outputs):
        return {**reference_counts(outputs[0]), "words": item["words"], "bytes": item["bytes"]}

    def aggregate(self, grades):
        nats, words, size, tokens = (sum(g[name] for g in grades) for name in ("nll", "words", "bytes", "nll_tokens"))
        return {
            "word_perplexity": math.exp(nats / words),
            "byte_perplexity": math.exp(nats / size),
            "bits_per_byte": nats / size / math.log(2),
            "token_perplexity": math.exp(nats / tokens),
        }
