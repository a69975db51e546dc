"""Utterances of a suite that something was trained on, found by their samples: no file of the training need be there.

Found is what is the same to the last bit: a copy under another name, by a link, on another machine, in another lossless
format. Not found is what was resampled, cut otherwise or compressed with loss; segments that overlap are found where
both manifests are at hand (data/overlaps.py).
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hra_jax.console import listed
from hra_jax.data.audio import AudioError, sample_hash
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError


def hashes_of(utterances: Sequence[Utterance], *, threads: int = 4) -> np.ndarray:
    """uint64 `[N]`: 64 bits that name the samples of each utterance; 0 where it cannot be read."""

    def one(utterance: Utterance) -> int:
        try:
            return sample_hash(utterance)
        except AudioError:
            return 0  # whoever scores it names it

    with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
        return np.fromiter(pool.map(one, utterances), np.uint64, len(utterances))


def found_in(utterances: Sequence[Utterance], hashes: np.ndarray, trained_on: np.ndarray) -> list[str]:
    """The keys of the utterances whose hash is among others.

    Args:
      utterances: of a suite.
      hashes: uint64 `[N]` from `hashes_of`.
      trained_on: uint64 `[M]`, sorted, without 0, as `task_records.all_hashes` gives them.
    """
    if not len(trained_on):
        return []
    there = trained_on[np.minimum(np.searchsorted(trained_on, hashes), len(trained_on) - 1)] == hashes
    return [utterance.key for utterance, found in zip(utterances, there, strict=True) if found]


def check(keys: Iterable[str], *, suite: str, what: str) -> None:
    """Refuses a suite with utterances that something was trained on.

    Args:
      keys: of these utterances.
      suite: its name.
      what: what was trained on them, for the error.

    Raises:
      UserError: there are any; the line has their number and names the first three.
    """
    found = sorted(set(keys))
    if found:
        raise UserError(
            f"suite {suite!r}: {what} was trained on {len(found)} of its utterances, by the hash of their samples: "
            f"{listed(found, most=3)}; an utterance may be on one side only"
        )
