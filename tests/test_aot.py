"""Compiling ahead of time: the programs are those of a run, and what does not fit is one line."""

import dataclasses
import json
import re
import subprocess
import sys
import types

import jax
import pytest
from reference import micro as world

from hra_jax import aot
from hra_jax.config.files import config_difference, config_from_json
from hra_jax.errors import UserError
from hra_jax.run import programs
from hra_jax.run.layout import open_mesh
from hra_jax.tpu import cost, topologies
from hra_jax.tpu.hlo import Program
from hra_jax.tpu.plan import make_plan
from hra_jax.tpu.shapes import Shapes

DEVICES = 4
MESH = {"batch__multiple": DEVICES, "batch__seconds": 8.0, "eval__batch_seconds": 8.0, "mesh__fsdp": 2}


def mesh_of(config):
    return open_mesh(config.mesh, multiple=config.batch.multiple, devices=jax.devices()[:DEVICES])


class Recorder:
    """A jitted function that remembers the text of its programs and the shapes of its arguments."""

    def __init__(self, function):
        self.function, self.seen = function, {}

    def __call__(self, *arguments):
        shape = arguments[2]["waveform"].shape, arguments[2]["labels"].shape[1]
        self.seen[shape] = self.function.lower(*arguments).as_text()
        return self.function(*arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *(pytest.param(changes, marks=pytest.mark.slow) for changes in ({"adapter__bank": "host"}, {"method": "full"})),
    ],
    ids=["device", "host", "full"],
)
def test_what_is_compiled_ahead_is_what_a_run_compiles(micro, changes, tmp_path, monkeypatch):
    check_compiled_ahead(
        micro.config(**MESH, **changes, steps=1, eval__suite=micro.suite("test")), tmp_path, monkeypatch
    )


@pytest.mark.slow(minutes=0.5)
def test_recordings_that_augmentation_draws_from_are_arguments_of_both(micro, tmp_path, monkeypatch):
    sources = {f"augment__{name}_source": str(micro.data / "test.jsonl") for name in ("noise", "impulse")}
    shares = {f"augment__{name}_probability": 1.0 for name in ("noise", "impulse", "telephone")}
    config = micro.config(
        **MESH,
        **sources,
        **shares,
        augment__source_rows=4,
        augment__gain_db=(-6.0, 6.0),
        steps=1,
        eval__suite=micro.suite("test"),
    )
    check_compiled_ahead(config, tmp_path, monkeypatch)


def check_compiled_ahead(config, tmp_path, monkeypatch):
    recorded, lay_out = [], programs.lay_out_programs

    def watched(*arguments, **keywords):
        found = lay_out(*arguments, **keywords)
        recorded.extend(Recorder(function) for function in (found.train, found.evaluation))
        return dataclasses.replace(found, train=recorded[0], evaluation=recorded[1])

    monkeypatch.setattr(programs, "lay_out_programs", watched)
    run = world.train(config, tmp_path / "W", devices=DEVICES)
    assert run.status == 0
    monkeypatch.setattr(programs, "lay_out_programs", lay_out)
    mesh = mesh_of(config)
    for kind, recorder in zip(("train", "evaluation"), recorded, strict=True):
        ((waveform, labels),) = recorder.seen
        shapes = Shapes(config, mesh, tasks=3, labels_per_second=labels / config.batch.buckets[-1])
        job = shapes.job(kind, config.batch.buckets[-1], waveform[0])
        assert job.trace().lower().as_text() == recorder.seen[waveform, labels], kind


def test_numbers_of_a_compiled_step(micro):
    config = micro.config(**MESH)
    planned = make_plan(config, f"cpu-{DEVICES}")
    mesh = mesh_of(config)
    shapes = Shapes(config, mesh, tasks=3)
    train, evaluation, transcription = cost.compile_all(shapes.jobs(), planned, parallel=1)
    assert [entry["step"] for entry in (train, evaluation, transcription)] == ["train", "evaluation", "transcription"]
    assert (
        shapes.counts["trainable_parameters"]
        == shapes.counts["shared_parameters"] + 3 * shapes.counts["parameters_per_task"]
    )
    # Forward with and without the adapter, and once.
    assert evaluation["flops"] == pytest.approx(2 * transcription["flops"], rel=0.05)
    assert train["flops"] > transcription["flops"]
    for entry in (train, evaluation, transcription):
        assert entry["fits"] and entry["peak"] >= entry["arguments"] > 0 and entry["unknown_loops"] == 0
        assert entry["rows_per_device"] == entry["rows"] / DEVICES
    kinds = {collective["kind"] for collective in train["collectives"]}
    assert {"all-gather", "all-reduce"} <= kinds


def test_the_beam_search_with_automata_is_a_step(micro):
    config = micro.config(**MESH, decode__beam=4, decode__n_best=2)
    planned = make_plan(config, f"cpu-{DEVICES}")
    (job,) = Shapes(config, mesh_of(config), tasks=3).jobs(["decode"])
    entry = cost.compile_job(job, planned)
    hypotheses = jax.eval_shape(job.function, *job.arguments)
    tables, log_probs = job.arguments[:2]
    assert hypotheses.tokens.shape == (job.rows, 2, log_probs.shape[1])
    assert entry["fits"] and entry["flops"] > 0 and entry["unknown_loops"] == 0
    # Each device has the tables, and searches its rows alone.
    assert entry["arguments"] > 8 * tables["model"].scores.size and entry["collectives"] == []


