"""The rules of the house that a machine can check."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARY = sorted((REPOSITORY / "hra_jax").rglob("*.py"))
TREES = {path.relative_to(REPOSITORY): ast.parse(path.read_text()) for path in LIBRARY}
PURE = ("models", "adapters", "training")  # these take arrays, and run where TensorFlow is absent
TEXTS = {".py", ".md", ".toml", ".sh", ".ipynb", ".json", ".txt", ".in", ".cfg", ".yaml", ".yml", ""}


def repository_files() -> list[Path]:
    """The files that git tracks or would add; all but hidden folders and environments where this is no checkout."""
    if (REPOSITORY / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        paths = [REPOSITORY / line for line in listed.splitlines()]
    else:
        inside = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*")]
        kept = [path for path in inside if not any(part.startswith(".") or part == "runs" for part in path.parts)]
        paths = [REPOSITORY / path for path in kept]
    return [path for path in paths if path.is_file()]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def is_broad(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or getattr(name, "id", "") in ("Exception", "BaseException") for name in names)


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_finds_nothing(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "."]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_models_adapters_and_training_import_no_tensorflow():
    banned = {"tensorflow", "tensorflow_datasets", "seqio", "tensorflow_text"}
    found = [
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path.parts[1] in PURE
        for name in imported(tree)
        if name.split(".")[0] in banned or name.startswith("hra_jax.data")
    ]
    assert found == []


def test_no_except_is_broad():
    found = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert found == []


def prints(node: ast.AST) -> bool:
    """Whether a call writes on the terminal by itself."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    if called.endswith(".print"):  # of a rich console, to which `table` gives a table of plain cells
        return not all(ast.unparse(argument).startswith(("table(", "found")) for argument in node.args)
    own = r"print|(sys\.)?(stdout|stderr)\.write(lines)?|traceback\.print_\w+|warnings\.warn"
    logged = r"(absl_)?logging\.(debug|info|warning|error|exception|fatal)"
    return bool(re.fullmatch(f"{own}|{logged}", called))


def test_everything_is_printed_through_the_console():
    allowed = {
        "hra_jax/console.py",
        "hra_jax/cli.py",  # the traceback that --traceback asks for
        "hra_jax/data/synthetic/voice_worker.py",  # answers to the process that started it, as JSON
    }
    found = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        if path.as_posix() not in allowed
        for node in ast.walk(tree)
        if prints(node)
    ]
    assert found == []


def test_json_has_one_reader():
    allowed = {
        "hra_jax/storage/json_files.py",
        "hra_jax/data/synthetic/grammar.py",  # a file of the package
        "hra_jax/data/synthetic/rendering.py",  # answers of a process of its own
        "hra_jax/data/synthetic/voice_worker.py",  # jobs of the process that started it
        "hra_jax/training/agreement.py",  # between the processes of a run
        "hra_jax/serving/standalone.py",  # where there is no hra_jax
    }
    own = ("json.loads(json.dumps(", "json.loads(config_to_json(")
    found = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        if path.as_posix() not in allowed
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("json.loads", "json.load", "json.JSONDecoder")
        and not ast.unparse(node).startswith(own)
    ]
    assert found == []


# --- Files ------------------------------------------------------------------------------------------------------------

_MODE = re.compile(r"[rwaxbtU+]+")
_NAMED = {"savez", "savez_compressed", "touch", "unlink", "chmod", "mkdir", "makedirs", "mkfifo", "mknod", "rmdir"}
_NAMED |= {"write_text", "write_bytes", "rename", "renames", "rmtree", "symlink_to", "hardlink_to", "symlink", "link"}
_OF_OS = {"os.open", "os.remove", "os.replace", "os.truncate", "os.removedirs", "np.save", "numpy.save"}


