"""Shards as files: ArrayRecord, a `tf.train.Example` for each utterance, written and read without TensorFlow.

A record begins with the sound and the hash of its samples, so that these are found without reading what follows.
"""

import collections
import dataclasses
import io
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import soundfile
from array_record.python import array_record_module
from etils import epath

from hra_jax.data.sound_files import AudioError, one_line
from hra_jax.storage import checksums, files, remote

ENCODINGS: Final = ("int16", "flac")
_WRITER: Final = "group_size:1,uncompressed"  # sound does not become smaller, and each record is read by itself
_READER: Final = "readahead_buffer_size:0,max_parallelism:0"
_FOOTER: Final = 2**17  # bytes of a file in a bucket that are asked for when it is opened; where needed, more
_BUFFER: Final = 2**15
_MOST_OPEN: Final = {True: 2**13, False: 2**8}  # shards in buckets, which take no descriptor; and on this machine
# What the client of Google Cloud Storage says in its errors, by either of its interfaces.
_NOT_THERE: Final = ('"code": 404', "NoSuchKey", "No such object")
_DAMAGED: Final = ("Corrupted", "should be at least", '"code": 416', "InvalidRange")


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A file of shards, as its index describes it.

    Attributes:
      path: of the file, or its URI.
      records: how many it has.
      size: bytes.
      xxh3: of its content, 64 bits.
      sample_rate: Hz, of its sound.
      encoding: a value of `ENCODINGS`.
    """

    path: str = ""
    records: int = 0
    size: int = 0
    xxh3: int = 0
    sample_rate: int = 0
    encoding: str = ENCODINGS[0]

    def fault(self) -> str:
        """What its size says is wrong with a file of this machine; '' where nothing is, or it is in a bucket."""
        if remote.is_remote(self.path):
            return ""
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        return "" if size == self.size else f"has {size:,} bytes in place of {self.size:,}"


# --- Records ----------------------------------------------------------------------------------------------------------
#
# Protocol buffers: Example{1: Features{1: entry{1: name, 2: Feature{1: BytesList{1: bytes} or 3: Int64List{1: ints}}}}}


def encode_samples(samples: np.ndarray, *, sample_rate: int, encoding: str) -> bytes:
    """float32 `[S]` at full scale 1 as 16-bit sound: little-endian samples, or a FLAC file; what is louder is cut."""
    whole = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")
    if encoding == "int16":
        return whole.tobytes()
    file = io.BytesIO()
    soundfile.write(file, whole, sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def make_record(sound: bytes, hashed: int, fields: Mapping[str, str | int]) -> bytes:
    """A record.

    Args:
      sound: as `encode_samples` gives it.
      hashed: 64 bits that name the samples.
      fields: what else TFDS gives of an utterance: texts, and integers of at least 0.
    """
    entries = [_entry("audio", _field(1, _field(1, sound))), _entry("hash", _field(1, _field(1, _hash_text(hashed))))]
    for name, value in fields.items():
        if isinstance(value, int):
            entries.append(_entry(name, _field(3, _field(1, _varint(value)))))
        else:
            entries.append(_entry(name, _field(1, _field(1, value.encode()))))
    return _field(1, b"".join(entries))


def _hash_text(hashed: int) -> bytes:
    return b"%016x" % hashed


def _entry(name: str, feature: bytes) -> bytes:
    return _field(1, _field(1, name.encode()) + _field(2, feature))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _open_field(record: bytes, at: int, tag: int) -> tuple[int, int]:
    """(start, stop) of the content of the field at a place, which must have this tag."""
    if record[at] != tag:
        raise ValueError("no record of an utterance")
    at += 1
    size = shift = 0
    while True:
        byte = record[at]
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, at + size
        shift += 7


def _bytes_of(record: bytes, at: int, name: bytes) -> tuple[memoryview, int]:
    """The bytes of the entry at a place, which must have this name, and where the next entry is."""
    at, stop = _open_field(record, at, 0x0A)
    start, end = _open_field(record, at, 0x0A)
    if record[start:end] != name:
        raise ValueError("no record of an utterance")
    at, _ = _open_field(record, end, 0x12)
    at, _ = _open_field(record, at, 0x0A)
    start, end = _open_field(record, at, 0x0A)
    return memoryview(record)[start:end], stop


def sound_of(record: bytes) -> tuple[memoryview, int]:
    """The sound in a record and the hash of its samples; ValueError where it is no record."""
    try:
        at, _ = _open_field(record, 0, 0x0A)
        sound, at = _bytes_of(record, at, b"audio")
        hashed, _ = _bytes_of(record, at, b"hash")
        return sound, int(bytes(hashed), 16)
    except IndexError as error:
        raise ValueError("no record of an utterance") from error


# --- Files ------------------------------------------------------------------------------------------------------------


def write_shard(path: epath.PathLike, records: Iterable[bytes]) -> tuple[int, int, int]:
    """Writes a shard, which has its name once it is whole, and reads it again.

    Returns:
      (records, bytes, XXH3).

    Raises:
      OSError: it cannot be written.
    """
    count = 0
    with files.Replacement(path) as replacement:
        try:
            writer = array_record_module.ArrayRecordWriter(replacement.written, _WRITER)
            for record in records:
                writer.write(record)
                count += 1
            writer.close()
        except RuntimeError as error:
            raise _os_error(error, path) from error
        size, digest = checksums.of_file(replacement.written)
        replacement.commit()
    return count, size, digest


def _os_error(error: RuntimeError, path: epath.PathLike) -> OSError:
    """What the writer says of a full disk and the like, as the system would."""
    text = one_line(error)
    for number in range(1, 134):
        if f": {os.strerror(number)};" in text:
            return OSError(number, os.strerror(number), os.fspath(path))
    return OSError(None, text, os.fspath(path))


class _Readers:
    """Shards that are open; of those of this machine the one that was used least recently is let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[bool, collections.OrderedDict[str, Any]] = {
            True: collections.OrderedDict(),
            False: collections.OrderedDict(),
        }
        self._opening: dict[str, threading.Lock] = {}

    def get(self, shard: Shard) -> Any:
        """The reader of a shard, opened once for all threads. Raises AudioError."""
        path, away = shard.path, remote.is_remote(shard.path)
        known = self._open[away]
        with self._lock:
            if path in known:
                known.move_to_end(path)
                return known[path]
            opening = self._opening.setdefault(path, threading.Lock())
        with opening:
            with self._lock:
                if path in known:
                    return known[path]
            reader = _opened(shard)
            with self._lock:
                known[path] = reader
                self._opening.pop(path, None)
                while len(known) > _MOST_OPEN[away]:
                    known.popitem(last=False)  # closed when nobody reads from it any more
            return reader

    def drop(self, shard: Shard) -> None:
        """Lets go of a shard that could not be read; who still waits for it keeps nobody else waiting."""
        with self._lock:
            self._opening.pop(shard.path, None)
            self._open[remote.is_remote(shard.path)].pop(shard.path, None)


