"""The public corpora that are known by name: their splits, and what a row of each means. Nothing here reads one."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from etils import epath

from hra_jax.console import listed, near_matches
from hra_jax.errors import UserError
from hra_jax.text.normalization import normalize_text

PREFIX: Final = "hra/"
NAMED_ONLY: Final = ("validated",)  # splits that hold others, and are prepared where they are asked for
_DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HELD_OUT: Final = 20  # of so many texts one is in `test`, another in `validation`


class Row(NamedTuple):
    """What a row of a corpus means, without its audio.

    Attributes:
      id: its name; '' where the corpus has none.
      text: the transcript; '' where there is none.
      tags: what else is known of it.
    """

    id: str
    text: str
    tags: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus.

    Attributes:
      about: what it is, in a line.
      configs: the names of its configurations, each with `/` in front; '' where it has none.
      splits: of each split, those of the source that it is made of.
      audio: which field of a row of TensorFlow Datasets has the audio; '' where the corpus is imported from the folder
        that it is downloaded as.
      rate: Hz of the audio that is stored as samples, 0 where sound files are stored.
      row: what the fields of a row, texts as `str` and classes by name, and the speakers of the corpus mean; None for
        what is no utterance.
      part: of a corpus without a test set, which of `train`, `validation` and `test` a row is in.
      parted: how, in words.
      more: a rule for further configurations.
      split_by: of a corpus that is imported without training data: the tag by whose values it is split here.
    """

    about: str
    configs: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    audio: str = ""
    rate: int = 0
    row: Callable[[Mapping[str, Any], Mapping[str, Any]], Row | None] | None = None
    part: Callable[[Row], str] | None = None
    parted: str = ""
    more: re.Pattern[str] | None = None
    split_by: str | None = None

    @property
    def imported(self) -> bool:
        """Whether it is imported from the folder that it is downloaded as, and not prepared by TensorFlow Datasets."""
        return not self.audio


# --- Rows -------------------------------------------------------------------------------------------------------------


def _librispeech(fields: Mapping[str, Any], speakers: Mapping[str, Any]) -> Row:
    tags = {"speaker": str(fields["speaker_id"]), "chapter": str(fields["chapter_id"])}
    gender = speakers.get(tags["speaker"], {}).get("gender")
    if gender:
        tags["gender"] = {"F": "female", "M": "male"}.get(gender, gender)
    # It is published in capital letters.
    return Row(fields["id"], fields["text"].lower(), tags)


def _fleurs(fields: Mapping[str, Any], speakers: Mapping[str, Any]) -> Row:
    del speakers  # the corpus does not tell who speaks
    language = fields["lang_id"]
    name = fields["path"].rsplit("/", 1)[-1]
    tags = {"language": language, "gender": fields["gender"], "sentence": str(fields["id"])}
    return Row(f"{language}/{name}", fields["transcription"], tags)


def _vctk(fields: Mapping[str, Any], speakers: Mapping[str, Any]) -> Row:
    del speakers
    gender = {"F": "female", "M": "male"}.get(fields["gender"], fields["gender"])
    return Row(
        fields["id"], fields["text"], {"speaker": fields["speaker"], "gender": gender, "accent": fields["accent"]}
    )


def _ljspeech(fields: Mapping[str, Any], speakers: Mapping[str, Any]) -> Row:
    del speakers
    return Row(fields["id"], fields["text_normalized"], {"speaker": "lj"})


def _speech_commands(fields: Mapping[str, Any], speakers: Mapping[str, Any]) -> Row | None:
    del speakers
    # What is said in `_unknown_` is not told, and nothing is said in `_silence_`.
    return None if fields["label"] in ("_silence_", "_unknown_") else Row("", fields["label"], {})


def _spoken_digit(fields: Mapping[str, Any], speakers: Mapping[str, Any]) -> Row:
    del speakers
    name = fields["audio/filename"]
    digit, speaker, *_ = name.removesuffix(".wav").split("_")
    return Row(name, _DIGITS[int(digit)], {"speaker": speaker})


def part_of_text(row: Row) -> str:
    """The part of a corpus that a row is in by its text, so that no text is in two parts, whoever reads it."""
    text = normalize_text(row.text, "basic@2")
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELD_OUT
    return {0: "test", 1: "validation"}.get(number, "train")


def _part_of_digit(row: Row) -> str:
    """Recordings 0 to 4 of each digit are the official test set; 5 to 9 are kept to choose by."""
    number = int(row.id.removesuffix(".wav").split("_")[2])
    return "test" if number < 5 else "validation" if number < 10 else "train"


# --- The corpora ------------------------------------------------------------------------------------------------------

_FLEURS = (
    "af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz cy_gb da_dk "
    "de_de el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in hr_hr hu_hu "
    "hy_am id_id ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd "
    "lo_la lt_lt luo_ke lv_lv mi_nz mk_mk ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr "
    "om_et or_in pa_in pl_pl ps_af pt_br ro_ro ru_ru sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in "
    "tg_tj th_th tr_tr uk_ua umb_ao ur_pk uz_uz vi_vn wo_sn xh_za yo_ng yue_hant_hk zu_za all"
)
_COMMON_VOICE = (
    "ab ar as be bg bn br ca ckb cnh cs cv cy da de dv el en eo es et eu fa fi fr fy-NL ga-IE gl gn ha he hi hsb hu "
    "hy-AM ia id ig it ja ka kab kk kmr ko ky lg lt lv mdf mhr mk ml mn mr mrj mt myv nan-tw ne-NP nl nn-NO or pa-IN "
    "pl ps pt rm-sursilv rm-vallader ro ru rw sah sat sk skr sl sq sr sv-SE sw ta te th ti tig tk tok tr tt tw ug uk "
    "ur uz vi vot yo yue zgh zh-CN zh-HK zh-TW zu"
)
_LIBRI_SETS: Final = {
    "train": ("train_clean100", "train_clean360", "train_other500"),
    "validation": ("dev_clean", "dev_other"),
    "test": ("test_clean", "test_other"),
}
_LIBRI_SPLITS: Final = {
    **_LIBRI_SETS,
    **{name: (name,) for names in _LIBRI_SETS.values() for name in names},
}
_USUAL: Final = {"train": ("train",), "validation": ("validation",), "test": ("test",)}
_BY_TEXT: Final = "by text, a twentieth each to validation and test"
# Where the source has one split only.
_MADE: Final = {"train": ("train",), "validation": ("train",), "test": ("train",), "all": ("train",)}

