"""How long the utterances of a corpus are: counted, kept in a small file, and the length buckets that pad them least.

    python -m hra_jax.data.durations --config NAME --output durations.json

counts the training data of a configuration. `python -m hra_jax.aot --durations durations.json` finds with the file the
buckets that a run would find with the data, where the data is not at hand.
"""

import hashlib
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath
from numpy.typing import ArrayLike

from hra_jax import cli
from hra_jax.config.keys import group
from hra_jax.console import listed, printable, stdout, table, tell
from hra_jax.data.batching import bucket_of
from hra_jax.data.columns import as_columns
from hra_jax.data.report import DataReport
from hra_jax.data.sources import DataSettings, TableSource
from hra_jax.errors import UserError
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import json_text, read_object

FLAGS = flags.FLAGS
UNIT = 0.01  # seconds; lengths are counted in units, rounded up
FORMAT = 1  # of the file
_MOST_LENGTHS = 2048  # different ones that edges are chosen among; more are taken together, a step coarser
_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16)  # numbers of buckets that the command shows


class Durations(NamedTuple):
    """How many utterances have each length.

    Attributes:
      units: int64 [M], lengths in UNIT, ascending.
      counts: int64 [M], utterances of each, at least 1.
    """

    units: np.ndarray
    counts: np.ndarray

    @property
    def utterances(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    @property
    def seconds(self) -> np.ndarray:
        """float64 [M]: the lengths, seconds."""
        return np.round(self.units * UNIT, 6)

    @property
    def digest(self) -> str:
        """Twelve digits that other lengths, or other numbers of them, do not have."""
        columns = np.stack([self.units, self.counts]).astype("<i8")
        return hashlib.sha256(columns.tobytes()).hexdigest()[:12]

    def up_to(self, limit: float) -> "Durations":
        """Those of at most `limit` seconds, as far as whole units tell."""
        kept = np.round((self.units - 1) * UNIT, 6) < limit
        return Durations(self.units[kept], self.counts[kept])


def _in_steps(seconds: np.ndarray, step: float) -> np.ndarray:
    """int64: the least multiples of `step` seconds that are not below `seconds`, as numbers of steps."""
    steps = np.maximum(np.ceil(seconds / step - 1e-6), 1).astype(np.int64)
    # What stands in a file is rounded: no utterance may lie above the edge of its own length.
    return steps + (np.round(steps * step, 6) < seconds)


def count_durations(durations: ArrayLike) -> Durations:
    """Counts lengths in seconds, float [N]."""
    units, counts = np.unique(_in_steps(np.asarray(durations, np.float64), UNIT), return_counts=True)
    return Durations(units, counts.astype(np.int64))


def durations_of(sources: Iterable[TableSource], *, task_tag: str = "", tasks: Collection[str] = ()) -> Durations:
    """The lengths of the utterances of some sources.

    Args:
      sources: what is counted.
      task_tag: the tag that names an utterance's task.
      tasks: only utterances of these; () for all.
    """
    found = [np.zeros(0)]
    for source in sources:
        rows = as_columns(source.utterances)
        kept = np.ones(len(rows), bool)
        if tasks and source.task is None:
            codes, values = rows.tag(task_tag)
            # The last one is for utterances without the tag, whose code is -1.
            kept = np.asarray([value in tasks for value in values] + [False])[codes]
        found.append(rows.durations[kept])
    return count_durations(np.concatenate(found))


def best_edges(found: Durations, buckets: int, *, frame: float, limit: float) -> tuple[float, ...]:
    """The ends of the length buckets that pad some utterances least.

    Bucket k takes what is longer than end k - 1 and at most end k, and pads each to end k. The ends that need least in
    all follow from those of one bucket fewer, by dynamic programming over the lengths that occur (optimal histogram
    partitioning: Jagadish et al., VLDB 1998, section 3).

    Args:
      found: the lengths.
      buckets: how many there may be; fewer come back where there are not as many different lengths.
      frame: seconds; ends are multiples of it. A part of an encoder frame would be padded to a whole one anyway.
      limit: seconds; longer utterances are left out, and no end is above it.

    Returns:
      Seconds, ascending, the last one that of the longest utterance; (limit,) where there is no utterance.
    """
    found = found.up_to(limit)
    if not found.utterances:
        return (limit,)
    step = frame
    while len(steps := np.unique(_in_steps(found.seconds, step))) > _MOST_LENGTHS:
        step *= 2
    counts = np.zeros(len(steps), np.int64)
    np.add.at(counts, np.searchsorted(steps, _in_steps(found.seconds, step)), found.counts)
    ends = np.round(steps * step, 6)[_partition(steps, counts, buckets)]
    return tuple(np.minimum(ends, limit).tolist())


def _partition(lengths: np.ndarray, counts: np.ndarray, parts: int) -> list[int]:
    """The last indices of the parts of ascending lengths whose padding is least: int64 [M] and int64 [M]."""
    total, below = len(lengths), np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: what lengths i to j take, each as long as j. Where i > j nothing is taken, and nothing is to be.
    cost = (below[1:][None, :] - below[:-1][:, None]) * lengths[None, :]
    cost[np.tril_indices(total, -1)] = np.iinfo(np.int64).max // 4
    least, firsts = cost[0], []
    for _ in range(min(parts, total) - 1):
        # The part that ends with j begins with i, after the best parts that end with i - 1.
        tried = least[:-1, None] + cost[1:]
        firsts.append(np.argmin(tried, axis=0) + 1)
        least = np.concatenate([[np.iinfo(np.int64).max // 4], tried.min(axis=0)[1:]])
    last = [total - 1]
    for first in reversed(firsts):
        last.append(int(first[last[-1]]) - 1)
    return last[::-1]


def padding_share(durations: np.ndarray, edges: Sequence[float], counts: np.ndarray | None = None) -> float:
    """Which part of the audio in batches is padding, 0 to 1.

    Args:
      durations: seconds, float64 [N]; those beyond the last bucket are left out.
      edges: the longest utterance of each bucket, seconds, ascending.
      counts: [N], how many utterances have each length, or how often each comes; None: once.
    """
    inside = bucket_of(durations, edges)
    kept = inside < len(edges)
    weights = (np.ones(len(durations)) if counts is None else counts)[kept]
    padded = float(np.sum(np.asarray(edges)[inside[kept]] * weights))
    return 1.0 - float(np.sum(durations[kept] * weights)) / padded if padded else 0.0


# --- The file ---------------------------------------------------------------------------------------------------------


def write_durations(path: epath.PathLike, found: Durations, data: DataSettings) -> None:
    """Writes the lengths of the training data of a configuration, whose group `data` is given."""
    lengths = np.stack([found.units, found.counts], axis=1).tolist()
    content = {"format": FORMAT, "unit_seconds": UNIT, **_named(data), "digest": found.digest, "lengths": lengths}
    write_file(path, json_text(content))


def _named(data: DataSettings) -> dict[str, Any]:
    """What says, without the data, which utterances a configuration trains on."""
    sources = [[name, source] for name, source, _ in data.sources]
    return {"sources": sources, "tasks": list(data.tasks), "task_tag": data.task_tag if data.tasks else ""}


def read_durations(path: epath.PathLike, data: DataSettings) -> Durations:
    """Reads what `write_durations` wrote of the training data of the same configuration.

    Raises:
      UserError: no such file, a damaged one, or one of other data.
    """
    fields = {"format": int, "unit_seconds": float, "sources": list, "tasks": list, "digest": str, "lengths": list}
    content = read_object(path, fields, what="the lengths that python -m hra_jax.data.durations writes")
    if content["format"] != FORMAT or content["unit_seconds"] != UNIT:
        raise UserError(f"{path} has format {content['format']}; allowed: {FORMAT}, of this version")
    found = _checked(content["lengths"], where=str(path))
    if found.digest != content["digest"]:
        raise UserError(f"{path}: its lengths do not have its digest {printable(content['digest'])}: write it again")
    mine = _named(data)
    if any(content.get(key) != value for key, value in mine.items()):
        theirs = _described(content["sources"], content["tasks"])
        raise UserError(
            f"{path} is of another corpus: {theirs} ({_counted(found)}); needed is that of the configuration, "
            f"{_described(mine['sources'], mine['tasks'])}"
        )
    return found


def check_same(path: epath.PathLike, found: Durations, data: Durations) -> None:
    """Refuses, with a UserError, a file whose lengths are not those of the data."""
    if found.digest != data.digest:
        raise UserError(f"{path} is of another corpus: it has {_counted(found)}, the training data {_counted(data)}")


def _checked(lengths: list[Any], *, where: str) -> Durations:
    pairs = [row for row in lengths if isinstance(row, list) and len(row) == 2]
    right = len(pairs) == len(lengths) and all(type(x) is int and 0 < x < 2**40 for row in pairs for x in row)
    units = [row[0] for row in pairs] if right else []
    if not units or any(low >= high for low, high in zip(units, units[1:], strict=False)):
        raise UserError(f"{where}: 'lengths' is damaged; needed: pairs of a length and a number, lengths ascending")
    columns = np.asarray(pairs, np.int64)
    return Durations(columns[:, 0], columns[:, 1])


def _counted(found: Durations) -> str:
    return f"{found.utterances:,} utterances, digest {found.digest}"


def _described(sources: list[Any], tasks: list[Any]) -> str:
    names = listed([": ".join(map(str, row)) if isinstance(row, list) else str(row) for row in sources], show=printable)
    return names + (f", tasks {listed(tasks, show=lambda name: printable(str(name)))}" if tasks else "")


# --- The command ------------------------------------------------------------------------------------------------------


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "The file to write, as JSON.", required=True)


def main(argv: Sequence[str]) -> int:
    """Counts the training data of a configuration, and shows what numbers of buckets would come to."""
    del argv
    from hra_jax.run import buckets, read  # imported late: who only counts needs no run

    config = FLAGS.config
    cli.check_output("output", FLAGS.output)
    report = DataReport()
    data = group(config, "data")
    found = buckets.lengths_of(config, read.training_sources(data, report))
    if not found.utterances:
        raise UserError(f"no usable utterance: {report.summary()}")
    write_durations(FLAGS.output, found, data)
    taken = found.up_to(buckets.limit_of(config))
    rows = []
    for number in _SHOWN:
        edges = buckets.edges_of(config, found, number)
        share = padding_share(taken.seconds - UNIT / 2, edges, taken.counts)  # the middle of what was rounded up
        rows.append((str(number), f"{share:.1%}", ", ".join(f"{edge:g}" for edge in edges)))
    stdout(width=120).print(table(("batch.buckets", "padding", "seconds"), rows, left=("seconds",)))
    beyond = found.utterances - taken.utterances
    longer = f"; {beyond:,} are longer than {buckets.limit_of(config):g} s and not taken" if beyond else ""
    tell(f"{FLAGS.output}: {_counted(found)}{longer}; {report.summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=_define_flags, config_flag=True))
