"""The five sentences at the head of the report: what to use, how sure that is, what it costs, what is open, what failed.

Each rule always answers; where the data do not decide, the sentence says that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from evidence.report_rows import CostRow, ScoreRow, difference_text, told_apart

MIB = 2**20


@dataclass(frozen=True)
class Finding:
    title: str
    text: str


def findings(rows: Sequence[ScoreRow], costs: Sequence[CostRow], failed: Sequence[str]) -> list[Finding]:
    """The sentences, in the order in which a reader decides; by headline scores, likelihoods where these are at their floor."""
    scores, likelihoods = [r for r in rows if r.headline], [r for r in rows if not r.headline]
    return [
        Finding("What to use", what_to_use(scores, costs)),
        Finding("How sure", how_sure(scores)),
        Finding("What it costs", what_it_costs(costs)),
        Finding("What stays open", what_stays_open(scores, likelihoods)),
        Finding("What went wrong", what_went_wrong(scores, failed)),
    ]


def what_to_use(scores: Sequence[ScoreRow], costs: Sequence[CostRow]) -> str:
    """The cheapest of the methods that no benchmark tells from its best, or from the reference as worse, or puts at its floor."""
    contests = _contests(scores)
    if not contests:
        return "Nothing can be recommended: no benchmark compares two methods above its floor."
    where = _count(len(contests), "comparison")
    everywhere = f"all of {where}" if len(contests) > 1 else "the one comparison"
    thin = (
        ""
        if all("*" not in row.tier for rows in contests for row in rows)
        else (" With fewer than three shared seeds that leaves the choice of seeds out: take it as a hint.")
    )
    first: dict[str, int] = {}
    for rows in contests:
        for row in rows:
            first[row.method] = first.get(row.method, 0) + _among_best(row)
    entered = {method: sum(any(r.method == method for r in rows) for rows in contests) for method in first}
    always = [m for m, wins in first.items() if wins == entered[m] == len(contests)]
    if not any(first.values()):
        return "Nothing can be recommended: no method that is among the best is above its floor."
    if not always:
        best = max(first, key=lambda method: first[method])
        return (
            f"No method belongs to the best everywhere; {best} most often does, in {first[best]} of {where} "
            "(a benchmark on a model). Choose by the benchmark nearest to your task." + thin
        )
    paces = {method: pace for method in always if (pace := _pace(costs, method))}
    if len(always) == 1:
        return f"{always[0]}: the only method that is among the best in {everywhere} (a benchmark on a model)." + thin
    listed = _listed(always)
    if not paces:
        return (
            f"{listed} are among the best in {everywhere}; none of their costs was measured, so nothing decides." + thin
        )
    cheapest = min(paces, key=lambda method: paces[method])
    return (
        f"{cheapest}: of the methods that are among the best in {everywhere} ({listed}), its training is the fastest, "
        f"{paces[cheapest]:.2f} of the slowest's time." + thin
    )


def how_sure(scores: Sequence[ScoreRow]) -> str:
    """The clearest difference to the reference, or that there is none."""
    compared = [row for row in scores if row.difference and row.difference["error"]]
    if not compared:
        return "No method shares seeds and items with another, so no difference has an interval."
    reference = _reference(compared, scores)
    held = [row for row in compared if told_apart(row)]
    if held:
        clearest = max(held, key=lambda row: abs(row.difference["difference"]) / row.difference["error"])
        return (
            f"{len(held)} of {_count(len(compared), 'difference')} to {reference} hold over seeds and items (Holm, 0.05); the "
            f"clearest: {clearest.method} is {'worse' if _worse(clearest) else 'better'}, {difference_text(clearest)} on "
            f"{clearest.benchmark}, {clearest.model_label}{' (lower is better)' if clearest.lower_is_better else ''}."
        )
    if all(row.difference["covers"] == "items only" for row in compared):
        return (
            f"None of {_count(len(compared), 'difference')} to {reference} can be called one: with fewer than three shared "
            "seeds the intervals leave the choice of seeds out. Run at least three."
        )
    return f"None of {_count(len(compared), 'difference')} to {reference} holds over seeds and items (Holm, 0.05)."


def what_it_costs(costs: Sequence[CostRow]) -> str:
    """Fastest training and least memory against full fine-tuning, the suite's first, medians over models and corpora."""
    fine = [row for row in costs if row.status == "ok" and not row.why and row.whole]
    if not fine:
        return "Time and memory were not measured in this suite (stage cost)."
    base = next((row for row in fine if row.plugin == "full"), None)
    fulls = {(row.model, row.corpus): row for row in fine if base and row.variant == base.variant}
    ratios: dict[str, list[tuple[float, float | None]]] = {}
    for row in fine:
        full = fulls.get((row.model, row.corpus))
        if full and row is not full:
            memory = row.peak / full.peak if row.peak and full.peak else None
            ratios.setdefault(row.method, []).append((row.whole / full.whole, memory))
    if not ratios:
        quick = min(fine, key=lambda row: row.whole)
        beside = "no other method was measured beside full fine-tuning" if base else "full fine-tuning was not measured"
        return f"The fastest training is {quick.method}'s, {quick.whole:.3g} s on {quick.model_label}; {beside}."
    times = {method: median(t for t, _ in found) for method, found in ratios.items()}
    sizes = {m: median(s) for m, found in ratios.items() if (s := [size for _, size in found if size])}
    quick = min(times, key=lambda method: times[method])
    text = f"{quick} trains fastest, in {times[quick]:.2f} of full fine-tuning's time"
    if times[quick] > 1:
        text = f"Nothing trains faster than full fine-tuning; next is {quick}, in {times[quick]:.2f} of its time"
    if sizes:
        small = min(sizes, key=lambda method: sizes[method])
        text += (
            f", and {small} needs the least memory, {sizes[small]:.2f} of full fine-tuning's live tensors"
            if small != quick
            else f", and needs the least memory, {sizes[quick]:.2f} of its live tensors"
        )
    settings = len({(row.model, row.corpus) for row in fine})
    which = f"; full fine-tuning is variant {base.variant}" if _siblings(base, costs) else ""
    return text + f" (median over {_count(settings, 'model and corpus', 'models and corpora')}{which})."


