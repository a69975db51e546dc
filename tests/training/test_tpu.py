"""Programs for TPUs, compiled by the real compiler without a TPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("tpu_program.py")


@pytest.mark.slow
def test_the_step_of_a_bank_in_host_memory_takes_the_same_tpu_memory_for_any_number_of_tasks(tpu_env):
    command = [sys.executable, str(PROGRAM), "10", "100000"]
    done = subprocess.run(command, env=tpu_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = json.loads(done.stdout.splitlines()[-1]).values()
    assert many.pop("bank") == 10_000 * few.pop("bank") > 10**7
    assert few == many and few["all_reduce"] and few["arguments"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hra", "full"])
def test_no_array_of_the_compiled_step_holds_the_global_batch(method, tpu_env):
    rows, chips = 52, 4  # no other dimension of the program is 52
    command = [sys.executable, str(PROGRAM.with_name("tpu_buffers.py")), method, str(rows)]
    done = subprocess.run(command, env=tpu_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shapes = json.loads(done.stdout.splitlines()[-1])
    frames = 100  # 2 s
    # One number for each utterance may be replicated: the rows of the bank are found from the tasks of all of them.
    held = [shape for shape in shapes if math.prod(shape) > rows and (rows in shape or rows * frames in shape)]
    assert held == []
    own = rows // chips
    assert any(own in shape for shape in shapes) and any(frames in shape and own in shape for shape in shapes)


@pytest.mark.slow
def test_checksums_bring_no_array_together_and_hold_no_copy_of_it(tpu_env):
    command = [sys.executable, str(PROGRAM.with_name("tpu_checksums.py"))]
    done = subprocess.run(command, env=tpu_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["argument"] == found["bytes"] / 4 and found["temporaries"] < found["argument"] / 10
    assert all(math.prod(shape) <= found["bytes"] / 16 for shape in found["shapes"])
