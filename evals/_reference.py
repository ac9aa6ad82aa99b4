"""Negative log-likelihood of the reference answer: it resolves differences where exact answers are all wrong."""

from __future__ import annotations

from collections.abc import Sequence


def reference_counts(output: dict) -> dict:
    """Summed nats and number of tokens of one item's reference."""
    return {"nll": output["nll"], "nll_tokens": output["tokens"]}


def nats_per_token(grades: Sequence[dict]) -> float:
    """Mean over all tokens of all references."""
    return sum(grade["nll"] for grade in grades) / sum(grade["nll_tokens"] for grade in grades)
