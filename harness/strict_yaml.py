"""YAML that people write, read strictly: a key that stands twice, or that YAML takes for something else, is refused.

YAML itself lets the second of two equal keys win and says nothing, and reads ``on:`` as a truth value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from harness.failures import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path, shown: Path | str | None = None) -> Any:
    """What the file holds. Raises UserError, a ValueError, with the file (as ``shown``, where that is given), line and key."""
    shown = shown or path
    try:
        loader = LOADER(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root, loader, shown, set())
        return loader.construct_document(root)
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 (byte {error.start}: {error.reason}): save it as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown}: not valid YAML: {error}") from None


def _check_keys(node: yaml.Node, loader: Any, shown: Path | str, seen: set[int]) -> None:
    """Refuse wrong keys in a node and below it; ``seen``: nodes that are done, as an alias comes by again."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, loader, shown, seen)
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, key.value
        if key.tag not in (TEXT, MERGE):
            read = repr(loader.construct_object(key, deep=True)) if isinstance(key, yaml.ScalarNode) else "a collection"
            raise UserError(f"{shown}: line {line}: YAML reads the key {_text(key)} as {read}: put it in quotes")
        if name in lines:
            raise UserError(
                f"{shown}: line {line}: the key '{name}' stands twice, first in line {lines[name]}. The second would "
                "replace the first: join them, or delete one."
            )
        lines[name] = line
        _check_keys(value, loader, shown, seen)


def _text(key: yaml.Node) -> str:
    return str(key.value) if isinstance(key, yaml.ScalarNode) else "here"
