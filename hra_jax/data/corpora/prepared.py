"""Corpora as TensorFlow Datasets prepares them: D/NAME/CONFIG/VERSION, made once, and read in its order."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from hra_jax.console import near_matches
from hra_jax.data.corpora import catalogue
from hra_jax.data.corpora.sound_reader import in_place_of_pydub
from hra_jax.data.examples import Example
from hra_jax.data.report import DataReport
from hra_jax.data.seqio_setup import failures, libraries
from hra_jax.errors import UserError, one_line
from hra_jax.storage import checksums, files, locks
from hra_jax.storage.json_files import read_object

_INFO = "dataset_info.json"


class Found(NamedTuple):
    """A corpus that is prepared.

    Attributes:
      folder: where it lies.
      version: its version.
    """

    folder: epath.Path
    version: str


def _above(name: str, data_dir: epath.PathLike) -> epath.Path:
    """The folder that has a folder for each version of a corpus."""
    corpus, config, _ = catalogue.split_name(name)
    return epath.Path(data_dir) / corpus / config if config else epath.Path(data_dir) / corpus


def find(name: str, data_dir: epath.PathLike) -> Found | None:
    """The newest version of a corpus that is prepared in a folder, or None. TensorFlow is not needed for it."""
    above = _above(name, data_dir)
    versions = []
    try:
        for folder in above.iterdir() if above.is_dir() else ():
            numbers = folder.name.split(".")
            if all(number.isdecimal() for number in numbers) and (folder / _INFO).exists():
                versions.append((tuple(map(int, numbers)), folder))
    except OSError as error:
        raise UserError(f"{above} cannot be read: {error.strerror or error}") from error
    if not versions:
        return None
    folder = max(versions)[1]
    return Found(folder, folder.name)


def prepare(name: str, data_dir: epath.PathLike, *, report: DataReport) -> Found:
    """Downloads a corpus and prepares it, unless it is there.

    Args:
      name: such as `hra/librispeech/lazy_decode`.
      data_dir: the folder of all corpora.
      report: gets the files that cannot be read, by name; their rows are left out when the corpus is read.

    Raises:
      UserError: there is no such corpus, it cannot be downloaded, its files are not as they should be, or
        another process prepares it.
    """
    above = _above(name, data_dir)
    if find(name, data_dir) is None:
        with locks.hold(above, "prepare"):
            for folder in above.iterdir():
                if folder.name.startswith("incomplete."):  # of a process that was killed: none other prepares it now
                    files.remove_folder(folder)
            if find(name, data_dir) is None:
                _prepare(name, data_dir, report)
    return _needed(name, data_dir)


def _prepare(name: str, data_dir: epath.PathLike, report: DataReport) -> None:
    libraries()
    import tensorflow_datasets as tfds

    corpus, config, about = catalogue.split_name(name)
    builder = tfds.builder(f"{corpus}/{config}" if config else corpus, data_dir=os.fspath(data_dir), try_gcs=False)
    try:
        with in_place_of_pydub(about.rate, report):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except _failures() as error:
        raise UserError(f"{name} cannot be prepared in {os.fspath(data_dir)}: {_reason(error)}") from error


def _failures() -> tuple[type[Exception], ...]:
    """What goes wrong in TensorFlow Datasets."""
    from tensorflow_datasets.core.download import download_manager, util

    return (*failures(), download_manager.NonMatchingChecksumError, util.DownloadError)


def _reason(error: BaseException) -> str:
    """In one line what was wrong at first; TensorFlow Datasets raises errors of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def sizes(name: str, data_dir: epath.PathLike) -> dict[str, int]:
    """How many rows each split of the source has, of a corpus that is prepared. TensorFlow is not needed for it.

    Raises:
      UserError: it is not prepared, or its description is damaged.
    """
    found = _needed(name, data_dir)
    path = found.folder / _INFO
    try:
        splits = read_object(path, {"splits": list})["splits"]
        return {split["name"]: sum(map(int, split.get("shardLengths", []))) for split in splits}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no description of a corpus: {_reason(error)}; {_again(found)}") from error