_readers = _Readers()


def _opened(shard: Shard) -> Any:
    fault = shard.fault()
    if fault:
        kind = "missing_file" if fault == "is missing" else "undecodable_audio"
        raise AudioError(kind, f"the shard {shard.path} {fault}")
    options = f"{_READER},footer_prefetch_bytes:{_FOOTER}" if remote.is_remote(shard.path) else _READER
    try:
        reader = array_record_module.ArrayRecordReader(shard.path, options, file_reader_buffer_size=_BUFFER)
        if not reader.ok():  # which is all that it says of a file that is cut short, or is none
            reader.read([0])
    except (RuntimeError, IndexError, ValueError) as error:
        raise _audio_error(error, shard) from error
    if not reader.ok() or reader.num_records() != shard.records:
        found = f"has {reader.num_records():,} records in place of {shard.records:,}"
        raise AudioError("undecodable_audio", f"the shard {shard.path} {found}: it is cut short, or another index's")
    return reader


def _audio_error(error: Exception, shard: Shard) -> AudioError:
    text = one_line(error)
    if any(word in text for word in _NOT_THERE):
        return AudioError("missing_file", f"no shard at {shard.path}")
    damaged = not remote.is_remote(shard.path) or any(word in text for word in _DAMAGED)
    kind = "undecodable_audio" if damaged else "unreachable_audio"
    return AudioError(kind, f"the shard {shard.path}: {text[:300]}")


def read_record(shard: Shard, record: int) -> bytes:
    """One record of a shard; in a bucket by one request, once the shard is open.

    A bucket that does not answer is asked again, with growing pauses, for `remote.seconds_to_wait`.

    Raises:
      AudioError: missing_file, undecodable_audio (the shard is damaged, or none of its index), unreachable_audio.
    """

    def read() -> bytes:
        try:
            found: bytes = _readers.get(shard).read([record])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            _readers.drop(shard)
            raise error if isinstance(error, AudioError) else _audio_error(error, shard) from error
        return found

    return _in_time(read, shard) if remote.is_remote(shard.path) else read()


def _in_time(act: Callable[[], bytes], shard: Shard) -> bytes:
    """What `act` gives, if in time: the client in the library asks again for a quarter of an hour."""
    answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(act())
        except AudioError as error:
            answer.put(error)

    threading.Thread(target=run, name="bucket", daemon=True).start()
    seconds = max(remote.seconds_to_wait(), 1.0)
    try:
        found = answer.get(timeout=seconds)
    except queue.Empty:
        _readers.drop(shard)
        raise AudioError("unreachable_audio", f"the shard {shard.path}: no answer within {seconds:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found
