"""What all tests share: eight fake devices, strict rank promotion, a compile cache, real speech, a log of what ran."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# JAX reads these when it is imported, so they are set before any test module is. Processes that share the tests inherit
# them from the one that starts them.
_DEVICES = "--xla_force_host_platform_device_count=8"
_FLAGS = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag != _DEVICES]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, _DEVICES])
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# TensorFlow's client of buckets reads these when TensorFlow is loaded; `gcs_storage` is what it then meets.
os.environ["GCS_STAT_CACHE_MAX_AGE"] = "0"
os.environ["GCS_RETRY_CONFIG_MAX_RETRIES"] = "1"
os.environ["GCS_RETRY_CONFIG_INIT_DELAY_TIME_US"] = "20000"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# .ci/run interrupts the slow tests when their time is over. A shell that runs it in the background would have SIGINT
# ignored, and pytest would then not close with its summary.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Of processes that share the tests only the one that started the others takes the interrupt, and ends them."""
    if hasattr(config, "workerinput"):
        # What they start themselves gets a handler of its own, which it would not if they ignored the signal.
        signal.signal(signal.SIGINT, lambda number, frame: None)


# --- How programs are compiled ----------------------------------------------------------------------------------------


@functools.cache
def _quick_options() -> dict[str, Any]:
    """Options with which XLA compiles for CPUs in a fifth of the time, where it still has them."""
    import jax

    # The newer way of writing fused loops takes longer to compile than all the rest of a program.
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return {}
    return options


@pytest.hookimpl(tryfirst=True)  # before any fixture compiles
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test compiles becomes machine code as quickly as possible, unless the test is marked `optimised`.

    Most of the time of the tests goes into compiling, in a fifth of which their programs are made so. They round
    otherwise than those of users. Commands in processes of their own are compiled as users have them.
    """
    if "jax" not in sys.modules:
        return
    import jax
    from jax._src import compiler  # jax has an option for each function that is compiled, and none for all

    quick = not item.get_closest_marker("optimised")
    if jax.config.read("jax_disable_most_optimizations") == quick:
        return
    # What an earlier test compiled in the other way, in a fixture that both use for example, must not serve this one.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", quick)
    options = _quick_options() if quick else {}
    original = getattr(compiler.get_compile_options, "original", compiler.get_compile_options)
    compiler.get_compile_options = _with_options(original, options) if options else original


def _with_options(original: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def get_compile_options(*args, env_options_overrides=None, **keywords):
        return original(*args, env_options_overrides=options | (env_options_overrides or {}), **keywords)

    get_compile_options.original = original
    return get_compile_options


# --- What tests share -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fsdd_dir() -> Path:
    """The Free Spoken Digit Dataset with its manifests; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("HRA_FSDD") or REPOSITORY.parent / "shared" / "data" / "fsdd")
    if not (folder / "train.jsonl").exists():
        pytest.skip(f"no Free Spoken Digit Dataset in {folder}: set HRA_FSDD to the folder that has train.jsonl")
    return folder


@pytest.fixture(scope="session")
def speechocean_dir() -> Path:
    """The corpus speechocean762, a Kaldi directory; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("HRA_SPEECHOCEAN") or REPOSITORY.parent / "shared" / "data" / "speechocean762")
    if not (folder / "train" / "wav.scp").exists():
        pytest.skip(f"no speechocean762 in {folder}: set HRA_SPEECHOCEAN to the folder that has train/wav.scp")
    return folder


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """A backbone of random weights, the data of three speakers, and suites, all tiny; see reference/micro.py."""
    from reference import micro as world  # it imports JAX

    return world.make(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="session")
def trained(micro, tmp_path_factory):
    """A finished run of 4 steps: an adapter, validated at steps 2 and 4, checkpoints 1, 2, 4. To be read only."""
    from reference import micro as world

    return world.train(micro.validated_config(), tmp_path_factory.mktemp("trained") / "W")


@pytest.fixture(scope="session")
def gcs_server():
    """The server behind `gcs_storage`."""
    from reference import gcs

    with gcs.Storage("bucket") as storage:
        yield storage


@pytest.fixture
def gcs_storage(gcs_server, monkeypatch):
    """gs://bucket on this machine, empty, for all clients, in this process and in those that it starts."""
    gcs_server.clear()
    for name, value in gcs_server.environment.items():
        monkeypatch.setenv(name, value)
    return gcs_server


