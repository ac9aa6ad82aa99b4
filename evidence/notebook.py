"""Execute a notebook on collected evidence:
``python -m evidence.notebook notebooks/learning_curves.ipynb --collected results/S/collected --out FILE.ipynb``.

The notebook reads Parquet only, from the folder in TUNING_FORK_COLLECTED. In git its outputs are stripped; the executed
copy goes to ``--out``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from evidence.cells import EvidenceError
from evidence.collected import Collected

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "TUNING_FORK_COLLECTED"


def execute(notebook: Path, collected: Path, out: Path, timeout: int = 300) -> None:
    """Run every cell and write the result to ``out``. Raises EvidenceError with the cell's own error."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    if not notebook.is_file():
        raise EvidenceError(f"{notebook}: no such notebook. There are: {', '.join(sorted(_names()))}.")
    Collected(collected)  # says what is missing before a kernel starts
    content = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    os.environ[VARIABLE] = str(collected.resolve())  # the kernel is this process's child
    with tempfile.TemporaryDirectory(prefix="tuning-fork-") as folder:
        # socket files: no port is opened
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(Path(folder) / "kernel"))
        client = NotebookClient(content, km=kernel, timeout=timeout, resources=resources)
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError) as error:
            raise EvidenceError(f"{notebook}: a cell failed.\n{error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(nbformat.writes(content) + "\n", encoding="utf-8")


def _names() -> list[str]:
    return [path.name for path in (ROOT / "notebooks").glob("*.ipynb")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.notebook", description="Execute a notebook.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--out", type=Path, required=True, help="the executed notebook")
    arguments = parser.parse_args(argv)
    try:
        execute(arguments.notebook, arguments.collected, arguments.out)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
