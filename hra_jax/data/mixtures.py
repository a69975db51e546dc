"""The stream of references to utterances, (source, row, epoch), drawn from seqio Tasks by a seqio Mixture: never audio.

A seqio Task is one source, usually one manifest, whatever the number of adapter tasks in it, or one of the groups that
data/groups.py makes of the sources; the Mixture sets how often each is drawn. What the stream gives depends on the
sources, the rates and the seed alone, so every host reads the same references, and a position in it is one integer.

Two seqio behaviours are avoided on purpose. It would repeat, then preprocess, then shuffle through a buffer, which
breaks up epochs and puts audio in the buffer: here every source is an endless stream of places in its epochs, whose
orders are made when they begin, and seqio is asked not to shuffle. And it would cache a small source in memory, which
never ends on an endless one.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hra_jax.data.seqio_setup import libraries
from hra_jax.errors import UserError

PROPORTIONAL = "proportional"
_SPLIT = "train"
_FIELDS = ("source", "place")
# References that cross from TensorFlow to Python at a time: one by one costs more than everything else here.
_CHUNK = 1024
# Draws of the mixing made at a time.
_BLOCK = 1 << 16


class Reference(NamedTuple):
    """One utterance of the stream, by number.

    Attributes:
      source: index into the list of sources.
      row: row of that source, in [0, rows).
      epoch: how many times the source had been gone through before.
    """

    source: int
    row: int
    epoch: int


@dataclass(frozen=True)
class SourceSpec:
    """One source of the mixture.

    Attributes:
      name: what errors call it; unique in a stream. Other names give other permutations.
      rows: number of utterances.
      rate: how often the source is drawn relative to the others: a positive number, or 'proportional' (its rows).
    """

    name: str
    rows: int
    rate: float | str = PROPORTIONAL

    @property
    def weight(self) -> float:
        """The rate as a number."""
        return float(self.rows if self.rate == PROPORTIONAL else self.rate)


def check_sources(sources: Sequence[SourceSpec]) -> None:
    """Refuses sources that cannot be mixed.

    Raises:
      UserError: no source, a source without rows, a name given twice, or a rate that is none.
    """
    if not sources:
        raise UserError("no data source given; at least one is needed")
    seen = set()
    for source in sources:
        if source.name in seen:
            raise UserError(f"source name {source.name!r} is given twice; names must be unique")
        seen.add(source.name)
        if source.rows < 1:
            raise UserError(f"source {source.name!r} has no usable utterance")
        rate = source.rate
        number = isinstance(rate, int | float) and not isinstance(rate, bool) and math.isfinite(rate) and rate > 0
        if rate != PROPORTIONAL and not number:
            raise UserError(f"rate {rate!r} of source {source.name!r} must be a positive number or 'proportional'")


def _folded(seed: int, name: str) -> int:
    """31 bits from a seed and a name: the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


@functools.cache
def _words() -> Any:
    """The TensorFlow function of (rows, key, epoch), int64 scalars, that gives the words which sort an epoch."""
    tf, _ = libraries()

    # Words of Philox, whose definition is fixed, rather than `stateless_shuffle`, which may change between versions of
    # TensorFlow. Traced, as it would take ten times as long otherwise.
    @functools.partial(tf.function, autograph=False, input_signature=[tf.TensorSpec([], tf.int64)] * 3)
    def words(rows: Any, key: Any, epoch: Any) -> Any:
        return tf.random.stateless_uniform(
            [rows], seed=tf.stack([key, epoch]), minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )

    return words


def epoch_order(source: SourceSpec, epoch: int, *, seed: int) -> np.ndarray:
    """int64 [rows]: the order of a source's rows in one epoch, which its name, the epoch and `seed` decide."""
    if source.rows == 1:
        return np.zeros(1, np.int64)
    tf, _ = libraries()
    arguments = (source.rows, _folded(seed, f"source/{source.name}"), epoch)
    words = _words()(*(tf.constant(number, tf.int64) for number in arguments)).numpy()
    return np.argsort(words, kind="stable")