@pytest.fixture
def command_env() -> dict[str, str]:
    """The environment of a command in its own process: one CPU device, as users have it; the tests' compile cache."""
    return _command_env()


def _command_env() -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    changed = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "XLA_FLAGS": " ".join(_FLAGS)}
    return {name: value for name, value in os.environ.items() if name != "JAX_NUMPY_RANK_PROMOTION"} | changed


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Runs commands in forks of a process that has imported everything; see reference/commands.py."""
    from reference.commands import Commands

    started = Commands(tmp_path_factory.mktemp("commands"), _command_env())
    yield started
    started.close()


@pytest.fixture(scope="session")
def tpu_lock(tmp_path_factory, pytestconfig) -> Path:
    """The file for `launching.one_at_a_time`, the same in all processes that share the tests."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if hasattr(pytestconfig, "workerinput") else folder) / "tpu.lock"


@pytest.fixture
def tpu_env(command_env, tpu_lock) -> Iterator[dict[str, str]]:
    """The environment in which JAX finds the TPU compiler; `make .venv/.installed-dev` puts it there."""
    library = Path(os.environ.get("TPU_LIBRARY_PATH") or Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so")
    if not library.exists():
        pytest.skip(f"no TPU compiler at {library}: pip install --no-deps --target {library.parent.parent} libtpu")
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([command_env["PYTHONPATH"], tests])
    from reference import launching  # not there where a test runs pytest with this file alone

    with launching.one_at_a_time(tpu_lock):
        yield command_env | {"TPU_LIBRARY_PATH": str(library), "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": path}


# --- The order of slow tests -----------------------------------------------------------------------------------------


def minutes(item: pytest.Item) -> float:
    """What `@pytest.mark.slow(minutes=...)` says that a test takes; 0 where it says nothing, or is not slow."""
    marker = item.get_closest_marker("slow")
    return marker.kwargs.get("minutes", 0.0) if marker else 0.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files whose slow tests take longest last, so that few tests are missed where the time is limited.

    Tests of a file stay together, in their order, as they share fixtures; so do files that say nothing of minutes.
    """
    total: dict[Path, float] = {}
    for item in items:
        total[item.path] = total.get(item.path, 0.0) + minutes(item)
    items.sort(key=lambda item: total[item.path])


# --- The log that .ci/run reads when the time was over: the files `collected` and `outcomes` in HRA_TEST_LOG ----------

_LOG = os.environ.pop("HRA_TEST_LOG", "")  # popped: a test that runs pytest itself must not write there
_failed: set[str] = set()
_skipped: set[str] = set()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Writes the ids of the tests that are going to run, where one process runs them."""
    _write_collected([item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """Writes the ids of the tests that processes are going to share; each of them has collected them all."""
    _write_collected(ids)


def _write_collected(ids: list[str]) -> None:
    if _LOG:
        (Path(_LOG) / "collected").write_text("".join(f"{name}\n" for name in ids))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes whether any phase of a test failed or was skipped."""
    if report.failed:
        _failed.add(report.nodeid)
    elif report.skipped:
        _skipped.add(report.nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Writes the outcome of a test that is through."""
    if _LOG:
        outcome = "failed" if nodeid in _failed else "skipped" if nodeid in _skipped else "passed"
        with (Path(_LOG) / "outcomes").open("a") as file:
            file.write(f"{outcome} {nodeid}\n")