def test_the_text_that_the_compiler_writes_says_what_jax_reads_back(micro, monkeypatch):
    config = micro.config(**MESH)
    shapes = Shapes(config, mesh_of(config), tasks=3)

    def read_back(compiled):
        raise AssertionError("the text did not come from the compiler")

    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Compiled, "as_text", read_back)
        compiled, text = cost.compiled_with_text(shapes.job("transcription", 1.0, 16).trace().lower())
    written, read = Program(text), Program(compiled.as_text())
    assert written.traffic() == read.traffic() > 0
    assert written.collectives() == read.collectives() != []


@pytest.mark.parametrize(("cores", "gigabytes", "expected"), [(8, 60, 4), (8, 5, 1), (2, 512, 2)])
def test_no_more_programs_are_compiled_at_a_time_than_memory_holds(cores, gigabytes, expected, monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {gigabytes * 10**6} kB\n")
    monkeypatch.setattr(cost.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(cost.epath, "Path", lambda name: meminfo if name == "/proc/meminfo" else None)
    assert cost.at_a_time() == expected


def test_a_profile_names_the_modules(micro):
    config = micro.config(**MESH)
    shapes = Shapes(config, mesh_of(config), tasks=3)
    (job,) = shapes.jobs(["train"])
    text = job.trace().lower().as_text(debug_info=True)
    forward = ("frontend", "subsampling", "encoder", "layers", "attention", "convolution", "ff1", "ff2", "final_norm")
    for scope in (*forward, "adapter_hra", "output", "ctc_loss", "gather_rows", "update_rows", "update_shared"):
        assert re.search(rf'"[^"]*[/(]{scope}[/)]', text), scope


def test_twice_the_rows_are_twice_the_work(micro):
    config = micro.config(**MESH)
    planned = make_plan(config, f"cpu-{DEVICES}")
    shapes = Shapes(config, mesh_of(config), tasks=3)
    few, many = (cost.compile_job(shapes.job("transcription", 1.0, rows), planned) for rows in (16, 32))
    assert many["flops"] == pytest.approx(2 * few["flops"], rel=0.01)
    assert many["temporaries"] > 1.5 * few["temporaries"]


def test_the_roofline_names_what_takes_longest():
    chip = topologies.CHIPS["v5e"]
    found = {
        "flops": 4 * 197e12,  # a second on each of four
        "traffic": 2 * 0.819e12,
        "collectives": [
            {"moved": 100e9, "between_slices": False},
            {"moved": 9.3e9, "between_slices": True},
        ],
    }
    times = cost.roofline(found, chip, 4)
    assert times["seconds"] == pytest.approx({"compute": 1.0, "memory": 2.0, "ici": 0.5, "dcn": 3.0})
    assert (times["bound"], times["step_seconds"]) == ("dcn", pytest.approx(3.0))


# --- What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "topology", "told"),
    [
        ({}, "v5e:5x5", "v5e comes in 1x1"),
        ({"mesh__fsdp": 3}, "v5e:2x2", "multiply to 3, which does not divide the 4 devices"),
        ({"mesh__data": 2, "mesh__fsdp": 1}, "v5e:2x2", "multiply to 2, but there are 4 devices"),
        ({"batch__multiple": 2}, "v5e:2x2", "batch.multiple = 2: must be a multiple of 4"),
        ({"batch__multiple": 256, "mesh__fsdp": 16}, "v5e:16x16", "at least 256 s are needed"),
        ({"accumulate": 3}, "v5e:2x2", "accumulate = 3: must divide the 2 rows"),
        ({"mesh__slices": 2}, "cpu-4", "cpu-4 has no slices"),
    ],
)
def test_a_wrong_topology_mesh_or_bucket_is_one_line(micro, changes, topology, told):
    with pytest.raises(UserError, match=told) as error:
        make_plan(micro.config(**MESH | changes), topology)
    assert "\n" not in str(error.value)


def test_the_command_plans_without_compiling_and_refuses_with_status_2(command_env):
    command = [sys.executable, "-m", "hra_jax.aot", "--config", "usm_2b_hra", "--plan", "--topology"]
    done = subprocess.run([*command, "v5e:16x16"], env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "v5litepod-256" in done.stdout and "data 16 x fsdp 16" in done.stdout
    done = subprocess.run([*command, "v5e:2x3"], env=command_env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "v5e:2x3" in done.stderr


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (40.00G) exceeds available HBM (15.75G). HLO module: jit_f.",
            40 * 2**30,
            15.75 * 2**30,
        ),
        ("Ran out of memory in memory space hbm. Used 18.36G of 15.75G hbm.", 18.36 * 2**30, 15.75 * 2**30),
        ("RESOURCE_EXHAUSTED", None, None),
    ],
)
def test_what_a_compiler_out_of_memory_says(message, needed, available):
    assert cost.too_large(message) == {"needed": needed, "available": available}


