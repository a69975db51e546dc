"""Several processes: they find each other, compute what one does, stop together, and go on in other numbers."""

import contextlib
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from reference import launching
from reference import micro as world
from reference.launching import EVALUATE, SETTINGS, TRAIN, same_losses

from hra_jax.errors import UserError
from hra_jax.run import processes

pytestmark = pytest.mark.optimised  # runs here are compared with commands, which are optimised


@pytest.fixture
def launch(tmp_path, command_env):
    """Runs `[MODULE, ...]` in several processes to its end, which must be good."""

    def run(*words, processes_=2, devices=1, name="launched"):
        settings = {"processes": processes_, "devices": devices, "env": command_env}
        return launching.run([*words], folder=tmp_path / name, **settings)

    return run


def same_adapter(found: Path, expected: Path) -> None:
    """Checks that two exported adapters have the same tasks and, closely, the same weights."""
    sides = [
        safetensors.numpy.load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (found, expected)
    ]
    assert sides[0].keys() == sides[1].keys()
    assert any(np.abs(leaf).max() > 1e-3 for name, leaf in sides[1].items() if "head" in name)
    for name, leaf in sides[0].items():
        np.testing.assert_allclose(leaf, sides[1][name], rtol=1e-3, atol=1e-5, err_msg=name)
    tasks = [json.loads((folder / "adapter" / "tasks.json").read_text())["tasks"] for folder in (found, expected)]
    for one, other in zip(*tasks, strict=True):
        measured = [side.pop("calibration", {}) for side in (one, other)]
        assert measured[0].keys() == measured[1].keys()
        for name, value in measured[0].items():
            # Temperatures are found on a grid of steps of 1%.
            tolerance = {} if isinstance(value, str) else dict(rel=0.03, abs=2e-3)
            assert value == pytest.approx(measured[1][name], **tolerance), name
    assert tasks[0] == tasks[1]
    records = [
        safetensors.numpy.load_file(folder / "adapter" / "task_records.safetensors") for folder in (found, expected)
    ]
    assert records[0].keys() == records[1].keys()
    for name, array in records[0].items():
        tolerance = dict(rtol=1e-3, atol=1e-4) if array.dtype == np.float32 else dict(rtol=0)
        np.testing.assert_allclose(array, records[1][name], err_msg=name, **tolerance)


def scores(workdir: Path, suite: str = "test") -> tuple[dict, dict]:
    """results.json, and {file: lines} of the predictions, in the order in which they were written."""
    folder = workdir / "eval" / suite
    predictions = {
        path.name: [json.dumps(json.loads(line) | {"time": None}) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("predictions_*.jsonl"))
    }
    assert predictions
    results = json.loads((folder / "results.json").read_text())
    # What was calibrated is in the adapter as well, which is compared.
    return {name: value for name, value in results.items() if name not in ("speed", "calibration")}, predictions


# --- Who is there -----------------------------------------------------------------------------------------------------

