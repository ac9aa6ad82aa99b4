"""Tables of a paper that hold scores, from its description in ``papers/<paper>/tables.yaml`` (see ``paper_tables``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evidence.cells import BASELINES
from evidence.equivalence import to_reported
from evidence.gap import share_closed
from evidence.layout import Group, Table
from evidence.learning_rates import not_chosen
from evidence.mean_of_evals import mean_pool
from evidence.names import family_of
from evidence.pools import OTHER_STACK, STALE, Panel, Pool, on_shared_seeds, panels
from evidence.reported import Number, chosen, read_reported
from evidence.score_notes import UNRESOLVED, left_out
from evidence.score_table import cell, decimals, names_of
from evidence.tiers import ITEMS_NOTE, NOTE, place

if TYPE_CHECKING:
    from evidence.collected import Collected

NOT_RUN = "not run"
SUBHEADS = ["runs", "average", "tier"]
LESS = "less reported"


def scores_table(paper: str, spec: dict, collected: Collected) -> Table:
    """A row group per benchmark of the paper, a row per method of it."""
    numbers = read_reported(paper, spec["reported"]) if "reported" in spec else []
    names, models = names_of(collected), collected.suite["models"]
    numbers = [
        n
        for n in numbers
        if any(_printed([n], row, spec, method) for row in spec["rows"] for method in spec["methods"])
    ]
    theirs = list(dict.fromkeys(n.model for n in numbers))
    own = set(
        spec.get("models", {}).values()
    )  # the paper's models: others' scores are not to be subtracted from its own
    heads = [(names[m], [*SUBHEADS, LESS] if m in own else SUBHEADS) for m in models if m in names]
    heads += [("reported", theirs)] if theirs else []
    table = Table(spec["title"], ("Benchmark", "Method"), heads, [], [])
    found = _panels(spec, collected)
    for row in spec["rows"]:
        table.groups.append(_group(row, spec, table, found, names, models, numbers, theirs))
    table.notes = _notes(spec, dict.fromkeys(n.source for n in numbers), found)
    return table


def _printed(numbers: list[Number], row: dict, spec: dict, method: str) -> dict[str, Number]:
    """{the source's model: its number} of a row and method; ``called`` tells by what other names sources go."""
    wanted = {**row.get("reported", {}), "method": spec.get("called", {}).get(method, method)}
    return {number.model: number for number in chosen(numbers, wanted)}


def _group(row: dict, spec: dict, table: Table, found: list[Panel], names: dict, models, numbers, theirs) -> Group:
    group = Group([row["title"]])
    by_model = {model: _pools(row, model, found) for model in models if model in names}
    digits = max((d for _, d in by_model.values()), default=1)
    placed = {model: _tiers(row, model, found, pools) for model, (pools, _) in by_model.items()}
    for method, family in spec["methods"].items():
        texts = [method]
        printed = _printed(numbers, row, spec, method)
        for model, (pools, _) in by_model.items():
            variant = next((v for v in pools if family_of(v) == family), None)
            pool = pools.get(variant)
            same = printed.get(next((their for their, own in spec.get("models", {}).items() if own == model), ""))
            texts += [*cell(pool, digits, True), placed[model][variant]] if pool else [NOT_RUN, "", ""]
            if model in spec.get("models", {}).values():
                texts.append(_less_reported(pool, same.average if same else None, spec.get("margin", 1.0), digits))
            table.records.append(_record(row, method, model, variant, pool, placed[model].get(variant, "")))
        texts += [printed[their].shown() if their in printed else "—" for their in theirs]
        for their, number in printed.items():
            table.records.append(
                {"benchmark": row["title"], "method": method, "model": their, "origin": "reported", "average": number.average,
                 "as printed": number.text, "state": number.state, "source": number.source}
            )  # fmt: skip
        group.rows.append(texts)
    return group


def _record(row: dict, method: str, model: str, variant: str | None, pool: Pool | None, tier: str) -> dict:
    record = {
        "benchmark": row["title"],
        "method": method,
        "model": model,
        "origin": "this suite",
        "variant": variant or "",
    }
    if pool is None:
        return record | {"state": NOT_RUN}
    runs = {f"run seed{run.seed}": run.status if run.value is None else run.value for run in pool.runs}
    return record | runs | {
        "average": pool.spread.mean if pool.used else None, "sd": pool.spread.sd if pool.spread.n > 1 else None,
        "n": pool.spread.n, "items": pool.n_items, "low": pool.interval.low if pool.interval else None,
        "high": pool.interval.high if pool.interval else None, "interval": pool.interval.kind if pool.interval else "",
        "tier": tier, "state": pool.mark,
    }  # fmt: skip


def _less_reported(pool: Pool | None, reported: float | None, margin: float, digits: int) -> str:
    """The difference to the paper's number on the paper's own model, and whether it is equal within the margin."""
    if pool is None or reported is None or not pool.used or pool.mark:
        return ""
    equal = to_reported(pool, reported, margin)
    return f"{pool.spread.mean - reported:+.{digits}f}" if equal is None else equal.text(digits)


def _tiers(row: dict, model: str, found: list[Panel], pools: dict[str, Pool]) -> dict[str, str]:
    """Text of each variant's tier; baselines have none, and nobody has where every score is within noise of the floor."""
    parts = [panel for name in row["evals"] if (panel := _panel(row, name, model, found))]
    if parts and all(panel.unresolved(model) for panel in parts):
        return dict.fromkeys(pools, UNRESOLVED)
    methods = {v: pool for v, pool in pools.items() if v not in BASELINES}
    placed = place(methods, bool(parts and parts[0].first("lower_is_better", False)))
    return {v: placed.text(v) for v in pools}


def _panels(spec: dict, collected: Collected) -> list[Panel]:
    also = [row["metric"] for row in spec["rows"] if "metric" in row]
    aside = not_chosen(collected.runs)
    return [panel.without(aside) for panel in panels(collected, reference=False, also=also)]


def _pools(row: dict, model: str, found: list[Panel]) -> tuple[dict[str, Pool], int]:
    """Pools of the row's evals on a model by variant (their mean where there are several), and digits to print."""
    parts = [panel for name in row["evals"] if (panel := _panel(row, name, model, found))]
    if len(parts) < len(row["evals"]):
        return {}, 1
    variants = [v for v, m in parts[0].pools if m == model and all((v, model) in part.pools for part in parts)]
    pools = {v: [part.pools[v, model] for part in parts] for v in variants}
    return {v: each[0] if len(each) == 1 else mean_pool(each) for v, each in pools.items()}, decimals(parts[0])


def _panel(row: dict, name: str, model: str, found: list[Panel]) -> Panel | None:
    for panel in found:
        wanted = row.get("metric")
        right = panel.metric == wanted if wanted else panel.headline
        if panel.eval == name and right and any(m == model for _, m in panel.pools):
            return panel
    return None


def _notes(spec: dict, sources, found: list[Panel]) -> list[str]:
    notes = [
        "Runs in the order of their seeds; average ± standard deviation (number of runs) [95 % interval over items, not seeds]. "
        "A mean of several benchmarks is that of their scores, run by run; its interval is of the items within each.",
        NOTE + ITEMS_NOTE,
    ]
    if sources:
        notes.append(
            "Reported numbers: as printed, runs in brackets; papers give no spread over items. Source: " + "; ".join(sources)
            + ". Less reported: on the paper's own model alone, "
            f"equivalence within {spec.get('margin', 1.0):g} (ours) by two one-sided tests."
        )  # fmt: skip
    trained = {row["title"]: _trained_on(row, found) for row in spec["rows"]}
    if any(trained.values()):
        notes.append("Trained here on: " + "; ".join(f"{title}: {on}" for title, on in trained.items() if on) + ".")
    every = [run for panel in found for pool in panel.pools.values() for run in pool.runs]
    if any(run.stale for run in every):
        notes.append(f"{STALE} stale: of another specification than the suite's present one; not averaged with others.")
    if others := sorted({run.other_stack for run in every if run.other_stack}):
        notes.append(f"{OTHER_STACK} other software or device: {' | '.join(others)}; not averaged with others.")
    labels = dict.fromkeys(panel.label for panel in found if panel.facts["generated"].any())
    if labels:
        notes.append(f"Made by a program, says nothing of real tasks: {', '.join(labels)}.")
    return notes


def _trained_on(row: dict, found: list[Panel]) -> str:
    """Corpora that a row's scores follow from."""
    return ", ".join(dict.fromkeys(str(p.first("corpus_label", p.corpus)) for p in found if p.eval in row["evals"]))


# --------------------------------------------------------------------------- the share of a gap


def gap_table(paper: str, spec: dict, collected: Collected) -> Table:
    """A row per benchmark and method: how much of the gap from ``low`` to ``high`` it closes."""
    names = names_of(collected)
    ends = f"{spec['low']} to {spec['high']}"
    heads = [("", ["model", f"gap, {ends} [95 %]", "share closed [95 %]", "seeds", "items"])]
    table = Table(spec["title"], ("Benchmark", "Method"), heads, [], [])
    for row in spec["rows"]:
        group = Group([row["title"]], list(_gap_rows(row, spec, collected, names, table)))
        group.rows = group.rows or [[NOT_RUN, "", "", "", "", ""]]
        table.groups.append(group)
    table.notes = [
        "Share closed: (method less low) / (high less low), paired on shared seeds and items, with Fieller's interval; 1 is "
        "the whole gap. Refused where the gap itself is not told from zero (by the larger critical value of the two "
        "differences), as a ratio to nothing says nothing. With fewer than three shared seeds the intervals leave the choice "
        "of seeds out.",
        *left_out(_panels(spec, collected), names),
    ]
    return table


def _gap_rows(row: dict, spec: dict, collected: Collected, names: dict, table: Table) -> Iterator[list[str]]:
    found = _panels(spec, collected)
    for model in collected.suite["models"]:
        pools, digits = _pools(row, model, found)
        ends = [next((p for v, p in pools.items() if family_of(v) == spec[end]), None) for end in ("low", "high")]
        for variant, pool in pools.items():
            if family_of(variant) not in spec["methods"] or None in ends:
                continue
            arrays = on_shared_seeds(pool, *ends)
            if arrays is None:
                yield [names[variant], names[model], "—", _why(pool, *ends), "", ""]
                continue
            own, low, high = arrays
            share = share_closed(own, low, high)
            gap = share.gap
            width = f"{gap.value:+.{digits}f}"
            width += f" [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]" if gap.error else ""
            table.records.append(
                {"benchmark": row["title"], "model": model, "variant": variant, "gap": gap.value, "gap low": gap.low,
                 "gap high": gap.high, "share": share.value, "low": share.low, "high": share.high, "covers": gap.kind,
                 "seeds": gap.seeds, "items": gap.items}
            )  # fmt: skip
            yield [names[variant], names[model], width, share.text(), str(gap.seeds), str(gap.items)]


def _why(*pools: Pool) -> str:
    """Why three methods cannot be held against each other."""
    if any(not pool.used or pool.mark for pool in pools):
        states = {run.status if run.value is None else "stale" if run.stale else "other software"
                  for pool in pools for run in pool.runs if run.value is None or run.mark}  # fmt: skip
        return "not comparable: " + ", ".join(sorted(states))
    return "no shared seeds or items"
