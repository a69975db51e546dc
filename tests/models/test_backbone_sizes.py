"""What writing and reading a backbone takes: bytes of memory, and bytes of its files."""

import json
import shutil
import subprocess
import sys

import pytest
from reference import launching

from hra_jax.models import backbone_folder

WRITE = """
import json, resource, sys
import numpy as np
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

geometry = {"features": FeatureConfig(), "encoder": EncoderConfig(1024, 20, 8, d_ff=4096, kernel=5, vocab_size=64)}
shapes = backbone_folder._shapes(**geometry)
row = np.random.default_rng(0).standard_normal((1024, 4096), np.float32)

def rows(name):
    shape, values = shapes[name], row.reshape(-1)
    if not name.startswith("encoder.layers."):
        return np.resize(values, shape)
    return (np.resize(values + i, shape[1:]) for i in range(shape[0]))

vocabulary = {"kind": "characters", "characters": "abc"}
settings = geometry | {"vocabulary": vocabulary, "dtype": "bfloat16", "info": {"name": "x"}}
start = peak()
backbone_folder.write(sys.argv[1], rows, **settings, max_bytes=400_000_000)
written = peak()
files = backbone_folder.load(sys.argv[1], verify=True)
stacked = max(4 * np.prod(shape) for shape in shapes.values())
print(json.dumps({"bytes": 2 * files.parameters, "files": len(files.tensors.paths), "stacked": int(stacked),
                  "write": written - start, "verify": peak() - start}))
"""


@pytest.mark.slow
def test_writing_and_verifying_a_gigabyte_takes_the_memory_of_a_few_layers(tmp_path, command_env):
    folder = tmp_path / "large"
    command = [sys.executable, "-c", WRITE, folder]
    try:
        done = subprocess.run(command, env=command_env, capture_output=True, text=True, timeout=600, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > 9e8 and found["files"] > 2
    # A row of the largest weight has 17 MB: it, the next one, the rounded one and the masks that check it.
    assert found["write"] < 150e6 < found["stacked"] / 2
    assert found["verify"] < 150e6


READ = """
import json, sys
import jax, numpy as np
from absl import flags
from hra_jax.run import processes
processes.define_flags()
flags.FLAGS(sys.argv[:1])
processes.initialize(heartbeat_seconds=10)
import hra_jax
from hra_jax.training import sharding
loaded = hra_jax.load_backbone(sys.argv[1], sharding.make_mesh(1, 8), dtype="float32")
count = loaded.files.tensors.bytes_read
mine, split = 0, 0
for leaf, whole in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(loaded.files.params), strict=True):
    parts = {str(shard.index): shard for shard in leaf.addressable_shards}
    for shard in parts.values():
        np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index].astype(np.float32))
    mine += sum(shard.data.size for shard in parts.values()) * whole.dtype.itemsize
    split += leaf.size * whole.dtype.itemsize * (not leaf.is_fully_replicated)
facts = {"process": jax.process_index(), "devices": len(jax.local_devices()), "read": count, "mine": mine}
print(json.dumps(facts | {"split": split}), flush=True)
"""


@pytest.mark.slow
def test_two_processes_read_their_halves_of_what_is_split(command_env):
    total = 2 * backbone_folder.load("builtin:tiny").parameters
    launcher = [sys.executable, launching.LAUNCHER, "--processes", "2", "--devices", "4"]
    command = [*launcher, "--", "-c", READ, "builtin:tiny"]
    done = subprocess.run(command, env=command_env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line.removeprefix("[1] ")) for line in done.stdout.splitlines() if line.endswith("}")]
    assert sorted(facts["process"] for facts in found) == [0, 1]
    for facts in found:
        assert facts["devices"] == 4
        assert facts["read"] == facts["mine"] == total - facts["split"] // 2
        assert facts["read"] < 0.6 * total
