"""What is installed: package data, requirements, the version; `make`, .ci/run and the files other tools read."""

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
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hra_jax

REPOSITORY = Path(__file__).resolve().parent.parent
RESOLVE = (
    "import sys, site\n"
    "site.addsitedir(sys.argv[1])\n"
    "sys.path += sys.argv[2:]\n"
    "from hra_jax.config.files import find_config, load_config, validate_config\n"
    "validate_config(load_config('quickstart'))\n"
    "print(find_config('quickstart'), find_config('suites/fsdd'))"
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
    assert "hra_jax/py.typed" in expected
    assert expected <= names
    assert "hra_jax/builtin/for_the_test/deeper/config.json" in names
    assert any(name.endswith("LICENSE") for name in names)
    (metadata,) = (zipfile.ZipFile(wheel).read(name).decode() for name in names if name.endswith("/METADATA"))
    assert f"\nVersion: {hra_jax.__version__}\n" in metadata
    python = re.search(r"^Requires-Python: (.*)$", metadata, re.MULTILINE)[1]
    assert set(python.split(",")) == {">=3.11", "<3.14"}
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
        {canonicalize_name(Requirement(line).name) for line in lines}
        for lines in (declared("REQUIRES"), declared("EXTRAS")["torch"])
    )
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for path in (REPOSITORY / "hra_jax").rglob("*.py"):
        # PyTorch formulas stand beside those for JAX, which load without it.
        formulas = path.relative_to(REPOSITORY / "hra_jax").parts[0] in ("torch", "adapters")
        requirements = always | (optional if formulas else set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hra_jax"}:
                provided_by = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
                if not provided_by & requirements:
                    missing.add(f"{path.name}: {top}")
    assert missing == set()


def test_requirements_are_lower_bounds_but_for_the_four_that_setup_py_explains():
    # Tests of parity have tolerances that were measured on one version of what they compare with; the rules of a
    # normalizer are a part of results.
    extras = {name: lines for name, lines in declared("EXTRAS").items() if name != "parity"}
    lines = declared("REQUIRES") + [line for lines in extras.values() for line in lines]
    bounded = {Requirement(line).name for line in lines if re.search(r"==|<|~=|!=", line)} - {"whisper-normalizer"}
    assert bounded == {"googleapis-common-protos", "sentencepiece", "seqio", "tensorflow-metadata"}
    comment = (REPOSITORY / "setup.py").read_text().split("REQUIRES")[0]
    assert [name for name in bounded if not re.search(rf"^#   {name} ", comment, re.MULTILINE)] == []


def environments() -> dict[str, dict[str, str]]:
    """What each file of tests/environments/ says is installed before hra_jax: the version of each package."""
    found = {}
    for path in (REPOSITORY / "tests" / "environments").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        found[path.stem] = dict(line.split("==") for line in lines)
    return found


def test_requirements_allow_what_colab_has():
    assert set(environments()) == {"colab", "colab-tpu"}
    requirements = [Requirement(line) for line in declared("REQUIRES")]
    refused = [
        f"{environment}: {requirement} refuses {versions[requirement.name]}"
        for environment, versions in environments().items()
        for requirement in requirements
        if requirement.name in versions and versions[requirement.name] not in requirement.specifier
    ]
    assert refused == []


def test_a_package_that_an_installation_changed_is_named(tmp_path):
    constraints = tmp_path / "constraints.txt"
    numpy = importlib.metadata.version("numpy")
    constraints.write_text(f"# A comment.\nnumpy=={numpy}\nabsl-py==0.0.1\n")
    command = [sys.executable, REPOSITORY / "tests" / "environments" / "check_pins.py", constraints]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    absl = importlib.metadata.version("absl-py")
    assert done.stderr.splitlines()[1:] == [f"absl-py was 0.0.1 and is {absl}"]


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
    for stamp in (".installed", ".installed-dev", ".installed-parity", ".installed-kenlm"):
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


def test_pytorch_and_kenlm_are_installed_for_the_slow_tests_only_and_may_be_missing(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = fake_environment(tmp_path)
    os.utime(tmp_path / "setup.py", (0, 0))
    assert "pip install" not in make(tmp_path, "-n", "test-slow")
    for extra in ("parity", "kenlm"):
        (tmp_path / ".venv" / f".installed-{extra}").unlink()
        assert f"[{extra}]" in make(tmp_path, "-n", "test-slow")
    for target in ("test", "quickstart", "lint"):
        assert "pip install" not in make(tmp_path, "-n", target)
    # An index that cannot be reached.
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntest "$2" = pytest\n')
    for _ in range(2):
        make(tmp_path, "test-slow")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["pip", "pip", "pytest"] * 2


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 11), (3, 13), (3, 14)])
def test_make_refuses_a_python_that_hra_jax_has_no_requirements_for_in_one_line(tmp_path, version):
    for name in ("Makefile", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    python = tmp_path / "python"
    # Says that it is of that version, and makes no environment.
    pretend = f"import sys; sys.version_info = {(*version, 0)}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\ntest "$1" = -c && exec "{sys.executable}" -c "{pretend}" "$2"\nexit 3\n')
    python.chmod(0o755)
    command = ["make", "--silent", ".venv/bin/python", f"PYTHON={python}"]
    env = plain_environment()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    if (3, 11) <= version < (3, 14):
        assert said == []
    else:
        (line,) = said
        assert "3.11, 3.12 or 3.13" in line and f"is {version[0]}.{version[1]}:" in line


def test_oldest_environments_are_made_of_their_files_and_anew_when_these_change(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "tests" / "environments", tmp_path / "tests" / "environments")
    fresh = make(tmp_path, "-n", "test-oldest", "PYTHON312=python-of-that-name")
    for name in environments():
        steps = [f"python-of-that-name -m venv .venv-{name}", f"-r tests/environments/{name}.txt", "pip install"]
        positions = [fresh.index(step, fresh.index(f"rm -rf .venv-{name}\n")) for step in steps[:2]]
        assert positions == sorted(positions)
        (tmp_path / f".venv-{name}").mkdir()
        (tmp_path / f".venv-{name}" / ".installed").touch()
        os.utime(tmp_path / "tests" / "environments" / f"{name}.txt", (0, 0))
    os.utime(tmp_path / "setup.py", (0, 0))
    assert "pip install" not in make(tmp_path, "-n", "test-oldest")
    (tmp_path / "tests" / "environments" / "colab.txt").touch()
    later = (tmp_path / ".venv-colab" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "tests" / "environments" / "colab.txt", (later, later))
    again = make(tmp_path, "-n", "test-oldest")
    assert "rm -rf .venv-colab\n" in again and "rm -rf .venv-colab-tpu" not in again


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


def ci(folder: Path, tests: str, *, limit: str, workers: int = 0) -> subprocess.CompletedProcess:
    """Runs .ci/run in a small repository that has these tests, which so many processes share (0: one, by itself)."""
    for name in ("Makefile", "setup.py", "pyproject.toml", ".ci/run", "tests/conftest.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "tests" / "test_small.py").write_text(tests)
    os.utime(folder / "setup.py", (0, 0))
    fake_environment(folder)
    env = plain_environment() | {"HRA_SLOW_LIMIT": limit, "WORKERS": str(workers)}
    # In a group of its own, so that the interrupt for the small run cannot reach this one.
    return subprocess.run(
        [folder / ".ci" / "run"], env=env, capture_output=True, text=True, check=False, start_new_session=True
    )


@pytest.mark.parametrize(
    ("workers", "deselected"),
    [pytest.param(0, ", 1 deselected", id="one"), pytest.param(2, "", id="shared", marks=pytest.mark.slow)],
)
def test_ci_names_what_the_time_did_not_suffice_for_and_fails(tmp_path, workers, deselected):
    done = ci(
        tmp_path, SLOW_TESTS.format(first="True", seconds=60), limit="4s" if workers == 0 else "12s", workers=workers
    )
    assert done.returncode == 1, done.stdout + done.stderr
    unreached = done.stdout.split("Not reached:\n")[1].splitlines()
    assert unreached[:2] == ["  tests/test_small.py::test_long", "  tests/test_small.py::test_last"]
    skipped = done.stdout.split("\nSkipped:\n")[1].splitlines()
    assert skipped[0].startswith("  tests/test_small.py::test_skipped - Skipped: for want of a reason")
    assert re.fullmatch(rf"=+ 1 passed, 1 skipped{deselected}.* in .*s.*=+", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ci_fails_where_a_test_failed_before_the_time_was_over(tmp_path):
    done = ci(tmp_path, SLOW_TESTS.format(first="False", seconds=60), limit="4s")
    assert done.returncode == 1
    assert "Not reached:\n  tests/test_small.py::test_long\n" in done.stdout
    assert re.fullmatch(r"=+ 1 failed, .* in .*s.*=+", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ci_fails_where_a_slow_test_fails_in_time(tmp_path):
    done = ci(tmp_path, SLOW_TESTS.format(first="False", seconds=0), limit="60s")
    assert done.returncode != 0
    assert re.fullmatch(r"=+ 1 failed, 2 passed, .* in .*s.*=+", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ci_succeeds_where_no_test_is_slow(tmp_path):
    done = ci(tmp_path, "def test_fast(): pass\n", limit="60s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"=+ 1 deselected in .*s.*=+", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ci_succeeds_where_all_slow_tests_pass_in_time(tmp_path):
    done = ci(tmp_path, SLOW_TESTS.format(first="True", seconds=0), limit="60s", workers=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"=+ 3 passed, 1 skipped.* in .*s.*=+", done.stdout.splitlines()[-1])


def test_files_whose_slow_tests_take_longest_come_last(tmp_path):
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    slow = "import pytest\n" + "".join(
        f"@pytest.mark.slow({said})\ndef test_{name}(): pass\n" for name, said in (("b", "minutes=2"), ("a", ""))
    )
    (tmp_path / "tests" / "test_1.py").write_text(slow)
    (tmp_path / "tests" / "test_2.py").write_text(slow.replace("minutes=2", "minutes=0.5"))
    (tmp_path / "tests" / "test_3.py").write_text("def test_c(): pass\n")
    (tmp_path / "tests" / "test_4.py").write_text(slow.replace("minutes=2", ""))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    order = ["3.py::test_c", "4.py::test_b", "4.py::test_a", "2.py::test_b", "2.py::test_a"]
    order += ["1.py::test_b", "1.py::test_a"]
    assert collected == [f"tests/test_{name}" for name in order]


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == hra_jax.__version__
    assert citation.get("repository-code", "") == declared("url")
    (paper,) = citation["references"]
    assert paper["url"] == declared("PAPER") and paper["authors"] and paper["title"]


def test_github_runs_lint_and_the_tests_on_every_python_that_setup_py_allows():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "tests.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (REPOSITORY / "setup.py").read_text())
    assert versions == classifiers == ["3.11", "3.12", "3.13"]
    makefile = (REPOSITORY / "Makefile").read_text()
    for job in workflow["jobs"].values():
        for target in [step["run"].removeprefix("make ") for step in job["steps"] if "run" in step]:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert [job["steps"][-1]["run"] for job in workflow["jobs"].values()] == ["make lint", "make test"]


def test_commits_are_checked_as_make_lint_checks():
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    makefile = (REPOSITORY / "Makefile").read_text()
    for hook in repository["hooks"]:
        command = hook["entry"].removeprefix("python ").removesuffix(" --force-exclude")
        assert f"$(RUN) {command} .\n" in makefile
