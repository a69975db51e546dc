"""What intervals cost: resampling a large test set with and without blocks, and one resample by a plain loop.

python benchmarks/bootstrap.py --json benchmarks/results/bootstrap.json
"""

import harness
import numpy as np
from absl import flags

from hra_jax import cli
from hra_jax.evaluation.bootstrap import resampled_sums

UTTERANCES, SPEAKERS, DRAWS = 100_000, 1000, 1000
SAMPLES = 3


def plain_loop(counts: np.ndarray, members: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """The sums of one resample: speakers, and of each utterances, drawn one by one."""
    total = np.zeros(counts.shape[1], np.int64)
    for block in generator.integers(len(members), size=len(members)):
        for at in generator.integers(len(members[block]), size=len(members[block])):
            total += counts[members[block][at]]
    return total


def main(argv) -> None:
    """Times all, and prints them."""
    del argv
    generator = np.random.default_rng(0)
    words = generator.integers(1, 30, size=UTTERANCES)
    counts = np.stack([generator.binomial(words, 0.2), generator.binomial(words, 0.18), words], axis=1)
    blocks = np.unique(generator.integers(SPEAKERS, size=UTTERANCES), return_inverse=True)[1]
    members = [np.flatnonzero(blocks == block) for block in range(blocks.max() + 1)]
    draws = {
        "speakers, then utterances": lambda: resampled_sums(counts, blocks, samples=DRAWS, seed=[0]),
        "utterances": lambda: resampled_sums(counts, None, samples=DRAWS, seed=[0]),
    }
    loop = {"speakers, then utterances": lambda: plain_loop(counts, members, generator)}
    groups = {
        f"{DRAWS:,} resamples of {UTTERANCES:,} utterances": harness.interleave(draws, samples=SAMPLES, busy=True),
        "1 resample by a plain loop": harness.interleave(loop, samples=SAMPLES, busy=True),
    }
    sizes = {"utterances": UTTERANCES, "speakers": SPEAKERS, "draws": DRAWS, "systems": 2}
    harness.report("bootstrap", groups, flags.FLAGS.json, **sizes, peak_bytes=harness.peak_memory())


if __name__ == "__main__":
    cli.run(main, define_flags=harness.define_flags)
