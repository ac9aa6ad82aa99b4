"""Labels that name one thing each: where a suite gives two models, corpora, evals or variants the same, both bear their id."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.collected import Collected

if TYPE_CHECKING:
    import pandas as pd

    from evidence.pools import Panel

KINDS = ("model", "corpus", "eval", "variant")


def shared(runs: pd.DataFrame, kinds: Sequence[str] = KINDS) -> dict[str, dict[str, str]]:
    """By kind, {id: "label (id)"} of the ids whose label another one has. Columns as in runs.parquet."""
    found = {}
    for kind in kinds:
        rows = runs.drop_duplicates(kind)
        labels = dict(zip(rows[kind], rows[f"{kind}_label"], strict=True))
        counts = Counter(labels.values())
        found[kind] = {name: f"{label} ({name})" for name, label in labels.items() if counts[label] > 1}
    return found


def relabelled(frame: pd.DataFrame, found: dict[str, dict[str, str]]) -> pd.DataFrame:
    """The frame with the labels of ``shared``."""
    for kind, labels in found.items():
        if labels and f"{kind}_label" in frame:
            column = frame[f"{kind}_label"].astype(object)
            frame = frame.assign(**{f"{kind}_label": frame[kind].astype(object).map(labels).fillna(column)})
    return frame


def benchmarks(panels: Sequence[Panel]) -> dict[tuple[str, str], str]:
    """By (corpus, eval), the eval's name, with the corpus where the suite has the eval after several."""
    corpora: dict[str, set[str]] = {}
    for panel in panels:
        corpora.setdefault(panel.eval, set()).add(panel.corpus)
    return {
        (p.corpus, p.eval): p.label
        + (f" after {p.first('corpus_label', p.corpus)}" if len(corpora[p.eval]) > 1 else "")
        for p in panels
    }


class Labelled(Collected):
    """A suite's evidence whose labels name one thing each."""

    @functools.cached_property
    def _shared(self) -> dict[str, dict[str, str]]:
        return shared(super()._frame("runs"))

    def _frame(self, name: str, without: str = "", filters: list | None = None) -> pd.DataFrame:
        return relabelled(super()._frame(name, without, filters), self._shared)
