"""What is installed: configurations and backbones as package data, declared requirements; `make` and .ci/run."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
RESOLVE = (
    "import sys, site\n"
    "site.addsitedir(sys.argv[1])\n"
    "sys.path += sys.argv[2:]\n"
    "from hra_jax import config\n"
    "config.validate(config.load('quickstart'))\n"
    "print(config.resolve('quickstart'), config.resolve('suites/fsdd'))"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what setup.py reads: building in the checkout would leave files there."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, copy)
    for name in ("hra_jax", "configs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def resolved(folder: Path, *, site_packages: Path) -> list[Path]:
    """Where an installation finds the quickstart and the suite fsdd, asked from another folder."""
    # -P and no PYTHONPATH: nothing of the checkout is found by accident; -S: nor another installation of the package.
    others = [path for path in sys.path if path.endswith("site-packages")]
    command = [sys.executable, "-P", "-S", "-c", RESOLVE, str(site_packages), *others]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Path(path) for path in done.stdout.split()]


def test_a_wheel_holds_configs_and_backbones_and_resolves_them_where_it_is_installed(source, tmp_path):
    builtin = source / "hra_jax" / "builtin" / "for_the_test" / "deeper"
    builtin.mkdir(parents=True)
    (builtin / "config.json").write_text("{}")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"hra_jax/{path.relative_to(source)}" for path in (source / "configs").rglob("*.py")}
    expected |= {str(path.relative_to(source)) for path in (source / "hra_jax").rglob("*") if path.is_file()}
    assert expected <= names
    assert "hra_jax/builtin/for_the_test/deeper/config.json" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("configs/", "tests/"))]
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    configs = tmp_path / "site" / "hra_jax" / "configs"
    found = resolved(tmp_path, site_packages=tmp_path / "site")
    assert found == [configs / "quickstart.py", configs / "suites" / "fsdd.py"]


def test_an_editable_installation_resolves_the_configs_of_the_checkout(source, tmp_path):
    pip(
        "install", "--no-deps", "--no-build-isolation", "--ignore-installed", "--prefix", tmp_path, "--editable", source
    )
    (site_packages,) = tmp_path.glob("lib/python*/site-packages")
    found = resolved(tmp_path, site_packages=site_packages)
    assert found == [source / "configs" / "quickstart.py", source / "configs" / "suites" / "fsdd.py"]


def declared(variable: str) -> str:
    tree = ast.parse((REPOSITORY / "setup.py").read_text())
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == variable]
    return ast.literal_eval(value)


def test_every_import_of_the_package_is_a_declared_requirement():
    always, optional = (
        {re.split(r"[\[><=]", line)[0].lower().replace("_", "-") for line in lines}
        for lines in (declared("REQUIRES"), declared("EXTRAS")["torch"])
    )
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for path in (REPOSITORY / "hra_jax").rglob("*.py"):
        requirements = always | (optional if path.parent == REPOSITORY / "hra_jax" / "torch" else set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hra_jax"}:
                provided_by = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
                if not provided_by & requirements:
                    missing.add(f"{path.name}: {top}")
    assert missing == set()


def test_requirements_are_lower_bounds_only():
    # Tests of parity have tolerances that were measured on one version of what they compare with.
    extras = {name: lines for name, lines in declared("EXTRAS").items() if name != "parity"}
    lines = declared("REQUIRES") + [line for lines in extras.values() for line in lines]
    assert [line for line in lines if re.search(r"==|<|~=|!=", line)] == []


def plain_environment() -> dict[str, str]:
    """The environment without what `make test` hands down to a make inside of the tests."""
    handed_down = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV", "WORKDIR", "WORKERS"}
    return {name: value for name, value in os.environ.items() if name not in handed_down}


def make(folder: Path, *arguments: str) -> str:
    command = ["make", *arguments]
    done = subprocess.run(command, cwd=folder, env=plain_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fake_environment(folder: Path) -> Path:
    """A finished environment, so far as make can tell, whose python is the one that runs this test."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for stamp in (".installed", ".installed-dev", ".installed-parity"):
        (folder / ".venv" / stamp).touch()
    return python


