"""Sound files as blocks of samples: what is opened, which headers are believed, and how much is read at a time."""

import contextlib
import errno
import functools
import io
import mmap
import os
import re
import stat
from collections.abc import Iterator
from typing import IO, Any, Final

import numpy as np
import soundfile
from etils import epath

from hra_jax.data import mpeg
from hra_jax.data.report import KINDS
from hra_jax.storage import remote, standard_error
from hra_jax.storage.remote import is_remote, local_path, why_unreachable

LEAST_RATE, MOST_RATE = 2_000, 768_000  # Hz
_MOST_VALUES: Final = 2**30  # samples of all channels together that are read of one file: over three hours of stereo
_MOST_MPEG_BYTES: Final = 2**29
_MOST_PAGES: Final = 2**21  # of an Ogg file
_MPEG_LEAD: Final = 32 * 1152  # samples
_REMEMBERED: Final = 2**17  # files that are walked once: more than long recordings that a data set has
_BLOCK: Final = 2**20  # samples of all channels together
_WHOLE: Final = 2**23  # bytes up to which a file in a bucket is fetched whole, whatever is wanted of it
# Of a file that is there: whoever mends the storage, or the permission, can read it.
_AWAY: Final = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN}
_IN_MEMORY: Final = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")  # what soundfile calls a file without a name
_UNKNOWN: Final = 2**62  # lengths from here on are not lengths; libsndfile has 2**63 - 1 for what it does not know


class AudioError(ValueError):
    """An utterance's audio cannot be used.

    Attributes:
      kind: one of `report.KINDS`.
      detail: one line that says why.
    """

    def __init__(self, kind: str, detail: str):
        assert kind in KINDS
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


class _Unseeking(soundfile.SoundFile):
    """soundfile asks for the position before each read and sets it after: some files can be read, and no more."""

    def seekable(self) -> bool:
        return False