def version_of(name: str, split: str, data_dir: epath.PathLike) -> list[Any] | None:
    """What shards of a split are made from: `version`, and the splits of the source; None where it is not prepared."""
    if find(name, data_dir) is None:
        return None
    return [*version(name, data_dir), *catalogue.sources_of(name, split)]


def version(name: str, data_dir: epath.PathLike) -> list[Any]:
    """The version of a corpus that is prepared, and the checksum of its description."""
    found = _needed(name, data_dir)
    return [found.version, *checksums.of_file(found.folder / _INFO)]


def _needed(name: str, data_dir: epath.PathLike) -> Found:
    found = find(name, data_dir)
    if found is None:
        raise UserError(not_prepared(name, data_dir))
    return found


def not_prepared(name: str, data_dir: epath.PathLike) -> str:
    """The line that says how a corpus is prepared."""
    return f"{name} is not prepared in {os.fspath(data_dir)}; {catalogue.prepare_command(name, data_dir)}"


def _builder(found: Found, name: str) -> Any:
    libraries()
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(os.fspath(found.folder))
    except _failures() as error:
        raise UserError(f"{name}: {found.folder} is damaged: {_reason(error)}; {_again(found)}") from error


def _again(found: Found) -> str:
    return f"delete {found.folder} and prepare it again"


def examples(name: str, split: str, data_dir: epath.PathLike, *, report: DataReport) -> Iterator[Example]:
    """The examples of a split of a corpus that is prepared, in its order.

    Args:
      name: such as `hra/librispeech/lazy_decode`.
      split: one of its splits.
      data_dir: the folder of all corpora.
      report: gets rows without a transcript (no_text) and those whose audio could not be read when the corpus
        was prepared (empty_audio).

    Raises:
      UserError: there is no such corpus or split, it is not prepared, or its files are damaged.
    """
    wanted = catalogue.sources_of(name, split)
    corpus_name, _, corpus = catalogue.split_name(name)
    found = _needed(name, data_dir)
    builder = _builder(found, name)
    assert corpus.row is not None
    speakers = dict(builder.info.metadata or {}).get("speakers", {})
    for part in wanted:
        if part not in builder.info.splits:
            raise UserError(f"{found.folder} has no split {part!r}; {near_matches(part, builder.info.splits)}")
        for number, fields in enumerate(_rows(builder, part, corpus, found)):
            row = corpus.row(fields, speakers)
            if row is None:
                continue
            if corpus.part is not None and split != "all" and corpus.part(row) != split:
                continue
            name_of_row = row.id or f"{part}/{number:08d}"
            audio = fields[corpus.audio]
            if not row.text.strip():
                report.add("no_text", f"{name}/{split}: {name_of_row}", "there is no transcript")
            elif not len(audio):
                report.add("empty_audio", f"{name}/{split}: {name_of_row}", "it could not be read, or has no samples")
            else:
                yield Example(name_of_row, audio, corpus.rate, row.text, {**row.tags, "corpus": corpus_name})


def _rows(builder: Any, part: str, corpus: catalogue.Corpus, found: Found) -> Iterator[Mapping[str, Any]]:
    """The rows of a split of the source: texts and classes as `str`, audio as bytes or int16."""
    libraries()
    import tensorflow_datasets as tfds

    expected, count = builder.info.splits[part].num_examples, 0
    try:
        if "array_record" in str(builder.info.file_format).lower():
            rows: Any = builder.as_data_source(split=part)
        else:
            config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
            decoders = None if corpus.rate else {corpus.audio: tfds.decode.SkipDecoding()}
            dataset = builder.as_dataset(split=part, shuffle_files=False, read_config=config, decoders=decoders)
            rows = dataset.as_numpy_iterator()
        for row in rows:
            count += 1
            yield {name: _plain(value, builder.info.features[name]) for name, value in row.items()}
    except _failures() as error:
        raise UserError(f"{found.folder} cannot be read: {_reason(error)}; {_again(found)}") from error
    if count != expected:
        raise UserError(f"{found.folder}: {count} rows in {part!r} of {expected}; {_again(found)}")


def _plain(value: Any, feature: Any) -> Any:
    import numpy as np
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Audio):
        return value if isinstance(value, bytes) else np.asarray(value).astype(np.int16)
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
