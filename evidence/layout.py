"""A table as rows of text, and its four forms: Markdown, LaTeX (booktabs), CSV, and plain text for a terminal."""

from __future__ import annotations

import csv
import io
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Group:
    """Rows that share what is on their left: ``lines`` say it, one a row, the first one in bold."""

    lines: list[str]
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Table:
    """``stub`` names the two columns on the left; ``heads`` the others, as (head, its subheads)."""

    title: str
    stub: tuple[str, str]
    heads: list[tuple[str, list[str]]]
    groups: list[Group]
    notes: list[str]
    records: list[dict[str, Any]] = field(default_factory=list)  # the CSV's rows, with full precision

    @property
    def width(self) -> int:
        return 2 + sum(len(subheads) for _, subheads in self.heads)

    def padded(self, group: Group) -> list[list[str]]:
        """A group's rows with its lines in front; lines that outnumber the rows share the last one."""
        lines = list(group.lines)
        if len(lines) > len(group.rows):
            cut = max(len(group.rows) - 1, 0)
            lines = [*lines[:cut], "; ".join(lines[cut:])]
        lines += [""] * (len(group.rows) - len(lines))
        return [[line, *row] for line, row in zip(lines, group.rows, strict=True)]


def markdown(table: Table) -> str:
    """The table as GitHub Markdown, aligned so that it reads as plain text, too."""
    heads = [f"{head}: {sub}" if head else sub for head, subheads in table.heads for sub in subheads]
    rows = [[markdown_escape(text) for text in (*table.stub, *heads)]]
    for group in table.groups:
        body = [[markdown_escape(text) for text in row] for row in table.padded(group)]
        if body and body[0][0]:
            body[0][0] = f"**{body[0][0]}**"
        rows += body
    widths = [max(len(row[i]) for row in rows) for i in range(table.width)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = "".join(f"- {markdown_escape(note)}\n" for note in table.notes)
    return f"# {markdown_escape(table.title)}\n\n" + "\n".join(lines) + "\n" + (f"\n{notes}" if notes else "")


def latex(table: Table, label: str) -> str:
    """The table as a booktabs float; needs ``\\usepackage{booktabs}`` and nothing else."""
    columns = "ll" + "".join("l" * len(subheads) for _, subheads in table.heads)
    first, rules, position = ["", ""], [], 3
    for head, subheads in table.heads:
        first.append(f"\\multicolumn{{{len(subheads)}}}{{c}}{{{tex(head)}}}")
        rules.append(f"\\cmidrule(lr){{{position}-{position + len(subheads) - 1}}}")
        position += len(subheads)
    second = [*table.stub, *(sub for _, subheads in table.heads for sub in subheads)]
    lines = ["\\toprule"]
    if any(head for head, _ in table.heads):
        lines += [" & ".join(first) + r" \\", " ".join(rules)]
    lines.append(" & ".join(tex(text) for text in second) + r" \\")
    for group in table.groups:
        lines.append("\\midrule")
        for index, row in enumerate(table.padded(group)):
            cells = [tex(text) for text in row]
            if index == 0 and cells[0]:
                cells[0] = f"\\textbf{{{cells[0]}}}"
            lines.append(" & ".join(cells) + r" \\")
    lines.append("\\bottomrule")
    notes = [tex(note) + "\\par" for note in table.notes]
    small = ["\\par\\smallskip", "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright", *notes, "\\end{minipage}"]
    return "\n".join(
        [
            "\\begin{table*}[t]",
            "\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}",
            f"\\caption{{{tex(table.title)}}}",
            f"\\label{{{label}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            *lines,
            "\\end{tabular}",
            *(small if notes else []),
            "\\end{table*}\n",
        ]
    )


def csv_text(table: Table) -> str:
    """The table's records as CSV: the same rows, one column per number, unrounded."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(table.records)
    return stream.getvalue()


def terminal(table: Table, width: int = 100) -> str:
    """The table for a terminal: the group's lines above its rows, columns as wide as their rows."""
    heads = [" ".join(filter(None, (head, sub))) for head, subheads in table.heads for sub in subheads]
    rows = [row for group in table.groups for row in group.rows]
    widths = [max([14, *(len(row[i]) for row in rows)]) for i in range(table.width - 1)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(text.ljust(size) for text, size in zip(row, widths, strict=True)).rstrip()

    wrapped = [textwrap.wrap(head, max(size, 14)) for head, size in zip([table.stub[1], *heads], widths, strict=True)]
    lines = [table.title, ""]
    for texts in itertools.zip_longest(*wrapped, fillvalue=""):
        lines.append("  " + line(texts))
    for group in table.groups:
        lines += ["", ", ".join(group.lines)]
        lines += ["  " + line(row) for row in group.rows]
    lines += [""] if table.notes else []
    for note in table.notes:
        lines += textwrap.wrap(note, width, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"\textsuperscript{\dag}",
    "‡": r"\textsuperscript{\ddag}",
    "—": "---",
    "–": "--",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "…": r"\ldots{}",
    "[": "{[}",  # at the start of a row, LaTeX would take it for an option of the line break before
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def tex(text: str) -> str:
    """Text with LaTeX's special characters and our signs written out."""
    return "".join(_TEX.get(character, character) for character in text)


def markdown_escape(text: str) -> str:
    """Text whose characters neither part the cells of a table nor become tags or emphasis."""
    return re.sub(r"([|*`<])", r"\\\1", text)
