"""A page that is one file: it asks for nothing, runs no script but its own, and shows texts of strangers as texts.

The policy in its head allows one style and one script, by their hashes, and sounds and pictures that are in the page.
"""

import base64
import functools
import hashlib
import html
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hra_jax.console import html_text, points, printable
from hra_jax.evaluation.paired import BETTER, WORSE

METRICS = {"wer": "word error rate", "cer": "character error rate"}


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      html: what it shows.
      value: what rows are sorted by; numbers as numbers.
      cls: classes, such as "left".
    """

    html: str
    value: str | float | None = None
    cls: str = ""


Row = tuple[Sequence[Cell], Mapping[str, str]]  # the cells of a row and its data attributes


def text(content: str) -> str:
    """A text, which may be a stranger's, in the direction of its own script."""
    return f'<span dir="auto">{html_text(content)}</span>'


@functools.cache
def _part(name: str) -> str:
    return (importlib.resources.files("hra_jax.evaluation") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page.

    Args:
      title: a text; its name in a browser.
      sections: HTML; '' is left out.
    """
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(section for section in sections if section)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{html_text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A part of a page under a heading; '' where it has nothing to show."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html_text(title)}</h2>\n{content}\n</section>" if content else ""


def paragraphs(lines: Iterable[str], *, cls: str = "") -> str:
    """Lines of text, each a paragraph."""
    mark = f' class="{cls}"' if cls else ""
    return "\n".join(f"<p{mark}>{text(line)}</p>" for line in lines)


def headline(number: str, below: str, sentence: str) -> str:
    """One number, what it is, and one sentence."""
    return (
        f'<div class="head"><div class="number">{html_text(number)}<small>{html_text(below)}</small></div>'
        f"<p>{html_text(sentence)}</p></div>"
    )


def table(
    header: Sequence[str | Cell],
    rows: Iterable[Row],
    *,
    foot: Iterable[Sequence[Cell]] = (),
    sortable: bool = True,
) -> str:
    """A table, which a narrow page shows as cards; a click on the name of a column sorts it.

    Args:
      header: names of the columns; a `Cell` is a column that cannot be sorted by, as it is.
      rows: the cells of each row and its data attributes.
      foot: rows that stay at the end.
      sortable: whether rows can be sorted.
    """
    heads, labels = [], []
    for column in header:
        label = "" if isinstance(column, Cell) else column
        shown = column.html if isinstance(column, Cell) else html_text(column)
        if sortable and label:
            shown = f'<button type="button">{shown}</button>'
        left = ' class="left"' if isinstance(column, Cell) and column.cls else ""
        heads.append(f"<th{left}>{shown}</th>")
        labels.append(label)
    body = "\n".join(
        f"<tr{''.join(f' data-{name}={_quoted(value)}' for name, value in data.items())}>{_cells(cells, labels)}</tr>"
        for cells, data in rows
    )
    last = "\n".join(f"<tr>{_cells(cells, labels)}</tr>" for cells in foot)
    end = f"<tfoot>\n{last}\n</tfoot>" if last else ""
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="scroll"><table class="cards">\n{head}\n<tbody>\n{body}\n</tbody>\n{end}</table></div>'


def _quoted(value: str) -> str:
    return f'"{html_text(value)}"'


def _cells(cells: Sequence[Cell], labels: Sequence[str]) -> str:
    shown = []
    for cell, label in zip(cells, labels, strict=True):
        cls = f' class="{cell.cls}"' if cell.cls else ""
        value = "" if cell.value is None else f" data-value={_quoted(str(cell.value))}"
        name = f" data-label={_quoted(label)}" if label else ""
        shown.append(f"<td{cls}{name}{value}>{cell.html}</td>")
    return "".join(shown)


def verdict(difference: Mapping[str, Any] | None) -> Cell:
    """The cell of a verdict; `difference` as `paired.Rates.difference` gives it."""
    word = (difference or {}).get("verdict")
    if not word:
        return Cell("-", "")
    cls = word if word in (BETTER, WORSE) else "undecided"
    return Cell(f'<span class="{cls}">{html_text(word)}</span>', word)


def change(difference: Mapping[str, Any] | None) -> Cell:
    """The cell of a difference, in percentage points."""
    if difference is None:
        return Cell("-", "")
    return Cell(points(difference["difference"]), difference["difference"])


def commands(lines: Sequence[str]) -> str:
    """Commands to copy; '' for none."""
    shown = "\n".join(html.escape(printable(line, most=None)) for line in lines)
    return f"<pre>{shown}</pre>" if lines else ""


def facts(values: Iterable[tuple[str, object]]) -> str:
    """Names and values below each other; values that are None are left out."""
    entries = [f"<dt>{html_text(name)}</dt><dd>{text(str(value))}</dd>" for name, value in values if value is not None]
    return f"<dl>{''.join(entries)}</dl>" if entries else ""


def origin(results: Mapping[str, Any]) -> str:
    """Versions, digests and what else says where results come from."""
    names = (
        ("backbone", "backbone_fingerprint"),
        ("method", "method"),
        ("step", "step"),
        ("seed", "seed"),
        ("normalizer", "normalizer"),
        ("suite digest", "suite_digest"),
        ("data digest", "data_digest"),
    )
    return facts([*((shown, results.get(name)) for shown, name in names), *results.get("versions", {}).items()])
