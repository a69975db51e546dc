"""Small corpora as their archives unpack, and TensorFlow Datasets without a network: it is handed these."""

import contextlib
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile


def tone(number: int, rate: int, seconds: float = 0.6) -> np.ndarray:
    """float32 [S]: a tone in faint noise, other ones for each number."""
    noise = np.random.default_rng(number).standard_normal(int(seconds * rate))
    times = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 37 * (number % 50)) * times) + 0.01 * noise).astype(np.float32)


def write(path: Path, rate: int, *, subtype: str = "PCM_16") -> None:
    """Writes a tone, another one for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(zlib.crc32(path.name.encode()), rate), rate, subtype=subtype)


# --- LibriSpeech ------------------------------------------------------------------------------------------------------

SPEAKERS = """\
; Some pieces of information about speakers
;ID  |SEX| SUBSET           |MINUTES| NAME
14   | F | train-clean-360  | 25.03 | Kristin LeMoine
84   | F | dev-clean        | 8.02  | Christie Nowak
1580 | M | train-clean-100  | 25.10 | Anna | with a stroke
"""
CHAPTERS = """\
;ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE
121123 | 84   | 17.45 | dev-clean        | 281  | 2413  | Chapter 1 | Count of Monte Cristo
"""
SUBSETS = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)


def librispeech(folder: Path, *, rows: int = 2) -> dict[str, Path]:
    """All seven sets of LibriSpeech, one archive each, by the name of its split."""
    archives = {}
    for at, subset in enumerate(SUBSETS):
        root = folder / subset / "LibriSpeech"
        speaker, chapter = ("84", "121123") if subset == "dev-clean" else (str(1580 + at), str(141083 + at))
        inside = root / subset / speaker / chapter
        lines = []
        for row in range(rows):
            name = f"{speaker}-{chapter}-{row:04d}"
            write(inside / f"{name}.flac", 16000)
            lines.append(f"{name} GO DO YOU HEAR NUMBER {'ABCDEFGHIJ'[row % 10]}\n")
        (inside / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
        (root / "SPEAKERS.TXT").write_text(SPEAKERS, encoding="utf-8")
        (root / "CHAPTERS.TXT").write_text(CHAPTERS, encoding="utf-8")
        split = subset.replace("-clean-", "-clean").replace("-other-", "-other").replace("-", "_")
        archives[split] = folder / subset
    return archives


# --- FLEURS -----------------------------------------------------------------------------------------------------------


def fleurs(folder: Path) -> dict[str, Path]:
    """FLEURS in Czech: WAV files of floats, and a table without a header for each part."""
    root = folder / "fleurs" / "cs_cz"
    genders = ("MALE", "FEMALE")
    for part, count in (("train", 4), ("dev", 1), ("test", 2)):
        lines = []
        for row in range(count):
            name = f"{10000000000000 + row}{part}.wav"
            write(root / "audio" / part / name, 16000, subtype="FLOAT")
            raw = f'Řekl: "Měsíc č. {row}", a odešel.'
            plain = f"řekl měsíc č {row} a odešel"
            lines.append(f"{100 + row}\t{name}\t{raw}\t{plain}\tř e k l | m\t9600\t{genders[row % 2]}\r\n")
        (root / f"{part}.tsv").write_text("".join(lines), encoding="utf-8", newline="")
    return {"cs_cz": folder / "fleurs"}


# --- VCTK -------------------------------------------------------------------------------------------------------------

VCTK_SPEAKERS = """\
ID  AGE  GENDER  ACCENTS  REGION COMMENTS
p225  23  F    English    Southern  England
p226  22  M    English    Surrey
p315  18  M    American   New  England  (all the text lost: "p315")
s5    18  M    British
"""


def vctk(folder: Path, *, rows: int = 14) -> Path:
    """VCTK 0.92: two microphones, and a speaker whose texts are lost."""
    root = folder / "vctk"
    for speaker in ("p225", "p226", "p315"):
        for row in range(1, rows + 1 if speaker != "p315" else 2):
            name = f"{speaker}_{row:03d}"
            for mic in ("mic1", "mic2"):
                write(root / "wav48_silence_trimmed" / speaker / f"{name}_{mic}.flac", 48000)
            if speaker != "p315":
                text = root / "txt" / speaker / f"{name}.txt"
                text.parent.mkdir(parents=True, exist_ok=True)
                text.write_text(f"Please call Stella, number {row}.\n", encoding="utf-8")
    (root / "speaker-info.txt").write_text(VCTK_SPEAKERS, encoding="utf-8")
    return root


# --- LJ Speech --------------------------------------------------------------------------------------------------------


def ljspeech(folder: Path, *, rows: int = 60) -> Path:
    """LJ Speech 1.1: a table with strokes between its cells, where quotes are characters and lines end in CRLF."""
    root = folder / "ljspeech" / "LJSpeech-1.1"
    lines = []
    for row in range(1, rows + 1):
        name = f"LJ001-{row:04d}"
        write(root / "wavs" / f"{name}.wav", 22050)
        lines.append(f'{name}|The "Book of {row}" cost £{row}.|The "Book of {row}" cost {row} pounds.\r\n')
    write(root / "wavs" / "LJ002-0001.wav", 22050)
    lines.append("LJ002-0001|in being comparatively modern.|\r\n")  # no normalised text
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8", newline="")
    return folder / "ljspeech"


# --- Speech Commands --------------------------------------------------------------------------------------------------


def speech_commands(folder: Path) -> list[Path]:
    """Speech Commands 0.02: an archive with lists of what is not for training, and one of the test set."""
    root = folder / "speech_commands"
    train: dict[str, bytes] = {}
    for number, word in enumerate(("yes", "no", "bed")):
        for row in range(3):
            train[f"./{word}/0a7c2a8d_nohash_{row}.wav"] = _wav(10 * number + row, 16000, 1.0)
    train["./yes/broken_nohash_0.wav"] = b"RIFF, but no more"
    train["./_background_noise_/running_tap.wav"] = _wav(70, 16000, 2.2)
    train["./_background_noise_/pink_noise.wav"] = _wav(71, 16000, 2.2)
    train["./validation_list.txt"] = b"yes/0a7c2a8d_nohash_1.wav\nno/0a7c2a8d_nohash_1.wav\n"
    train["./testing_list.txt"] = b"yes/0a7c2a8d_nohash_2.wav\nno/0a7c2a8d_nohash_2.wav\n"
    test = {
        "./yes/0a7c2a8d_nohash_2.wav": _wav(2, 16000, 1.0),
        "./no/0a7c2a8d_nohash_2.wav": _wav(12, 16000, 1.0),
        "./_unknown_/bed_nohash_2.wav": _wav(22, 16000, 1.0),
        "./_silence_/silence_0.wav": _wav(80, 16000, 1.0),
    }
    root.mkdir(parents=True)
    return [
        _archive(root / "speech_commands_v0.02.tar.gz", train),
        _archive(root / "speech_commands_test_set_v0.02.tar.gz", test),
    ]


def _wav(number: int, rate: int, seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(number, rate, seconds), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


# --- Free Spoken Digit Dataset ----------------------------------------------------------------------------------------


def spoken_digit(folder: Path, *, recordings: int = 12, speakers: tuple[str, ...] = ("jackson", "theo")) -> Path:
    """The Free Spoken Digit Dataset 1.0.9, with a file that is no sound, one of another rate, one without samples."""
    root = folder / "digits" / "free-spoken-digit-dataset-1.0.9" / "recordings"
    for speaker in speakers:
        for digit in range(2):
            for row in range(recordings):
                write(root / f"{digit}_{speaker}_{row}.wav", 8000)
    (root / "7_jackson_0.wav").write_bytes(b"RIFF, but no more")
    write(root / "8_jackson_20.wav", 16000)
    soundfile.write(root / "9_jackson_20.wav", np.zeros(0, np.float32), 8000)
    return folder / "digits"


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def downloaded(found: object) -> Iterator[None]:
    """Whatever TensorFlow Datasets would download meanwhile is this: a path, or several as it asks for them."""
    import tensorflow_datasets as tfds
    from etils import epath

    def paths(value: object) -> object:
        if isinstance(value, dict):
            return {name: paths(one) for name, one in value.items()}
        if isinstance(value, list):
            return [paths(one) for one in value]
        return epath.Path(value)

    manager = tfds.download.DownloadManager
    with (
        mock.patch.object(manager, "download_and_extract", lambda self, urls: paths(found)),
        mock.patch.object(manager, "download", lambda self, urls: paths(found)),
    ):
        yield
