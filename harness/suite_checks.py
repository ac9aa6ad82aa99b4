"""What a suite may say: its schema, and names that must be known where they stand. Imports no torch."""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from harness.failures import UserError
from harness.plugin_source import request_types
from harness.plugins import ROOT, Plugin, as_number, check_fields, find_plugin

if TYPE_CHECKING:
    from harness.suite import Suite

WITH_HEAD = ("encoder", "image")  # architectures that classify by a task head and have no words to say


def _whole(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 8.0 is none here, as no range or slice takes it


Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _whole),
)


def schema() -> dict:
    return json.loads((ROOT / "workflow" / "schemas" / "suite.schema.json").read_text(encoding="utf-8"))


def check_schema(path: Path, value: Any, schema: dict, place: tuple = ()) -> None:
    """Refuse a value that does not fit the schema; ``place`` is where in the suite it stands."""
    for inside, number in _numbers(value, place):
        if not math.isfinite(number):
            raise UserError(f"{where(path, *inside)}: a finite number is needed, not {_as_yaml(number)}")
    errors = Validator(schema).iter_errors(value)
    for error in sorted(errors, key=lambda e: [str(part) for part in e.path]):
        raise UserError(f"{where(path, *place, *error.path)}: {_explain(error)}")


def check_names(suite: Suite, catalogue: dict) -> None:
    """Refuse names of plug-ins, fields, cells and assets that are not known where they stand."""
    for name, variant in suite.variants.items():
        here = where(suite.path, "variants", name)
        if name in ("untuned", "majority"):
            raise UserError(f"{here}: '{name}' is the name of a baseline row, take another")
        given = {k: v for k, v in variant.items() if k != "method"}
        check_fields(find_plugin("methods", variant["method"]), given, here)
    _check_grid(suite, catalogue)
    _check_settings(suite)
    _check_cost(suite)
    protocol = suite.raw.get("protocol", {})
    _check_step_times(suite, protocol.get("step_times", {}), protocol, ("protocol", "step_times"))
    fields = schema()["properties"]
    for number, rule in enumerate(suite.raw.get("overrides", [])):
        _check_set(suite, rule, number, fields)
        _check_when(suite, rule["when"], where(suite.path, "overrides", number, "when"))


def where(path: Path, *place: Any) -> str:
    """The suite's file and the place in it."""
    return f"{path}: {'.'.join(map(str, place))}" if place else str(path)


def scored_evals(block: dict, corpus: str) -> list[str]:
    """Evals that a grid block scores on a corpus: its own list, or the corpus's usual ones. []: trained only."""
    return list(block.get("evals", find_plugin("corpora", corpus).names("evals")))


# --------------------------------------------------------------------------- the grid, and what names its cells


def _check_grid(suite: Suite, catalogue: dict) -> None:
    for number, block in enumerate(suite.raw["grid"]):
        here = where(suite.path, "grid", number)
        for variant in block["variants"]:
            known(variant, suite.variants, f"{here}: variant", "Or add it under `variants:`.")
        for model in block["models"]:
            known(model, catalogue["models"], f"{here}: model", "Or add it to config/catalogue.yaml.")
        for corpus in block["corpora"]:
            _check_corpus(find_plugin("corpora", corpus), block, catalogue, here)


def _check_corpus(corpus: Plugin, block: dict, catalogue: dict, here: str) -> None:
    """One corpus of a grid block, and the evals that are scored on it."""
    leaked = corpus.attributes.get("leaked") or {}
    evals = [find_plugin("evals", name) for name in scored_evals(block, corpus.name)]
    for plugin in evals:
        if plugin.name in leaked:
            raise UserError(
                f"{here}: {corpus.name} is not to be scored on {plugin.name}: {leaked[plugin.name]}. "
                "Give the block `evals:` without it, or another corpus."
            )
        _check_answerable(plugin, block["models"], catalogue["models"], here)
    for plugin in [corpus, *evals]:
        for asset in plugin.names("assets"):
            known(asset, catalogue["data"], f"{plugin.name}: asset", "Or add it to config/catalogue.yaml.")


def _check_answerable(evaluation: Plugin, models: list[str], catalogue: dict, here: str) -> None:
    """A model with a task head answers ``Choices`` with an ``input`` only."""
    asked = request_types(evaluation.path)
    if not asked or "Choices" in asked:
        return  # unknown, or perhaps answerable
    for model in models:
        if catalogue[model]["architecture"] in WITH_HEAD:
            raise UserError(
                f"{here}: the eval {evaluation.name} asks for {' and '.join(sorted(asked))}, which {model}, a model with a "
                "task head, cannot answer: it classifies only. Take a language model, or give the block other `evals:`."
            )


def _check_settings(suite: Suite) -> None:
    """Settings are of corpora and evals that the grid has, and of their fields."""
    blocks = [(block, corpus) for block in suite.raw["grid"] for corpus in block["corpora"]]
    used = {
        "corpora": [corpus for _, corpus in blocks],
        "evals": [name for block, corpus in blocks for name in scored_evals(block, corpus)],
    }
    for kind, names in used.items():
        for name, given in suite.raw.get(kind, {}).items():
            plugin = find_plugin(kind, name)
            known(name, names, f"{where(suite.path, kind)}:", "It is in no grid block, so nothing would read this.")
            check_fields(plugin, given, where(suite.path, kind, name))


def _check_cost(suite: Suite) -> None:
    for kind, names in suite.raw.get("cost", {}).items():
        used = [name for block in suite.raw["grid"] for name in block[kind]]
        for name in names:
            known(name, used, f"{where(suite.path, 'cost', kind)}:", "It is in no grid block, so it has no cost.")


