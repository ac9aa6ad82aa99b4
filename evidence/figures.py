"""Figures of a suite: ``python -m evidence.figures --collected results/S/collected --out results/S/figures``.

Each as SVG, PDF and PNG: ``fig1_time_memory``, ``fig2_curves``, ``fig3_layers``, ``fig4_rates``, ``fig5_plateau``,
``fig6_blocks``, ``scores``, ``pareto``, ``time_to_target``, ``profile``, ``expected_best``; further pages end in ``_2``
and so on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.labels import Labelled
from evidence.style import styles, use_print_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
NAMES = (
    "fig1_time_memory", "fig2_curves", "fig3_layers", "fig4_rates", "fig5_plateau", "fig6_blocks", "scores", "pareto",
    "time_to_target", "profile", "expected_best",
)  # fmt: skip


def draw(collected: Collected) -> dict[str, Figure]:
    """All figures of a suite by file name. A figure without any data is left out."""
    from evidence.figure_best import best_pages
    from evidence.figure_blocks import block_pages
    from evidence.figure_cost import cost_pages
    from evidence.figure_curves import SIDES, curve_pages
    from evidence.figure_layers import NAME, layer_pages
    from evidence.figure_pareto import pareto_pages
    from evidence.figure_plateau import plateau_pages
    from evidence.figure_profile import profile_pages, target_pages
    from evidence.figure_rates import rate_pages
    from evidence.figure_scores import score_pages
    from evidence.overview import overviews
    from evidence.pools import panels
    from evidence.time_to_target import workloads

    use_print_style()
    look = styles(collected.suite["variants"])
    labels = dict(zip(collected.runs["model"], collected.runs["model_label"], strict=True))
    models = {model: labels[model] for model in collected.suite["models"] if model in labels}
    scored = panels(collected)
    headlines = [panel for panel in scored if panel.headline]
    works = workloads(collected)
    pages = (
        cost_pages(collected.costs, look) if len(collected.costs) else [],
        curve_pages(collected.curves(list(SIDES)), look),
        layer_pages(collected.curves([NAME]), look),
        rate_pages(collected.runs, collected.trials, look),
        plateau_pages(collected.runs, scored, look),
        block_pages(collected.runs, look),
        score_pages(scored, models, look),
        pareto_pages(overviews(collected, headlines), look),
        target_pages(works, look),
        profile_pages(works, look),
        best_pages(collected.trials, look),
    )
    return {
        name + (f"_{number}" if number > 1 else ""): figure
        for name, figures in zip(NAMES, pages, strict=True)
        for number, figure in enumerate(figures, 1)
    }


def save(figures: dict[str, Figure], out: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Write each figure in each format. Equal data give equal bytes: no dates are written."""
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:  # fewer pages than last time must not leave old ones behind
        for old in out.glob(f"{name}*.*"):
            old.unlink()
    written = []
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}, "png": {"Software": None}}
    for name, figure in figures.items():
        figure.draw_without_rendering()  # the layout is found once, not once a format
        figure.set_layout_engine("none")
        for suffix in formats:
            figure.savefig(out / f"{name}.{suffix}", metadata=dates[suffix])
            written.append(out / f"{name}.{suffix}")
        plt.close(figure)
    return written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.figures", description="Draw the figures of a suite.")
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args(argv)
    try:
        written = save(draw(Labelled(arguments.collected)), arguments.out)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(map(str, written)) if written else "nothing to draw: no cell has run yet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
