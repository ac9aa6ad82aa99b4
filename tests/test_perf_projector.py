"""The measurement of bases on a tiny model: what is counted, what is compared with what, what is written."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import math

import pytest
import torch

from perf import projector, projector_gap, projector_gradients, projector_refresh, projector_report, projector_spectra

SHAPES = ((24, 24), (12, 24), (40, 24))
TINY = ("--model", "tiny-llama", "--steps", "2", "--rows", "2", "--length", "16")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of what was written, and what was printed, with a tiny Llama."""
    out, said = tmp_path_factory.mktemp("perf"), io.StringIO()
    given = [
        "--quick",
        "--model",
        "tiny-llama",
        "--steps",
        "2",
        "--rows",
        "2",
        "--length",
        "16",
        "--step-rounds",
        "3",
        "--seeds",
        "3",
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(projector, "SHAPES", SHAPES)
        patch.setattr(projector_gap, "GAPS", (0.3, 0.1, 0.03))
        projector.main([*given, "--ranks", "4", "--threads", "1", "--out", str(out)])
    return out, said.getvalue()


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_builder_has_its_row_for_each_spectrum(measured):
    found = rows(measured[0] / "projector.csv")
    assert {(r["shape"], r["spectrum"]) for r in found} == {
        (s, a) for s in ("12x24", "40x24") for a in ("i^-0.5", "i^-1")
    }
    assert {r["builder"] for r in found} == set(projector_spectra.BUILDERS)
    for row in found:
        assert float(row["seconds"]) > 0 and 0.5 < float(row["energy"]) < 1 + 1e-4 and 0 <= float(row["angle"]) <= 1
        if row["builder"] in ("svd", "gram"):
            assert float(row["energy"]) == pytest.approx(1, abs=1e-5) and float(row["angle"]) < 1e-2
        if row["builder"] == "block":
            assert float(row["passes"]) == 2 and row["start"] == ""


def test_the_whole_model_is_compared_with_the_yardstick(measured):
    out, said = measured
    found = rows(out / "projector_model.csv")
    kept = json.loads((out / "projector.json").read_text())
    there = importlib.util.find_spec("galore_torch") is not None
    yardstick = "galore-torch" if there else "svd"
    assert all(len(times) == 2 for times in kept["seconds"].values()) and yardstick in kept["seconds"]
    compared = [r for r in found if r["seconds"]]
    assert {(r["builder"], r["start"]) for r in compared} == {
        *(
            ("block", ""),
            ("block of 4", ""),
            ("gram", ""),
            ("dynamic", "warm"),
            ("dynamic", "cold"),
        )
    }
    for row in compared:
        assert float(row["times_faster_low"]) <= float(row["times_faster"]) <= float(row["times_faster_high"])
        assert 0.3 < float(row["energy_lowest"]) <= float(row["energy"]) < 1 + 1e-4
    text = (out / "projector.md").read_text(encoding="utf-8")
    assert text in said and "All 14 matrices of tiny-llama" in text and ("not installed" in text) is not there
    assert len(kept["steps"]["4"]["ours"]) == 3


def test_figures_and_gaps_are_kept(measured):
    out, _ = measured
    for name in ("projector", "projector_gap"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"
    found = rows(out / "projector_gap.csv")
    assert {(r["gap"], r["momentum"]) for r in found} == {
        (g, m) for g in ("0.3", "0.03") for m in projector_gap.MOMENTA
    }


def test_gradients_are_kept_and_read_again_and_parts_joined(measured, tmp_path):
    out, _ = measured
    asked = projector.parse([*TINY, "--gradients", str(out / "gradients.pt")])
    read = projector_gradients.Gradients(asked, torch.device("cpu"))
    asked.gradients = None
    made = projector_gradients.Gradients(asked, torch.device("cpu"))
    assert len(read.after) == 14 and read.source == made.source and read.source.startswith("2 x 16 ")
    for one, other in ((read.before, made.before), (read.after, made.after)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(read.before[0], read.after[0])
    asked = projector.parse([*TINY, "--rows", "3", "--gradients", str(out / "gradients.pt")])
    with pytest.raises(SystemExit, match="name another"):
        projector_gradients.Gradients(asked, torch.device("cpu"))
    (tmp_path / "projector.json").write_text((out / "projector.json").read_text())
    projector.main(["--parts", "gaps", "--seeds", "2", "--quick", "--threads", "1", "--out", str(tmp_path)])
    kept, before = (json.loads((folder / "projector.json").read_text()) for folder in (tmp_path, out))
    assert kept["seconds"] == before["seconds"] and kept["gaps"] != before["gaps"]


def test_a_missing_model_is_said_and_the_rest_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setattr(projector, "SHAPES", SHAPES)
    monkeypatch.setattr(projector_gap, "GAPS", (0.3, 0.1))
    projector.main(["--quick", "--seeds", "2", "--ranks", "4", "--threads", "1", "--out", str(tmp_path)])
    assert "NOT RUN: no gradients of smollm2-135m" in capsys.readouterr().out
    assert "NOT RUN: the gradients of smollm2-135m" in (tmp_path / "projector.md").read_text()
    assert (tmp_path / "projector.png").exists() and not (tmp_path / "projector_model.csv").exists()


def test_energy_and_angle_are_one_and_zero_for_the_exact_basis_alone():
    G, exact, values = projector_spectra.synthetic((20, 30), 0.5)
    A, top = G.mT.double(), exact[:, :4].double()
    assert float(projector_spectra.energies(A, top)) == pytest.approx(float(values[:4].square().sum()), rel=1e-5)
    assert float(projector_spectra.sines(top, top)) < 1e-6
    other = torch.cat((top[:, :3], exact[:, 10:11].double()), 1)
    assert float(projector_spectra.sines(other, top)) == pytest.approx(1, abs=1e-5)
    missed = 1 - float(projector_spectra.energies(A, other) / values[:4].square().sum())
    assert missed == pytest.approx(float((values[3] ** 2 - values[10] ** 2) / values[:4].square().sum()), rel=1e-3)
    near = projector_spectra.perturbed(G)
    assert float((near - G).norm() / G.norm()) == pytest.approx(0.2, rel=1e-5)


def test_theory_of_the_gap():
    start = 14.0
    plain, momentum = (projector_gap.theory(1e-4, kind, start) for kind in ("none", "dynamic"))
    assert plain == pytest.approx(math.log(start / 1e-6) / 1e-4, rel=1e-3)
    assert momentum == pytest.approx(math.log(start / 1e-6) / math.sqrt(2e-4), rel=1e-2)
    for row in projector_gap.curves(3, (0.1,)):
        assert row["theory"] * 0.6 < row["products"] < row["theory"] * 1.7


def test_bars_are_judged_by_the_whole_interval():
    row = {"builder": "block", "start": "", "rank": 32, "label": "block, 2 passes", "seconds": 1.0, "energy": 0.999}
    row |= {
        "times_faster": 25.0,
        "times_faster_low": 21.0,
        "times_faster_high": 30.0,
        "energy_lowest": 0.991,
        "passes": 2,
    }
    assert [line.split(": ")[-1] for line in projector_report.verdicts([row], "galore-torch")] == ["met", "met"]
    row |= {"times_faster_low": 19.0, "energy_lowest": 0.98}
    assert [line.split(": ")[-1] for line in projector_report.verdicts([row], "galore-torch")] == ["NOT met"] * 2
    assert projector_report.step_verdicts({32: {"ours": [1.0, 1.0], "galore-torch": [2.0, 2.0]}})[0].endswith(": met")
    assert projector_refresh.exact_basis(torch.diag(torch.tensor([3.0, 1.0, 2.0])), 2)[0].tolist() == [9.0, 4.0]
