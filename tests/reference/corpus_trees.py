"""Small corpora in the layouts in which they are published: lines as their documentation has them, audio of noise.

Each function writes one corpus and returns what a reader must find: {split: {name of the recording: transcript}}. The
name has the offset of a segment behind it, as in `talk.sph@16.00`.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import soundfile

Texts = dict[str, dict[str, str]]


def sound(path: Path, *, seconds: float = 0.8, rate: int = 16000, format: str | None = None) -> None:
    """Writes noise, another in every file of another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, noise, rate, format=format)


def write(path: Path, *lines: str, end: str = "\n") -> None:
    """Writes a text file, every line with its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")


# --- Kaldi: kaldi-asr.org/doc/data_prep.html --------------------------------------------------------------------------


def kaldi(folder: Path) -> Texts:
    """train: a recording for each utterance, paths relative to the corpus; test: segments, tabs, and CRLF."""
    train, test = folder / "train", folder / "test"
    for name in ("sw02001", "sw02005"):
        sound(folder / "wav" / f"{name}.wav")
    write(train / "wav.scp", "sw02001 wav/sw02001.wav", "sw02005  wav/sw02005.wav")
    write(train / "text", "sw02001 HI UM YEAH I'D LIKE TO", "sw02005 UM-HUM")
    write(train / "utt2spk", "sw02001 2001-A", "sw02005 2005-B")
    write(train / "spk2gender", "2001-A m", "2005-B f")
    write(train / "utt2lang", "sw02001 en")
    talk = folder / "wav" / "sw02008.flac"
    sound(talk, seconds=4.0, rate=8000)
    write(test / "wav.scp", f"sw02008-A\t{talk}", end="\r\n")
    write(
        test / "segments",
        "sw02008-A_000098-001156\tsw02008-A\t0.98\t2.10",
        "sw02008-A_001980-002131\tsw02008-A\t2.5\t-1",
        end="\r\n",
    )
    write(test / "text", "sw02008-A_000098-001156\tSO ANYWAY", "sw02008-A_001980-002131\tIS IT", end="\r\n")
    write(test / "utt2spk", "sw02008-A_000098-001156\t2008-A", "sw02008-A_001980-002131\t2008-A", end="\r\n")
    return {
        "train": {"sw02001.wav": "HI UM YEAH I'D LIKE TO", "sw02005.wav": "UM-HUM"},
        "test": {"sw02008.flac@0.98": "SO ANYWAY", "sw02008.flac@2.50": "IS IT"},
    }


# --- LibriVox: openslr.org/12, openslr.org/60, kaggle.com/datasets/google/userlibri -----------------------------------

_SPEAKERS = (
    "; Some pipe(|) separated metadata about all LibriVox readers, whose work was used",
    "; in the corpus.",
    ";",
    ";ID  |SEX| SUBSET           |MINUTES| NAME",
    "60   | M | train-clean-100  | 20.18 | |CBW|Simon",
    "84   | F | dev-clean        | 8.02  | Christie Nowak",
    "1089 | M | test-clean       | 8.05  | Peter Bobbe",
)


def librispeech(folder: Path) -> Texts:
    """Three subsets of LibriSpeech, a chapter each."""
    write(folder / "SPEAKERS.TXT", *_SPEAKERS)
    lines = {
        ("train_clean100", "train-clean-100/60/121082/60-121082-"): (
            "IN THE FOLLOWING WINTER ON THE SEVENTEENTH OF DECEMBER",
            "THE KING'S ATTORNEY",
        ),
        ("dev_clean", "dev-clean/84/121123/84-121123-"): ("GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES"),
        ("test_clean", "test-clean/1089/134686/1089-134686-"): ("HE HOPED THERE WOULD BE STEW FOR DINNER",),
    }
    found: Texts = {}
    for (split, start), texts in lines.items():
        names = [f"{start.rsplit('/', 1)[1]}{number:04}" for number in range(len(texts))]
        chapter = (folder / start).parent
        for name in names:
            sound(chapter / f"{name}.flac", seconds=1.2)
        rows = [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
        write(chapter / f"{names[0].rsplit('-', 1)[0]}.trans.txt", *rows)
        found[split] = {f"{name}.flac": text.lower() for name, text in zip(names, texts, strict=True)}
    return found


def libritts(folder: Path) -> Texts:
    """Two subsets of LibriTTS: texts in tables, and in files beside the recordings."""
    write(folder / "SPEAKERS.txt", *_SPEAKERS)
    train, dev = folder / "train-clean-100" / "60" / "121082", folder / "dev-clean" / "84" / "121123"
    for number in (7, 8):
        sound(train / f"60_121082_{number:06}_000000.wav", rate=24000)
    write(
        train / "60_121082.trans.tsv",
        '60_121082_000007_000000\t"Mr. Bell," said he, "is 40."\t"Mister Bell," said he, "is forty."',
        "60_121082_000008_000000\tIn 1842.\tIn eighteen forty two.",
    )
    write(train / "60_121082.book.tsv", "60_121082_000007_000000\t...\t...\t20.1\t0.3")
    name = "84_121123_000007_000001"
    sound(dev / f"{name}.wav", rate=24000)
    (dev / f"{name}.normalized.txt").write_text("Go! do you hear?", encoding="utf-8")
    (dev / f"{name}.original.txt").write_text("Go! do you hear?", encoding="utf-8")
    return {
        "train_clean100": {
            "60_121082_000007_000000.wav": '"Mister Bell," said he, "is forty."',
            "60_121082_000008_000000.wav": "In eighteen forty two.",
        },
        "dev_clean": {f"{name}.wav": "Go! do you hear?"},
    }


def user_libri(folder: Path) -> Texts:
    """Two users of UserLibri, three utterances each."""
    audio = folder / "audio_data"
    write(
        audio / "metadata.tsv",
        "User ID\tSplit\tNum Audio Examples\tAverage Words Per Example",
        "speaker-1089-book-4217\ttest-clean\t3\t4.0",
        "speaker-367-book-20027\ttest-other\t3\t4.0",
    )
    found: Texts = {}
    for subset, user, chapter in (
        ("test-clean", "speaker-1089-book-4217", "1089-134686"),
        ("test-other", "speaker-367-book-20027", "367-130732"),
    ):
        names = [f"{chapter}-{number:04}" for number in range(3)]
        for name in names:
            sound(audio / subset / user / f"{name}.flac")
        texts = ("STUFF IT INTO YOU", "HIS BELLY COUNSELLED HIM", "AFTER EARLY NIGHTFALL")
        rows = [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
        write(audio / subset / user / f"{chapter}.trans.txt", *rows)
        found[subset.replace("-", "_")] = {
            f"{name}.flac": text.lower() for name, text in zip(names, texts, strict=True)
        }
    return found


# --- Common Voice: github.com/common-voice/cv-dataset -----------------------------------------------------------------

_OLD = ("client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent", "locale", "segment")
_NEW = ("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender")
_NEW += ("accents", "variant", "locale", "segment")


def common_voice(folder: Path) -> Texts:
    """Two languages: one of version 6.1, with double quotes inside of quotes, one of version 17, with CRLF."""
    ids = {name: zlib.crc32(name.encode()).to_bytes(4, "big").hex() * 16 for name in "abcd"}
    nl, ga = folder / "nl", folder / "ga-IE"
    for number in (23522441, 23522442, 23522443, 23522444):
        sound(nl / "clips" / f"common_voice_nl_{number}.mp3", rate=48000, format="MP3")
    for number in (17883471, 17883472, 17883473):
        sound(ga / "clips" / f"common_voice_ga-IE_{number}.mp3", rate=32000, format="MP3")

    def old(who: str, number: int, sentence: str, *about: str) -> str:
        return "\t".join((ids[who], f"common_voice_nl_{number}.mp3", sentence, "2", "0", *about, "nl", ""))

    def new(who: str, number: int, sentence: str, *about: str) -> str:
        start = (ids[who], f"common_voice_ga-IE_{number}.mp3", "9c0d8f", sentence, "general", "2", "0")
        return "\t".join((*start, *about, "", "ga-IE", ""))

    header = "\t".join(_OLD)
    quoted = old("a", 23522442, '"""Ja"", zei hij."', "", "", "")
    sentence = "Ik vind dat een dubieuze procedure."
    train = (old("a", 23522441, sentence, "fourties", "male", "netherlands"), quoted)
    write(nl / "train.tsv", header, *train)
    write(nl / "dev.tsv", header, old("b", 23522443, "Dat is een decade.", "", "", ""))
    write(nl / "test.tsv", header, old("c", 23522444, "Een café.", "", "", ""))
    write(nl / "validated.tsv", header, *train, old("c", 23522444, "Een café.", "", "", ""))
    header = "\t".join(_NEW)
    row = new("d", 17883471, '"Beidh a bheag aige" a dúirt sí.', "twenties", "female_feminine", "Connacht, Gaillimh")
    write(ga / "train.tsv", header, row, end="\r\n")
    write(ga / "dev.tsv", header, new("b", 17883472, "Cad é?", "", "", ""), end="\r\n")
    write(ga / "test.tsv", header, new("c", 17883473, '"Fáilte."', "", "", ""), end="\r\n")
    write(ga / "clip_durations.tsv", "clip\tduration[ms]", "common_voice_ga-IE_17883471.mp3\t800")
    return {
        "train": {
            "common_voice_ga-IE_17883471.mp3": '"Beidh a bheag aige" a dúirt sí.',
            "common_voice_nl_23522441.mp3": sentence,
            "common_voice_nl_23522442.mp3": '"Ja", zei hij.',
        },
        "validation": {
            "common_voice_ga-IE_17883472.mp3": "Cad é?",
            "common_voice_nl_23522443.mp3": "Dat is een decade.",
        },
        "test": {"common_voice_ga-IE_17883473.mp3": '"Fáilte."', "common_voice_nl_23522444.mp3": "Een café."},
    }


