"""Decodes damaged audio files, in a process of its own that may crash: python audio_fuzzer.py SEED COUNT FOLDER.

Before each file it prints its number; at the end one JSON object: how many were good, how many of each kind of error
were named, the longest time for a file (seconds), and the most memory (bytes).
"""

import collections
import faulthandler
import json
import os
import pathlib
import resource
import signal
import sys
import time
from typing import Any

import numpy as np
import soundfile

from hra_jax.data import audio
from hra_jax.data.sound_files import Sound
from hra_jax.data.utterance import Utterance

RATE = 16000
MOST_SECONDS = 20  # for one file, with all that is done with it
MOST_BYTES = 2**31
FORMATS = (
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "GSM610"),
    ("wav", "WAV", "IMA_ADPCM"),
    ("wav", "WAV", "MS_ADPCM"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAVEX", "PCM_16"),
    ("wav", "RF64", "PCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"),
    ("au", "AU", "PCM_16"),
    ("caf", "CAF", "PCM_16"),
    ("caf", "CAF", "ALAC_16"),
    ("w64", "W64", "PCM_16"),
    ("sph", "NIST", "PCM_16"),
    ("voc", "VOC", "PCM_16"),
    ("snd", "IRCAM", "PCM_16"),
    ("snd", "PAF", "PCM_16"),
    ("snd", "SVX", "PCM_16"),
    ("snd", "MAT5", "PCM_16"),
    ("snd", "HTK", "PCM_16"),
)
FIELDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def originals(folder: pathlib.Path, random: np.random.Generator) -> list[tuple[str, bytes]]:
    """Whole files of all formats: suffix and content."""
    found = []
    for suffix, format, subtype in FORMATS:
        for channels in (1, 2):
            if not soundfile.check_format(format, subtype) or (channels == 2 and format == "HTK"):
                continue
            path = folder / f"original.{suffix}"
            samples = random.normal(0, 0.1, (int(RATE * random.uniform(0.05, 0.4)), channels))
            try:
                soundfile.write(path, samples, RATE, format=format, subtype=subtype)
            except soundfile.LibsndfileError:
                continue  # a format of one channel, or of certain rates
            found.append((suffix, path.read_bytes()))
    return found


def mutated(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A damaged file."""
    data = bytearray(content)
    header = min(len(data), 128)
    for _ in range(random.integers(1, 4)):
        if not data:
            break
        at = int(random.integers(len(data)))
        match random.integers(9):
            case 0:
                for place in random.integers(len(data), size=random.integers(1, 20)):
                    data[place] ^= 1 << random.integers(8)
            case 1 | 2:
                for place in random.integers(min(header, len(data)), size=random.integers(1, 4)):
                    data[place] = random.integers(256)
            case 3 | 4:
                width, order = int(random.choice([1, 2, 4, 8])), str(random.choice(["little", "big"]))
                place = int(random.integers(min(header, len(data))))
                value = FIELDS[random.integers(len(FIELDS))] % 2 ** (8 * width)
                data[place : place + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 5:
                del data[at:]
            case 6:
                del data[at : at + int(random.integers(1, 200))]
            case 7:
                data[at:at] = random.bytes(random.integers(1, 200))
            case 8:
                data[at:] = other[len(other) // 2 :]
    return bytes(data)


def attempt(path: str, random: np.random.Generator) -> str:
    """Reads a file in all ways that the library has; the kind of the error of the whole file, or 'good'."""
    found = ""
    segment = Utterance(path, random.choice([0.01, 0.1, 1.0, 1e7]), "", random.choice([0.0, 0.05, 10.0, 1e7]))
    for read in (lambda: audio.decode_file(path, RATE), lambda: audio.decode(segment, RATE), lambda: length(path)):
        try:
            samples = read()
            assert samples.dtype == np.float32 and samples.ndim == 1 and samples.size and np.isfinite(samples).all()
        except audio.AudioError as error:
            assert error.detail and "\n" not in error.detail, error
            found = found or error.kind
        found = found or "good"
    return found


def length(path: str) -> np.ndarray:
    """What `manifest make` asks for."""
    with Sound(path) as sound:
        return np.asarray([max(sound.seconds, 1e-9)], np.float32)


def main(seed: int, count: int, folder: pathlib.Path) -> dict[str, Any]:
    """Runs; returns the summary."""
    random = np.random.default_rng(seed)
    files = originals(folder, random)
    kinds: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for number in range(count):
        suffix, content = files[random.integers(len(files))]
        suffix = suffix if random.random() < 0.9 else str(random.choice(["wav", "mp3", "flac", "raw", "txt", "gsm"]))
        path = folder / f"{number}.{suffix}"
        path.write_bytes(mutated(content, files[random.integers(len(files))][1], random))
        print(path.name, flush=True)
        signal.alarm(MOST_SECONDS)
        started = time.monotonic()
        kinds[attempt(os.fspath(path), random)] += 1
        slowest = max(slowest, time.monotonic() - started)
        signal.alarm(0)
        path.unlink()
    return {"good": kinds.pop("good", 0), "errors": dict(kinds), "slowest": slowest, "memory": most_memory()}


def most_memory() -> int:
    """The most memory that this process has had, bytes; what `getrusage` says may be that of the process before it."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (2 * MOST_BYTES, 2 * MOST_BYTES))
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))))
