"""Lines of the text files of corpora, whatever has written them."""

import pytest
from etils import epath

from hra_jax.data.importers import corpus
from hra_jax.data.report import DataReport


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_are_no_text(tmp_path, end, mark):
    path = epath.Path(tmp_path / "text")
    path.write_bytes((mark + end.join(["a één\u2028x", "", "b\t two ", "c", ""])).encode())
    found = list(corpus.pairs(path, DataReport(strict=True)))
    assert found == [("text:1", "a", "één\u2028x"), ("text:3", "b", "two"), ("text:4", "c", "")]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    report = DataReport()
    assert corpus.entries(epath.Path(tmp_path / "60" / "121082"), report) == []
    (row,) = report.to_json()["utterances"]["unreachable_audio"]
    assert row == {"name": "60/121082", "detail": "No such file or directory: the folder"}