# --- TED-LIUM: openslr.org/7, /19 and /51 -----------------------------------------------------------------------------


def tedlium(folder: Path) -> Texts:
    """Release 3: train is in data, dev and test in legacy."""
    data, dev, test = folder / "data", folder / "legacy" / "dev", folder / "legacy" / "test"
    for place, talk in (
        (data, "911Mothers_2010W"),
        (data, "AaronHuey_2010X"),
        (dev, "AlGore_2009"),
        (test, "AimeeMullins_2009P"),
    ):
        sound(place / "sph" / f"{talk}.sph", seconds=6.0, format="NIST")
    write(
        data / "stm" / "911Mothers_2010W.stm",
        "911Mothers_2010W 1 911Mothers_2010W 0.5 1.75 <NA> i 'm from a <unk> family {BREATH} and",
        "911Mothers_2010W 1 911Mothers_2010W 2 3.5 <o,f0,female> the(2) first lady 's here <sil>",
    )
    write(
        data / "stm" / "AaronHuey_2010X.stm",
        "AaronHuey_2010X 1 AaronHuey_2010X 4.1 5.3 <o,f0,male> i am here today",
    )
    write(
        dev / "stm" / "AlGore_2009.stm",
        ';; CATEGORY "0" "" ""',
        "AlGore_2009 1 inter_segment_gap 0 1 <o,,unknown> ignore_time_segment_in_scoring",
        "AlGore_2009 1 AlGore_2009 1.00 2.50 <o,f0,male> because the <unk> is a big deal",
    )
    write(
        test / "stm" / "AimeeMullins_2009P.stm",
        "AimeeMullins_2009P 1 AimeeMullins_2009P 1.53 3.16 <F0_F> I 'd like to share (AimeeMullins_2009P-F0_F-S5)",
    )
    return {
        "train": {
            "911Mothers_2010W.sph@0.50": "i'm from a family and",
            "911Mothers_2010W.sph@2.00": "the first lady's here",
            "AaronHuey_2010X.sph@4.10": "i am here today",
        },
        "validation": {"AlGore_2009.sph@1.00": "because the is a big deal"},
        "test": {"AimeeMullins_2009P.sph@1.53": "I'd like to share"},
    }


