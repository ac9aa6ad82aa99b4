"""WikiText's tokens undone, as lm-evaluation-harness's ``wikitext`` does: the corpus trains on what the eval scores."""

from __future__ import annotations

import re

CHANGES = (
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),  # lm-evaluation-harness's own pattern, which matches nothing
    *((re.escape(f" @{mark}@ "), mark) for mark in "-,."),
    *((re.escape(f" {mark} "), f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def plain(page: str) -> str:
    """The page without the spaces and marks of its tokenisation."""
    for pattern, text in CHANGES:  # one after another: each sees what those before it left
        page = re.sub(pattern, text, page)
    return page
