"""MPEG audio (MP3): the samples of a stream, counted frame by frame, and headers that give the right number.

Decoders take the length of a stream from its Xing header, and guess it from the first frame where there is none. The
guess is wrong where the bit rate varies, either way: samples that are not there are promised, or the end is never
read. A header with the counted number of frames makes every decoder read all of them, and no more.

Source: ISO/IEC 11172-3 and 13818-3, section 2.4 (frame headers); the Xing header is as LAME writes it.
"""

import dataclasses
import re
from typing import Final

_SYNC_BYTES: Final = 65536  # how far a frame is looked for where none begins: lyrics and noise lie between
_MOST_TRIES: Final = 2**20  # places that look like frames and are none: about as many in a second
_MOST_TAGS: Final = 100  # in a row
_LIKE_A_FRAME: Final = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]", re.DOTALL)
_BIT_RATES: Final = {  # kbit/s by (version 1, layer), index 1 to 14 of the header
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES: Final = (44100, 48000, 32000)  # Hz, of version 1
_DIVISORS: Final = {3: 1, 2: 2, 0: 4}  # of the rates, by the version bits: 1, 2, 2.5


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    """The header of a frame: `kind` is what all frames of a stream share, `length` is in bytes."""

    kind: tuple[int, int, int]  # version bits, layer, index of the rate
    length: int
    samples: int
    side: int  # bytes from the header to where layer III may have a Xing header


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """What was counted.

    Attributes:
      first: the byte at which the first frame that holds audio begins.
      frames: how many there are.
      samples: per channel, all frames together.
      promised: the number of frames that the Xing header says; None where there is none.
      layer: 1, 2 or 3.
      whole: whether frames are all that there is, from the first one to the end of the file.
    """

    first: int
    frames: int
    samples: int
    promised: int | None
    layer: int
    whole: bool


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with these bytes (at least two) is taken for MPEG audio by decoders."""
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def count(content: bytes) -> Stream | None:
    """Walks the frames of a whole file; None where no two frames follow each other, or their length is not given."""
    tries = _MOST_TRIES
    at, frame, tries = _next_frame(content, 0, kind=None, tries=tries)
    if frame is None:
        return None
    promised, is_header = _promise(content, at, frame)
    first = at + frame.length if is_header else at
    at, frames, whole = first, 0, True
    while True:
        here = _frame(content, at)
        if here is None or here.kind != frame.kind:
            whole = whole and _ends(content, at)
            at, here, tries = _next_frame(content, at, kind=frame.kind, tries=tries)
        if here is None or at + here.length > len(content):
            whole = whole and here is None  # else the last one was cut
            break
        at, frames = at + here.length, frames + 1
    return Stream(first, frames, frames * frame.samples, promised, frame.kind[1], whole)


def _ends(content: bytes, at: int) -> bool:
    """Whether a file ends at a byte, but for an ID3v1 tag."""
    return at == len(content) or (at + 128 == len(content) and content[at : at + 3] == b"TAG")


def with_length(content: bytes, stream: Stream) -> bytes:
    """The audio of a layer III stream behind a Xing header that gives the counted number of frames."""
    assert stream.layer == 3 and stream.frames
    plain = bytearray(content[stream.first : stream.first + 4])
    plain[1] |= 1  # no checksum
    plain[2] &= 0xFD  # no padding
    fields = b"Xing" + (1).to_bytes(4, "big") + stream.frames.to_bytes(4, "big")
    header = b""
    for index in range(1, 15):  # the first bit rate whose frames are long enough
        plain[2] = plain[2] & 0x0F | index << 4
        frame = _frame(bytes(plain), 0)
        assert frame is not None
        header = bytes(plain) + bytes(frame.side) + fields
        if len(header) <= frame.length:
            header = header.ljust(frame.length, b"\0")
            break
    return header + content[stream.first :]


def _after_tags(content: bytes, at: int) -> int:
    """Where the ID3 tags that begin at a byte end."""
    for _ in range(_MOST_TAGS):
        if content[at : at + 3] != b"ID3" or len(content) < at + 10:
            break
        size = content[at + 6 : at + 10]
        at += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3]) + (10 if content[at + 5] & 0x10 else 0)
    return at


def _frame(content: bytes, at: int) -> _Frame | None:
    """The frame whose header is at a byte; None where there is none, or its length is free."""
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    index, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = _RATES[rate] // _DIVISORS[version]
    bits = 1000 * _BIT_RATES[first, layer][index - 1]
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    if layer == 1:
        return _Frame((version, layer, rate), (12 * bits // hertz + padding) * 4, 384, side)
    samples = 576 if layer == 3 and not first else 1152
    return _Frame((version, layer, rate), samples // 8 * bits // hertz + padding, samples, side)


def _next_frame(
    content: bytes, start: int, *, kind: tuple[int, int, int] | None, tries: int
) -> tuple[int, _Frame | None, int]:
    """The first frame at or after `start` that another one, or the end of the file, follows.

    Returns:
      Where it begins; the frame, None where there is none; how many places are left to try.
    """
    at = _after_tags(content, start)
    for found in _LIKE_A_FRAME.finditer(content, at, at + _SYNC_BYTES):
        at, tries = found.start(), tries - 1
        if tries < 0:
            break
        frame = _frame(content, at)
        if frame is not None and kind in (None, frame.kind):
            after = _frame(content, at + frame.length)
            if at + frame.length == len(content) or (after is not None and after.kind == frame.kind):
                return at, frame, tries
    return at, None, max(tries, 0)


def _promise(content: bytes, at: int, frame: _Frame) -> tuple[int | None, bool]:
    """The number of frames that the header in the first frame promises, and whether that frame is a header."""
    body = content[at : at + frame.length]
    if frame.kind[1] != 3:
        return None, False
    if body[36:40] == b"VBRI":  # decoders do not know it
        return None, True
    # A checksum moves the side information on; encoders differ on whether it moves the Xing header too.
    for place in (4 + frame.side, 6 + frame.side):
        if body[place : place + 4] in (b"Xing", b"Info"):
            if body[place + 7] & 1 and len(body) >= place + 12:
                return int.from_bytes(body[place + 8 : place + 12], "big"), True
            return None, True
    return None, False
