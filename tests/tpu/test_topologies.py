"""Names of TPU topologies."""

import subprocess
import sys

import pytest

from hra_jax.errors import UserError
from hra_jax.tpu import topologies


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "accelerator"),
    [
        ("v5e:16x16", 256, 64, "v5litepod-256"),
        ("v5e:2x4", 8, 1, "v5litepod-8"),
        ("v5e:4x4", 16, 4, "v5litepod-16"),
        ("v6e:16x16", 256, 64, "v6e-256"),
        ("v5p:4x4x4", 64, 16, "v5p-128"),
        ("v5p:2x2x1", 4, 1, "v5p-8"),
        ("v4:4x4x8", 128, 32, "v4-256"),
        ("cpu-8", 8, 1, ""),
    ],
)
def test_chips_hosts_and_accelerator_type(name, chips, hosts, accelerator):
    found = topologies.parse(name)
    assert (found.chips, found.hosts, found.accelerator_type) == (chips, hosts, accelerator)
    assert found.hosts * found.chips_per_host == chips


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5e:3x3", "v5e comes in 1x1"),
        ("v5e:4x4x4", "v5e comes in 1x1"),
        ("v5p:4x4", "v5p comes in 2x2x1"),
        ("v5p:4x4x6", "multiples of 4 each way"),
        ("v4:32x32x32", "up to 4096 chips"),
        ("v9:2x2", "generations are v4, v5e, v5p, v6e"),
        ("v5litepod-256", "allowed are names such as"),
        ("cpu-0", "allowed are names such as"),
    ],
)
def test_a_name_that_is_none_says_what_is_allowed(name, told):
    with pytest.raises(UserError, match=told) as error:
        topologies.parse(name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_what_launch_scripts_need(command_env):
    command = [sys.executable, "-m", "hra_jax.tpu.topologies", "v5p:4x4x4"]
    done = subprocess.run(command, env=command_env, capture_output=True, text=True, check=True)
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == {
        "generation": "v5p",
        "grid": "4x4x4",
        "chips": "64",
        "hosts": "16",
        "chips_per_host": "4",
        "accelerator_type": "v5p-128",
        "gke_accelerator": "tpu-v5p-slice",
    }
