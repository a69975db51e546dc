"""Corpora and users' own data as seqio knows them: Tasks and Mixtures by name, and what `seqio:NAME/SPLIT` stands for.

A Task is read once, into shards, by `hra_jax.data.cache`; training reads those. A Mixture stands for its Tasks and
their rates.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import soundfile
from etils import epath

from hra_jax.console import listed, near_matches
from hra_jax.data import shards
from hra_jax.data.corpora import catalogue, imported, prepared
from hra_jax.data.examples import Example
from hra_jax.data.report import DataReport
from hra_jax.data.seqio_setup import failures, libraries
from hra_jax.errors import UserError, one_line
from hra_jax.storage.json_files import parse_json

SCHEME: Final = "seqio:"
_FEATURES: Final = ("audio", "sample_rate", "text", "id", "tags")
_NEEDED: Final = "audio (the bytes of a sound file) or samples with sample_rate (Hz), and text"


class Source(NamedTuple):
    """A folder of shards that a name stands for.

    Attributes:
      task: the name of the seqio Task.
      folder: its shards.
      share: of a Mixture, which part of its draws the Task has; 1 of a Task that is named itself.
    """

    task: str
    folder: str
    share: float


def is_named(path: epath.PathLike) -> bool:
    """Whether a source is named `seqio:NAME/SPLIT`, and is no path."""
    return os.fspath(path).startswith(SCHEME)


def name_and_split(source: str) -> tuple[str, str]:
    """NAME and SPLIT of `seqio:NAME/SPLIT`.

    Raises:
      UserError: one of them is missing.
    """
    name, _, split = source.removeprefix(SCHEME).rpartition("/")
    if not name or not split or ".." in name.split("/"):
        raise UserError(f"{source!r} is no source; allowed: {SCHEME}NAME/SPLIT, such as {SCHEME}hra/ljspeech/train")
    return name, split


def shards_folder(name: str, split: str, data_dir: epath.PathLike) -> str:
    """Where the shards of a split of a Task lie."""
    return os.path.join(os.fspath(data_dir), "shards", name, split)


def expand(source: str, *, data_dir: str, modules: Sequence[str] = ()) -> list[Source]:
    """The folders of shards that `seqio:NAME/SPLIT` stands for: of a Mixture one for each of its Tasks.

    Where NAME is a Task whose shards are there, seqio is not needed for it.

    Args:
      source: what stands in a configuration.
      data_dir: `data.dir`.
      modules: what registers the user's own Tasks and Mixtures, as `data.modules`.

    Raises:
      UserError: there is no such name or split, or shards are missing; the line then has the command that makes them.
    """
    name, split = name_and_split(source)
    if not data_dir:
        raise UserError(f"{source} needs data.dir, which is '': its shards are looked for there")
    if has_shards(name, split, data_dir):
        _check_version(name, split, data_dir)
        return [Source(name, shards_folder(name, split, data_dir), 1.0)]
    if name.startswith(catalogue.PREFIX):
        raise UserError(_not_cached(name, split, data_dir, modules))
    provider = _provider(name, modules)
    _, seqio = libraries()
    if isinstance(provider, seqio.Task):
        _check_split(provider, split)
        raise UserError(_not_cached(name, split, data_dir, modules))
    return _expanded(provider, split, data_dir=data_dir, modules=modules)


def _check_version(name: str, split: str, data_dir: str) -> None:
    """Refuses, with a UserError, shards of a corpus that is prepared there by now in another version."""
    if not name.startswith(catalogue.PREFIX):
        return
    there = imported if catalogue.split_name(name)[2].imported else prepared
    now = there.version_of(name, split, data_dir)
    folder = shards_folder(name, split, data_dir)
    if now is not None and shards.read_index(folder).made_from.get("version") != now:
        raise UserError(
            f"the shards in {folder} are of another version of {name} than the one that is prepared in {data_dir}; "
            f"remove them, and {_cache_command(name, split, data_dir)}"
        )


def has_shards(name: str, split: str, data_dir: str) -> bool:
    """Whether there are shards of a split of a Task."""
    return shards.is_shards(shards_folder(name, split, data_dir))


def _not_cached(name: str, split: str, data_dir: str, modules: Sequence[str]) -> str:
    """The line for a split without shards: how it is prepared, where that is what is missing, or how it is cached."""
    if name.startswith(catalogue.PREFIX):
        corpus = catalogue.split_name(name)[2]
        catalogue.sources_of(name, split)
        if corpus.imported:
            imported.manifests(name, split, data_dir)
        elif prepared.find(name, data_dir) is None:
            return prepared.not_prepared(name, data_dir)
    given = modules if not name.startswith(catalogue.PREFIX) else ()
    command = _cache_command(name, split, data_dir, given)
    return f"there are no shards of {SCHEME}{name}/{split} in {shards_folder(name, split, data_dir)}; {command}"


def _cache_command(name: str, split: str, data_dir: str, modules: Sequence[str] = ()) -> str:
    given = f" --modules {','.join(modules)}" if modules else ""
    return f"python -m hra_jax.data.cache --source {SCHEME}{name}/{split} --data_dir {data_dir}{given}"


def _expanded(mixture: Any, split: str, *, data_dir: str, modules: Sequence[str]) -> list[Source]:
    tasks = [task for task in mixture.tasks if has_shards(task.name, split, data_dir) or split in _splits(task)]
    if not tasks:
        known = sorted({known for task in mixture.tasks for known in _splits(task)})
        raise UserError(f"no Task of {mixture.name} has the split {split!r}; {near_matches(split, known)}")
    for task in tasks:
        if not has_shards(task.name, split, data_dir):
            raise UserError(f"{mixture.name}: {_not_cached(task.name, split, data_dir, modules)}")
        _check_version(task.name, split, data_dir)
    rates = _rates(mixture, tasks, data_dir)
    for task, rate in zip(tasks, rates, strict=True):
        if not 0 < rate < float("inf"):
            raise UserError(f"the rate of {task.name} in the Mixture {mixture.name} is {rate}; allowed: above 0")
    total = sum(rates)
    return [
        Source(task.name, shards_folder(task.name, split, data_dir), rate / total)
        for task, rate in zip(tasks, rates, strict=True)
    ]


def _rates(mixture: Any, tasks: Sequence[Any], data_dir: str) -> list[float]:
    """The rates of Tasks in a Mixture, as seqio computes them: numbers, or functions of a Task."""
    with _corpora_in(data_dir):
        try:
            return [float(mixture.get_rate(task)) for task in tasks]
        except failures() as error:
            raise UserError(f"a rate of the Mixture {mixture.name} cannot be computed: {_reason(error)}") from error


def tasks_of(name: str, *, modules: Sequence[str], data_dir: str) -> list[tuple[str, tuple[str, ...], str]]:
    """What a Task or Mixture of the user's is made of: (Task, its splits, its rate where it is one of a Mixture).

    Raises:
      UserError: there is no such name, or its splits or rates cannot be read.
    """
    provider = _provider(name, modules)
    _, seqio = libraries()
    if isinstance(provider, seqio.Task):
        return [(provider.name, _splits(provider), "")]
    rates = _rates(provider, provider.tasks, data_dir)
    return [(task.name, _splits(task), f"{rate:g}") for task, rate in zip(provider.tasks, rates, strict=True)]


# --- Registration -----------------------------------------------------------------------------------------------------

_folder_of_corpora: list[str] = []


@contextlib.contextmanager
def _corpora_in(data_dir: str) -> Iterator[None]:
    """Tasks of corpora look for them in this folder meanwhile."""
    _folder_of_corpora.append(data_dir)
    try:
        yield
    finally:
        _folder_of_corpora.pop()


def _where() -> str:
    """The folder of the corpora: the one at hand, or that of TensorFlow Datasets."""
    default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return _folder_of_corpora[-1] if _folder_of_corpora else os.path.expanduser(default)


@functools.cache
def register() -> None:
    """Registers a seqio Task for every corpus, such as `hra/librispeech/lazy_decode`.

    A module with Mixtures of them calls this first. In seqio, too, they give `output_features`; outside of this
    library they look for corpora in the folder that TFDS_DATA_DIR names, or in ~/tensorflow_datasets.
    """
    _, seqio = libraries()
    source, task = _classes()
    for name in catalogue.names():
        seqio.TaskRegistry.add(name, source=source(name), output_features=output_features(), task_cls=task)


def output_features() -> dict[str, Any]:
    """What the Tasks of corpora give, for Tasks that are to be mixed with them: seqio mixes equal features only.

    `audio` is a sound file as bytes, `sample_rate` its Hz, `text` the transcript, `id` a name, `tags` a JSON object.
    """
    tf, seqio = libraries()
    vocabulary = seqio.PassThroughVocabulary(size=0)
    dtypes = {name: tf.int32 if name == "sample_rate" else tf.string for name in _FEATURES}
    return {name: seqio.Feature(vocabulary, add_eos=False, dtype=dtype, rank=0) for name, dtype in dtypes.items()}


@functools.cache
def _classes() -> tuple[Any, Any]:
    """The data source and the Task of a corpus, as classes of seqio."""
    tf, seqio = libraries()

    class CorpusSource(seqio.DataSource):  # type: ignore[name-defined]
        """A corpus, read without TensorFlow, as a tf.data.Dataset."""

        def __init__(self, name: str):
            super().__init__(splits=tuple(catalogue.split_name(name)[2].splits), caching_permitted=True)
            self._name = name

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return False

        def list_shards(self, split: str) -> Sequence[str]:
            return [split]

        def num_input_examples(self, split: str) -> int | None:
            return _count(self._name, split, _where())

        def get_dataset(
            self,
            split: str = "train",
            shuffle: bool = True,
            seed: int | None = None,
            shard_info: Any = None,
            **others: Any,
        ) -> Any:
            del shuffle, seed, shard_info, others  # the Task shuffles through its buffer
            folder = _where()
            rows = functools.partial(_encoded, self._name, split, folder)
            signature = {name: tf.TensorSpec([], feature.dtype) for name, feature in output_features().items()}
            return tf.data.Dataset.from_generator(rows, output_signature=signature)

    class CorpusTask(seqio.Task):  # type: ignore[name-defined]
        """A Task whose name has slashes, as that of its corpus has; seqio refuses them where a Task is made."""

        def __init__(self, name: str, **settings: Any):
            super().__init__(re.sub(r"[^\w.]", ":", name), **settings)
            self._name = name

    return CorpusSource, CorpusTask


def _count(name: str, split: str, folder: str) -> int | None:
    """How many examples a split has: as its shards say, or as its source does; None where neither is known."""
    if has_shards(name, split, folder):
        return len(shards.read_shards(shards_folder(name, split, folder), report=DataReport())[0])
    corpus = catalogue.split_name(name)[2]
    if corpus.imported or corpus.part is not None or prepared.find(name, folder) is None:
        return None
    sizes = prepared.sizes(name, folder)
    return sum(sizes[part] for part in catalogue.sources_of(name, split))


def _encoded(name: str, split: str, folder: str) -> Iterator[dict[str, Any]]:
    """The examples of a corpus as features of seqio; samples become a FLAC file."""
    for example in _corpus_examples(name, split, folder, DataReport()):
        audio, rate = example.audio, example.sample_rate
        if not isinstance(audio, bytes):
            buffer = io.BytesIO()
            soundfile.write(buffer, audio, rate, format="FLAC")
            audio = buffer.getvalue()
        elif not rate:
            rate = soundfile.info(io.BytesIO(audio)).samplerate
        tags = json.dumps(example.tags, ensure_ascii=False)
        yield dict(zip(_FEATURES, (audio, rate, example.text, example.id, tags), strict=True))


def _corpus_examples(name: str, split: str, folder: epath.PathLike, report: DataReport) -> Iterator[Example]:
    read = imported.examples if catalogue.split_name(name)[2].imported else prepared.examples
    return read(name, split, folder, report=report)


# --- Users' own -------------------------------------------------------------------------------------------------------


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register the user's own Tasks and Mixtures; the corpora are registered before.

    Raises:
      UserError: a module cannot be imported.
    """
    register()
    for module in modules:
        try:
            importlib.import_module(module)
        except failures() as error:
            raise UserError(f"data.modules: {module!r} cannot be imported: {_reason(error)}") from error


