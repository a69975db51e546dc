"""Synthetic speakers and the named sets of them.

A speaker is a voice and a variant of eSpeak NG with a way of speaking, and a recording condition. A set says which
speakers say how many texts in each split.
"""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Callable

import numpy as np
from etils import epath

from hra_jax.data.synthetic import espeak
from hra_jax.data.synthetic.grammar import SPLITS
from hra_jax.errors import UserError
from hra_jax.storage.json_files import read_json

NOISE_KINDS = ("white", "pink")
_LIMITS = {
    "pitch": (0, 99),
    "pitch_range": (0, 99),
    "rate": (80, 450),
    "word_gap": (0, 50),
    "stretch": (0.7, 1.4),
    "noise_snr_db": (-20, 60),
    "room_seconds": (0, 2),
}


@dataclasses.dataclass(frozen=True)
class Speaker:
    """How somebody sounds.

    Attributes:
      name: unique in its set; letters, digits, `-` and `_`.
      voice: eSpeak NG voice (`en-us`, `de`): the language whose rules read the text.
      variant: eSpeak NG variant (`f3`, `whisper`), or "".
      pitch, pitch_range: 0 to 99; 50 is the voice's own.
      rate: words per minute, 80 to 450.
      word_gap: pause between words, units of 10 ms, 0 to 50.
      stretch: 0.7 to 1.4; above 1 everything is higher and faster, as from a shorter vocal tract.
      noise_snr_db: speech over noise in dB, or None for no noise.
      noise_kind: "white" or "pink".
      room_seconds: reverberation time (60 dB decay) in seconds, 0 for none.
      band: (low, high) edges of a band-pass in Hz, or None.
    """

    name: str
    voice: str = "en-us"
    variant: str = ""
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 160
    word_gap: int = 0
    stretch: float = 1.0
    noise_snr_db: float | None = None
    noise_kind: str = "white"
    room_seconds: float = 0.0
    band: tuple[float, float] | None = None


def check_speaker(speaker: Speaker) -> None:
    """Raises UserError if a value of the speaker is not allowed."""
    if not isinstance(speaker.name, str) or not speaker.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"speaker name {speaker.name!r}; allowed: letters, digits, - and _")
    for field, (low, high) in _LIMITS.items():
        value = getattr(speaker, field)
        if field == "noise_snr_db" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"speaker {speaker.name!r}: {field} is {value!r}; allowed: {low} to {high}")
    if speaker.noise_kind not in NOISE_KINDS:
        raise UserError(
            f"speaker {speaker.name!r}: noise_kind {speaker.noise_kind!r}; allowed: {', '.join(NOISE_KINDS)}"
        )
    edges = speaker.band
    if edges is not None and not (
        isinstance(edges, tuple)
        and len(edges) == 2
        and all(isinstance(edge, int | float) for edge in edges)
        and 0 < edges[0] < edges[1]
    ):
        raise UserError(f"speaker {speaker.name!r}: band {edges!r}; allowed: 0 < low < high, in Hz")
    espeak.check_voice(speaker.voice, speaker.variant)


def speakers_from_json(path: epath.PathLike) -> tuple[Speaker, ...]:
    """Reads a JSON list of objects with the fields of `Speaker`.

    Raises:
      UserError: missing file, not JSON, an unknown or missing field, a value that is not allowed, two speakers of one
        name.
    """
    rows = read_json(path, what="a file of speakers")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} must hold a JSON list of speakers, each an object")
    fields = [field.name for field in dataclasses.fields(Speaker)]
    speakers = []
    for row in rows:
        unknown = sorted(set(row) - set(fields))
        if unknown:
            raise UserError(f"{path}: unknown speaker field {unknown[0]!r}; allowed: {', '.join(fields)}")
        if "name" not in row:
            raise UserError(f"{path}: a speaker has no name: {json.dumps(row):.200}")
        if isinstance(row.get("band"), list):
            row = {**row, "band": tuple(row["band"])}
        speakers.append(Speaker(**row))
        try:
            check_speaker(speakers[-1])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    names = [speaker.name for speaker in speakers]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: speaker {max(names, key=names.count)!r} is there twice; names must be different")
    return tuple(speakers)


@dataclasses.dataclass(frozen=True)
class SpeakerSet:
    """Who says how much.

    Attributes:
      name: as in `--set`.
      seed: of texts, levels, pauses and noise.
      utterances: texts per speaker, by split.
      isolated_share: least share of isolated words among the training texts.
      make: from a split to its speakers.
      many: speakers of few utterances each: files are put into numbered folders instead of one per speaker, and `scale`
        changes the number of speakers instead of the texts of each.
    """

    name: str
    seed: int
    utterances: dict[str, int]
    isolated_share: float
    make: Callable[[str], tuple[Speaker, ...]]
    many: bool = False

    def speaker_seed(self, speaker: Speaker, split: str) -> list[int]:
        """Seed words for numpy of what one speaker says in one split; other speakers do not change it."""
        return [self.seed, SPLITS.index(split), zlib.crc32(speaker.name.encode())]

    def fingerprint(self) -> str:
        """Changes when any speaker of the set changes."""
        rows = [[split, self.utterances[split], *map(dataclasses.astuple, self.make(split))] for split in SPLITS]
        return hashlib.sha256(json.dumps([self.name, self.seed, self.isolated_share, rows]).encode()).hexdigest()[:16]


