"""Notebooks run from top to bottom, carry neither outputs nor much code, and install hra_jax from where it is."""

import ast
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# What is replaced in the settings of a notebook, so that it runs in minutes.
SMALL = {
    "01_quickstart": (
        ("steps = 1000", "steps = 6"),
        ("scale = 1.0", "scale = 0.1"),
        ("own_steps = 150", "own_steps = 2"),
    ),
    "02_compare_methods": (("steps = 800", "steps = 8"), ("scale = 1.0", "scale = 0.05")),
    "03_evaluate_a_suite": (
        ("steps = 600", "steps = 6"),
        ("updates = 60", "updates = 2"),
        ("scale = 1.0", "scale = 0.05"),
        ("shots = (0, 1, 10)", "shots = (0, 1, 2)"),
    ),
}
PRINTED = {
    "01_quickstart": (
        "trained  shared.all_layers.controller.kernel",
        "1000 tasks:",
        "a synthetic voice",
        "after",
        "kept: ",
    ),
    "02_compare_methods": ("trained  tasks.per_layer.attention_query.a", "whisper unchanged: True", "newcomer"),
    "03_evaluate_a_suite": ("newcomers", "french with  2 utterances:"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs_and_little_code(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    assert sum(len(cell["source"]) for cell in cells) < 80
    assert path.stem in SMALL


def published_at() -> str:
    """`url` in setup.py: empty until hra_jax is published."""
    tree = ast.parse((NOTEBOOKS[0].parent.parent / "setup.py").read_text())
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "url"]
    return ast.literal_eval(value)


def install_cell(path: pathlib.Path) -> str:
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    (cell,) = [source for source in sources if "%pip install" in source]
    return cell


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_the_repository_that_setup_py_names_and_no_other(path):
    url, text = published_at(), path.read_text()
    assert f'repository = "{url}"' in install_cell(path)
    badge = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    linked = re.findall(r"\]\((https://colab[^)]*)\)", text)
    assert linked == ([f"{badge}/blob/main/notebooks/{path.name}"] if url else [])
    assert install_cell(path) == install_cell(NOTEBOOKS[0])


def installs(cell: str, folder: pathlib.Path, monkeypatch, *, uploaded: str = "") -> list[str]:
    """Runs the install cell in `folder` as if hra_jax were missing; what it gives to pip."""
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=lambda: {uploaded: b""})
    given: list[str] = []
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        patch.setitem(sys.modules, "google.colab", colab)
        exec(cell.replace('%pip install -q "{source}"', "given.append(source)"), {"given": given})
    return given


def test_install_cell_takes_the_checkout_it_is_in(tmp_path, monkeypatch, capsys):
    checkout = tmp_path / "a checkout"
    (checkout / "hra_jax").mkdir(parents=True)
    (checkout / "notebooks").mkdir()
    (checkout / "setup.py").touch()
    cell = install_cell(NOTEBOOKS[0])
    for folder in (checkout, checkout / "notebooks"):
        assert installs(cell, folder, monkeypatch) == [str(checkout)]
    assert capsys.readouterr().out == ""


def test_install_cell_asks_for_a_wheel_in_one_line_until_there_is_a_repository(tmp_path, monkeypatch, capsys):
    # The setup.py of something else is no checkout of hra_jax.
    (tmp_path / "setup.py").touch()
    unpublished = re.sub(r'repository = ".*?"', 'repository = ""', install_cell(NOTEBOOKS[0]))
    wheel = "hra_jax-1.2.3-py3-none-any.whl"
    assert installs(unpublished, tmp_path, monkeypatch, uploaded=wheel) == [wheel]
    (line,) = capsys.readouterr().out.splitlines()
    assert "not published" in line and "wheel" in line
    published = unpublished.replace('repository = ""', 'repository = "https://host.example/hra_jax"')
    assert installs(published, tmp_path, monkeypatch) == ["git+https://host.example/hra_jax"]
    assert capsys.readouterr().out == ""


@pytest.mark.slow(minutes=1.5)
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