def test_make_installs_once_and_again_only_when_setup_py_changed(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    fresh = make(tmp_path, "-n", "test")
    assert "-m venv" in fresh and "pip install" in fresh and "pytest" in fresh
    fake_environment(tmp_path)
    os.utime(tmp_path / "setup.py", (0, 0))
    (training,) = (line for line in make(tmp_path, "-n", "quickstart").splitlines() if not line.startswith("echo"))
    assert training == ".venv/bin/python -m hra_jax.train --config quickstart --workdir runs/quickstart"
    assert "pip install" not in make(tmp_path, "-n", "test")
    newer = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "setup.py", (newer, newer))
    assert "pip install" in make(tmp_path, "-n", "test") and "pip install" in make(tmp_path, "-n", "quickstart")


def test_pytorch_is_installed_for_the_slow_tests_only_and_may_be_missing(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = fake_environment(tmp_path)
    os.utime(tmp_path / "setup.py", (0, 0))
    assert "pip install" not in make(tmp_path, "-n", "test-slow")
    (tmp_path / ".venv" / ".installed-parity").unlink()
    assert "[parity]" in make(tmp_path, "-n", "test-slow")
    for target in ("test", "quickstart", "lint"):
        assert "pip install" not in make(tmp_path, "-n", target)
    # An index that cannot be reached.
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntest "$2" = pytest\n')
    for _ in range(2):
        make(tmp_path, "test-slow")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["pip", "pytest"] * 2


SLOW_TESTS = """
import time
import pytest

def test_fast(): pass

@pytest.mark.slow
def test_first(): assert {first}

@pytest.mark.slow
@pytest.mark.skip(reason="for want of a reason")
def test_skipped(): pass

@pytest.mark.slow
def test_long(): time.sleep({seconds})

@pytest.mark.slow
def test_last(): pass
"""


def ci(folder: Path, tests: str, *, limit: str) -> subprocess.CompletedProcess:
    """Runs .ci/run in a small repository that has these tests."""
    for name in ("Makefile", "setup.py", "pyproject.toml", ".ci/run", "tests/conftest.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "tests" / "test_small.py").write_text(tests)
    os.utime(folder / "setup.py", (0, 0))
    fake_environment(folder)
    env = plain_environment() | {"HRA_SLOW_LIMIT": limit}
    # In a group of its own, so that the interrupt for the small run cannot reach this one.
    return subprocess.run(
        [folder / ".ci" / "run"], env=env, capture_output=True, text=True, check=False, start_new_session=True
    )


def test_ci_names_what_the_time_did_not_suffice_for_and_succeeds(tmp_path):
    done = ci(tmp_path, SLOW_TESTS.format(first="True", seconds=60), limit="4s")
    assert done.returncode == 0, done.stdout + done.stderr
    unreached = done.stdout.split("Not reached:\n")[1].splitlines()
    assert unreached[:2] == ["  tests/test_small.py::test_long", "  tests/test_small.py::test_last"]
    assert "tests/test_small.py::test_skipped - Skipped: for want of a reason" in done.stdout
    assert re.fullmatch(r"=+ 1 passed, 1 skipped, 1 deselected.* in .*s.*=+", done.stdout.splitlines()[-1])


def test_ci_fails_where_a_test_failed_before_the_time_was_over(tmp_path):
    done = ci(tmp_path, SLOW_TESTS.format(first="False", seconds=60), limit="4s")
    assert done.returncode == 1
    assert "Not reached:\n  tests/test_small.py::test_long\n" in done.stdout
    assert re.fullmatch(r"=+ 1 failed, .* in .*s.*=+", done.stdout.splitlines()[-1])


def test_ci_fails_where_a_slow_test_fails_in_time(tmp_path):
    done = ci(tmp_path, SLOW_TESTS.format(first="False", seconds=0), limit="60s")
    assert done.returncode != 0
    assert re.fullmatch(r"=+ 1 failed, 2 passed, .* in .*s.*=+", done.stdout.splitlines()[-1])


def test_ci_succeeds_where_no_test_is_slow(tmp_path):
    done = ci(tmp_path, "def test_fast(): pass\n", limit="60s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"=+ 1 deselected in .*s.*=+", done.stdout.splitlines()[-1])