def _check_step_times(suite: Suite, times: dict, protocol: dict, place: tuple) -> None:
    here = where(suite.path, *place)
    for variant in times:
        known(variant, suite.variants, f"{here}: variant", "Or add it under `variants:`.")
        if not protocol.get("steps"):
            raise UserError(f"{here}: equal time is counted from `steps`: give their number")


# --------------------------------------------------------------------------- overrides


def _check_set(suite: Suite, rule: dict, number: int, schemas: dict) -> None:
    """An override's value must fit as if it stood under its key; ``schemas``: of the suite's keys."""
    shared, fields = schemas["protocol"]["properties"], schemas["variants"]["additionalProperties"]["properties"]
    here = where(suite.path, "overrides", number)
    for key, value in rule["set"].items():
        part, _, name = key.partition(".")
        place = ("overrides", number, "set", key)
        if part == "protocol" and {"variant", "method", "seed"} & set(rule["when"]):
            raise UserError(
                f"{here}: '{key}' belongs to the protocol, which all methods of a suite share: it may depend on "
                "model and corpus only. Give another protocol another suite."
            )
        if part == "protocol":
            known(name, shared, f"{here}: protocol field", "Or see harness/suite.py.")
            check_schema(suite.path, value, shared[name], place)
            if name == "step_times":
                steps = rule["set"].get("protocol.steps", suite.raw.get("protocol", {}).get("steps"))
                _check_step_times(suite, value, {"steps": steps}, place)
        elif part == "variant":
            for method in _reached(suite, rule["when"]):
                check_fields(find_plugin("methods", method), {name: value}, here)
            check_schema(suite.path, value, fields.get(name, {}), place)
        else:
            raise UserError(f"{here}: '{key}' should begin with 'protocol.' or 'variant.'")


def _reached(suite: Suite, when: dict) -> list[str]:
    """Methods of the variants that an override is for."""
    facts = [{"variant": name, "method": variant["method"]} for name, variant in suite.variants.items()]
    wanted = {key: when[key] for key in ("variant", "method") if key in when}
    return sorted({fact["method"] for fact in facts if applies(wanted, fact)})


def applies(when: dict, facts: dict) -> bool:
    """Whether an override is for a cell with these facts."""
    return all(facts[key] in as_list(wanted) for key, wanted in when.items())


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _check_when(suite: Suite, when: dict, here: str) -> None:
    """Every name of a condition is in the grid, and some cell has them all: else the rule would never apply."""
    cells = list(_cells(suite))
    for key, wanted in when.items():
        used = list(dict.fromkeys(cell[key] for cell in cells))
        for value in as_list(wanted) or [None]:
            if not any(type(value) is type(name) and value == name for name in used):
                hint = as_number(value) if isinstance(value, str) and key == "seed" else _near(value, used)
                told = "nothing" if value is None else _as_yaml(value)
                raise UserError(f"{here}.{key}: no grid block has the {key} {told}: the rule would never apply.{hint}")
    if not any(applies(when, cell) for cell in cells):
        raise UserError(f"{here}: no cell of the grid has all of this together, so the rule would never apply")


def _cells(suite: Suite) -> Iterator[dict]:
    """What an override's condition may ask of each cell that trains."""
    for block in suite.raw["grid"]:
        axes = (block["models"], block["corpora"], block["variants"], block["seeds"])
        for model, corpus, variant, seed in itertools.product(*axes):
            method = suite.variants[variant]["method"]
            yield {"model": model, "corpus": corpus, "variant": variant, "method": method, "seed": seed}


# --------------------------------------------------------------------------- words


def known(name: str, names: Iterable[str], here: str, remedy: str) -> None:
    """Refuse a name that is none of ``names``, with the nearest."""
    if name not in names:
        raise UserError(f"{here} '{name}' is not known.{_near(name, names)} {remedy}")


def _near(name: Any, names: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(name), list(map(str, names)), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _numbers(value: Any, place: tuple) -> Iterator[tuple[tuple, float]]:
    """Every number with a point in a value, and where it stands."""
    if isinstance(value, float):
        yield place, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _numbers(part, (*place, key))


def _as_yaml(value: Any) -> str:
    """How YAML writes a number, or a text in quotes."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return repr(value)


def _explain(error: jsonschema.ValidationError) -> str:
    """A schema error in words."""
    if list(error.path) == ["tuning", "trials"]:
        return f"{error.message}. It is one number: every variant gets as many trials."
    if error.validator == "additionalProperties":
        allowed = list(error.schema.get("properties", {}))
        extra = next(str(key) for key in error.instance if key not in allowed)
        return f"unknown key '{extra}'." + (_near(extra, allowed) or f" Known: {', '.join(allowed)}.")
    if error.validator == "type" and error.instance is None:
        return f"nothing stands here, where {_article(error.validator_value)} belongs: fill it in, or delete the key"
    if error.validator == "type" and isinstance(error.instance, str):
        return f"{error.message}.{as_number(error.instance)}"
    if error.validator == "type" and error.validator_value == "integer" and isinstance(error.instance, float):
        whole = f" Write {error.instance:.0f}." if error.instance.is_integer() else ""
        return f"{error.instance} is not a whole number.{whole}"
    return error.message


def _article(kind: str) -> str:
    names = {"object": "a mapping", "array": "a list", "integer": "a whole number", "string": "a text"}
    return names.get(kind, f"a {kind}")
