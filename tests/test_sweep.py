"""Sweeps: every combination once, again only what is not finished, and a table with the best first."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reference import endless
from reference import micro as world

SCRIPT = Path(__file__).resolve().parent.parent / "launch" / "sweep.py"
SPEC = importlib.util.spec_from_file_location("sweep", SCRIPT)
sweep = importlib.util.module_from_spec(SPEC)
sys.modules["sweep"] = sweep
SPEC.loader.exec_module(sweep)


@pytest.fixture
def run(tmp_path, command_env):
    def call(*words: str, **settings) -> subprocess.CompletedProcess:
        command = [sys.executable, SCRIPT, "--workdir", "S", *words]
        env = command_env | settings
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300)

    return call


def test_a_dry_run_prints_a_command_for_every_combination(run, tmp_path):
    rates, buckets = "optimizer.learning_rate=1e-3,3e-3", "batch.buckets=(1.0,2.0),(3,)"
    done = run("--set", rates, "--set", buckets, "--dry-run", "--", "--config", "fsdd", "--config.steps=3")
    assert (done.returncode, done.stderr) == (0, "")
    commands = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    expected = [
        ["--config.optimizer.learning_rate=" + rate, "--config.batch.buckets=" + bucket]
        for rate in ("1e-3", "3e-3")
        for bucket in ("(1.0,2.0)", "(3,)")
    ]
    assert [command[:5] for command in commands] == [
        ["-m", "hra_jax.train", "--config", "fsdd", "--config.steps=3"]
    ] * 4
    assert [command[5:7] for command in commands] == expected
    assert commands[0][7:] == ["--workdir", "S/optimizer.learning_rate=1e-3,batch.buckets=_1.0,2.0_"]
    assert len({command[-1] for command in commands}) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "seed"], ["'seed'", "KEY=VALUE"]),
        (["--set", "seed=1,,2"], ["'seed=1,,2'"]),
        (["--set", "seed=1", "--set", "seed=2", "--", "--config", "fsdd"], ["seed is given twice"]),
        (["--set", "seed=1,1", "--", "--config", "fsdd"], ["'seed=1' names two runs"]),
        (["--set", "seed=1"], ["--config"]),
        (["--set", "seed=1", "--", "--config=fsdd", "--workdir=W"], ["--workdir=W"]),
        (["--set", "seed=1", "--", "--config=fsdd", "--config.seed=2"], ["--config.seed=2"]),
        (["--set", "seed=1", "--jobs", "0", "--", "--config=fsdd"], ["'0'", "at least 1"]),
        (["--set", "seed=1", "--job=2", "--", "--config=fsdd"], ["--job=2"]),
        (["--set", "seed=1", "--workdir", "gs://b/S", "--", "--config=fsdd"], ["gs://b/S"]),
        (["--", "--config=fsdd"], ["--set"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(run, tmp_path, words, told):
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "error: " in line and [text for text in told if text not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_of_runs_that_tie_none_at_the_edge_of_what_was_tried_comes_first(tmp_path):
    rates = {"1e-4": (0.5, 0.5), "1e-3": (0.25, 0.3), "4e-3": (0.25, 0.2), "1e-2": (0.25, 0.2)}
    runs = [sweep.Combination({"optimizer.learning_rate": rate}, tmp_path / rate, []) for rate in reversed(rates)]
    for run in runs:
        run.status = 0
        folder = run.workdir / "eval" / "test"
        folder.mkdir(parents=True)
        macro, wer = rates[run.values["optimizer.learning_rate"]]
        (folder / "results.json").write_text(json.dumps({"wer": wer, "wer_macro": macro}))
    ordered = [row["values"]["optimizer.learning_rate"] for row in sweep.table(runs)]
    assert ordered == ["4e-3", "1e-2", "1e-3", "1e-4"]


def test_the_table_is_sorted_by_the_mean_over_the_tasks(tmp_path):
    runs = [sweep.Combination({"seed": str(seed)}, tmp_path / f"seed={seed}", []) for seed in range(4)]
    for run, macro in zip(runs, (0.5, None, 0.25, 0.75), strict=True):
        run.status = 1 if macro is None else 0
        folder = run.workdir / "eval" / "test"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"wer": 0.1, "wer_macro": macro or 0.0}))
    # The results of a run that failed are those of an earlier try.
    assert [row["values"]["seed"] for row in sweep.table(runs)] == ["2", "0", "3", "1"]
    assert [row["wer_macro"] for row in sweep.table(runs)] == [0.25, 0.5, 0.75, None]


@pytest.fixture
def config(micro, tmp_path_factory) -> str:
    """The file of a run of 2 steps on the micro data."""
    folder = tmp_path_factory.mktemp("config")
    values = micro.config(steps=2, eval__suite=micro.suite("test"), eval__bootstrap=0)
    return world.write_config(folder / "two.py", values)


@pytest.mark.slow
def test_a_sweep_trains_goes_on_after_a_failure_and_runs_nothing_twice(run, config, tmp_path):
    # A learning rate beyond all measure makes no sense, and is refused by its run alone.
    words = ["--set", "optimizer.learning_rate=1e-2,-1,2e-2", "--jobs", "2", "--json", "T/table.json"]
    done = run(*words, "--", "--config", config)
    assert done.returncode == 1, done.stdout + done.stderr
    names = {rate: f"optimizer.learning_rate={rate}" for rate in ("1e-2", "-1", "2e-2")}
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith(f"{names['-1']}: status")]
    assert "status 2" in failed and "config.optimizer.learning_rate is -1.0" in failed
    rows = json.loads((tmp_path / "T" / "table.json").read_text())
    assert {row["name"] for row in rows} == set(names.values())
    assert [row["status"] for row in rows] == [0, 0, 2]
    assert rows[0]["wer_macro"] <= rows[1]["wer_macro"] and rows[2]["wer"] is None
    results = json.loads((tmp_path / rows[0]["workdir"] / "eval" / "test" / "results.json").read_text())
    assert (rows[0]["wer"], rows[0]["wer_macro"]) == (results["wer"], results["wer_macro"])
    last = done.stdout.splitlines()[-4:]
    assert last[0].split() == ["optimizer.learning_rate", "suite", "wer", "wer_macro", "status"]
    assert last[3].split() == ["-1", "status", "2"]

    before = (tmp_path / "S" / names["1e-2"] / "output.txt").stat()
    again = run(*words, "--", "--config", config)
    assert again.returncode == 1
    assert again.stdout.count("finished before") == 2 and again.stdout.count("started") == 1
    after = (tmp_path / "S" / names["1e-2"] / "output.txt").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    marked = run(*words, "--dry-run", "--", "--config", config).stdout.splitlines()
    assert [line.startswith("# finished: ") for line in marked] == [True, False, True]


@pytest.mark.slow
def test_what_is_told_to_stop_stops_its_runs_and_says_so(config, command_env, tmp_path):
    words = ["--set", "seed=0,1", "--", "--config", config, "--config.steps=100000"]
    command = [sys.executable, SCRIPT, "--workdir", "S", *words]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=command_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "S" / "seed=0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 1):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "seed=0: status 75" in output and "seed=1: started" not in output
    assert "the same command goes on" in errors
    assert json.loads((tmp_path / "S" / "seed=0" / "sweep.json").read_text())["status"] == 75


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"status": NaN}', b'{"a": "\xff"}', b"[" * 5000, b"9" * 5000, "pipe", "link"]
)
def test_what_is_damaged_in_a_work_directory_counts_as_not_finished_and_not_evaluated(tmp_path, content):
    run = sweep.Combination({"seed": "0"}, tmp_path / "seed=0", ["python", "-m", "hra_jax.train"], status=0)
    results = run.workdir / "eval" / "test" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text('{"wer": 0.5, "wer_macro": 0.25}')
    run.store()
    assert run.finished() and run.results() == [{"suite": "test", "wer": 0.5, "wer_macro": 0.25}]
    for path in (run.workdir / "sweep.json", results):
        endless.put(path, content) if isinstance(content, str) else path.write_bytes(content)
    with endless.bounded():
        assert not run.finished() and run.results() == []
        (row,) = sweep.table([run])
    assert row["wer_macro"] is None
    sweep.print_table([row])
