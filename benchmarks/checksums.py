"""What checksums cost: saving, restoring and loading with them and without, and the start of the smallest backbone.

python benchmarks/checksums.py --json benchmarks/results/checksums.json

Without means: nothing is hashed and no listing of files is written, in the same code. Hashing is for another core: what
it costs the thread that reads is a column of its own, which a busy machine changes little.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import harness
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from hra_jax import api, cli
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import named_size
from hra_jax.run import foundation
from hra_jax.text.vocabularies import CharacterVocabulary
from hra_jax.training import checkpoints, checksums, listings

SAMPLES = 9
ARRAYS, SIDE = 16, 1024  # 64 MiB of float32
START = "import hra_jax; hra_jax.load_backbone('builtin:tiny', verify={verify})"


@contextlib.contextmanager
def without() -> Iterator[None]:
    """Leaves all hashing out."""

    def nothing(tree, *, finite=True):
        del finite
        names = (checksums.sharding.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree))
        return dict.fromkeys(names, checksums.Checksum(0, True))

    with (
        mock.patch.object(checkpoints.checksums, "of_tree", nothing),
        mock.patch.object(listings, "write_listing", lambda folder: None),
    ):
        yield


def saving_and_restoring(folder: epath.Path) -> dict[str, dict[str, harness.Timing]]:
    """A checkpoint of 64 MiB is written until it is complete, and read again."""
    rng = np.random.default_rng(0)
    state = {f"{i}": jnp.asarray(rng.standard_normal((SIDE, SIDE), np.float32)) for i in range(ARRAYS)}
    contexts: dict[str, Callable] = {"without": without, "with": contextlib.nullcontext}
    with contextlib.ExitStack() as stack:
        opened = {
            name: stack.enter_context(
                checkpoints.Checkpoints(folder / name, keep_latest=1, keep_best=0, every_steps=1, finite=True)
            )
            for name in contexts
        }

        def save(name: str) -> None:
            with contexts[name]():
                step = (opened[name].latest_step() or 0) + 1
                opened[name].save(step, state, position={}, best={}, force=True)
                opened[name].wait()

        def restore(name: str):
            with contexts[name]():
                return opened[name].restore("last", state)[0]

        saves = harness.interleave(
            {name: lambda name=name: save(name) for name in contexts}, samples=SAMPLES, busy=flags.FLAGS.busy
        )
        restores = harness.interleave(
            {name: lambda name=name: restore(name) for name in contexts}, samples=SAMPLES, busy=flags.FLAGS.busy
        )
    return {"save": saves, "restore": restores}


def loading(folder: epath.Path) -> dict[str, harness.Timing]:
    """A backbone of random weights is read from a local disk."""
    vocabulary = CharacterVocabulary(" abcdefghijklmnopqrstuvwxyz")
    features, encoder = named_size("base", vocabulary.size)
    base = foundation.Foundation(features, encoder, vocabulary, "base", "", None)
    backbone_folder.save(
        folder,
        foundation.random_weights(base, 0),
        features=features,
        encoder=encoder,
        vocabulary=vocabulary.to_json(),
        dtype="float32",
        info={"name": "base", "source": "random weights", "license": ""},
    )
    sides = {
        "without": lambda: api.load_backbone(str(folder), verify=False).params,
        "with": lambda: api.load_backbone(str(folder)).params,
    }
    return harness.interleave(sides, samples=SAMPLES, busy=flags.FLAGS.busy)


def starting() -> dict[str, harness.Timing]:
    """A new process imports the library and loads the smallest backbone."""

    def start(verify: bool | None) -> None:
        subprocess.run([sys.executable, "-c", START.format(verify=verify)], check=True)

    return harness.interleave(
        {"without": lambda: start(False), "with": lambda: start(None)}, samples=5, busy=flags.FLAGS.busy
    )


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_boolean("busy", False, "Whether samples count during which other processes were busy.")


def main(argv) -> None:
    """Times all, and prints them."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        groups = saving_and_restoring(epath.Path(folder) / "checkpoints")
        groups["load of a backbone"] = loading(epath.Path(folder) / "backbone")
    groups["start with builtin:tiny"] = starting()
    harness.report("checksums", groups, flags.FLAGS.json, checkpoint_bytes=4 * ARRAYS * SIDE**2)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
