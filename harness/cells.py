"""A cell of a suite: one training, its resolved specification, its keys, and where its records lie. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.assets import check_catalogue
from harness.closure import code_hash
from harness.plugins import ROOT, find_plugin
from harness.strict_yaml import read_yaml

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.trials import Tuning

PREDICTING = ("precision", "eval_batch_size", "threads", "max_length", "streams")
"""Fields of the protocol that predictions depend on, besides the training."""


@functools.cache
def catalogue() -> dict:
    """config/catalogue.yaml, checked against its schema: models and data by name."""
    known = read_yaml(ROOT / "config" / "catalogue.yaml", "config/catalogue.yaml")
    check_catalogue(known)
    return known


@dataclass(frozen=True)
class Training:
    """One cell: what is trained, and what is scored with it."""

    suite: Suite = field(repr=False, compare=False)
    model: str
    corpus: str
    variant: str
    seed: int
    evals: tuple[str, ...]
    kind: ClassVar[str] = "runs"  # the folder of results/{suite} that its records are in
    stage: ClassVar[str] = "train"

    @property
    def name(self) -> str:
        return f"{self.model}/{self.corpus}/{self.variant}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.suite.results / self.kind / self.name

    @property
    def identity(self) -> dict:
        """What every record of this cell says first."""
        return {
            "suite": self.suite.name,
            "model": self.model,
            "corpus": self.corpus,
            "variant": self.variant,
            "method": self.method,
            "seed": self.seed,
        }

    @property
    def method(self) -> str:
        return self.suite.variants[self.variant]["method"] if self.variant in self.suite.variants else self.variant

    @property
    def trains(self) -> bool:
        return self.variant in self.suite.variants

    @property
    def tuning(self) -> Tuning | None:
        """The search whose choice this training takes its hyper-parameters from, where the suite tunes it."""
        return self.suite.tunings.get((self.model, self.corpus, self.variant))

    @functools.cached_property
    def protocol(self) -> dict:
        """The protocol's fields as this cell has them."""
        return self.suite.resolve(self, "protocol")

    @functools.cached_property
    def hyperparameters(self) -> dict:
        """Every field of the method with the value that the suite gives it (of a tuned one: before the search)."""
        plugin = find_plugin("methods", self.method)
        return {**plugin.fields, **self.suite.resolve(self, "variant")}

    def hyperparameters_given(self) -> dict:
        """The hyper-parameters that the suite sets or its search has chosen, the method's defaults left to itself."""
        chosen = self.tuning.chosen() if self.tuning else {}
        return {**self.suite.resolve(self, "variant"), **chosen}

    def corpus_fields(self) -> dict:
        return self.suite.settings("corpora", self.corpus)

    @functools.cached_property
    def specification(self) -> dict:
        """All that determines the trained weights. Two trainings with equal specifications are the same training.

        Of a tuned cell the search stands in it, not what the search has chosen: that follows.
        """
        corpus = find_plugin("corpora", self.corpus)
        base = {
            "model": {"name": self.model, "source": sources("models", self.model)},
            "corpus": {
                "name": self.corpus,
                "fields": _merge(corpus.fields, self.corpus_fields()),
                "source": {asset: sources("data", asset) for asset in corpus.names("assets")},
            },
        }
        if not self.trains:
            return {**base, "method": self.variant}
        files = [find_plugin("methods", self.method).path, corpus.path]
        files += [ROOT / "harness" / f"{stem}.py" for stem in ("setup", "loop", "data", "models")]
        fields = {k: v for k, v in self.protocol.items() if k != "eval_batch_size"}
        return {
            **base,
            "method": self.method,
            "hyperparameters": self.hyperparameters,
            "protocol": fields,
            "seed": self.seed,
            "code": code_hash(files),
            **({"tuning": self.tuning.specification} if self.tuning else {}),
        }

    def trained_with(self) -> dict:
        """The specification with the values that the search has chosen, as records have it."""
        if not self.tuning:
            return self.specification
        return {**self.specification, "hyperparameters": {**self.hyperparameters, **self.hyperparameters_given()}}

    @property
    def mark(self) -> str:
        """What its folder and its checkpoints are marked with: the key, and what a search has chosen."""
        return hash_of([self.key, self.tuning.chosen()]) if self.tuning else self.key

    @functools.cached_property
    def computed_key(self) -> str:
        """Hash of the specification as the code stands now."""
        return hash_of(self.specification)

    @property
    def key(self) -> str:
        """The specification's hash; with code=pinned that of the record that is there, if one is."""
        return self.suite.recorded_key(train_record(self)) or self.computed_key

    def predict_key(self, evaluation: str) -> str:
        """Hash of what determines an eval's raw outputs; with code=pinned that of the record that is there, if one is."""
        recorded = self.suite.recorded_key(predict_record(self, evaluation))
        return recorded or self._predict_key(evaluation, self.key)

    def computed_predict_key(self, evaluation: str) -> str:
        """The same as the code stands now."""
        return self._predict_key(evaluation, self.computed_key)

    def _predict_key(self, evaluation: str, trained: str) -> str:
        """Hash of the training, whose key is ``trained``, the items and the requests, not the grading."""
        plugin = find_plugin("evals", evaluation)
        files = [plugin.path, ROOT / "harness" / "predict.py", ROOT / "harness" / "language_model.py"]
        fields = _merge(plugin.fields, self.suite.settings("evals", evaluation))
        grading = plugin.attributes.get("grading_fields") or ()
        return hash_of(
            {
                "training": trained,
                "eval": evaluation,
                "fields": {name: value for name, value in fields.items() if name not in grading},
                "source": {asset: sources("data", asset) for asset in plugin.names("assets")},
                "protocol": {name: self.protocol[name] for name in PREDICTING},
                "code": code_hash(files, grading=False),
            }
        )

    def score_key(self, evaluation: str) -> str:
        """Hash of what determines an eval's grades."""
        files = [find_plugin("evals", evaluation).path, ROOT / "harness" / "score.py"]
        if self.variant == "majority":
            files.append(find_plugin("corpora", self.corpus).path)
        plugin = find_plugin("evals", evaluation)
        fields = _merge(plugin.fields, self.suite.settings("evals", evaluation))
        grading = {name: fields[name] for name in plugin.attributes.get("grading_fields") or () if name in fields}
        return hash_of(
            {
                "predictions": self.predict_key(evaluation),
                "code": code_hash(files),
                **(
                    {"fields": grading} if grading else {}
                ),  # most evals have none: the others' keys are told by the two
            }
        )


def train_record(t: Training) -> Path:
    return t.folder / "train.json"


def predict_record(t: Training, evaluation: str) -> Path:
    return t.folder / evaluation / "predict.json"


def score_record(t: Training, evaluation: str) -> Path:
    return t.folder / evaluation / "score.json"


def cost_record(t: Training) -> Path:
    return t.suite.results / "cost" / t.model / t.corpus / t.variant / "cost.json"


# --------------------------------------------------------------------------- small parts


def sources(kind: str, name: str) -> Any:
    """What identifies an asset before it is fetched: its catalogue entry without its labels. What was fetched (a hub's
    revision, a mirror's content) stands in the records."""
    return {k: v for k, v in catalogue()[kind][name].items() if k in ("sources", "tiny", "format", "architecture")}


def _merge(defaults: dict, given: dict) -> dict:
    return {k: v for k, v in {**defaults, **given}.items() if k != "task"}


def hash_of(value: Any) -> str:
    """Hash of a value as JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, default=lambda v: "..." if v is ... else str(v))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
