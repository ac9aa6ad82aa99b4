"""The generated grid of perf/evidence_scale.py: its records are as good as a run's, and all of them reach the tables."""

from __future__ import annotations

import fake_results
import pandas as pd
import pytest

from perf import evidence_scale


def test_a_small_grid_is_generated_collected_and_tabulated(tmp_path, monkeypatch, capsys):
    for name, number in (("MODELS", 2), ("CORPORA", 3), ("VARIANTS", 4), ("SEEDS", 2), ("ITEMS", 5)):
        monkeypatch.setattr(evidence_scale, name, number)
    fake_results.build(tmp_path / "source")
    root = tmp_path / "scale"
    assert evidence_scale.main(["--source", str(tmp_path / "source"), "--folder", str(root)]) == 0
    said = capsys.readouterr().out
    assert "48 cells, 240 item rows, generated" in said and "| tables | " in said
    runs = pd.read_parquet(root / "collected" / "runs.parquet")
    headlines = runs[runs["headline"]]
    assert len(headlines) == 48 and set(headlines["status"]) == {"ok"} and set(headlines["stale"]) == {""}
    assert len(pd.read_parquet(root / "collected" / "items.parquet")) == 240
    assert len(pd.read_parquet(root / "collected" / "costs.parquet")) == 24
    assert (root / "tables" / "differences.md").is_file()


def test_a_run_without_scores_is_no_source(tmp_path):
    fake_results.build(tmp_path / "source", variants={})
    with pytest.raises(SystemExit, match="no training with a score"):
        evidence_scale.templates(tmp_path / "source")
