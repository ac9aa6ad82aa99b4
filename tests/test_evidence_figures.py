"""Figures: one fixed look per method, files in three formats, nothing hidden; and the notebook."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import fake_results
import nbformat
import numpy as np
import pandas as pd
import pytest

from evidence import collect, figures, notebook, report_figures
from evidence.collected import Collected
from evidence.figure_blocks import block_pages, shares
from evidence.figure_curves import binned
from evidence.figure_layers import by_layer, layer_pages
from evidence.style import FAMILY_STYLES, PAGE_HEIGHT, styles

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return fake_results.collected(tmp_path_factory.mktemp("results") / "fake") / "collected"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One corpus only: drawing takes time."""
    folder = fake_results.collected(tmp_path_factory.mktemp("results") / "small", corpora=("snippets",))
    return folder / "collected"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The eight methods of the adapter family on one corpus, LoRA's first seed diverged; hybrid logs its lambdas."""
    folder = fake_results.collected(
        tmp_path_factory.mktemp("results") / "many", corpora=("arithmetic",), variants=fake_results.MANY
    )
    return Collected(folder / "collected")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """SMT alone on one corpus: a training has a row for each of two metrics."""
    folder = fake_results.collected(
        tmp_path_factory.mktemp("results") / "sparse", corpora=("snippets",), variants={"smt": "smt"}
    )
    return Collected(folder / "collected")


@pytest.fixture(scope="module")
def drawn(collected, many, sparse):
    crowd = {f"{name} of many": figure for name, figure in figures.draw(many).items() if "scores" not in name}
    return figures.draw(Collected(collected)) | crowd | {"blocks": figures.draw(sparse)["fig6_blocks"]}


def texts(figure):
    import matplotlib.text

    figure.draw_without_rendering()
    hidden = {id(label) for axis in figure.axes for label in (*axis.get_xticklabels(), *axis.get_yticklabels())}
    hidden -= {id(label) for axis in figure.axes for label in (*shown(axis.xaxis), *shown(axis.yaxis))}
    every = figure.findobj(matplotlib.text.Text)
    return [t for t in every if t.get_text().strip() and t.get_visible() and id(t) not in hidden]


def shown(axis):
    """Tick labels within the axis's limits: matplotlib keeps others, and does not draw them."""
    low, high = sorted(axis.get_view_interval())
    labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [label for label in labels if label.get_text() and label.get_visible()]


def test_command_writes_every_figure_in_three_formats(small, tmp_path):
    assert figures.main(["--collected", str(small), "--out", str(tmp_path)]) == 0
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"fig1_time_memory", "fig2_curves", "scores", "pareto", "time_to_target", "profile"}
    for name in names:
        heads = [(tmp_path / f"{name}.{suffix}").read_bytes()[:5] for suffix in ("svg", "pdf", "png")]
        assert heads == [b"<?xml", b"%PDF-", b"\x89PNG\r"]
        assert all((tmp_path / f"{name}.{suffix}").stat().st_size > 10_000 for suffix in ("svg", "pdf", "png"))


def assert_on_the_page(name, figure):
    width, height = figure.get_size_inches() * figure.dpi
    for text in texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= width + 1, (name, text.get_text())
        assert box.y0 >= -1 and box.y1 <= height + 1, (name, text.get_text())


def test_labels_stay_inside_the_page_and_are_legible(drawn):
    for name, figure in drawn.items():
        assert_on_the_page(name, figure)
        width, height = figure.get_size_inches() * figure.dpi
        for text in texts(figure):
            assert text.get_fontsize() >= 6.5, (name, text.get_text())
        assert width / figure.dpi <= 7.2 and height / figure.dpi <= PAGE_HEIGHT + 1, name


def test_tick_labels_do_not_overlap(drawn):
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        for axis in figure.axes:
            for labels in (shown(axis.xaxis), shown(axis.yaxis)):
                boxes = [label.get_window_extent() for label in labels]
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]), name


def test_failures_stand_in_the_figures(drawn):
    said = {name: " ".join(text.get_text() for text in texts(figure)) for name, figure in drawn.items()}
    assert "timeout" in said["fig1_time_memory"]
    for word in ("1 stale", "1 other stack", "1 diverged", "1 missing", "1 oom", "not resolvable at this scale"):
        assert word in said["scores"], word


def test_axes_state_their_units(drawn):
    labels = {axis.get_xlabel() for axis in drawn["fig1_time_memory"].axes}
    assert all(label.endswith((", min", ", s", ", h", "MiB", "GiB")) for label in labels if label)
    assert {axis.get_ylabel() for axis in drawn["fig2_curves"].axes} == {
        "gradient norm\n(before clipping)",
        "validation loss",
    }


def test_the_reports_axes_do_not_say_that_every_loss_is_in_nats():
    assert (
        report_figures.SIDES["loss"] == "training loss" and report_figures.SIDES["validation_loss"] == "validation loss"
    )