class _Draws:
    """Which source each reference of the mixture comes from: draw n depends on (key, n) and the rates alone.

    seqio hands the mixing to a function of ours, because tf.data's own sampling can only be skipped draw by draw.
    """

    def __init__(self, tf: Any, rates: Sequence[float], *, key: int):
        self._tf = tf
        shares = np.cumsum(np.asarray(rates, np.float64))
        self._bounds = shares[:-1] / shares[-1]
        self._key = key

    def block(self, number: Any) -> Any:
        """[_BLOCK] int64: the sources of the draws from number * _BLOCK on; `number` is an int64 scalar."""
        tf = self._tf
        seed = tf.stack([tf.constant(self._key, tf.int64), number])
        points = tf.random.stateless_uniform([_BLOCK], seed=seed, dtype=tf.float64, alg="philox")
        return tf.searchsorted(tf.constant(self._bounds, tf.float64), points, side="right", out_type=tf.int64)

    def counts(self, start: int) -> np.ndarray:
        """[sources] int64: how often each source is drawn in the first `start` draws."""
        if not len(self._bounds):
            return np.asarray([start])
        counts = np.zeros(len(self._bounds) + 1, np.int64)
        for number in range(-(-start // _BLOCK)):
            drawn = self.block(self._tf.constant(number, self._tf.int64)).numpy()[: start - number * _BLOCK]
            counts += np.bincount(drawn, minlength=len(counts))
        return counts

    def mixed(self, datasets: Sequence[Any], start: int) -> Any:
        """The datasets, each already at its own position, interleaved from draw `start` on."""
        blocks = self._tf.data.Dataset.counter(start=start // _BLOCK, step=1, dtype=self._tf.int64)
        draws = blocks.map(self.block).unbatch().skip(start % _BLOCK)
        return self._tf.data.Dataset.choose_from_datasets(datasets, draws)


def _task(tf: Any, seqio: Any, source: SourceSpec, *, index: int, given: int) -> Any:
    """The seqio Task of one source: the places of its references, of which the first `given` are left out."""

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed  # one split; the permutation is ours
        # No function of ours is in it: to trace one costs 30 ms, and there may be hundreds of sources.
        indices = tf.data.Dataset.from_tensors(tf.constant(index, tf.int64)).repeat()
        return tf.data.Dataset.zip({"source": indices, "place": tf.data.Dataset.range(given, tf.int64.max)})

    feature = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.int64, rank=0)
    return seqio.Task(
        # A Mixture sorts its Tasks by name, hence the index. Tasks are not registered: nothing looks one up by name,
        # and a registry would make a second stream of the same sources an error.
        f"source_{index:05d}",
        source=seqio.FunctionDataSource(dataset_fn, splits=[_SPLIT], num_input_examples={_SPLIT: source.rows}),
        output_features=dict.fromkeys(_FIELDS, feature),
        preprocessors=[],
    )


def reference_dataset(sources: Sequence[SourceSpec], *, seed: int, drawn: Sequence[int], start: int) -> Any:
    """The endless, checkpointable tf.data.Dataset that `ReferenceStream` reads.

    Args:
      sources: what is mixed.
      seed: any int; decides the mixing.
      drawn: of each source, how many references are left out at the beginning.
      start: their sum.

    Returns:
      A tf.data.Dataset of {"source", "place"}, each an int64 scalar: the index of a source, and how many references it
      gave before.
    """
    tf, seqio = libraries()
    draws = _Draws(tf, [source.weight for source in sources], key=_folded(seed, "mixture"))
    tasks = [_task(tf, seqio, source, index=i, given=drawn[i]) for i, source in enumerate(sources)]
    mixture = seqio.Mixture(
        "references",
        [(task, source.weight) for task, source in zip(tasks, sources, strict=True)],
        sample_fn=lambda datasets, rates, seed: draws.mixed(datasets, start),
    )
    # What seqio maps over each Task needs no conversion, which takes most of the time of many Tasks.
    dataset = tf.autograph.experimental.do_not_convert(mixture.get_dataset)(
        sequence_length={},
        split=_SPLIT,
        shuffle=False,
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    options = tf.data.Options()
    options.deterministic = True
    # With autotuning, every draw costs several times as much.
    options.autotune.enabled = False
    # The cores belong to the decoders.
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


def draws_before(sources: Sequence[SourceSpec], start: int, *, seed: int) -> list[int]:
    """How many of the first `start` references of a mixture are of each source; ten million take a second."""
    tf, _ = libraries()
    draws = _Draws(tf, [source.weight for source in sources], key=_folded(seed, "mixture"))
    return [int(count) for count in draws.counts(start)]


class ReferenceStream(Iterator[Reference]):
    """Endless iterator over the references of a mixture, the same for the same arguments on every machine.

    Every epoch of a source covers each of its rows once. `consumed` counts the references given so far, those before
    `start` included, so `ReferenceStream(sources, seed=seed, start=stream.consumed)` goes on where `stream` stands.

    Attributes:
      consumed: the references given so far, those before `start` included.
      drawn: of each source, how many of them are of it.
    """

    def __init__(self, sources: Sequence[SourceSpec], *, seed: int, start: int = 0, drawn: Sequence[int] | None = None):
        """Begins at a place.

        Args:
          sources: what is mixed.
          seed: any int; decides the permutations and the mixing.
          start: the number of references to leave out (millions cost little).
          drawn: `drawn` of a stream that stands there, which saves counting; None where it is not known.

        Raises:
          UserError: no source, a source without rows, a name given twice, or a rate that is none.
        """
        check_sources(sources)
        self.consumed = int(start)
        self.drawn = draws_before(sources, self.consumed, seed=seed) if drawn is None else list(drawn)
        assert sum(self.drawn) == self.consumed and len(self.drawn) == len(sources)
        self._sources, self._seed = tuple(sources), seed
        self._epochs = [-1] * len(sources)  # of each source the epoch whose order is at hand
        self._orders = [np.zeros(0, np.int64)] * len(sources)
        dataset = reference_dataset(sources, seed=seed, drawn=self.drawn, start=self.consumed)
        self._chunks = dataset.batch(_CHUNK).as_numpy_iterator()
        self._pending: Iterator[tuple[int, int]] = iter(())

    def __next__(self) -> Reference:
        """The next reference; never raises StopIteration."""
        values = next(self._pending, None)
        if values is None:
            chunk = next(self._chunks)
            self._pending = zip(*(chunk[name].tolist() for name in _FIELDS), strict=True)
            values = next(self._pending)
        source, place = values
        epoch, number = divmod(place, self._sources[source].rows)
        if self._epochs[source] != epoch:
            self._orders[source] = epoch_order(self._sources[source], epoch, seed=self._seed)
            self._epochs[source] = epoch
        self.consumed += 1
        self.drawn[source] = place + 1
        return Reference(source, int(self._orders[source][number]), epoch)