NOTHING = {"coordinator_address": None, "num_processes": None, "process_id": None}
ALL = {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("HRA_COORDINATOR_ADDRESS", "HRA_NUM_PROCESSES", "HRA_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


def test_variables_are_the_defaults_of_the_flags(no_variables, monkeypatch):
    assert processes.member(NOTHING) is None
    assert processes.member(ALL) == ("10.0.0.1:8476", 4, 3)
    for name, value in {"COORDINATOR_ADDRESS": "[::1]:99", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}.items():
        monkeypatch.setenv(f"HRA_{name}", value)
    assert processes.member(NOTHING) == ("[::1]:99", 2, 1)
    assert processes.member(NOTHING | {"process_id": 0}) == ("[::1]:99", 2, 0)
    monkeypatch.setenv("HRA_PROCESS_ID", "")
    with pytest.raises(UserError, match="process_id not given"):
        processes.member(NOTHING)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_processes": 2}, "num_processes = 2: coordinator_address and process_id not given; allowed: all of"),
        (ALL | {"num_processes": None}, "process_id = 3: num_processes not given; allowed: all of"),
        (ALL | {"coordinator_address": "10.0.0.1"}, "coordinator_address = '10.0.0.1'; allowed: HOST:PORT"),
        (ALL | {"coordinator_address": "host:0"}, "coordinator_address = 'host:0'; allowed: HOST:PORT"),
        (ALL | {"coordinator_address": "host:70000"}, "coordinator_address = 'host:70000'; allowed: HOST:PORT"),
        (ALL | {"num_processes": 0}, "num_processes = 0; allowed: an integer of at least 1"),
        (ALL | {"process_id": -1}, "process_id = -1; allowed: an integer of at least 0"),
        (ALL | {"process_id": 4}, "process_id = 4; allowed: 0 to 3, as num_processes = 4"),
    ],
)
def test_values_that_do_not_fit_together_are_one_line(no_variables, given, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        processes.member(NOTHING | given)
    assert "\n" not in str(caught.value)


def test_a_wrong_variable_is_named_as_such(no_variables, monkeypatch):
    monkeypatch.setenv("HRA_NUM_PROCESSES", "two")
    message = "HRA_NUM_PROCESSES = 'two'; allowed: an integer of at least 1"
    with pytest.raises(UserError, match=message):
        processes.member(NOTHING | {"coordinator_address": "h:1", "process_id": 0})


def test_the_commands_end_before_anything_starts(micro, tmp_path, command_env):
    config = world.write_config(tmp_path / "config.py", micro.config())
    for flags in (["--num_processes=2"], ["--coordinator_address=h:1", "--num_processes=1", "--process_id=1"]):
        command = [sys.executable, "-m", TRAIN, "--config", config, "--workdir", str(tmp_path / "W"), *flags]
        done = subprocess.run(command, env=command_env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and done.stdout == "" and re.fullmatch(r"error: .*allowed: .*\n", done.stderr)
    assert not (tmp_path / "W").exists()


# --- What processes tell each other -----------------------------------------------------------------------------------

# Where jax finds the processes by itself it is asked with no argument; then nothing is left but to compute on the CPU.
ASK = """
import os, struct, sys
sys.argv = sys.argv[:1]
from absl import flags
from hra_jax.run import processes
from hra_jax.errors import FAILURES, UserError
from hra_jax.storage.remote import StorageUnavailable, unavailable
from hra_jax.training import agreement, sharding
import numpy as np
processes.define_flags()
flags.FLAGS(sys.argv)
if "ALONE" not in os.environ:
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # jax sets it where it sees no chips
processes.initialize(heartbeat_seconds=10)
import jax
jax.config.update("jax_platforms", "cpu")
me = jax.process_index()
parts = agreement.gather({"me": me, "long": "é" * 1000 * me})
assert [part["me"] for part in parts] == list(range(jax.process_count()))
assert [len(part["long"]) for part in parts] == [1000 * i for i in range(jax.process_count())]
def done_by(failing, error=None):
    def act():
        if me == failing:
            raise error
        return me
    try:
        assert agreement.agreed(act) == me and failing is None
    except FAILURES as found:
        assert agreement.is_agreed(found) and str(error) in str(found), found
        assert (unavailable(found) is None) != isinstance(error, StorageUnavailable)
        return type(found).__name__
assert done_by(None) is None
shares = agreement.shared_out(range(7), lambda part: [part, me])
assert shares == [[part, part % jax.process_count()] for part in range(7)]
if jax.process_count() == 3:
    assert done_by(1, struct.error("odd")) == ("error" if me == 1 else "RuntimeError")
    assert done_by(2, UserError("yours")) == "UserError"
    assert done_by(0, StorageUnavailable(11, "away")) == "UserError"
    mesh = sharding.make_mesh(data=1, fsdp=3)
    split = sharding.place(np.arange(6.0), sharding.sharding_for(mesh, ("embed",), shape=(6,)))
    same = sharding.place(np.ones(6), sharding.sharding_for(mesh, (None,), shape=(6,)))
    own = sharding.by_itself({"split": split, "same": same})
    assert not split.is_fully_addressable and own["split"].tolist() == [0, 1, 2, 3, 4, 5]
    assert jax.jit(lambda tree: tree["split"] + tree["same"])(own).tolist() == [1, 2, 3, 4, 5, 6]
assert not agreement.is_agreed(UserError("yours"))
agreement.check_agreement({"seed": "1", "data": "x"})
try:
    agreement.check_agreement({"seed": "1", "data": f"x{me // 2}"})
    print("agreed", jax.process_count(), flush=True)
except UserError as error:
    print(error, flush=True)
"""


def ask(environments: list[dict], command_env) -> list[str]:
    """What each process prints in the end."""
    started = [
        subprocess.Popen([sys.executable, "-c", ASK], env=command_env | extra, stdout=subprocess.PIPE, text=True)
        for extra in environments
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started)
    return [text.splitlines()[-1] for text in printed]


def free_port() -> str:
    """A loopback port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_processes_gather_what_each_says_and_all_notice_who_disagrees(command_env):
    address = f"127.0.0.1:{free_port()}"
    common = {"HRA_COORDINATOR_ADDRESS": address, "HRA_NUM_PROCESSES": "3"}
    said = ask([common | {"HRA_PROCESS_ID": str(number)} for number in range(3)], command_env)
    assert len(set(said)) == 1
    assert said[0].startswith("process 2 has another data than process 0 (x1, not x0)")


@contextlib.contextmanager
def metadata_server(values: dict[str, str]):
    """What Google's machines ask about themselves, on a loopback port; gives its address."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (the name is the library's)
            value = values.get(self.path.rsplit("/", 1)[-1])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    "where",
    [pytest.param("gke", marks=pytest.mark.slow), "gke, two slices", pytest.param("gce", marks=pytest.mark.slow)],
)
def test_tpu_hosts_find_each_other_without_any_flag(where, command_env):
    # JAX_FORCE_TPU_INIT stands for the chips.
    tpu = {"JAX_FORCE_TPU_INIT": "1", "JAX_COORDINATOR_PORT": free_port(), "JAX_PLATFORMS": "tpu,cpu"}
    with contextlib.ExitStack() as servers:
        environments = []
        for number in range(2):
            metadata = {"tpu-env": "ZONE: 'here'\n"}
            if where == "gce":
                # Name, number and address: the form that every jax reads; newer ones also take addresses alone.
                endpoints = ",".join(f"worker:{worker}:localhost" for worker in range(2))
                metadata |= {"agent-worker-number": str(number), "worker-network-endpoints": endpoints}
                extra = {}
            elif where == "gke":
                extra = {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": str(number)}
            else:
                extra = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"}
                extra |= {"MEGASCALE_SLICE_ID": str(number), "MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
            address = servers.enter_context(metadata_server(metadata))
            environments.append(tpu | extra | {"GCE_METADATA_IP": address})
        assert ask(environments, command_env) == ["agreed 2"] * 2


def test_one_tpu_machine_by_itself_and_any_other_machine_stay_alone(command_env):
    alone = {"JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": "tpu,cpu", "ALONE": "1"}
    # Of a cluster that jax would find: whoever starts one process in it means one process.
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    for extra in (alone, slurm | {"SLURM_LOCALID": "0"}):
        assert ask([extra], command_env) == ["agreed 1"]


MEET = """
import sys, time
import numpy as np
from absl import flags
from hra_jax.run import processes
from hra_jax.training import sharding
processes.define_flags()
flags.FLAGS(sys.argv[:1])
processes.initialize(heartbeat_seconds=10)
import jax
mesh = sharding.make_mesh(data=2, fsdp=2)
sharding.connect(mesh)
for count, axes in enumerate((("batch",), ("embed",))):
    time.sleep(35 * jax.process_index() * (count == 0))
    x = sharding.place(np.arange(4.0), sharding.sharding_for(mesh, axes, shape=(4,)))
    total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))(x)
    assert float(total) == 6.0
print("met", flush=True)
"""


@pytest.mark.slow
def test_a_process_that_compiles_for_longer_is_waited_for(tmp_path, command_env):
    command = [sys.executable, launching.LAUNCHER, "--processes", "2", "--devices", "2", "--", "-c", MEET]
    done = subprocess.run(command, env=command_env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith("met")] in (
        ["met", "[1] met"],
        ["[1] met", "met"],
    )


# --- The same as one process ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(micro, tmp_path_factory) -> str:
    """A suite of 7 utterances, two of them with audio that cannot be read: the shortest and the longest."""
    folder = tmp_path_factory.mktemp("uneven")
    rows = [*world.read_manifest(micro.data / "validation.jsonl")[:1], *world.read_manifest(micro.data / "test.jsonl")]
    rows = [row | {"audio_filepath": str(micro.data / row["audio_filepath"])} for row in rows]
    for row in (rows[0], rows[-1]):
        row["audio_filepath"] = str(folder / f"missing-{row['text']}.wav")
    world.write_manifest(folder / "test.jsonl", rows)
    return world.write_suite(folder / "uneven.py", (("*", str(folder / "test.jsonl"), "speaker=*", "*"),))


def missing(workdir: Path) -> list[str]:
    """The missing files that the data report names, which must count them."""
    report = json.loads((workdir / "data_report.json").read_text())
    rows = report["utterances"].get("missing_file", [])
    assert report["counts"].get("missing_file", 0) == len(rows)
    return [row["name"] for row in rows]


@pytest.mark.slow(minutes=1)
def test_two_processes_train_and_score_as_one_does(micro, uneven, tmp_path, launch):
    """Losses, validation, adapter, results and the data report, where each process meets bad audio of its own.

    The adapter has weights of decoding, a calibration of greedy and of searched words, and how the tasks sound.
    """
    settings = {"steps": 6, "batch__multiple": 4, "adapter__bank": "host", "eval__suite": uneven}
    settings |= {"eval__select_suite": micro.suite("validation"), "eval__calibrate": True, "export__voices": True}
    settings |= {"decode__lm": "train", "decode__token_bonus": 1.0, "decode__beam": 4}
    config = micro.config(**SETTINGS | settings)
    one = world.train(config, tmp_path / "one", devices=4)
    assert one.status == 0
    file = Path(world.write_config(tmp_path / "c.py", config))
    file.write_text(f"from hra_jax.decoding import calibration\n\ncalibration._TOGETHER = 2\n{file.read_text()}")
    launched = launch(TRAIN, "--config", file, "--workdir", tmp_path / "two", devices=2)
    tasks = json.loads((tmp_path / "two" / "adapter" / "tasks.json").read_text())["tasks"]
    assert all({"decode", "calibration"} <= task.keys() for task in tasks)
    assert all("search_temperature" in task["calibration"] for task in tasks)
    assert "centroid.ann" in safetensors.numpy.load_file(tmp_path / "two" / "adapter" / "task_records.safetensors")
    same_losses(world.losses(tmp_path / "two"), world.losses(tmp_path / "one"))
    same_adapter(tmp_path / "two", tmp_path / "one")
    assert scores(tmp_path / "two", "uneven") == scores(tmp_path / "one", "uneven")
    assert len(missing(tmp_path / "two")) == 2 and missing(tmp_path / "two") == missing(tmp_path / "one")
    # Process 1 prints and writes nothing of its own. (Gloo's threads may cut each other's lines, and leave empty ones.)
    others = [line.removeprefix("[1]").strip() for line in launched.printed.splitlines() if line.startswith("[1]")]
    assert [line for line in others if line and "[Gloo]" not in line] == []
    assert "2 of 7 utterances were not scored" in launched.printed


@pytest.mark.slow
@pytest.mark.parametrize("bank", ["device", "host"])
def test_two_processes_of_four_devices_are_one_process_of_eight(bank, micro, tmp_path, launch):
    settings = dict(adapter__bank=bank, eval__suite=micro.suite("mixed"), eval__select_suite=micro.suite("validation"))
    settings |= dict(steps=8, eval__every_steps=2, export__step="best")
    config = micro.config(**SETTINGS | settings)
    assert world.train(config, tmp_path / "one", devices=8).status == 0
    file = world.write_config(tmp_path / "c.py", config)
    launch(TRAIN, "--config", file, "--workdir", tmp_path / "two", devices=4)
    same_losses(world.losses(tmp_path / "two"), world.losses(tmp_path / "one"))
    same_adapter(tmp_path / "two", tmp_path / "one")
    assert scores(tmp_path / "two", "mixed") == scores(tmp_path / "one", "mixed")
    # The best one is not the last one: the export went back to it.
    assert scores(tmp_path / "two", "mixed")[0]["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("bank", ["device", "host"])
def test_each_task_is_exported_from_its_own_best_step(bank, micro, tmp_path, launch):
    settings = dict(adapter__bank=bank, adapter__train="tasks", eval__select_suite=micro.suite("validation"))
    settings |= dict(eval__suite=micro.suite("test"), eval__every_steps=1, optimizer__learning_rate=2e-2)
    config = micro.config(**SETTINGS | settings | dict(steps=6, batch__multiple=2), export__step="best_per_task")
    assert world.train(config, tmp_path / "one", devices=2).status == 0
    launch(TRAIN, "--config", world.write_config(tmp_path / "c.py", config), "--workdir", tmp_path / "two")
    same_adapter(tmp_path / "two", tmp_path / "one")
    tasks = json.loads((tmp_path / "two" / "adapter" / "tasks.json").read_text())
    assert len({task["step"] for task in tasks["tasks"] if "step" in task}) > 1
    # The rows are in the log: a second start, of one process, exports the same without a step.
    again = world.train(config, tmp_path / "two", devices=1, on_step=lambda step: pytest.fail("a step was done"))
    assert again.status == 0
    same_adapter(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_weights_that_are_split_over_processes_train_and_export_as_whole_ones(axis, micro, tmp_path, launch):
    config = micro.config(
        **SETTINGS | dict(steps=4, batch__multiple=2),
        method="full",
        mesh__data=1,
        eval__suite=micro.suite("test"),
        **{f"mesh__{axis}": 2},
    )
    assert world.train(config, tmp_path / "one", devices=2).status == 0
    launch(TRAIN, "--config", world.write_config(tmp_path / "c.py", config), "--workdir", tmp_path / "two")
    same_losses(world.losses(tmp_path / "two"), world.losses(tmp_path / "one"))
    assert scores(tmp_path / "two") == scores(tmp_path / "one")
    sides = [
        safetensors.numpy.load_file(next((folder / "backbone").glob("*.safetensors")))
        for folder in (tmp_path / "two", tmp_path / "one")
    ]
    for name, leaf in sides[1].items():
        np.testing.assert_allclose(sides[0][name], leaf, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_evaluation_counts_the_same_on_one_two_and_four_processes(micro, uneven, tmp_path, launch):
    config = micro.config(**SETTINGS)
    trained = world.train(config, tmp_path / "trained", devices=8)
    assert trained.status == 0
    found = {}
    for count in (1, 2, 4):
        workdir = Path(shutil.copytree(trained.workdir, tmp_path / f"W{count}"))
        words = [EVALUATE, "--workdir", workdir, "--suite", uneven]
        launch(*words, processes_=count, devices=4 // count, name=f"launched {count}")
        found[count] = (*scores(workdir, "uneven"), missing(workdir))
    results, predictions, names = found[1]
    assert found[2] == found[1] and found[4] == found[1]
    assert results["utterances_not_scored"] == 2 and len(names) == 2
    assert sum(task["utterances"] for task in results["tasks"].values()) == sum(map(len, predictions.values())) == 5
    assert any(json.loads(line)["pred_text"] for lines in predictions.values() for line in lines)


@pytest.mark.slow
def test_one_process_renders_speech_and_the_others_wait_for_it(micro, tmp_path, launch):
    data = tmp_path / "data"
    config = micro.config(
        steps=1,
        batch__multiple=2,
        batch__seconds=32.0,
        batch__buckets=(16.0,),
        data__dir=str(data),
        data__synthetic="tiny-test",
    )
    words = [TRAIN, "--config", world.write_config(tmp_path / "c.py", config), "--workdir", tmp_path / "W"]
    launched = launch(*words)
    assert (data / "synthesis.json").exists() and (tmp_path / "W" / "adapter").is_dir()
    assert "speaking" in launched.errors and "[1] speaking" not in launched.errors