def modes(call: ast.Call) -> list[str]:
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    values = [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [value for value in values if _MODE.fullmatch(value)]


def writes_files(node: ast.AST) -> bool:
    """Whether a call makes, changes, renames or removes a file or a folder."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    last = called.rpartition(".")[2]
    if last in ("open", "fdopen") and any(set(mode) & set("wax+") for mode in modes(node)):
        return True
    # `replace` of a text takes two arguments, that of a dataclass keywords, and that of a path its destination alone.
    moved = last == "replace" and len(node.args) == 1 and not node.keywords
    return last in _NAMED or called in _OF_OS or called.startswith(("shutil.", "tempfile.")) or moved


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(path, 'w')", True),
        ("path.open('ab')", True),
        ("open(path, mode='r+')", True),
        ("open(path, encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("path.replace(other)", True),
        ("text.replace('a', 'b')", False),
        ("state.replace(step=1)", False),
        ("folder.mkdir(parents=True)", True),
        ("os.remove(path)", True),
        ("names.remove(name)", False),
        ("shutil.copytree(a, b)", True),
        ("tempfile.TemporaryDirectory()", True),
    ],
)
def test_what_writes_files_is_told_from_what_does_not(code, expected):
    assert writes_files(ast.parse(code, mode="eval").body) == expected


def test_only_storage_writes_files():
    allowed = {
        "hra_jax/cli.py: os.open(os.devnull, os.O_WRONLY)",
        "hra_jax/data/seqio_setup.py: tempfile.TemporaryFile()",  # has no name
        "hra_jax/data/synthetic/espeak.py: os.fdopen(write_end, 'wb')",  # a pipe
        "hra_jax/run/children.py: os.open(os.devnull, os.O_WRONLY)",
        "hra_jax/run/place.py: bank.touch(started)",  # rows in memory
    }
    launchers = {
        path.relative_to(REPOSITORY): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((REPOSITORY / "launch").rglob("*.py"))
    }
    found = {
        f"{path.as_posix()}: {ast.unparse(node)}"
        for path, tree in {**TREES, **launchers}.items()
        if path.parts[:2] != ("hra_jax", "storage")
        for node in ast.walk(tree)
        if writes_files(node)
    }
    assert found - allowed == set() and allowed - found == set()


def test_every_text_is_read_and_written_in_a_named_encoding():
    found = []
    for folder in ("hra_jax", "launch", "benchmarks", "configs", "docs"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
                    continue
                called = ast.unparse(node.func)
                text = called == "open" and not any("b" in mode for mode in modes(node))
                if text or called.endswith((".read_text", ".write_text")):
                    found.append(f"{path.relative_to(REPOSITORY)}:{node.lineno} {ast.unparse(node)[:80]}")
    assert found == []


# --- Code -------------------------------------------------------------------------------------------------------------


def test_no_configuration_key_has_a_second_default():
    found = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get"
        and len(node.args) + len(node.keywords) == 2
        and re.match(r"(self\.)?_?config\b", ast.unparse(node.func.value))
    ]
    assert found == []


def test_files_and_functions_are_short():
    files = [str(path) for path in TREES if len((REPOSITORY / path).read_text().splitlines()) > 600]
    functions = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno > 90
    ]
    assert (files, functions) == ([], [])


def test_every_public_name_has_a_docstring():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [f"{path}:1" for path, tree in TREES.items() if not ast.get_docstring(tree)]
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{path}:{node.lineno} {node.name}")
    assert found == []


def test_no_stub_and_no_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "common", "misc"}
    stub = re.compile(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b")
    found = [str(path) for path in TREES if path.stem in empty or stub.search((REPOSITORY / path).read_text())]
    assert found == []


def test_no_file_names_a_path_of_one_machine():
    machine = re.compile(r"(?<![\w.}])/(work|farm|root|home|Users)/\w")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in repository_files()
        if path.suffix in TEXTS and path.stat().st_size < 500_000
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if machine.search(line)
    ]
    assert found == []


def documents() -> list[Path]:
    return [path for path in repository_files() if path.suffix in (".md", ".ipynb", ".sh") or "configs" in path.parts]


def test_every_documented_module_exists():
    missing = []
    for path in documents():
        for name in sorted(set(re.findall(r"-m (hra_jax[\w.]*\w)", path.read_text(errors="replace")))):
            module = REPOSITORY / name.replace(".", "/")
            if not (module.with_suffix(".py").exists() or (module / "__main__.py").exists()):
                missing.append(f"{path.relative_to(REPOSITORY)}: {name}")
    assert missing == []


def test_every_file_that_the_readme_names_exists():
    readme = REPOSITORY / "README.md"
    if not readme.exists():
        pytest.skip("no README.md")
    named = set(re.findall(r"\b((?:configs|launch|notebooks|benchmarks)/[\w./-]+\.\w+)", readme.read_text()))
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_notebooks_carry_no_outputs():
    found = [
        path.name
        for path in repository_files()
        if path.suffix == ".ipynb" and re.search(r'"outputs": \[\s*\{', path.read_text())
    ]
    assert found == []
