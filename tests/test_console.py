"""How commands speak to people."""

import io
import json
import re
import unicodedata

import pytest
import rich.console

from hra_jax import cli, console
from hra_jax.errors import UserError


def printed(*what):
    out = io.StringIO()
    target = rich.console.Console(file=out, width=60)
    for thing in what:
        target.print(thing)
    return out.getvalue()


HOSTILE = "a\nb\r\x1b[31mc\x07\u202ed\ud800e\u2028f\x9bg\x00h\U000e0041i"


def acts(text: str) -> bool:
    """Whether a text holds a character that a terminal acts on, or that cannot be written."""
    return any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for character in text)


def test_what_a_stranger_wrote_is_shown_and_does_nothing():
    shown = console.printable(HOSTILE)
    assert not acts(shown) and json.loads(f'"{shown}"') == HOSTILE
    for text in ("Grüße, 日本語 — “na\u00a0ja” 👍", "क्\u200dष", ""):
        assert console.printable(text) == text
    assert console.printable("x" * 400) == "x" * 300 + "... (400 characters)"


def test_every_way_to_print_shows_what_a_stranger_wrote(capsys):
    console.tell(HOSTILE, "a\tb")
    console.error_line(HOSTILE)
    console.say(console.stdout(), HOSTILE)
    console.stdout().print(console.table((), [(HOSTILE,)], title=HOSTILE))
    out, err = capsys.readouterr()
    assert not acts(re.sub(r"[\n\t]", "", out + err)) and out.count("\\u001b") == 4
    assert err.startswith("error: a b") and err.count("\n") == 1 and out.splitlines()[1] == "a\tb"
    assert not acts(console.html_text(HOSTILE) + console.markdown_cell(HOSTILE) + console.markdown_code(HOSTILE))
    assert console.markdown_code("a`b") == "`a'b`"


def test_the_message_of_an_error_is_one_line_whatever_it_quotes():
    assert str(UserError("first\n  second \x1b[2J")) == "first second \\u001b[2J"
    assert not acts(str(UserError(HOSTILE))) and len(str(UserError(" " * 1_000_000 + "x" * 1_000_000))) < 5000


def test_what_the_encoding_of_the_terminal_lacks_is_escaped():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console.tell("Grüße", to=out)
    assert out.buffer.getvalue() == b"Gr\\xfc\\xdfe\n"


def test_a_size_has_three_digits_in_decimal_units():
    sizes = [None, 0, 999, 1000, 999_499, 999_600, 1.5e9, 95e9, 3e12, 2e15, 5e18]
    expected = ["-", "0 B", "999 B", "1 kB", "999 kB", "1 MB", "1.5 GB", "95 GB", "3 TB", "2 PB", "5,000 PB"]
    assert [console.size(size) for size in sizes] == expected


def test_rates_differences_and_durations():
    assert [console.percent(rate) for rate in (None, 0.1234, 1.5)] == ["-", "12.3%", "150.0%"]
    assert [console.points(value) for value in (0.0123, -0.0123, -0.000001)] == ["+1.23", "-1.23", "+0.00"]
    assert [console.ratio(value) for value in (0.000215, 0.5, 12.34)] == ["0.0215%", "50%", "12.3 x"]
    assert [console.duration(seconds) for seconds in (None, 0.0123, 2.5)] == ["-", "12.3 ms", "2.50 s"]


def test_a_list_says_how_many_names_it_leaves_out():
    assert console.listed([]) == "none"
    assert console.listed(["a", "b"], most=2) == "'a', 'b'"
    assert console.listed(iter("cab"), most=2) == "'c', 'a' and 1 more"
    assert console.listed("abc", most=1, show=str) == "a and 2 more"


def test_near_matches_come_before_what_is_allowed():
    assert console.near_matches("stpes", ["steps", "seed"]) == "did you mean 'steps'?"
    assert console.near_matches("width", ["hra.width", "batch.seconds"]) == "did you mean 'hra.width'?"
    assert console.near_matches("zzz", ["steps", "seed"]) == "allowed: steps, seed"
    assert console.near_matches("zzz", []) == "allowed: none"
    assert console.near_matches("zzz", map(str, range(30)), most=3) == "allowed: 0, 1, 2 and 27 more"
    assert console.did_you_mean("zzz", ["steps"]) == ""


def test_a_table_shows_cells_as_they_are_and_parts_its_sections():
    lines = printed(console.table(("task", "WER"), [("[red]x[/red]", "1%")], [("all", "10%")])).splitlines()
    assert any("[red]x[/red]" in line for line in lines)
    first, last = (next(i for i, line in enumerate(lines) if word in line) for word in ("[red]", "all"))
    assert last == first + 2 and set(lines[first + 1]) <= set("├─┼┤")
    assert lines[last].index("all") == lines[first].index("[red]") and lines[last].rstrip(" │").endswith("10%")
    assert lines[first].rindex("%") == lines[last].rindex("%")  # numbers end in one column


def test_columns_are_aligned_left_where_that_is_asked_for():
    rows = [("a", "compute", "1"), ("b", "ICI", "10")]
    lines = [line for line in printed(console.table(("step", "bound", "n"), rows, left=("bound",))).splitlines()]
    assert len({line.index(word) for word in ("compute", "ICI") for line in lines if word in line}) == 1


def test_without_a_terminal_a_line_is_not_broken(capsys):
    console.say(console.stdout(width=20), "[red]one two three four five six seven eight nine ten")
    assert capsys.readouterr().out == "[red]one two three four five six seven eight nine ten\n"


def test_text_in_a_markdown_cell_starts_no_markup():
    assert console.markdown_cell("a|b\n*c* [d]<e>") == r"a\|b \*c\* \[d\]\<e\>"


def test_an_output_that_cannot_be_a_file_is_refused(tmp_path):
    cli.check_output("json", None)
    cli.check_output("plot", str(tmp_path / "a.png"), suffix=".png")
    for path, suffix, told in (
        (str(tmp_path), "", "is a folder"),
        ("", "", "is a folder"),
        ("a", ".png", "ends in .png"),
    ):
        with pytest.raises(UserError, match=told):
            cli.check_output("plot", path, suffix=suffix)
