"""Method cards: what a method is, what it trains, what it costs, which options it has.

``python -m harness.card lora boft`` prints two, without names all; ``--write`` renews docs/methods.md. Text comes from
the method's docstring and fields; numbers from its shapes on a model without weights (``harness.shape_cost``).
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import json
import re
import sys
import tokenize
import typing
from pathlib import Path
from typing import Literal

from harness.failures import guard
from harness.plugins import ROOT, available, find_plugin, load_plugin

PAGE = ROOT / "docs" / "methods.md"
HEAD = """# Methods

One card a method, made by `python -m harness.card --write` from the docstrings, fields and shapes of `methods/*.py`.

Numbers are counted, not timed, with each method's defaults and float32 weights: FLOPs are matrix products and attention as
torch counts them (an FFT counts nothing), per token of a step of {rows} x {length} tokens, in the transformer's body without
its output embedding; a multiply-add is two. "Kept" is what autograd holds from the forward to the backward pass. What trains
is what trains from the first step on. An option's values are the space to search in tuning, or all there are.

"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.card", description="Print or renew method cards.")
    parser.add_argument("methods", nargs="*", help="names of files in methods/; none: all")
    parser.add_argument("--write", action="store_true", help=f"write all cards to {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args(argv)
    for name in arguments.methods:
        find_plugin("methods", name)
    if arguments.write:
        PAGE.write_text(document(), encoding="utf-8")
        print(PAGE)
    else:
        print("\n".join(card(name) for name in arguments.methods or available("methods")), end="")
    return 0


def document() -> str:
    """docs/methods.md."""
    from harness.shape_cost import LENGTH, ROWS

    names = available("methods")
    contents = "".join(f"- [`{name}`](#{name}): {_plain(_title(name))}\n" for name in names)
    head = HEAD.format(rows=ROWS, length=LENGTH)
    return head + contents + "\n" + "\n".join(card(name) for name in names)


def card(name: str) -> str:
    """The card of one method, as Markdown. Its docstring stands in it as it is."""
    text = _docstring(name)
    papers = list(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text)))
    links = ", ".join(f"[arXiv {number}](https://arxiv.org/abs/{number})" for number in papers)
    parts = [f"## {name}", f"```text\n{text}\n```", f"Papers: {links}." if papers else "", _cost(name), _options(name)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _docstring(name: str) -> str:
    tree = ast.parse(find_plugin("methods", name).path.read_text(encoding="utf-8"))
    return inspect.cleandoc(ast.get_docstring(tree, clean=False) or "(no docstring)")


def _title(name: str) -> str:
    """The docstring's first sentence; authors and venue follow it after two spaces."""
    paragraph = _docstring(name).split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.)\s", paragraph)[0]


def _plain(text: str) -> str:
    """Text whose signs Markdown would take for its own."""
    return re.sub(r"([*_<|])", r"\\\1", text.replace("``", "`"))


# --------------------------------------------------------------------------- what it trains and costs


def _cost(name: str) -> str:
    from harness.shape_cost import cost

    found = cost(name)
    share = 100 * found.trained / found.total
    more = found.forward - found.base_forward
    rows = [
        ("trained parameters", f"{found.trained:,} ({share:.3g} % of {found.total:,})"),
        ("degrees of freedom", f"{found.effective:,}"),
        ("trained tensors", _tensors(found.tensors)),
        ("FLOPs a token, forward", f"{_amount(more)} beside the base's {_amount(found.base_forward)}"),
        ("FLOPs a token, forward and backward", _amount(found.training)),
        ("FLOPs a step, whatever its tokens", _amount(found.once)),
        ("weights and buffers added", _bytes(found.added)),
        ("gradients", _bytes(found.gradients)),
        ("optimizer state", f"{_bytes(found.state)} ({found.optimizer})" if found.optimizer else "not counted"),
        ("kept, a token", _bytes(found.kept)),
        ("kept, a step", _bytes(found.kept_once)),
    ]
    lines = [f"| on {found.model} | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    notes = [f"\n{_plain(note)}" for note in found.notes]
    return "\n".join([*lines, *notes])


def _tensors(counts: dict[str, int]) -> str:
    """ "`A` x 210, `B` x 210"; where each has a name of its own, how many there are."""
    if len(counts) > 8:
        return f"{sum(counts.values()):,}"
    return ", ".join(f"`{name}` x {count}" for name, count in counts.items())


def _amount(value: float) -> str:
    """Three significant digits with a unit: 9.77 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


# --------------------------------------------------------------------------- options


def _options(name: str) -> str:
    """Field, default, values, and what its source says of it."""
    kind = type(load_plugin("methods", name))
    hints = typing.get_type_hints(kind)
    remarks: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            remarks |= _remarks(Path(inspect.getsourcefile(parent)), parent.__name__)
    lines = ["| option | default | values | |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        values = _values(field.metadata.get("search"), hints[field.name])
        cells = (f"`{field.name}`", _default(field), values, remarks.get(field.name, ""))
        lines.append("| " + " | ".join(cells).rstrip() + " |")
    return "\n".join(lines)


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else "(must be given)"
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def _values(search: dict | None, hint: object) -> str:
    """The search space, or the choices of a Literal."""
    if search and search["space"] == "log_uniform":
        return f"{search['low']:g} to {search['high']:g}, log-uniform"
    chosen = search["values"] if search else typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return ", ".join(f"{value}" for value in chosen)


def _remarks(path: Path, class_name: str) -> dict[str, str]:
    """What stands beside a field in its class: the string under it, else the comment at its end."""
    source = path.read_text(encoding="utf-8")
    body = next(
        node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    words = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {word.start[0]: word.string.lstrip("# ") for word in words if word.type == tokenize.COMMENT}
    found = {}
    for item, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(item, ast.AnnAssign):
            continue
        text = comments.get(item.end_lineno, "")
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = " ".join(after.value.value.split())
        found[item.target.id] = _plain(text)
    return found


if __name__ == "__main__":
    sys.exit(guard(main)())
