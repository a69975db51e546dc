"""Notebooks run from top to bottom, and carry neither outputs nor much code."""

import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# What is replaced in the settings of a notebook, so that it runs in minutes.
SMALL = {
    "01_quickstart": (("steps = 1000", "steps = 6"), ("scale = 1.0", "scale = 0.1")),
    "02_compare_methods": (("steps = 800", "steps = 8"), ("scale = 1.0", "scale = 0.05")),
}
PRINTED = {
    "01_quickstart": ("trained  shared.all_layers.controller.kernel", "1000 tasks:"),
    "02_compare_methods": ("trained  tasks.per_layer.attention_query.a", "whisper unchanged: True", "newcomer"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs_and_little_code(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    assert sum(len(cell["source"]) for cell in cells) < 80
    assert path.stem in SMALL


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, tmp_path, command_env):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    for old, new in SMALL[path.stem]:
        changed = [cell for cell in notebook.cells if old in cell.source]
        assert len(changed) == 1, f"{old!r} should stand in one cell"
        changed[0].source = changed[0].source.replace(old, new)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=command_env)
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    for text in PRINTED[path.stem]:
        assert text in printed
