"""The micro-batches of a training as a plan sees them: from the data's own rows where they are at hand, else from the protocol.

Without rows, every row is taken to be as long as the protocol allows, and their number is the one that
config/catalogue.yaml has from the data's publisher, if it has one: upper bounds, and the plan says so.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness import assets, data
from harness.contract import Labelled
from harness.counted_step import Shape
from harness.plugins import find_plugin, load_plugin
from harness.seeds import Streams
from harness.setup import labels, split_examples
from harness.suite import Training, catalogue
from harness.tiny import byte_tokenizer

ENOUGH = 20_000  # rows whose lengths are read; of more, evenly spaced ones
LAID = 500_000  # rows of a training whose micro-batches are all laid out
STEPS = 2_000  # whose micro-batches are laid out where not all are
LABEL_TOKENS = 2  # of a class's word and the end of the text, where a decoder classifies and rows are not at hand
ROWS, PUBLISHED, PROTOCOL = "the data's rows", "published row count, longest rows", "longest rows"


@dataclass(frozen=True)
class Batches:
    """What a training is fed. ``steps`` and ``tokens`` (of a step, without padding) are None where they are unknown."""

    source: str
    steps: int | None
    micro_batches: float  # of a step
    tokens: float
    typical: Shape
    largest: Shape
    upper: bool = False  # whether ``largest`` is an upper bound: not every micro-batch is known


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows, and how many of each have a target; ``count`` rows in all. ``longest`` and ``targets``: as many a row
    has at most, those that were not read included; None: as many as the protocol allows."""

    rows: list[int]
    supervised: list[int]
    count: int
    longest: int | None = None
    targets: int | None = None

    @property
    def whole(self) -> bool:
        """Whether every row was read."""
        return self.count == len(self.rows)


def batches(training: Training) -> Batches:
    """Of a cell of a suite."""
    fields, protocol = json.dumps(training.corpus_fields()), json.dumps(training.protocol)
    return _of_rows(training.model, training.corpus, fields, protocol, training.seed) or _from_protocol(training)


@functools.cache
def _of_rows(model: str, corpus: str, fields: str, protocol: str, seed: int) -> Batches | None:
    """The same for every variant: the rows' order is. ``fields`` and ``protocol``: JSON. None without rows."""
    rules = json.loads(protocol)
    found = _lengths(model, corpus, fields, rules["max_length"], rules["remove_overlap"])
    return _from_rows(found, rules, Streams(seed, rules["streams"]).seed("order")) if found else None


