"""Does a record fit its schema, ``workflow/schemas/record.schema.json``? What does not is no evidence, and says why.

The schema asks for what tables rest on: status with a reason where it failed, metrics that are numbers, files with their
hash. The check is compiled once, as every record of a suite passes through it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

SCHEMA = Path(__file__).resolve().parent.parent / "workflow" / "schemas" / "record.schema.json"


def misfit(record: dict) -> str:
    """What is wrong with a record, in a line; empty where it fits."""
    import fastjsonschema

    try:
        _validator()(record)
    except fastjsonschema.JsonSchemaValueException as error:
        return f"does not fit the record schema: {error.message}"
    return ""


@functools.cache
def _validator() -> Callable[[dict], dict]:
    import fastjsonschema

    return fastjsonschema.compile(json.loads(SCHEMA.read_text(encoding="utf-8")), use_default=False)
