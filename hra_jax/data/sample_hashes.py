"""64 bits that name the samples of an utterance, so that a copy of it is known wherever it lies, whatever its name is.

What is hashed is what lies in the file: float32 at its own rate, all channels, from the utterance's start to its end. A
copy in another lossless format has the same samples, and so the same hash; one that was resampled, mixed, made louder
or compressed with loss has another.

The CRC-32 of the samples and the sum of their bits as numbers are mixed at the end: that costs a tenth of what decoding
FLAC does, a cryptographic hash a third. It is none, and need not be: 64 bits would be too few for one.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hra_jax.data.sound_files import AudioError, Sound

_BYTES = 8
# An utterance that ends so close to the end of its file ends there: manifests round durations, each in its own way.
_END_SECONDS = 0.05


class SampleHash:
    """The hash of samples that come block by block."""

    def __init__(self) -> None:
        self._crc = self._sum = self._size = 0

    def of(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks, float32 `[S, channels]`, each of which counts once it is taken."""
        for block in blocks:
            words = np.ascontiguousarray(block, "<f4").reshape(-1).view("<u4")
            self._crc = zlib.crc32(words.view(np.uint8).data, self._crc)
            self._sum = (self._sum + int(words.sum(dtype=np.uint64))) % 2**64
            self._size += words.size
            yield block

    def finish(self, sound: Sound, end: int) -> int:
        """The hash, above 0.

        Args:
          sound: the file, read as far as `end`.
          end: the sample, per channel, at which the utterance ends.
        """
        left = 0 if sound.frames is None else sound.frames - end
        if 0 < left <= _END_SECONDS * sound.rate:
            try:
                for _ in self.of(sound.blocks(count=left)):
                    pass
            except AudioError:
                pass  # beyond the utterance: nobody has asked for these samples
        return self.value

    @property
    def value(self) -> int:
        """The hash of what was taken so far, above 0."""
        sums = struct.pack("<IQQ", self._crc, self._sum, self._size)
        return int.from_bytes(hashlib.blake2b(sums, digest_size=_BYTES).digest(), "little") or 1


class UtteranceHashes:
    """The hashes of the utterances that training has been given, by their number in the table of utterances.

    Each is computed once, when its utterance is first decoded.

    Attributes:
      values: uint64 [N]; 0 for an utterance that training has not been given.
    """

    def __init__(self, size: int):
        self.values: NDArray[np.uint64] = np.zeros(size, np.uint64)
        self._saved: NDArray[np.bool_] = np.zeros(size, np.bool_)

    def grow(self, size: int) -> None:
        """Makes room for utterances with numbers below `size`."""
        more = max(0, size - len(self.values))
        self.values = np.concatenate([self.values, np.zeros(more, np.uint64)])
        self._saved = np.concatenate([self._saved, np.zeros(more, np.bool_)])

    def put(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Notes the hashes `[n]` of the utterances `[n]`; those that are known stay."""
        new = self.values[ids] == 0
        self.values[ids[new]] = values[new]

    def unsaved(self) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, hashes) `[n]` of those that are new since `saved`, ascending by number."""
        ids = np.flatnonzero((self.values != 0) & ~self._saved)
        return ids, self.values[ids]

    def saved(self) -> None:
        """Takes all that are known for saved."""
        self._saved = self.values != 0

    def clear(self) -> None:
        """Forgets all of them."""
        self.values[:] = 0
        self._saved[:] = False
