"""Utterances that share audio: the same file, whatever its path, and times that overlap; or, of shards, samples."""

import bisect
import functools
import itertools
import os
from collections.abc import Iterable, Sequence

from hra_jax.data.shards import Sharded
from hra_jax.data.utterance import Utterance
from hra_jax.storage.remote import is_remote, local_path

# Segments that follow each other may share the edges that their makers rounded or padded.
_ALLOWED_SECONDS = 0.05
_ALLOWED_SHARE = 0.5  # of the shorter one, for the shortest


@functools.lru_cache(maxsize=4096)
def _files_of(folder: str) -> dict[str, tuple[int, int] | None]:
    """Device and inode of the files in a folder, from its listing: one call for each file takes hours on a bucket.

    None stands for a link.
    """
    try:
        device = os.stat(folder).st_dev
        with os.scandir(folder) as listing:
            return {entry.name: None if entry.is_symlink() else (device, entry.inode()) for entry in listing}
    except OSError:
        return {}  # missing files are named where they are read


def identity(path: str) -> object:
    """The same value for all paths of a file: through links of either kind, `file://` and `..`."""
    path = local_path(path)
    if is_remote(path):
        return path
    folder, name = os.path.split(path)
    files = _files_of(folder or os.curdir)
    if name in files and files[name] is None:
        folder, name = os.path.split(os.path.realpath(path))
        files = _files_of(folder)
    return files.get(name) or os.path.join(os.path.realpath(folder), name)


def shared(these: Iterable[Utterance], others: Iterable[Utterance]) -> list[Utterance]:
    """Those of `these` that share audio with one of `others`; what stands there twice is given once.

    Where both come from shards, their indices also know copies by the hashes of their samples.
    """
    _files_of.cache_clear()  # files come and go between two calls
    times: dict[object, list[tuple[float, float]]] = {}
    hashes = set()
    for utterance in others:
        if isinstance(utterance, Sharded):
            hashes.add(utterance.sample_hash)
        span = utterance.offset, utterance.offset + utterance.duration
        times.setdefault(identity(utterance.audio_filepath), []).append(span)
    taken = {file: (sorted(spans), _latest_ends(sorted(spans))) for file, spans in times.items()}
    found, seen = [], set()
    for utterance in these:
        file = identity(utterance.audio_filepath)
        span = utterance.offset, utterance.offset + utterance.duration
        copied = isinstance(utterance, Sharded) and utterance.sample_hash in hashes
        if (file, span) not in seen and (copied or (file in taken and _meets(span, *taken[file]))):
            seen.add((file, span))
            found.append(utterance)
    return found


def _latest_ends(spans: Sequence[tuple[float, float]]) -> list[float]:
    """For each of the sorted spans, the latest end of it and those before it."""
    return list(itertools.accumulate((end for _, end in spans), max))


def _meets(span: tuple[float, float], spans: Sequence[tuple[float, float]], latest_ends: Sequence[float]) -> bool:
    """Whether a span overlaps one of the sorted spans by more than edges do."""
    start, end = span
    at = bisect.bisect_left(spans, (end, 0.0)) - 1
    while at >= 0 and latest_ends[at] > start:
        other_start, other_end = spans[at]
        shorter = min(end - start, other_end - other_start)
        if min(end, other_end) - max(start, other_start) > min(_ALLOWED_SECONDS, _ALLOWED_SHARE * shorter):
            return True
        at -= 1
    return False