@pytest.mark.parametrize(("most", "start"), [(0, 4), (1, 4), (7, 1), (37, 4), (300, 2)])
def test_the_search_finds_the_largest_batch(micro, monkeypatch, most, start):
    planned = make_plan(micro.config(**MESH), "v5e:2x2")
    compiled = []

    class Rows:
        def job(self, kind, seconds, rows):
            assert (kind, seconds) == ("train", 1.0)
            return rows // planned.shards

    def compile_job(rows, where):
        compiled.append(rows)
        memory, each = 16e9, 14e9 / max(most + 0.5, 1)
        fits = rows <= most
        return {"fits": fits, "peak": 1.5e9 + rows * each, "needed": 1.5e9 + rows * each, "memory": memory}

    monkeypatch.setattr(cost, "compile_job", compile_job)
    found, entries = cost.largest_batch(Rows(), planned, start=start)
    # To within a sixteenth.
    assert most - most // 16 <= found <= most
    assert len(entries) == len(set(compiled)) <= 12


def test_the_table_says_what_does_not_fit_and_names_its_largest_buffers(micro, capsys):
    buffer = {"bytes": 2e9, "type": "f32[2]", "operator": "x", "on": "v5p:2x2x1"}
    entry = {"step": "train", "bucket_seconds": 1.0, "rows_per_device": 2.0, "fits": False, "compile_seconds": 1.0}
    entry |= {"needed": 40e9, "available": 15.75e9, "largest": [buffer]}
    planned = make_plan(micro.config(**MESH), "v5e:2x2")
    numbers = ("backbone_parameters", "trainable_parameters", "shared_parameters", "tasks", "parameters_per_task")
    aot.show([entry], dict.fromkeys(numbers, 1), planned)
    printed = capsys.readouterr().out
    assert "does not fit: 40 GB of 15.8 GB" in printed and "2 GB f32[2], x (as compiled for v5p:2x2x1)" in printed


def test_the_file_of_numbers_says_what_they_are_of(micro, tmp_path, monkeypatch):
    config = micro.config(**MESH, backbone_dtype="auto", seed=3)
    settings = dict(config=config, topology=f"cpu-{DEVICES}", json=str(tmp_path / "numbers.json"))
    settings |= dict(plan=False, search="", steps=[], tasks=3, labels_per_second=10.0, parallel=1, durations=None)
    monkeypatch.setattr(aot, "FLAGS", types.SimpleNamespace(**settings))
    # JAX has looked for devices already.
    monkeypatch.setattr(topologies, "devices", lambda topology, slices: jax.devices()[: topology.chips])
    assert aot.main(["aot"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    written = config_from_json(json.dumps(numbers["config"]))
    # What 'auto' is on those chips is part of what the numbers are of.
    assert config_difference(micro.config(**MESH, backbone_dtype="float32", seed=3), written) == []
    assert numbers["backbone"] == micro.backbone and numbers["topology"] == f"cpu-{DEVICES}"
    assert numbers["mesh"] == {"slices": 1, "data": 2, "fsdp": 2, "tensor": 1} and numbers["parameters"]["tasks"] == 3
    assert (numbers["method"], numbers["adapter"], numbers["programs"]) == ("adapter", "hra", [])


@pytest.mark.slow
def test_the_command_compiles_for_a_tpu_and_says_what_does_not_fit(micro, tmp_path, tpu_env):
    config = tmp_path / "config.py"
    config.write_text(
        "from hra_jax import config as configs\n\n\ndef get_config():\n    config = configs.load('usm_2b_hra')\n"
        "    config.pretrain.size = 'tiny'\n    return config\n"
    )
    command = [
        sys.executable,
        "-m",
        "hra_jax.aot",
        "--config",
        str(config),
        "--topology",
        "v5e:2x2",
    ]
    small = ["--topology=v5e:2x2", "--config.mesh.fsdp=2", "--config.batch.multiple=4", "--config.batch.buckets=(4.0,)"]
    few = ["--config.batch.seconds=32", "--config.eval.batch_seconds=32"]
    done = subprocess.run(
        [*command, "--steps=train,decode", *small, *few, "--json", str(tmp_path / "fits.json")],
        env=tpu_env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    entry, searched = json.loads((tmp_path / "fits.json").read_text())["programs"]
    assert entry["fits"] and entry["memory"] == 16 * 2**30 and entry["bound"] in ("compute", "memory", "ici")
    assert searched["fits"] and searched["flops"] > 0 and searched["traffic"] > 0 and searched["collectives"] == []
    done = subprocess.run(
        [*command, "--steps=train", *small, "--config.batch.seconds=4000000", "--json", str(tmp_path / "no.json")],
        env=tpu_env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == aot.DOES_NOT_FIT, done.stderr[-2000:]
    (entry,) = json.loads((tmp_path / "no.json").read_text())["programs"]
    assert not entry["fits"] and entry["needed"] > entry["available"]
