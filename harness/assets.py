"""Where models and data lie once prepared, and whether they are whole. Imports no torch; touches no network.

Layout of the cache: ``{asset}/`` the files and ``asset.json``; ``.wheels/`` small wheels kept; ``.staged/`` what is
being fetched; ``.locks/``; ``.records/`` a copy of each asset.json, so that a deleted one need not be paid for twice.
Sources and what they hash to stand in config/catalogue.yaml; ``harness.prepare`` fetches them.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from harness import record
from harness.failures import UserError
from harness.plugins import ROOT

LOCK_FILE = ROOT / "config" / "revisions.lock.yaml"
"""Hub revisions by asset name, resolved at the first fetch: ``{asset: {id: hub id, revision: commit}}``."""
UNPINNED = "unpinned"


class AssetMissing(UserError):
    """An asset is not there, or not whole."""


class WrongHash(UserError):
    """A file is not the one that the catalogue names."""


def cache() -> Path:
    """The folder of all assets: TUNING_FORK_CACHE, or assets/ in the project."""
    return Path(os.environ.get("TUNING_FORK_CACHE") or ROOT / "assets").expanduser().absolute()


def mirror() -> Path | None:
    """The folder that stands in for the hub (TUNING_FORK_MIRROR), if one is set."""
    value = os.environ.get("TUNING_FORK_MIRROR")
    return Path(value).expanduser().absolute() if value else None


def go_offline() -> None:
    """Keep hub libraries off the network; call before they are imported. Only ``prepare`` may fetch."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[variable] = "1"


def entry(name: str) -> tuple[str, dict]:
    """("model" or "data", the catalogue's entry). Raises UserError with the nearest names."""
    from harness.suite import catalogue

    known = catalogue()
    for kind, section in (("model", "models"), ("data", "data")):
        if name in known[section]:
            return kind, known[section][name]
    near = difflib.get_close_matches(name, [*known["models"], *known["data"]], n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Add it to config/catalogue.yaml."
    raise UserError(f"no asset '{name}' in config/catalogue.yaml. {hint}")


def check_catalogue(known: dict) -> None:
    """Raise UserError naming the place when the catalogue does not fit its schema."""
    import jsonschema

    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "catalogue.schema.yaml").read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(known))
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path)
        raise UserError(f"config/catalogue.yaml: {place or 'top level'}: {error.message}")
    both = sorted(set(known["models"]) & set(known["data"]))
    if both:
        raise UserError(f"config/catalogue.yaml: {both[0]} is the name of a model and of data; rename one")


def asset_folder(name: str) -> Path:
    """The folder of a prepared asset: an HF model folder, or the files of a data set.

    Looks at sizes only, so it costs a few microseconds a file. Raises AssetMissing with the command that helps.
    """
    entry(name)
    folder = cache() / name
    if not (folder / "asset.json").is_file():
        raise AssetMissing(f"asset '{name}' is not in {cache()}. Fetch it: python -m harness.prepare {name}")
    for item in record.read(folder / "asset.json")["files"]:
        path = folder / item["file"]
        if not path.is_file() or path.stat().st_size != item["bytes"]:
            raise AssetMissing(
                f"asset '{name}' is damaged: {path} is missing or has another size than when it was fetched. "
                f"Fetch it again: python -m harness.prepare {name}"
            )
    return folder


def entry_hash(catalogue_entry: dict) -> str:
    """Hash of what an asset is made from: its sources, not its labels."""
    parts = {key: catalogue_entry.get(key) for key in ("sources", "tiny", "columns")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def intact(name: str, catalogue_entry: dict) -> dict | None:
    """The record of an asset that is whole and made from this entry, else None.

    A file is read again only when its size or time tells of a change since the record was written.
    """
    folder, copy = cache() / name, cache() / ".records" / f"{name}.json"
    path = folder / "asset.json"
    if not path.is_file() and copy.is_file() and folder.is_dir():
        shutil.copy2(copy, path)
    if not path.is_file():
        return None
    try:
        found = record.read(path)
    except ValueError:
        return None
    if found.get("status") != "ok" or found.get("entry") != entry_hash(catalogue_entry):
        return None
    written = path.stat().st_mtime_ns
    for item in found["files"]:
        file = folder / item["file"]
        if not file.is_file() or file.stat().st_size != item["bytes"]:
            return None
        if file.stat().st_mtime_ns > written and record.digest(file) != item["sha256"]:
            return None
    return found


def publish(name: str, staged: Path, facts: dict) -> dict:
    """Move what is in ``staged`` into the asset's folder and write its record last. Returns the record."""
    final, copies = cache() / name, cache() / ".records"
    final.mkdir(parents=True, exist_ok=True)
    copies.mkdir(parents=True, exist_ok=True)
    for stale in (final / "asset.json", copies / f"{name}.json"):
        stale.unlink(missing_ok=True)
    for old in [p for p in final.iterdir() if not p.name.startswith(".")]:
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for new in staged.iterdir():
        os.replace(new, final / new.name)
    record.write(final / "asset.json", facts)
    shutil.copy2(final / "asset.json", copies / f"{name}.json")
    return record.read(final / "asset.json")


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Only one process at a time makes an asset. The lock goes with its process, however that ends."""
    folder = cache() / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache {cache()} cannot be written ({error.strerror}). Set TUNING_FORK_CACHE to a folder that can."
        ) from None
    with open(folder / f"{name}.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: another process is preparing it; waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------- revisions


def locked_revisions() -> dict[str, dict]:
    """{asset: {"id", "revision"}} of config/revisions.lock.yaml; empty when nothing was ever fetched from the hub."""
    return (yaml.safe_load(LOCK_FILE.read_text(encoding="utf-8")) or {}) if LOCK_FILE.is_file() else {}


def pinned_revision(name: str, source: dict) -> str | None:
    """The commit that a hub source stands at: the catalogue's, the locked one, that of a sibling asset, or None."""
    if source.get("revision"):
        return source["revision"]
    locked = locked_revisions()
    siblings = [pin for pin in (locked.get(name), *locked.values()) if pin and pin["id"] == source["id"]]
    return siblings[0]["revision"] if siblings else None


def lock_revision(name: str, source: dict, revision: str) -> None:
    """Write down the commit that was fetched, for every later fetch of this asset."""
    with lock("revisions.lock"):
        pins = {**locked_revisions(), name: {"id": source["id"], "revision": revision}}
        text = "# Hub commits, resolved at the first fetch. Delete a line to take a newer commit.\n"
        text += yaml.safe_dump(pins, sort_keys=True)
        temporary = LOCK_FILE.with_name(f".{LOCK_FILE.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, LOCK_FILE)


def revisions(names: Iterable[str]) -> dict[str, str]:
    """{asset: its revision}, as records hold it."""
    return {name: revision(name) for name in names}


def other_data(found: dict) -> str:
    """What of a record's model and data is of another revision now, as "glue-sst2: mirror 1a2b, now mirror 3c4d"."""
    changed = []
    for name, then in (found.get("assets") or {}).items():
        now = revision(name)
        changed += [f"{name}: {then}, now {now}"] if now != then else []
    return ", ".join(changed)


def revision(name: str) -> str:
    """For people: what version of the asset this is; of a hub asset that was never fetched, "unpinned"."""
    _, catalogue_entry = entry(name)
    if "tiny" in catalogue_entry:
        return "random-init"
    found = intact(name, catalogue_entry)
    if found:
        return found["revision"]
    source = catalogue_entry["sources"][0]
    if source["kind"] == "wheel":
        return f"{source['package']} {source['version']}"
    return pinned_revision(name, source) or UNPINNED