CORPORA: Final[Mapping[str, Corpus]] = {
    "librispeech": Corpus(
        "read English audiobooks, 960 h, 2,484 speakers; 61 GB to download",
        ("/lazy_decode",),
        _LIBRI_SPLITS,
        audio="speech",
        row=_librispeech,
    ),
    "xtreme_s": Corpus(
        "FLEURS: the same sentences read in 102 languages, about 12 h each; 2 GB a language",
        tuple(f"/fleurs.{code}" for code in _FLEURS.split()),
        _USUAL,
        audio="audio",
        rate=16000,
        row=_fleurs,
    ),
    "vctk": Corpus(
        "read English, 44 h, 110 speakers with 12 accents, two microphones; 12 GB",
        ("/mic1", "/mic2"),
        _MADE,
        audio="speech",
        rate=48000,
        row=_vctk,
        part=part_of_text,
        parted=_BY_TEXT,
    ),
    "ljspeech": Corpus(
        "read English audiobooks, 24 h, one speaker; 3 GB",
        ("",),
        _MADE,
        audio="speech",
        rate=22050,
        row=_ljspeech,
        part=part_of_text,
        parted=_BY_TEXT,
    ),
    "speech_commands": Corpus(
        "ten spoken commands of many speakers, a second each; 3 GB; silence and other words are left out",
        ("",),
        _USUAL,
        audio="audio",
        rate=16000,
        row=_speech_commands,
    ),
    "spoken_digit": Corpus(
        "the Free Spoken Digit Dataset: ten digits, six speakers",
        ("",),
        _MADE,
        audio="audio",
        rate=8000,
        row=_spoken_digit,
        part=_part_of_digit,
        parted="recordings 0 to 4 of each digit to test, 5 to 9 to validation",
    ),
    "common_voice": Corpus(
        "Mozilla Common Voice: sentences read by volunteers, a language each",
        tuple(f"/{code}" for code in _COMMON_VOICE.split()),
        # TensorFlow Datasets calls validated.tsv, which holds the test set, `validation`. Here that is dev.tsv.
        {**_USUAL, "validated": ("validated",)},
        more=re.compile(r"/[a-z]{2,3}(-[A-Za-z0-9]{2,8})*"),
    ),
    "tedlium": Corpus("English talks, 118 h to 452 h", ("/release1", "/release2", "/release3"), _USUAL),
    "libritts": Corpus("read English audiobooks by sentences, 585 h, 24 kHz", ("",), _LIBRI_SPLITS),
    "user_libri": Corpus("LibriSpeech by user: 107 users, a reader with a book each", ("",), _USUAL, split_by="user"),
}


# --- Names ------------------------------------------------------------------------------------------------------------


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all corpora with their configurations, such as `hra/librispeech/lazy_decode`."""
    return tuple(f"{PREFIX}{name}{config}" for name, corpus in CORPORA.items() for config in corpus.configs)


def split_name(name: str) -> tuple[str, str, Corpus]:
    """The name of a corpus, its configuration, and what is known of it.

    Args:
      name: such as `hra/librispeech/lazy_decode`; `hra/` may be left out.

    Raises:
      UserError: there is no such corpus or configuration.
    """
    short = name.removeprefix(PREFIX)
    corpus_name, slash, config = short.partition("/")
    corpus = CORPORA.get(corpus_name)
    if corpus is not None:
        rule = corpus.more
        if slash + config in corpus.configs or (rule is not None and rule.fullmatch(slash + config)):
            return corpus_name, config, corpus
        allowed = [f"{PREFIX}{corpus_name}{one}" for one in corpus.configs]
        if not config:
            every = listed(allowed, most=len(allowed), show=str)
            raise UserError(f"{name!r} is a corpus in several configurations; allowed: {every}")
        raise UserError(f"unknown corpus {name!r}; {near_matches(PREFIX + short, allowed)}")
    raise UserError(f"unknown corpus {name!r}; {near_matches(PREFIX + short, families())}")


def families() -> list[str]:
    """Every corpus once for what is listed: with its first configuration."""
    return [f"{PREFIX}{name}{corpus.configs[0]}" for name, corpus in CORPORA.items()]


def sources_of(name: str, split: str) -> tuple[str, ...]:
    """The splits of the source that a split of a corpus is made of.

    Raises:
      UserError: there is no such corpus or split.
    """
    splits = split_name(name)[2].splits
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; {near_matches(split, splits)}")
    return splits[split]


def prepare_command(name: str, data_dir: epath.PathLike, *, split: str = "") -> str:
    """The command that prepares a corpus; `split` is one that must be named for it."""
    source = " --source DOWNLOADED" if split_name(name)[2].imported else ""
    named = f" --splits {split}" if split in NAMED_ONLY else ""
    return f"python -m hra_jax.data.corpora prepare {name}{source} --data_dir {os.fspath(data_dir)}{named}"