class Sound:
    """An audio file that is open for reading, once and forwards; use it in a `with` block.

    Attributes:
      rate: Hz, 2,000 to 768,000.
      channels: at least 1.
      frames: the number of samples per channel; None where the file does not say.
    """

    def __init__(self, path: str, content: bytes | None = None, *, part: bool = False):
        """Opens a local or remote file.

        Args:
          path: a path, or a URI of the schemes file, gs and s3.
          content: of the file, where it is in memory; nothing is then read from `path`.
          part: whether little of it is wanted: of a long file in a bucket no more than that is then fetched, but where
            its length is known only by its whole content (MPEG audio, Ogg).

        Raises:
          AudioError: missing_file, empty_audio (no bytes), unreachable_audio (a scheme that is not read, storage that
            fails), undecodable_audio (not audio, or not readable).
        """
        self._path = local_path(path)
        self._content, self._wants_part = content, part
        self._part: _Part | None = None
        self._mpeg = False
        # The decoder prints notes where it begins, and where a stream is damaged.
        self._begins = self._damaged = False
        self._sound = self._open()
        self.rate, self.channels = int(self._sound.samplerate), int(self._sound.channels)
        self.frames: int | None = int(self._sound.frames) if self._sound.frames < _UNKNOWN else None
        with contextlib.ExitStack() as failing:
            failing.callback(self.close)
            self._check_rate()
            with _named(self._path):
                if self._sound.format == "MP3":
                    self._count_mpeg()
                elif self._sound.format == "OGG":
                    self._check_ogg()
            failing.pop_all()

    def __enter__(self) -> "Sound":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._sound.close()

    @property
    def seconds(self) -> float:
        """How long it is; a file that does not say is read to its end for this. AudioError as `blocks`."""
        if self.frames is None:
            self.frames = sum(len(block) for block in self.blocks())
        return self.frames / self.rate

    def blocks(self, start: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        """Reads samples, a block at a time.

        Args:
          start: the first one, per channel.
          count: how many; None for all that there are. Fewer are given where the file ends early.

        Returns:
          Iterator of float32 `[S, channels]`, S above 0; full scale is 1.

        Raises:
          AudioError: undecodable_audio; too_long, where `count` is None and the file does not end.
        """
        size = max(1, _BLOCK // self.channels)
        if start:
            self._seek(start)
        total = 0
        while count is None or total < count:
            block = self._read(size if count is None else min(size, count - total))
            if not len(block):
                return
            total += len(block)
            if total * self.channels > _MOST_VALUES:
                seconds = _MOST_VALUES // self.channels // self.rate
                raise AudioError("too_long", f"more than {seconds:,} s of {self.channels} channels at {self.rate:,} Hz")
            yield block

    def _open(self) -> soundfile.SoundFile:
        with _named(self._path):
            if self._content is None and is_remote(self._path):
                found = _read_remote(self._path, part=self._wants_part)
                self._content, self._part = (None, found) if isinstance(found, _Part) else (found, None)
            if self._part is not None:
                opened = _Unseeking(self._part)
                self._part.check()
                return opened
            head = _head_of_file(self._path) if self._content is None else self._content[:4]
            if not head:
                raise AudioError("empty_audio", "the file has no bytes")
            self._mpeg = mpeg.looks_like(head) or self._path.lower().endswith(".mp3")
            self._begins = self._mpeg
            with _quiet(self._mpeg), _named_coding(head):
                return _Unseeking(self._path if self._content is None else io.BytesIO(self._content))

    def _check_rate(self) -> None:
        if not LEAST_RATE <= self.rate <= MOST_RATE:
            allowed = f"{LEAST_RATE:,} to {MOST_RATE:,} Hz"
            raise AudioError("undecodable_audio", f"the sample rate is {self.rate:,} Hz; allowed: {allowed}")

    def _count_mpeg(self) -> None:
        """Believes the length of MPEG audio only where it is that of its frames; else sees to it that it is."""
        stream = _counted(self._path, _stamp(self._path)) if self._content is None else mpeg.count(self._content)
        self._damaged = stream is None or not stream.whole
        if stream is None or not stream.frames or self.frames is None:
            return
        if stream.promised is not None and stream.promised > stream.frames + 1:
            raise AudioError(
                "undecodable_audio", f"truncated: {stream.frames} of {stream.promised} frames could be read"
            )
        # A decoder trims what an encoder added, up to two frames at each end.
        if abs(self.frames - stream.samples) > 4 * stream.samples // stream.frames and stream.layer == 3:
            content = _read_mpeg(self._path) if self._content is None else self._content
            self._content = mpeg.with_length(content, stream)
            self._sound.close()
            self._sound = self._open()
            self.frames = int(self._sound.frames)

    def _check_ogg(self) -> None:
        """Refuses streams that follow each other: libsndfile reads the first one, and says nothing."""
        content = self._content
        followed = _is_followed(self._path, _stamp(self._path)) if content is None else _goes_on(content)
        if followed:
            raise AudioError("undecodable_audio", "several Ogg streams follow each other; encode them as one")

    def _seek(self, start: int) -> None:
        # Frames of MPEG audio take bits from those before them, without which they are silent.
        first = max(0, start - _MPEG_LEAD) if self._mpeg else start
        self._begins = self._mpeg
        try:
            with _quiet(self._mpeg):
                self._sound.seek(first)
            self._check_part()
        except (OSError, soundfile.SoundFileError):
            # It cannot be sought in (GSM 6.10): everything before is read and dropped.
            self._sound.close()
            self._sound, first = self._open(), 0
        size, left = max(1, _BLOCK // self.channels), start - first
        while left and (passed := len(self._read(min(size, left)))):
            left -= passed

    def _check_part(self) -> None:
        if self._part is not None:
            self._part.check()

    def _read(self, count: int) -> np.ndarray:
        if self._begins:
            count = min(count, _MPEG_LEAD)
        with _named(self._path), _quiet(self._begins or self._damaged):
            found: np.ndarray = self._sound.read(count, dtype="float32", always_2d=True)
            self._check_part()
        self._begins = False
        return found


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns what opening and reading a file raises into an AudioError, but storage that is away."""
    try:
        yield
    except (AudioError, remote.StorageUnavailable):
        raise
    except FileNotFoundError as error:
        raise AudioError("missing_file", f"no file at {path}") from error
    # soundfile has ValueError and TypeError for what it is told too little of, such as raw samples.
    except (OSError, soundfile.SoundFileError, ValueError, TypeError) as error:
        away = isinstance(error, OSError) and error.errno in _AWAY
        detail = _IN_MEMORY.sub(path or "it", one_line(error))
        raise AudioError("unreachable_audio" if away else "undecodable_audio", detail) from error


@contextlib.contextmanager
def _named_coding(head: bytes) -> Iterator[None]:
    """Says of files in which corpora are published what libsndfile does not read of them."""
    try:
        yield
    except soundfile.SoundFileError as error:
        if head != b"NIST":
            raise
        codings = "NIST SPHERE is read as PCM, mu-law and A-law; convert what is compressed (shorten) to FLAC or WAV"
        raise AudioError("undecodable_audio", f"{one_line(error)} {codings}") from error


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def _head_of_file(path: str) -> bytes:
    """The first bytes of a regular local file; of a pipe or a device, which may have no end, nothing is read."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError("it is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise OSError("it is a pipe or a device, not a file")
    if path.lower().endswith((".raw", ".pcm")):
        raise OSError("raw samples have neither rate nor format; convert them to FLAC or WAV")
    with open(path, "rb") as file:
        return file.read(4)


class _Part:
    """A long file in a bucket as libsndfile reads it, which asks for what it needs and hears of no error."""

    def __init__(self, path: str, file: IO[bytes]):
        self._path, self._file = path, file
        self._error: Exception | None = None
        self.seek, self.tell = file.seek, file.tell  # neither asks the storage

    def readinto(self, buffer: Any) -> int:
        """Reads; 0, as at the end, where the storage fails."""
        try:
            return int(self._file.readinto(buffer)) if self._error is None else 0  # type: ignore[attr-defined]
        except _remote_failures() as error:
            self._error = error
            return 0

    def check(self) -> None:
        """Raises what reading met, as `_read_remote` does."""
        if self._error is not None:
            raise _not_reached(self._error, self._path) from self._error


def _read_remote(path: str, *, part: bool) -> bytes | _Part:
    """The content of a remote file, or what reads parts of it, where a part of a long one is wanted.

    Raises:
      AudioError: it cannot be reached.
      OSError: such as StorageUnavailable where its bucket is away.
    """
    reason = why_unreachable(path)
    if reason is not None:
        raise AudioError("unreachable_audio", reason)
    try:
        file: IO[bytes] = epath.Path(path).open("rb")
        if part and file.seek(0, os.SEEK_END) > _WHOLE:
            file.seek(0)
            head = file.read(4)
            file.seek(0)
            if head[:4] in (b"RIFF", b"fLaC", b"RF64"):
                return _Part(path, file)
        file.seek(0)
        return file.read()
    except FileNotFoundError:
        raise
    except _remote_failures() as error:
        raise _not_reached(error, path) from error


def _not_reached(error: Exception, path: str) -> Exception:
    """What to raise where a file in a bucket could not be read.

    A recording that is unreachable is left out; a run must not leave out all of them while storage is away.
    """
    if isinstance(error, remote.StorageUnavailable) and not remote.answers(path):
        return error
    return AudioError("unreachable_audio", one_line(error)[:300])


def _remote_failures() -> tuple[type[Exception], ...]:
    return *remote.client_errors(), ImportError


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


# --- Ogg --------------------------------------------------------------------------------------------------------------


@functools.lru_cache(_REMEMBERED)
def _is_followed(path: str, stamp: tuple[int, int, int]) -> bool:
    del stamp  # with other content the file has another one
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _goes_on(content)


def _goes_on(content: bytes | mmap.mmap) -> bool:
    """Whether a stream begins after the pages of the first ones (RFC 3533, section 6)."""
    at, begun = 0, False
    for _ in range(_MOST_PAGES):
        if content[at : at + 4] != b"OggS" or len(content) < at + 27:
            break
        begins = bool(content[at + 5] & 2)
        if begins and begun:
            return True
        begun = begun or not begins
        lacing = content[at + 27 : at + 27 + content[at + 26]]
        at += 27 + len(lacing) + sum(lacing)
    return False


# --- MPEG audio -------------------------------------------------------------------------------------------------------


def _read_mpeg(path: str) -> bytes:
    if os.stat(path).st_size > _MOST_MPEG_BYTES:
        raise AudioError("too_long", f"more than {_MOST_MPEG_BYTES:,} bytes of MPEG audio")
    with open(path, "rb") as file:
        return file.read()


@functools.lru_cache(_REMEMBERED)
def _counted(path: str, stamp: tuple[int, int, int]) -> mpeg.Stream | None:
    """Counts the frames of a file once: its segments are read again and again."""
    del stamp  # with other content the file has another one
    return mpeg.count(_read_mpeg(path))


_NOTES: Final = re.compile(
    rb"\[src/libmpg123/|Warning: Xing stream |Note: (Trying to resync|Illegal Audio-MPEG|Skipped \d+ bytes|Hit end of)"
)


def _quiet(needed: bool) -> contextlib.AbstractContextManager[None]:
    """Keeps the notes of libmpg123 from standard error: the damage that they are about is found and named anyway."""
    return standard_error.without(_NOTES) if needed else contextlib.nullcontext()
