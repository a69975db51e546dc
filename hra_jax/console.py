"""How commands speak to people: lines and tables on the terminal, rates and sizes, lists of names, near matches.

Everything that the library prints goes through `tell`, `say` or `table`, which show nothing that a terminal would act
on: names, paths, texts and messages may be a stranger's.
"""

import difflib
import html
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TextIO

import rich.console
import rich.table
import rich.text

from hra_jax.errors import one_line
from hra_jax.errors import printable as printable

_MOST_NEAR = 3  # near matches in an error line
_MOST_IN_A_CELL = 2000  # characters of a text in a document
_LONGEST_COMPARED = 200  # characters of a name that is looked for
_NEAR = 0.6  # similarity of a near match, as `difflib.SequenceMatcher.ratio` measures it

# --- The terminal -----------------------------------------------------------------------------------------------------


def tell(*lines: str, to: TextIO | None = None) -> None:
    """Prints lines at once, on standard output or `to`; nothing in them but a tab acts on a terminal.

    A character that the encoding of the output lacks is escaped.
    """
    stream = sys.stdout if to is None else to
    shown = "".join("\t".join(printable(cell, most=None) for cell in line.split("\t")) + "\n" for line in lines)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def error_line(message: object, *, to: TextIO | None = None) -> None:
    """Prints `error: ...`, one line whatever the message holds, on standard error or `to`."""
    tell(f"error: {one_line(message)}", to=sys.stderr if to is None else to)


def stdout(*, width: int = 110) -> rich.console.Console:
    """A console on standard output, as wide as the terminal; `width` columns where there is none."""
    # Without a terminal rich would take 80 columns and break the lines of a log.
    return rich.console.Console(width=None if sys.stdout.isatty() else width)


def say(console: rich.console.Console, line: str) -> None:
    """Prints a line as it is: no markup, and no line break that the terminal does not need."""
    console.print(rich.text.Text(printable(line, most=None)), soft_wrap=True)


def table(
    header: Sequence[str],
    *sections: Iterable[Sequence[str]],
    title: str | None = None,
    left: Collection[str] = (),
) -> rich.table.Table:
    """A table of plain text, for `Console.print`.

    Args:
      header: the names of the columns; () for a table without a header, whose columns are all aligned left.
      *sections: rows of cells; a line is drawn between two sections.
      title: stands above the table.
      left: the columns that are aligned left, as the first one always is; all others are aligned right.
    """
    shown = None if title is None else rich.text.Text(printable(title))
    found = rich.table.Table(title=shown, title_justify="left", show_header=bool(header))
    for index, name in enumerate(header):
        found.add_column(name, justify="right" if index and name not in left else "left", overflow="fold")
    for rows in sections:
        for row in rows:
            found.add_row(*(rich.text.Text(printable(cell)) for cell in row))
        found.add_section()
    return found


# --- Numbers ----------------------------------------------------------------------------------------------------------


def percent(rate: float | None) -> str:
    """A rate for people: one decimal, or `-` where there is none."""
    return "-" if rate is None else f"{rate:.1%}"


def points(difference: float) -> str:
    """A difference of rates in percentage points, with its sign; what rounds to 0 is not negative."""
    return f"{100 * difference:+z.2f}"


def ratio(value: float) -> str:
    """A ratio with three digits: in percent, or as a factor from ten on."""
    return f"{100 * value:.3g}%" if value < 9.99 else f"{value:,.1f} x"


def bounds(scores: Mapping[str, Any], metric: str = "wer") -> str:
    """The 95% interval of an error rate in a part of the results, for people; `-` where there is none."""
    low, high = (scores[f"{metric}_{end}"] for end in ("low", "high"))
    return "-" if low is None else f"{percent(low)} to {percent(high)}"


def size(count: float | None) -> str:
    """Bytes in decimal units with three digits, or `-` where the number is not known."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB" if value < 999.5 else f"{value:,.0f} PB"


def duration(seconds: float | None) -> str:
    """Seconds, or milliseconds below one second; `-` where the duration is not known."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


# --- Names ------------------------------------------------------------------------------------------------------------


def listed(names: Iterable[str], *, most: int = 8, show: Callable[[str], str] = repr) -> str:
    """The first `most` names, in the order given, and how many more there are; `none` where there is no name."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more if names else "none"


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns `"did you mean 'steps'?"` for the names that are near to `name`; `""` where none is.

    Args:
      name: what the user wrote.
      allowed: what would have been right. Of a dotted name, the last part alone counts as near too.
    """
    allowed = list(allowed)
    if len(name) > _LONGEST_COMPARED:
        return ""
    near = difflib.get_close_matches(name, allowed, n=_MOST_NEAR, cutoff=_NEAR)
    near = near or [word for word in allowed if word.split(".")[-1] == name][:_MOST_NEAR]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def near_matches(name: str, allowed: Iterable[str], *, most: int = 20) -> str:
    """Returns the end of an error line: the near matches of `name`, or what is allowed where none is near.

    Args:
      name: what the user wrote.
      allowed: what would have been right.
      most: of the allowed names, where none is near, so many are listed.

    Returns:
      For example `"did you mean 'steps'?"` or `"allowed: adapter, full, pretrain"`.
    """
    allowed = list(allowed)
    return did_you_mean(name, allowed) or f"allowed: {listed(allowed, most=most, show=str)}"


def markdown_cell(text: str) -> str:
    """A text that neither ends a cell of a Markdown table nor starts markup in it."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", printable(" ".join(text.split()), most=_MOST_IN_A_CELL))


def html_text(text: str) -> str:
    """A text as HTML that holds no markup."""
    return html.escape(printable(text, most=_MOST_IN_A_CELL))


def markdown_code(text: str) -> str:
    """A text as code within a line of Markdown; it ends neither the code nor the line."""
    return f"`{printable(text).replace('`', chr(39))}`"
