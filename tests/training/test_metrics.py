"""What a run writes down: metrics.jsonl and TensorBoard's event files."""

import json
import math
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2

from hra_jax.errors import UserError
from hra_jax.training import metrics
from hra_jax.training.metrics import MetricWriter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Events of all files of a run in the order of writing, read by the definition of the record format."""
    found = []
    for path in sorted((workdir / "metrics").iterdir(), key=lambda path: int(path.name.split(".")[-1])):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_what_is_written_is_read_back_from_both_files(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(10, {"train/loss": np.float32(1.5), "utterances": 3})
        writer.write(20, {"train/loss": jnp.float32(0.25)})
    assert lines(tmp_path) == [{"step": 10, "train/loss": 1.5, "utterances": 3}, {"step": 20, "train/loss": 0.25}]
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [(10, "train/loss", 1.5), (10, "utterances", 3.0), (20, "train/loss", 0.25)]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    writer.write(1, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert [e.step for e in events(tmp_path) if e.summary.value] == [1]
    writer.close()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, {"a": math.nan, "b": np.float32(np.inf), "c": -math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    values = [v.simple_value for e in events(tmp_path) for v in e.summary.value]
    assert math.isnan(values[0]) and values[1:] == [math.inf, -math.inf]


def test_a_resumed_run_goes_on_as_if_the_later_steps_had_never_been(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    with MetricWriter(tmp_path, resume_step=20) as writer:
        writer.write(30, {"loss": 33.0})
    assert lines(tmp_path) == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": 33.0}]


def test_tensorboard_shows_the_resumed_run_and_not_the_steps_it_replaced(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")
    with MetricWriter(tmp_path, resume_step=0) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    with MetricWriter(tmp_path, resume_step=20) as writer:
        writer.write(30, {"loss": 33.0})
    shown = loader.EventAccumulator(str(tmp_path / "metrics")).Reload()
    points = [(e.step, float(np.asarray(e.tensor_proto.float_val)[0])) for e in shown.Tensors("loss")]
    assert points == [(10, 10.0), (20, 20.0), (30, 33.0)]


def test_a_run_from_the_start_forgets_what_an_earlier_one_left(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, {"loss": 1.0})
    MetricWriter(tmp_path, resume_step=0).close()
    assert lines(tmp_path) == []


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with MetricWriter(tmp_path, resume_step=9) as writer:
        writer.write(10, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 10, "loss": 2.0}]


def test_cutting_back_replaces_the_file_in_one_go(tmp_path):
    path = metrics.epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    before = path.open("rb")
    assert metrics.cut_back(path, 1) == b'{"step": 1}\n'
    # Who has the old file open still sees the old file whole: it was replaced and not written over.
    assert before.read() == b'{"step": 1}\n{"step": 2}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_unwritable_work_directory_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: metrics could not be written \(Not a directory\)"):
        MetricWriter(tmp_path / "file" / "run", resume_step=0)


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path, resume_step=0)
    full = metrics.GrowingFile(tmp_path / "lines")
    full._handle = open("/dev/full", "ab")  # noqa: SIM115
    monkeypatch.setattr(writer, "_lines", full)
    writer._files.append(full)
    with pytest.raises(UserError, match=r"metrics could not be written \(No space left on device\)"):
        writer.write(1, {"loss": 1.0})


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, {"loss": 1.0})
        writer.flush()
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_the_step_is_taken(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer, pytest.raises(ValueError, match="step"):
        writer.write(1, {"step": 2.0})


def test_writing_metrics_and_checkpoints_imports_no_tensorflow(tmp_path, command_env):
    code = (
        "import sys\n"
        "from hra_jax.training import checkpoints, metrics, preemption, progress, sharding\n"
        "with metrics.MetricWriter(sys.argv[1], resume_step=0) as writer:\n"
        "    writer.write(1, {'loss': 1.0})\n"
        "print([name for name in ('tensorflow', 'seqio', 'clu') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=command_env, check=True)
    assert done.stdout.strip() == "[]"
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]