def what_stays_open(scores: Sequence[ScoreRow], likelihoods: Sequence[ScoreRow] = ()) -> str:
    """Benchmarks at their floor and what likelihoods say there, and how small a difference the others would find."""
    sunk: dict[str, dict[str, None]] = {}
    for row in scores:
        if row.unresolved:
            sunk.setdefault(row.model_label, {})[row.benchmark] = None
    compared = [r for r in scores if r.difference and r.difference.get("detectable") and not r.unresolved]
    parts = []
    if sunk:
        where = _listed([f"{_listed(list(names))} on {model}" for model, names in sunk.items()])
        one = sum(map(len, sunk.values())) == 1
        parts.append(
            f"{where} tell{'s' * one} nothing: every average lies within noise of the floor{_likelihoods(scores, likelihoods)}"
        )
    by_benchmark: dict[str, list[float]] = {}
    for row in compared:
        by_benchmark.setdefault(row.benchmark, []).append(row.difference["detectable"])
    if by_benchmark:
        found = {name: median(values) for name, values in by_benchmark.items()}
        finest, coarsest = min(found, key=lambda n: found[n]), max(found, key=lambda n: found[n])
        parts.append(
            f"in four of five cases a true difference of {found[finest]:.2g} on {finest}"
            + (f", or {found[coarsest]:.2g} on {coarsest}," if finest != coarsest else "")
            + " would be found (median over methods); four times the items and seeds at least halve that"
        )
    return _sentence(parts) or "Nothing: but no benchmark says what it could have found."


def _likelihoods(scores: Sequence[ScoreRow], likelihoods: Sequence[ScoreRow]) -> str:
    """How many differences in the likelihood of reference answers hold over seeds and items on benchmarks at their floor."""
    sunk = {(row.corpus, row.eval, row.model) for row in scores if row.unresolved}
    beside = [row for row in likelihoods if (row.corpus, row.eval, row.model) in sunk and row.difference]
    compared = [r for r in beside if r.difference["error"] and r.difference["covers"] == "seeds and items"]
    if not compared:
        return ""
    held = sum(told_apart(row) for row in compared)
    count = _count(len(compared), "difference")
    return f" (in the likelihood of the reference answers, {held} of {count} to {_reference(compared, scores)} hold)"


def what_went_wrong(scores: Sequence[ScoreRow], failed: Sequence[str]) -> str:
    """Rows without a result, and numbers left out of averages."""
    left = sum(bool(run.why) and run.text.replace(".", "").lstrip("-").isdigit() for row in scores for run in row.runs)
    made = list(dict.fromkeys(row.benchmark for row in scores if any("made by a program" in m for m in row.marks)))
    parts = [
        f"{_count(len(failed), 'row')} of the plan {'have' if len(failed) != 1 else 'has'} no result, listed below"
    ]
    if not failed:
        parts = ["Nothing failed: every row of the plan has a result"]
    if left:
        parts.append(f"{_count(left, 'number')} of a stale record or another stack stand aside: compared with no other")
    if made:
        one = len(made) == 1
        parts.append(
            f"{_listed(made)} {'is' if one else 'are'} made by a program and {'says' if one else 'say'} nothing of real tasks"
        )
    return _sentence(parts)


def _contests(scores: Sequence[ScoreRow]) -> list[list[ScoreRow]]:
    """Rows with a tier by benchmark and model, where at least two methods have one."""
    groups: dict[tuple, list[ScoreRow]] = {}
    for row in scores:
        if row.tier:
            groups.setdefault((row.corpus, row.eval, row.model), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _among_best(row: ScoreRow) -> bool:
    """Tier 1 alone is not enough: a method whose seeds scatter widely is told from few, the best least of all."""
    return row.tier.rstrip("*") == "1" and not row.at_floor and not (told_apart(row) and _worse(row))


def _worse(row: ScoreRow) -> bool:
    """Is its difference to the reference to its disadvantage?"""
    return (row.difference["difference"] < 0) != row.lower_is_better


def _pace(costs: Sequence[CostRow], method: str) -> float | None:
    """A method's training over the slowest of its model and corpus, the median over these."""
    found = []
    fine = [row for row in costs if row.status == "ok" and not row.why and row.whole]
    for row in fine:
        if row.method == method:
            found.append(row.whole / max(o.whole for o in fine if (o.model, o.corpus) == (row.model, row.corpus)))
    return median(found) if found else None


def _reference(compared: Sequence[ScoreRow], scores: Sequence[ScoreRow]) -> str:
    """The reference's label; the suite's name for it, too, where it is one of several variants of its method."""
    row = next(row for row in scores if row.variant == compared[0].difference["reference"])
    return f"{row.method} (variant {row.variant})" if _siblings(row, scores) else row.method


def _siblings(row: ScoreRow | CostRow, rows: Sequence[ScoreRow] | Sequence[CostRow]) -> bool:
    """Are there other variants of the same method?"""
    return any(other.plugin == row.plugin and other.variant != row.variant for other in rows)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""