def test_equal_data_give_equal_bytes(small, tmp_path):
    for name in ("a", "b"):
        figures.save(figures.draw(Collected(small)), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_nothing_run_yet_draws_nothing_and_says_so(tmp_path, capsys):
    import shutil

    plan = fake_results.build(tmp_path / "fake")
    shutil.rmtree(tmp_path / "fake/runs")
    shutil.rmtree(tmp_path / "fake/cost")
    collect.main(["--plan", str(plan), "--out", str(tmp_path / "collected")])
    assert figures.main(["--collected", str(tmp_path / "collected"), "--out", str(tmp_path / "figures")]) == 0
    assert figures.main(["--collected", str(tmp_path / "nowhere"), "--out", str(tmp_path / "figures")]) == 2
    assert "evidence.collect --plan" in capsys.readouterr().err


# --------------------------------------------------------------------------- style


def test_a_methods_look_never_depends_on_the_others():
    alone = styles(["lora-r16"])["lora-r16"]
    crowd = styles(["untuned", "mine", "full", "dora-r8", "lora-r16", "boft"])["lora-r16"]
    assert (alone.colour, alone.marker, alone.line) == (crowd.colour, crowd.marker, crowd.line)
    assert styles(["peft-dora-r4"])["peft-dora-r4"].colour == styles(["dora"])["dora"].colour


def test_known_looks_are_what_they_were():
    assert {
        name: FAMILY_STYLES[name][:2] for name in ("full", "lora", "dora", "boft", "oft", "lora-ga", "urnn", "hybrid")
    } == {
        "full": ("#000000", "s"),
        "lora": ("#E69F00", "o"),
        "dora": ("#56B4E9", "^"),
        "boft": ("#009E73", "D"),
        "oft": ("#7A4A2A", "X"),
        "lora-ga": ("#CC79A7", "v"),
        "urnn": ("#0072B2", "P"),
        "hybrid": ("#D55E00", "*"),
    }


def test_no_two_methods_look_alike():
    names = [*FAMILY_STYLES, "lora-r64", "lora-r128", "mine", "yours", "theirs"]
    looks = [(style.colour, style.marker) for style in styles(names).values()]
    assert len(set(looks)) == len(looks)


# What a reader without one kind of cone sees of a linear RGB colour: Machado, Oliveira and Fernandes 2009, severity 1.
SIGHT = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(colour, sight):
    """CIELAB of a colour as such a reader sees it."""
    red_green_blue = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ np.clip(SIGHT[sight] @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_readers_of_any_sight_tell_the_eight_methods_apart_by_colour(sight):
    """A difference of 2 in CIELAB is just seen; Okabe and Ito's closest pair has 11 to the red-blind."""
    colours = {name: FAMILY_STYLES[name][0] for name in fake_results.MANY}
    for one, other in itertools.combinations(colours, 2):
        assert np.linalg.norm(seen(colours[one], sight) - seen(colours[other], sight)) > 10, (one, other)


# --------------------------------------------------------------------------- lambda of every matrix


def lambdas(values, seed=0, first=0):
    """Rows of a curve from a table (steps, matrices)."""
    rows = [(first + i, str(j), float(v), seed) for i, row in enumerate(values) for j, v in enumerate(row)]
    return pd.DataFrame(rows, columns=["step", "layer", "value", "seed"])


def test_lambdas_are_means_over_the_seeds_that_reached_a_step():
    values = np.linspace(0, 1, 24).reshape(2, 12)
    longer = np.vstack([values + 0.2, values[:1]])
    table, width = by_layer(pd.concat([lambdas(values), lambdas(longer, seed=1)]))
    assert width == 1 and list(table.index) == list(range(12))  # by number, not by spelling: 2 before 10
    np.testing.assert_allclose(table.to_numpy(), values.T + 0.1)


def test_many_steps_become_bins_of_their_mean():
    values = np.repeat(np.arange(201.0)[:, None], 3, axis=1)
    table, width = by_layer(lambdas(values))
    assert width == 2 and table.shape == (3, 101)
    assert table.iloc[0, 0] == 0.5 and table.iloc[2, 100] == 200


def test_one_lambda_for_the_whole_model_is_one_row():
    rows = lambdas(np.full((5, 1), 0.3)).assign(layer="")
    assert by_layer(rows)[0].shape == (1, 5)


def test_heat_map_has_one_fixed_scale_and_the_values_of_the_curves(many):
    (page,) = layer_pages(many.curves(["lambda"]), styles(many.suite["variants"]))
    (image,) = page.axes[0].get_images()
    assert image.get_clim() == (0.0, 1.0)
    assert image.get_array().shape == (fake_results.MATRICES, fake_results.STEPS["arithmetic"])
    assert image.get_extent() == [-0.5, 11.5, -0.5, 13.5]
    assert any(axis.get_xlabel() == "λ: weight of the low-rank branch" for axis in page.axes)
    said = {text.get_text() for text in texts(page)}
    assert "Hybrid: 2 seeds" in said
    (line,) = [line for line in page.axes[1].get_lines() if len(line.get_xdata()) == 12]
    np.testing.assert_allclose(line.get_ydata(), np.median(np.asarray(image.get_array()), axis=0))


def test_without_lambdas_there_is_no_such_figure(small):
    collected = Collected(small)
    assert layer_pages(collected.curves(["lambda"]), styles(collected.suite["variants"])) == []


def test_a_variant_whose_runs_all_failed_says_so(many):
    rows = many.curves(["lambda"])
    rows = rows[rows["variant"] == "hybrid"].assign(status="diverged")
    (page,) = layer_pages(rows, styles(["hybrid"]))
    assert any("no run ended well" in text.get_text() for text in texts(page))


# --------------------------------------------------------------------------- chosen blocks


def test_shares_of_blocks_are_percent_of_the_chosen_ones_and_means_over_seeds():
    one = {"blocks": 4, "chosen_blocks": {"q": [1, 1], "v": [0, 2]}, "candidate_blocks": {"q": 30, "v": 10}}
    other = {**one, "chosen_blocks": {"q": [0, 4], "v": [0, 0]}}
    assert shares([one]) == {"q": ([25.0, 25.0], 75.0), "v": ([0.0, 50.0], 25.0)}
    assert shares([one, other]) == {"q": ([12.5, 62.5], 75.0), "v": ([0.0, 25.0], 25.0)}


def test_the_figure_of_blocks_shows_the_facts_of_the_records(sparse):
    (page,) = block_pages(sparse.runs, styles(sparse.suite["variants"]))
    layers, totals = page.axes
    rolled = {role: np.array([counts, [counts[-1], *counts[:-1]]]) for role, counts in fake_results.BLOCKS.items()}
    for bars, counts in zip(layers.containers, rolled.values(), strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in bars], 100 * counts.mean(0) / 8)
    top = [bar.get_y() + bar.get_height() for bar in layers.containers[-1]]
    np.testing.assert_allclose(top, 100 * sum(counts.mean(0) for counts in rolled.values()) / 8)  # stacked
    np.testing.assert_allclose([bars[0].get_width() for bars in totals.containers], [37.5, 12.5, 50.0])
    np.testing.assert_allclose([line.get_xdata()[0] for line in totals.get_lines()], [60, 20, 20])
    said = {text.get_text() for text in texts(page)}
    assert {"SMT: 2 seeds", "q", "k", "v", "layer", "chosen blocks, %"} <= said


def test_blocks_of_runs_that_failed_are_not_drawn_and_without_blocks_there_is_no_such_figure(sparse, small):
    look = styles(sparse.suite["variants"])
    (page,) = block_pages(sparse.runs.assign(status="diverged"), look)
    assert any("no run ended well" in text.get_text() for text in texts(page)) and not page.axes[0].containers
    collected = Collected(small)
    assert block_pages(collected.runs, styles(collected.suite["variants"])) == []


def test_eight_methods_stand_in_the_curves_each_with_a_look_of_its_own(many):
    figure = figures.draw(many)["fig2_curves"]
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(fake_results.MANY)
    looks = {(handle.get_color(), handle.get_marker()) for handle in legend.get_lines()}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 8


def test_long_curves_become_bins_and_keep_their_extremes():
    rows = pd.DataFrame([(step, seed, step + 10 * seed) for step in range(1000) for seed in (0, 1)])
    rows.columns = ["step", "seed", "value"]
    table, width = binned(rows)
    assert (len(table), width) == (200, 5)
    assert (table["min"].iloc[0], table["mean"].iloc[0], table["max"].iloc[0]) == (0, 7.0, 14)
    short, one = binned(rows[(rows["step"] < 50) & ~((rows["step"] > 20) & (rows["seed"] == 1))])
    assert one == 1 and short.index.max() == 20  # steps that only one seed reached enter no mean


# --------------------------------------------------------------------------- notebook and imports


def test_notebook_is_stripped_and_reads_parquet_only():
    content = nbformat.read(ROOT / "notebooks/learning_curves.ipynb", 4)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    source = "\n".join(cell["source"] for cell in code)
    assert "read_parquet" in source and "harness" not in source and ".json" not in source and "/tmp" not in source
    assert "nats" not in source  # a predicted value's loss is a squared error


def test_notebook_runs(collected, tmp_path):
    out = tmp_path / "learning_curves.ipynb"
    name = str(ROOT / "notebooks/learning_curves.ipynb")
    assert notebook.main([name, "--collected", str(collected), "--out", str(out)]) == 0
    outputs = [o for cell in json.loads(out.read_text())["cells"] for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 15
    assert not any(o["output_type"] == "error" for o in outputs)


def test_a_missing_notebook_or_folder_is_explained(collected, tmp_path, capsys):
    assert notebook.main(["none.ipynb", "--collected", str(collected), "--out", str(tmp_path / "x.ipynb")]) == 2
    assert "learning_curves.ipynb" in capsys.readouterr().err
    name = str(ROOT / "notebooks/learning_curves.ipynb")
    assert notebook.main([name, "--collected", str(tmp_path), "--out", str(tmp_path / "x.ipynb")]) == 2
    assert "nothing collected" in capsys.readouterr().err