# --- Hugging Face: huggingface.co/docs/datasets/audio_dataset ---------------------------------------------------------


def audio_folder(folder: Path) -> Texts:
    """A table for the whole, with quotes, a line break inside of a cell, an empty cell, and CRLF."""
    for name in ("train/first_audio_file.mp3", "train/second_audio_file.mp3", "test/third_audio_file.mp3"):
        sound(folder / "data" / name, format="MP3")
    write(
        folder / "metadata.csv",
        "file_name,transcription,speaker_id,age",
        "data/train/first_audio_file.mp3,znowu się duch z ciałem zrośnie w młodocianej wstaniesz wiosnie,7,41",
        'data/train/second_audio_file.mp3,"już u źwierzyńca podwojów, król zasiada\r\n""sam""",8,',
        'data/test/third_audio_file.mp3,"pewnie kędyś w obłędzie",9,30',
        end="\r\n",
    )
    return {
        "train": {
            "first_audio_file.mp3": "znowu się duch z ciałem zrośnie w młodocianej wstaniesz wiosnie",
            "second_audio_file.mp3": 'już u źwierzyńca podwojów, król zasiada "sam"',
        },
        "test": {"third_audio_file.mp3": "pewnie kędyś w obłędzie"},
    }


# --- NeMo: docs.nvidia.com, "Preparing custom ASR data" ---------------------------------------------------------------


def nemo(folder: Path) -> Texts:
    """Two manifests: one with relative paths and null offsets, one with segments."""
    for name in ("audio_1.wav", "audio_2.wav"):
        sound(folder / name, seconds=1.5)
    sound(folder / "wavs" / "long.wav", seconds=6.0)
    rows = [
        {"audio_filepath": "audio_1.wav", "text": "the transcription", "offset": None, "duration": 1.5, "lang": "en"},
        {"audio_filepath": "./audio_2.wav", "text": "of the utterance", "duration": 1.5, "lang": "en"},
    ]
    write(folder / "train_manifest.json", *(json.dumps(row) for row in rows))
    row = {"audio_filepath": "wavs/long.wav", "text": "a café", "offset": 3.0, "duration": 1.5, "speaker": "4"}
    write(folder / "dev_manifest.json", json.dumps(row, ensure_ascii=False), end="\r\n")
    return {
        "train": {"audio_1.wav": "the transcription", "audio_2.wav": "of the utterance"},
        "validation": {"long.wav@3.00": "a café"},
    }


TREES = {
    "kaldi": kaldi,
    "librispeech": librispeech,
    "libritts": libritts,
    "user_libri": user_libri,
    "common_voice": common_voice,
    "tedlium": tedlium,
    "audio_folder": audio_folder,
    "nemo": nemo,
}
