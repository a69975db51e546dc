"""Programs for TPUs, compiled by the real compiler without a TPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("tpu_program.py")


@pytest.fixture
def tpu_env(command_env) -> dict[str, str]:
    """The environment in which JAX finds the TPU compiler; `make .venv/.installed-dev` puts it there."""
    library = Path(os.environ.get("TPU_LIBRARY_PATH") or Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so")
    if not library.exists():
        pytest.skip(f"no TPU compiler at {library}: pip install --no-deps --target {library.parent.parent} libtpu")
    tests = str(PROGRAM.parent.parent)
    path = os.pathsep.join([command_env["PYTHONPATH"], tests])
    return command_env | {"TPU_LIBRARY_PATH": str(library), "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": path}


def test_the_step_of_a_bank_in_host_memory_takes_the_same_tpu_memory_for_any_number_of_tasks(tpu_env):
    command = [sys.executable, str(PROGRAM), "10", "100000"]
    done = subprocess.run(command, env=tpu_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = json.loads(done.stdout.splitlines()[-1]).values()
    assert many.pop("bank") == 10_000 * few.pop("bank") > 10**7
    assert few == many and few["all_reduce"] and few["arguments"] > 0