_HARD = (
    Speaker("french", voice="fr", pitch=55, rate=150),
    Speaker("german", voice="de", pitch=40, rate=150),
    Speaker("spanish", voice="es", variant="f2", rate=150),
    Speaker("polish", voice="pl", variant="m3", rate=150),
    Speaker("whisper", voice="en-us", variant="whisper", rate=150),
    Speaker("croak", voice="en-gb", variant="croak", pitch=30, rate=160),
    Speaker("fast", voice="en-us", variant="m7", pitch=60, rate=300),
    Speaker("noisy", voice="en-us", variant="f3", rate=170, noise_snr_db=5.0, noise_kind="pink", room_seconds=0.3),
)
_TINY = (Speaker("plain", voice="en-us", rate=170), Speaker("whisper", voice="en-gb", variant="whisper", rate=170))

_PLAIN_VOICES = (
    *("en-us",) * 3,
    *("en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"),
)
_PLAIN_VARIANTS = (
    "",
    "f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy", "Annie",
    "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Michael", "Mike", "Nguyen",
    "Reed", "RicishayMax", "Storm", "adam", "anika", "announcer", "antonio", "aunty", "belinda", "benjamin",
    "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave", "ian", "iven", "iven2", "john",
    "klatt", "klatt2", "klatt3", "klatt4", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "pablo",
    "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
_HELD_OUT_VARIANTS = ("f5", "m6", "Mario", "linda", "steph2", "klatt5", "iven3", "edward2")
_PLAIN_SPEAKERS = {"train": 5000, "validation": 75, "test": 100}
_PLAIN_SEED = 71


@functools.cache
def _plain(split: str) -> tuple[Speaker, ...]:
    """Many ordinary English voices; those of validation and test use variants that training never hears."""
    variants = _PLAIN_VARIANTS if split == "train" else _HELD_OUT_VARIANTS
    speakers = []
    for number in range(_PLAIN_SPEAKERS[split]):
        rng = np.random.default_rng([_PLAIN_SEED, SPLITS.index(split), number])
        noisy, roomy, banded = rng.random(3) < (0.35, 0.35, 0.15)
        speaker = Speaker(
            f"plain-{split}-{number:04d}",
            voice=_PLAIN_VOICES[int(rng.integers(len(_PLAIN_VOICES)))],
            variant=variants[int(rng.integers(len(variants)))],
            pitch=int(rng.integers(15, 86)),
            pitch_range=int(rng.integers(15, 91)),
            rate=int(rng.integers(120, 221)),
            word_gap=int(rng.integers(1, 9)) if rng.random() < 0.25 else 0,
            stretch=round(float(rng.uniform(0.85, 1.18)), 3),
            noise_snr_db=round(float(rng.uniform(12, 35)), 1) if noisy else None,
            noise_kind=NOISE_KINDS[int(rng.integers(2))],
            room_seconds=round(float(rng.uniform(0.1, 0.5)), 2) if roomy else 0.0,
            band=(round(float(rng.uniform(80, 400))), round(float(rng.uniform(2600, 3900)))) if banded else None,
        )
        speakers.append(speaker)
    return tuple(speakers)


_ACCENTS = (
    "de", "fr-fr", "es", "es-419", "pl", "it", "nl", "pt", "pt-br", "cs", "sv", "hu", "ro", "fi", "da", "el", "hr",
    "sk", "tr", "ca", "nb", "is", "lt", "sl", "sq", "af", "cy", "et", "lv", "sw", "id", "ms",
)  # fmt: skip
_ACCENT_VARIANTS = ("", "f2", "f3", "m3", "m7", "whisper", "croak", "klatt2")
_ACCENT_SPEAKERS, _ACCENT_SEED = 264, 83


@functools.cache
def _accents(split: str) -> tuple[Speaker, ...]:
    """Speakers of many languages who read English by their own rules; the same ones in every split."""
    del split
    speakers = []
    for number in range(_ACCENT_SPEAKERS):
        rng = np.random.default_rng([_ACCENT_SEED, number])
        speakers.append(
            Speaker(
                f"accent-{number:03d}",
                # Every language once before any a second time, and then with another variant.
                voice=_ACCENTS[number % len(_ACCENTS)],
                variant=_ACCENT_VARIANTS[(number // len(_ACCENTS) + number) % len(_ACCENT_VARIANTS)],
                pitch=int(rng.integers(25, 76)),
                pitch_range=int(rng.integers(30, 71)),
                rate=int(rng.integers(130, 191)),
                stretch=round(float(rng.uniform(0.92, 1.1)), 3),
            )
        )
    return tuple(speakers)


def custom_set(speakers: tuple[Speaker, ...]) -> SpeakerSet:
    """The set of a user's own speakers, with the sizes of "hard"."""
    return dataclasses.replace(SETS["hard"], name="custom", make=lambda split: speakers)


SETS = {
    "hard": SpeakerSet("hard", 11, {"train": 400, "validation": 30, "test": 50}, 0.1, lambda split: _HARD),
    "plain": SpeakerSet("plain", _PLAIN_SEED, {"train": 8, "validation": 8, "test": 8}, 0.2, _plain, many=True),
    # 264: the scaling benchmark takes the first 8, 64 and 256 of them, and the last 8 as newcomers.
    "accents": SpeakerSet("accents", _ACCENT_SEED, {"train": 60, "validation": 6, "test": 12}, 0.1, _accents),
    "tiny-test": SpeakerSet("tiny-test", 5, {"train": 6, "validation": 3, "test": 3}, 0.2, lambda split: _TINY),
}
