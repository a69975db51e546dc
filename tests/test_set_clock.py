"""A clock that is set by an hour and back while a run goes on: the lock stays, and all is as without it."""

import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reference import micro as world
from reference.written import files_of

HOUR = 3600
STOPS = 4  # the step at which the run waits
# At the end of a configuration: has the run wait until a file is there.
WAITING = """

import pathlib
import time

_write = MetricWriter.write


def _waiting(self, step, scalars):
    _write(self, step, scalars)
    self.flush()
    while step == {step} and not pathlib.Path({file!r}).exists():
        time.sleep(0.05)


MetricWriter.write = _waiting
"""
SECOND = "import sys\nfrom hra_jax.storage import locks\nwith locks.hold(sys.argv[1], 'a second one'): pass"


@pytest.fixture
def settable(tmp_path) -> tuple[dict[str, str], Path]:
    """Variables with which a process has a clock that can be set, and the file that says by how much it is ahead."""
    compiler, library, ahead = shutil.which("cc"), tmp_path / "set_clock.so", tmp_path / "ahead"
    if compiler is None:
        pytest.skip("no C compiler, with which a clock of its own is made: cc")
    source = Path(__file__).parent / "reference" / "set_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    ahead.write_bytes(struct.pack("q", 0))
    return {"LD_PRELOAD": str(library), "SET_CLOCK": str(ahead)}, ahead


def set_clock(ahead: Path, seconds: int) -> None:
    with ahead.open("r+b") as file:
        file.write(struct.pack("q", seconds))


@pytest.mark.slow(minutes=0.6)
def test_a_run_whose_clock_is_set_keeps_its_lock_and_ends_as_any_other(settable, micro, command_env, tmp_path):
    variables, ahead = settable
    config = Path(world.write_config(tmp_path / "config.py", micro.config(steps=8, checkpoint__every_steps=3)))
    text = config.read_text()

    def words(name: str) -> list[str]:
        return [sys.executable, "-m", "hra_jax.train", "--config", str(config), "--workdir", str(tmp_path / name)]

    subprocess.run(words("whole"), env=command_env, check=True, capture_output=True)
    config.write_text(text + WAITING.format(step=STOPS, file=str(tmp_path / "go on")))
    metrics = tmp_path / "set" / "metrics.jsonl"
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(words("set"), env=command_env | variables, stdout=out, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None and not (metrics.exists() and f'"step": {STOPS}' in metrics.read_text()):
            time.sleep(0.05)
        for seconds in (HOUR, -HOUR):
            set_clock(ahead, seconds)
            time.sleep(1)
            second = [sys.executable, "-c", SECOND, str(tmp_path / "set")]
            for clock in (variables, {}):
                done = subprocess.run(second, env=command_env | clock, capture_output=True, text=True, check=False)
                assert done.returncode and f"is in use: 'training', process '{process.pid}'" in done.stderr, done.stderr
        set_clock(ahead, 0)
        (tmp_path / "go on").touch()
        assert process.wait(300) == 0, (tmp_path / "out").read_text()
    finally:
        process.kill()
    assert files_of(tmp_path / "set" / "adapter") == files_of(tmp_path / "whole" / "adapter")
    assert world.losses(tmp_path / "set") == world.losses(tmp_path / "whole")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        assert 0 < line["train/step_seconds"] < HOUR / 2
        assert all(0 <= value <= 1 for name, value in line.items() if name.endswith("_share"))
