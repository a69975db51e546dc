"""Utterances that share audio: the same file, whatever its path, and times that overlap; or, of shards, samples."""

import bisect
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hra_jax.data.columns import JoinedUtterances, UtteranceColumns, blocks, joined
from hra_jax.data.shards import Sharded
from hra_jax.data.utterance import Utterance
from hra_jax.storage.remote import is_remote, local_path

# Segments that follow each other may share the edges that their makers rounded or padded.
_ALLOWED_SECONDS = 0.05
_ALLOWED_SHARE = 0.5  # of the shorter one, for the shortest
_PATHS = 2**17  # that are looked at at a time


@functools.lru_cache(maxsize=4096)
def _files_of(folder: str) -> dict[str, tuple[int, int] | None]:
    """Device and inode of the files in a folder, from its listing: one call for each file takes hours on a bucket.

    None stands for a link.
    """
    return dict(_listing(folder))


def _listing(folder: str) -> Iterator[tuple[str, tuple[int, int] | None]]:
    try:
        device = os.stat(folder).st_dev
        with os.scandir(folder) as listing:
            for entry in listing:
                yield entry.name, None if entry.is_symlink() else (device, entry.inode())
    except OSError:
        return  # missing files are named where they are read


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
    these = list(these)
    files = {identity(utterance.audio_filepath) for utterance in these}
    known = {utterance.sample_hash for utterance in these if isinstance(utterance, Sharded)}
    times: dict[object, list[tuple[float, float]]] = {}
    hashes = set()
    for utterance in _near(others, files, known):
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


def _near(others: Iterable[Utterance], files: AbstractSet[object], hashes: AbstractSet[int]) -> Iterator[Utterance]:
    """Those of `others` that may have one of some files or hashes: all that have, and a few more.

    A million others are not asked one by one: of each folder it is found out once which of its files matter.
    """
    if isinstance(others, UtteranceColumns):
        others = joined([others])
    if not isinstance(others, JoinedUtterances):
        yield from others
        return
    names_in = _names_in(files)
    for columns, every in others.parts():
        copies = columns.numbers("hash")
        for rows in blocks(every, _PATHS):
            paths = columns.audio_paths(rows)
            near = np.ones(len(rows), bool) if paths is None else _may_be(paths, names_in)
            if copies is not None and hashes:
                near |= np.isin(copies[rows], np.fromiter(hashes, np.uint64, len(hashes)))
            yield from columns.at(rows[near])


def _may_be(paths: pa.ChunkedArray, names_in: Callable[[str], AbstractSet[str] | None]) -> np.ndarray:
    """bool [N]: whether each path may lead to one of the files that `names_in` knows."""
    names = pc.replace_substring_regex(paths, "(?s)^.*/", "")
    folders = pc.replace_substring_regex(paths, "[^/]*$", "").combine_chunks().dictionary_encode()
    found = [names_in(folder) for folder in folders.dictionary.to_pylist()]
    asked = np.asarray([names is None or len(names) > 0 for names in found], bool)
    every = np.asarray([names is None for names in found], bool)
    wanted = {"", ".", "..", *(name for names in found if names for name in names)}
    codes = np.asarray(folders.indices)
    there = np.asarray(pc.is_in(names, pa.array(sorted(wanted), names.type)))
    odd = np.asarray(pc.is_in(names, pa.array(["", ".", ".."], names.type)))
    return (asked[codes] & there) | every[codes] | odd


def _names_in(files: AbstractSet[object]) -> Callable[[str], AbstractSet[str] | None]:
    """What gives the names in a folder that may be those of some files, which are given by their `identity`.

    The folder ends with a slash; None stands for all names. It remembers what it was asked.
    """
    known: dict[str, set[str]] = {}  # by folder: remote files, and missing ones
    for file in files:
        if isinstance(file, str):
            folder, name = os.path.split(file)
            known.setdefault(folder, set()).add(name)

    @functools.cache
    def names_in(folder: str) -> AbstractSet[str] | None:
        if is_remote(folder):
            return known.get(folder[:-1], set())
        if "://" in folder:
            return None  # file://, in which names are written otherwise
        names = set(known.get(os.path.realpath(folder), ())) if known else set()
        listing = _listing(folder or os.curdir)
        return names.union(name for name, file in listing if file is None or file in files)

    return names_in


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
