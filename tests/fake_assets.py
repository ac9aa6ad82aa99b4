"""A world for tests of assets: an empty cache, wheels made here, a mirror, and a stand-in for the hub. No network."""

from __future__ import annotations

import hashlib
import json
import sys
import types
import zipfile
from pathlib import Path

from harness import assets, cells, dag, prepare, suite

ROWS = "".join(json.dumps({"text": f"row {i}", "label": i % 2}) + "\n" for i in range(6))
RAW = ROWS.encode()


def make_world(tmp_path, monkeypatch):
    """An empty cache, no mirror, no index but ``dist/``, and a catalogue to fill: nothing here reaches a network."""
    dist, known = tmp_path / "dist", {"models": {}, "data": {}}
    dist.mkdir()
    for variable in ("TUNING_FORK_MIRROR", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(dist))
    monkeypatch.setattr(assets, "LOCK_FILE", tmp_path / "revisions.lock.yaml")
    monkeypatch.setattr(suite, "catalogue", lambda: known)
    monkeypatch.setattr(prepare, "catalogue", lambda: known)
    monkeypatch.setattr(dag, "catalogue", lambda: known)
    monkeypatch.setattr(cells, "catalogue", lambda: known)
    return types.SimpleNamespace(root=tmp_path, dist=dist, cache=tmp_path / "cache", **known)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, package: str, version: str, files: dict[str, bytes]) -> dict:
    """A wheel that pip accepts; what the catalogue says of it."""
    stem = f"{package.replace('-', '_')}-{version}"
    path, info = folder / f"{stem}-py3-none-any.whl", f"{stem}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return {"kind": "wheel", "package": package, "version": version, "sha256": sha(path.read_bytes())}


def wheel_data(world, name="words", rows=RAW) -> dict:
    """A data asset whose only source is a wheel that lies in the cache already, so that pip is not needed."""
    store = world.cache / ".wheels"
    store.mkdir(parents=True, exist_ok=True)
    source = build_wheel(store, f"pkg-{name}", "1.0", {"pkg/rows.jsonl": rows})
    source["files"] = [{"path": "pkg/rows.jsonl", "as": "train.jsonl", "sha256": sha(rows)}]
    world.data[name] = {"label": "Words", "sources": [source]}
    return source


def mirror_data(world, monkeypatch, rows=ROWS, name="pairs", splits=("train",)) -> Path:
    """A hub asset and a mirror that has it; the mirror's folder of it."""
    folder = world.root / "mirror" / "some" / "pairs" / "main"
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        (folder / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.setenv("TUNING_FORK_MIRROR", str(world.root / "mirror"))
    source = {"kind": "hub", "id": "some/pairs", "config": "main", "splits": {"train": "train", "test": "test"}}
    world.data[name] = {"label": "Pairs", "columns": ["text", "label"], "sources": [{**source, "revision": None}]}
    return folder


class FakeHub:
    """Stands in for ``huggingface_hub`` and ``datasets``: one repository at commit ``c0ffee...``."""

    commit = "c0ffee" + "0" * 34

    def __init__(self, monkeypatch, files=None, error=None, token=None):
        self.files, self.error, self.asked = files or {}, error, []
        hub = types.ModuleType("huggingface_hub")
        hub.get_token = lambda: token
        hub.HfApi = lambda: types.SimpleNamespace(model_info=self.info, dataset_info=self.info)
        hub.snapshot_download = self.download
        data = types.ModuleType("datasets")
        data.load_dataset = self.load
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "datasets", data)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def info(self, repository, revision=None, files_metadata=False):
        if self.error:
            raise self.error
        self.asked.append(revision)
        lfs = lambda name: types.SimpleNamespace(sha256=sha(b"weights")) if name.endswith(".safetensors") else None  # noqa: E731
        siblings = [types.SimpleNamespace(rfilename=name, lfs=lfs(name)) for name in self.files]
        return types.SimpleNamespace(sha=revision or self.commit, siblings=siblings)

    def load(self, repository, config, split, revision):
        assert (config, revision) == ("main", self.commit)
        return [json.loads(line) for line in ROWS.splitlines()]

    def download(self, repository, revision, local_dir, allow_patterns):
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)
        for name in allow_patterns:
            (Path(local_dir) / name).write_bytes(self.files[name])


def hub_data(world, name="pairs", **more) -> None:
    source = {"kind": "hub", "id": "some/pairs", "config": "main", "splits": {"train": "train"}, "revision": None}
    world.data[name] = {"label": "Pairs", "columns": ["text"], "sources": [{**source, **more}]}
