"""Notebooks run from top to bottom, and carry neither outputs nor much code."""

import json
import pathlib
import subprocess
import sys

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
    pytest.importorskip("nbclient")
    notebook = json.loads(path.read_text())
    for old, new in SMALL[path.stem]:
        changed = [cell for cell in notebook["cells"] if old in "".join(cell["source"])]
        assert len(changed) == 1, f"{old!r} should stand in one cell"
        changed[0]["source"] = "".join(changed[0]["source"]).replace(old, new)
    (tmp_path / path.name).write_text(json.dumps(notebook))
    # In a process of its own: nbclient catches the interrupt that is to end the tests, and would report a dead kernel.
    words = [sys.executable, "-m", "jupyter", "execute", "--inplace", "--timeout=900", path.name]
    done = subprocess.run(words, cwd=tmp_path, env=command_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in json.loads((tmp_path / path.name).read_text())["cells"] if cell["cell_type"] == "code"]
    printed = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    for text in PRINTED[path.stem]:
        assert text in printed
