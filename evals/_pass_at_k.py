"""pass@k by the unbiased estimator of Chen et al. 2021 (https://arxiv.org/abs/2107.03374), and running what it counts.

Of n sampled programs c pass. The chance that k drawn without replacement contain one that passes is
    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1}^{n} (1 - k / i),
whose mean over problems is reported; k = 1 gives the share c / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.sandbox import run_programs

KS = (1, 10)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate from ``c`` passing programs of ``n``. Raises ValueError unless 0 <= c <= n and 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} cannot be estimated from {c} of {n} programs")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def program_counts(programs: Sequence[str], tests: str | None = None) -> dict:
    """Run each program in the sandbox, one after another, judged by ``tests`` (None: it holds its own).

    ``n`` programs, ``c`` that passed, the ``outcome`` of each ("passed", "failed AssertionError", "timeout", ...) and
    the sandbox's ``level``.
    """
    outcomes = run_programs(programs, tests=tests)
    return {
        "n": len(outcomes),
        "c": sum(outcome.status == "passed" for outcome in outcomes),
        "outcome": [_name(outcome.status, outcome.detail) for outcome in outcomes],
        "level": outcomes[0].level,
    }


def pass_rates(grades: Sequence[dict]) -> dict[str, float]:
    """``pass_at_1`` and, from ten programs a problem on, ``pass_at_10``, in percent; ``programs``: the least n."""
    fewest = min(grade["n"] for grade in grades)
    rates = {
        f"pass_at_{k}": 100.0 * sum(pass_at_k(grade["n"], grade["c"], k) for grade in grades) / len(grades)
        for k in KS
        if k <= fewest
    }
    return {**rates, "programs": float(fewest)}


def _name(status: str, detail: str) -> str:
    """The status, for a failure with the kind of error; never its text, which may differ from run to run."""
    return f"failed {detail.split(':')[0]}" if status == "failed" else status