@functools.cache
def _lengths(model: str, corpus: str, fields: str, max_length: int, remove: bool) -> Lengths | None:
    """Of a corpus's training rows under a model's tokenizer; None where either is not at hand."""
    architecture = catalogue()["models"][model]["architecture"]
    plugin = load_plugin("corpora", corpus, **json.loads(fields))
    try:
        tokenizer = _tokenizer(model, architecture)
        examples, _, _ = split_examples(plugin, remove)
    except assets.AssetMissing:
        return None
    chosen = [examples[i * len(examples) // ENOUGH] for i in range(ENOUGH)] if len(examples) > ENOUGH else examples
    rows = data.encode(chosen, plugin, tokenizer, architecture, max_length)
    targets = [row.supervised for row in rows]
    few = architecture in ("encoder", "image") or plugin.example is Labelled  # what was read shows all there are
    longest = 1 if architecture == "image" else None
    return Lengths([row.length for row in rows], targets, len(examples), longest, max(targets) if few else None)


def _tokenizer(model: str, architecture: str) -> object | None:
    if architecture == "image":
        return None
    if "tiny" in catalogue()["models"][model]:
        return byte_tokenizer(architecture)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.asset_folder(model), local_files_only=True)


def label_count(model: str, corpus: str, fields: dict) -> int | None:
    """Outputs of the task head, None without one."""
    return labels(load_plugin("corpora", corpus, **fields), catalogue()["models"][model]["architecture"])


# --------------------------------------------------------------------------- from rows


def _from_rows(found: Lengths, protocol: dict, seed: int) -> Batches:
    steps = max(1, protocol["steps"] or round(protocol["epochs"] * found.count / protocol["batch_size"]))
    known = found.whole and steps * protocol["batch_size"] <= LAID
    seen = _order(found, steps if known else min(steps, STEPS), protocol, seed)
    every = [shape for rows in seen for shape in shapes(found, rows, protocol)]
    met = max(every, key=_size)
    largest = met if known else _bound(found, protocol)
    return Batches(
        source=ROWS if found.whole else f"{ROWS} ({len(found.rows):,} of {found.count:,})",
        steps=steps,
        micro_batches=len(every) / len(seen),
        tokens=statistics.fmean(sum(found.rows[i] for i in rows) for rows in seen),
        typical=mean_shape(every),
        largest=largest,
        upper=largest != met,
    )


def _size(shape: Shape) -> tuple:
    return shape.rows * shape.length, shape.padded, shape.supervised


def _bound(found: Lengths, protocol: dict) -> Shape:
    """What no micro-batch exceeds: a full one of the longest rows that were read, or if not all were, that there can be."""
    rows = min(protocol["micro_batch_size"], protocol["batch_size"])
    if found.whole:
        length, targets, even = max(found.rows), max(found.supervised), min(found.rows) == max(found.rows)
    else:
        length = found.longest or protocol["max_length"]
        targets, even = found.targets or length, length == 1
    return Shape(rows, length, rows * targets, padded=rows > 1 and not even)


def _order(found: Lengths, steps: int, protocol: dict, seed: int) -> list[list[int]]:
    return data.order(found.rows, steps, protocol["batch_size"], protocol["length_bucketing"], seed)


def shapes(found: Lengths, rows: Sequence[int], protocol: dict) -> list[Shape]:
    """The micro-batches of a step of these rows, longest first."""
    size = protocol["micro_batch_size"]
    rows = sorted(rows, key=lambda i: -found.rows[i])
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [
        Shape(
            len(part),
            found.rows[part[0]],
            sum(found.supervised[i] for i in part),
            padded=found.rows[part[-1]] < found.rows[part[0]],
        )
        for part in parts
    ]


def mean_shape(every: Sequence[Shape]) -> Shape:
    """A micro-batch as large as these on average, in whole rows and tokens, with padding if most have some."""
    rows = max(1, round(statistics.fmean(shape.rows for shape in every)))
    padded = statistics.fmean(shape.rows * shape.length for shape in every)
    supervised = statistics.fmean(shape.supervised for shape in every)
    most = statistics.fmean(shape.padded for shape in every) > 0.5
    return Shape(rows, max(1, round(padded / rows)), max(1, round(supervised)), most)


# --------------------------------------------------------------------------- without rows


def _from_protocol(training: Training) -> Batches:
    protocol = training.protocol
    rows, length = protocol["micro_batch_size"], protocol["max_length"]
    architecture = catalogue()["models"][training.model]["architecture"]
    if architecture == "image":
        length = 1
    count = _published(training)
    steps = protocol["steps"] or (count and max(1, round(protocol["epochs"] * count / protocol["batch_size"])))
    shape = Shape(rows, length, rows * _targets(training, architecture, length))
    return Batches(
        source=PUBLISHED if count and not protocol["steps"] else PROTOCOL,
        steps=steps or None,
        micro_batches=-(-protocol["batch_size"] // rows),
        tokens=protocol["batch_size"] * length,
        typical=shape,
        largest=shape,
        upper=architecture != "image",
    )


def _targets(training: Training, architecture: str, length: int) -> int:
    """Positions of a row with a target, at most."""
    corpus = load_plugin("corpora", training.corpus, **training.corpus_fields())
    if architecture in ("encoder", "image"):
        return 1
    if corpus.example is Labelled:
        return min(LABEL_TOKENS, length)
    return length if architecture == "seq2seq" else length - 1


def _published(training: Training) -> int | None:
    """Training rows as the publisher counts them, and no more than the suite's own limit."""
    plugin = find_plugin("corpora", training.corpus)
    asset = next(iter(plugin.names("assets")), None)
    count = catalogue()["data"][asset].get("rows") if asset else None
    limit = {**plugin.fields, **training.corpus_fields()}.get("limit") or count
    return min(count, limit) if count else None
