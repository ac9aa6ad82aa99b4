"""The collected evidence of a suite as data frames: read from Parquet, or straight from the records of one corpus."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.cells import EvidenceError
from evidence.gather import Gathered
from evidence.trials import COLUMNS

if TYPE_CHECKING:
    import pandas as pd


class Collected:
    """``runs``, ``items``, ``costs``, ``trials``, ``curves``, ``suite`` (see ``evidence.collect``), each read when asked for."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        path = self.folder / "suite.json"
        if not path.is_file():
            plan = self.folder.parent / "plan.json"
            raise EvidenceError(
                f"{self.folder}: nothing collected here yet (no suite.json). "
                f"Run `python -m evidence.collect --plan {plan} --out {self.folder}`."
            )
        with _readable(path):
            self.suite: dict = json.loads(path.read_text(encoding="utf-8"))

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        return self._frame("runs")

    @functools.cached_property
    def costs(self) -> pd.DataFrame:
        return self._of_this_version("costs", "step_seconds_all")

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """Trials of the tuning; none of a suite that does not tune, or that was collected before there was any."""
        import pandas as pd

        if not (self.folder / "trials.parquet").is_file():
            return pd.DataFrame(columns=COLUMNS)
        return self._of_this_version("trials", "no_choice")

    @functools.cached_property
    def items(self) -> pd.DataFrame:
        return self._frame("items", without="grade")

    def curves(self, names: list[str]) -> pd.DataFrame:
        """The curves of these names only: a grid's whole curves may not fit in memory."""
        return self._frame("curves", filters=[("name", "in", names)])

    def _of_this_version(self, name: str, column: str) -> pd.DataFrame:
        """The rows of a file. Raises EvidenceError for a collection of an earlier version, which lacks the column."""
        frame = self._frame(name)
        if len(frame) and column not in frame:
            raise EvidenceError(
                f"{self.folder}: collected by an earlier version. Collect again: `python -m evidence.collect`."
            )
        return frame

    def _frame(self, name: str, without: str = "", filters: list | None = None) -> pd.DataFrame:
        import pyarrow.parquet as pq

        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            raise EvidenceError(f"{path}: missing. Collect again: `python -m evidence.collect` (see its --help).")
        with _readable(path):
            columns = [column for column in pq.read_schema(path).names if column != without]
            return pq.read_table(path, columns=columns, filters=filters).to_pandas()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises EvidenceError where a file of a collection is damaged."""
    try:
        yield
    except (ValueError, OSError) as error:  # JSON's, UTF-8's and Arrow's errors are such
        first = str(error).partition("\n")[0]
        message = f"{path}: damaged ({first}). Collect again: `python -m evidence.collect` (see its --help)."
        raise EvidenceError(message) from None


class FromRecords(Collected):
    """The same, read from the records themselves: for the early table of one corpus, before anything is collected."""

    def __init__(self, plan: Path, corpus: str | None = None):
        import pandas as pd

        gathered = Gathered(plan, corpus)
        self.folder = gathered.root
        self.suite = gathered.suite()
        self.runs = pd.DataFrame(gathered.runs)
        self.costs = pd.DataFrame(gathered.costs)
        self.trials = pd.DataFrame(gathered.trials, columns=COLUMNS)
        self._tables = gathered.items

    @functools.cached_property
    def items(self) -> pd.DataFrame:
        import pandas as pd
        import pyarrow as pa

        if not self._tables:
            return pd.DataFrame(columns=["model", "corpus", "variant", "eval", "seed", "item"])
        return pa.concat_tables(self._tables, promote_options="default").drop_columns("grade").to_pandas()
