"""Recordings inside a page: Opus in Ogg, which browsers play from the page itself, without another file."""

import base64
import io
import struct

import numpy as np
import soundfile

from hra_jax.data.audio import AudioError, decode, rate_of
from hra_jax.data.utterance import Utterance
from hra_jax.evaluation.predictions import UtteranceResult

RATES = (8000, 12000, 16000, 24000, 48000)  # Hz that Opus has
_CRC = 0x04C11DB7  # the polynomial of the checksums in Ogg (RFC 3533)


def opus_rate(rate: int) -> int:
    """The lowest rate of Opus that keeps all of a recording; the highest one where none does. Hz."""
    return next((known for known in RATES if known >= rate), RATES[-1])


def encode(samples: np.ndarray, rate: int) -> bytes:
    """float32 [S], mono, full scale 1, at a rate of `RATES`, as an Ogg file; the same bytes for the same samples.

    Raises:
      soundfile.LibsndfileError: libsndfile was built without Opus.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, rate, format="OGG", subtype="OPUS")
    return _numbered(encoded.getvalue())


def audio_uri(row: UtteranceResult) -> tuple[str, str]:
    """The recording of an utterance as a data URI and '', or '' and why there is none, in one line."""
    if not row.audio_filepath or not row.duration:
        return "", "the results do not say where the recording is"
    utterance = Utterance(row.audio_filepath, row.duration, row.text, row.offset)
    try:
        rate = opus_rate(rate_of(utterance))
        encoded = encode(decode(utterance, rate), rate)
    except AudioError as error:
        return "", f"the recording is not here: {error.kind}"
    except (soundfile.LibsndfileError, ValueError) as error:
        return "", f"the recording could not be encoded: {error}"
    return "data:audio/ogg;base64," + base64.b64encode(encoded).decode("ascii"), ""


def _table() -> list[int]:
    found = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ _CRC if value & 0x80000000 else value << 1) & 0xFFFFFFFF
        found.append(value)
    return found


_TABLE = _table()


def page_checksum(page: bytes) -> int:
    """The checksum of a page of an Ogg file whose own four bytes are 0."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _TABLE[value >> 24 ^ byte]
    return value


def _numbered(encoded: bytes) -> bytes:
    """An Ogg file whose stream has the number 0: libsndfile draws one, and reports would differ by it."""
    pages, at = [], 0
    while at < len(encoded):
        segments = encoded[at + 26]
        size = 27 + segments + sum(encoded[at + 27 : at + 27 + segments])
        page = bytearray(encoded[at : at + size])
        page[14:18], page[22:26] = bytes(4), bytes(4)
        page[22:26] = struct.pack("<I", page_checksum(bytes(page)))
        pages.append(bytes(page))
        at += size
    return b"".join(pages)