def _provider(name: str, modules: Sequence[str]) -> Any:
    """The Task or Mixture of a name."""
    import_modules(modules)
    _, seqio = libraries()
    if name in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.get(name)
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    if name.startswith(catalogue.PREFIX):
        catalogue.split_name(name)  # says what is wrong with it
    own = [known for known in own_names() if not known.startswith(catalogue.PREFIX)]
    hint = "" if modules else "; data.modules (--modules) names what registers Tasks and Mixtures of your own"
    raise UserError(f"unknown Task or Mixture {name!r}; {near_matches(name, own or catalogue.families())}{hint}")


def own_names() -> list[str]:
    """The names of all Tasks and Mixtures that are registered, those of the corpora among them."""
    _, seqio = libraries()
    return sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})


def _splits(task: Any) -> tuple[str, ...]:
    try:
        return tuple(task.splits)
    except failures() as error:
        raise UserError(f"the splits of {task.name} cannot be read: {_reason(error)}") from error


def _check_split(task: Any, split: str) -> None:
    splits = _splits(task)
    if split not in splits:
        raise UserError(f"{task.name} has no split {split!r}; {near_matches(split, splits)}")


def _reason(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")


# --- Examples ---------------------------------------------------------------------------------------------------------


def examples(
    name: str, split: str, *, data_dir: str, modules: Sequence[str] = (), report: DataReport | None = None
) -> Iterator[Example]:
    """The examples of a split of a Task, in the order of its source.

    Args:
      name: a corpus, such as `hra/ljspeech`, or a Task of the user's.
      split: one of its splits.
      data_dir: the folder of all corpora.
      modules: what registers the user's Tasks.
      report: gets what cannot be used.

    Raises:
      UserError: there is no such Task or split, or it cannot be read; it is a Mixture.
    """
    report = DataReport() if report is None else report
    if name.startswith(catalogue.PREFIX):
        yield from _corpus_examples(name, split, data_dir, report)
        return
    yield from _task_examples(_task(name, split, modules), split, data_dir, report)


def is_imported(name: str) -> bool:
    """Whether a name is that of a corpus with manifests, `imported.manifests`, which are read in place of examples."""
    return name.startswith(catalogue.PREFIX) and catalogue.split_name(name)[2].imported


def origin(name: str, split: str, *, data_dir: str, modules: Sequence[str] = ()) -> tuple[Any, int | None]:
    """What the examples of a split come from, as a JSON value that another version has another of, and their number.

    Raises:
      UserError: there is no such Task or split, or it is not prepared.
    """
    if name.startswith(catalogue.PREFIX):
        parts = catalogue.sources_of(name, split)
        sizes = prepared.sizes(name, data_dir)
        total = None if catalogue.split_name(name)[2].part else sum(sizes[part] for part in parts)
        return prepared.version_of(name, split, data_dir), total
    _task(name, split, modules)
    return [name, split], None


def _task(name: str, split: str, modules: Sequence[str]) -> Any:
    """The Task of a name, which has the split."""
    task = _provider(name, modules)
    _, seqio = libraries()
    if not isinstance(task, seqio.Task):
        raise UserError(
            f"{name} is a Mixture; allowed: one of its Tasks, {listed([one.name for one in task.tasks], show=str)}"
        )
    _check_split(task, split)
    return task


def _task_examples(task: Any, split: str, data_dir: str, report: DataReport) -> Iterator[Example]:
    where = f"{task.name}/{split}"
    try:
        with _corpora_in(data_dir):
            dataset = task.get_dataset(
                sequence_length=None,
                split=split,
                use_cached=bool(task.cache_dir),
                shuffle=False,
                num_epochs=1,
                trim_output_features=False,
                try_in_mem_cache=False,
            )
        _check_features(dataset.element_spec, where)
        for number, row in enumerate(dataset.as_numpy_iterator()):
            example = _canonical(row, f"{split}/{number:08d}")
            if example.text.strip():
                yield example
            else:
                report.add("no_text", f"{where}: {example.id}", "there is no transcript")
    except UserError:
        raise
    except failures() as error:
        raise UserError(f"{where} cannot be read: {_reason(error)}") from error


def _check_features(features: Mapping[str, Any], where: str) -> None:
    """Refuses a Task that gives no audio, no rate of its samples, or no text."""
    audio = features.get("audio", features.get("samples"))
    complete = audio is not None and "text" in features
    if not complete or (audio.dtype.name != "string" and "sample_rate" not in features):
        raise UserError(f"{where} gives {listed(sorted(features), show=str)}; needed: {_NEEDED}")


def _canonical(row: Mapping[str, Any], unnamed: str) -> Example:
    """A row of a Task as an example. Every other feature that is one value is a tag."""
    audio: Any = row.get("audio", row.get("samples"))
    audio = audio if isinstance(audio, bytes) else np.asarray(audio)
    tags = {
        name: _value(value)
        for name, value in row.items()
        if name not in (*_FEATURES, "samples") and np.ndim(value) == 0
    }
    if "tags" in row:
        found = parse_json(row["tags"], where=f"the tags of {unnamed}")
        if not isinstance(found, dict):
            raise UserError(f"the tags of {unnamed} are {found!r:.80}; allowed: a JSON object")
        tags |= found
    name = str(_value(row["id"])) if "id" in row else unnamed
    return Example(name, audio, int(row.get("sample_rate", 0)), str(_value(row["text"])), tags)


def _value(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
