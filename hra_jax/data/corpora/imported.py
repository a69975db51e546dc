"""Corpora that are imported from the folder that they are downloaded as: D/manifests/NAME/CONFIG/SPLIT.jsonl."""

from collections.abc import Iterator, Sequence

from etils import epath

from hra_jax.console import listed
from hra_jax.data import audio
from hra_jax.data.corpora import catalogue
from hra_jax.data.examples import Example
from hra_jax.data.importers import common_voice, tedlium
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.sound_files import AudioError, Sound
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.storage import checksums


def folder(name: str, data_dir: epath.PathLike) -> epath.Path:
    """Where the manifests of a corpus lie."""
    corpus, config, _ = catalogue.split_name(name)
    return (
        epath.Path(data_dir) / "manifests" / corpus / config if config else epath.Path(data_dir) / "manifests" / corpus
    )


def manifests(name: str, split: str, data_dir: epath.PathLike) -> list[epath.Path]:
    """The manifests that a split of a corpus is made of; it has at least one.

    Raises:
      UserError: there is no such split, or it is not imported; the line says how it is.
    """
    paths = [folder(name, data_dir) / f"{part}.jsonl" for part in catalogue.sources_of(name, split)]
    for path in paths:
        if not path.exists():
            command = catalogue.prepare_command(name, data_dir, split=split)
            raise UserError(f"{name}/{split} is not prepared: there is no {path}; {command}")
    return paths


def version_of(name: str, split: str, data_dir: epath.PathLike) -> list[int] | None:
    """What shards of a split are made from: the checksums of its manifests; None where they are not there."""
    try:
        return [number for path in manifests(name, split, data_dir) for number in checksums.of_file(path)]
    except UserError:
        return None


def prepare(
    name: str, data_dir: epath.PathLike, *, source: epath.PathLike, splits: Sequence[str] = ()
) -> dict[str, DataReport]:
    """Writes a manifest for every split of a corpus.

    Args:
      name: such as `hra/common_voice/cs`.
      data_dir: the folder of all corpora.
      source: the folder that the corpus is downloaded as.
      splits: those that are wanted; () for all but those that hold the others too.

    Returns:
      {path of a manifest: what was left out}.

    Raises:
      UserError: there is no such corpus or split, or `source` is no folder of this corpus.
    """
    from hra_jax.data.importers.importing import import_corpus, print_table

    corpus, config, about = catalogue.split_name(name)
    for split in splits:
        catalogue.sources_of(name, split)
    # A folder of several languages: the one that is named.
    own = epath.Path(source) / config if config else epath.Path(source)
    own = own if own.is_dir() else epath.Path(source)
    if corpus == common_voice.FORMAT.kind:
        _check_language(own, config)
    elif corpus == tedlium.FORMAT.kind:
        _check_release(own, config)
    parts = import_corpus(own, folder(name, data_dir), kind=corpus, splits=splits, split_by=about.split_by)
    print_table(parts, tag="speaker")
    return {path: part.report for path, part in parts.items()}


def _check_language(place: epath.Path, language: str) -> None:
    """Refuses, with a UserError, a folder of Common Voice that is of another language, or of several."""
    found = common_voice.languages(place)
    if len(found) > 1 or any(known and known.lower() != language.lower() for known in found.values()):
        there = listed([known or name for name, known in found.items()])
        raise UserError(f"{place} is Common Voice in {there}; needed: the folder of {language!r}, or one that holds it")


def _check_release(place: epath.Path, release: str) -> None:
    """Refuses, with a UserError, a folder of the third release of TED-LIUM in the place of another, or the reverse."""
    third = tedlium.is_third(place)
    if tedlium.FORMAT.splits(place, None) and third != (release == "release3"):
        found = "release 3" if third else "release 1 or 2"
        raise UserError(f"{place} is {found} of TED-LIUM; needed: the folder of {release}")


def examples(name: str, split: str, data_dir: epath.PathLike, *, report: DataReport) -> Iterator[Example]:
    """The examples of a split, in the order of its manifests.

    Args:
      name, split, data_dir: as `manifests`.
      report: gets bad lines, and audio that cannot be read.

    Raises:
      UserError: as `manifests`.
    """
    for path in manifests(name, split, data_dir):
        for row in read_manifest(path, report=report)[0]:
            try:
                yield _example(row)
            except AudioError as error:
                report.add(error.kind, row.key, error.detail)


def _example(row: Utterance) -> Example:
    with Sound(row.audio_filepath) as sound:
        rate = sound.rate
    return Example(row.key, audio.decode(row, rate), rate, row.text, row.tags)
