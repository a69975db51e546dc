"""Sources of utterances: what a run is asked to train on, and the reading of it.

A source is a manifest, or a folder of shards.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from hra_jax.config.settings import (
    Rule,
    boolean,
    check_settings,
    distinct_names,
    integer,
    is_number,
    number,
    one_of,
    setting,
    text,
)
from hra_jax.console import listed
from hra_jax.data import mixtures, shards
from hra_jax.data.corpora import catalogue, registry
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.errors import UserError
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.normalization import NORMALIZERS


@dataclass(frozen=True)
class TableSource:
    """One source's utterances.

    Attributes:
      name: what errors and the data report call it; unique in a table.
      utterances: as `read_source` gives them.
      rate: how often training draws it: a positive number, or 'proportional' (to its usable utterances).
      task: the adapter task of all of them, `__base__` included; None takes each one's from its tag.
      refused: its other lines.
    """

    name: str
    utterances: Sequence[Utterance]
    rate: float | str = mixtures.PROPORTIONAL
    task: str | None = None
    refused: Sequence[Refused] = ()

    @property
    def lines(self) -> list[Utterance | Refused]:
        """The utterances, then the other lines."""
        return [*self.utterances, *self.refused]


def _is_source(value: Any) -> bool:
    if not (isinstance(value, tuple) and len(value) == 3):
        return False
    name, manifest_path, rate = value
    rate_ok = rate == "proportional" or (is_number(rate) and rate > 0)
    return isinstance(name, str) and bool(name) and isinstance(manifest_path, str) and bool(manifest_path) and rate_ok


def _are_sources(value: Any) -> bool:
    names = [item[0] for item in value] if isinstance(value, tuple) and all(map(_is_source, value)) else None
    return names is not None and len(set(names)) == len(names)


def _synthetic_sets() -> tuple[str, ...]:
    from hra_jax.data.synthetic.speakers import SETS  # imported late: reading manifests needs no synthesis

    return ("", *SETS)


DRAWS = ("utterances", "tasks")


@dataclass(frozen=True)
class DataSettings:
    """The keys `data.*`: what is trained on, and how it is read."""

    dir: str = setting("", text(), "folder that {dir} in manifest paths stands for")
    sources: tuple[tuple[str, str, float | str], ...] = setting(
        (),
        Rule(
            lambda: "a tuple of (name, source, rate), names distinct, rate a number above 0 or 'proportional'",
            _are_sources,
        ),
        "((name, source, rate), ...); source: the path of a manifest or of a folder of shards, or seqio:NAME/SPLIT; "
        "rate: relative weight, or 'proportional' to its rows",
    )
    modules: tuple[str, ...] = setting(
        (),
        distinct_names("a tuple of distinct names of Python modules, or ()", empty=True),
        "modules that register seqio Tasks and Mixtures of your own, for the sources seqio:NAME/SPLIT",
    )
    task_tag: str = setting("speaker", text(empty=False), "manifest tag whose value is the task's name")
    tasks: tuple[str, ...] = setting(
        (),
        distinct_names(
            f"a tuple of distinct task names ({BASE_TASK!r} is reserved), or ()", empty=True, reserved=(BASE_TASK,)
        ),
        "task names; () for every value of the tag in the training sources, sorted",
    )
    synthetic: str = setting(
        "", one_of(_synthetic_sets), "synthetic set that is rendered once into data.dir where it is absent; '' for none"
    )
    normalizer: str = setting(
        "basic", one_of(NORMALIZERS.keys), "of transcripts: none, lower, basic (lower case, no punctuation)"
    )
    format_characters: str = setting(
        "removed",
        one_of(lambda: ("removed", "kept")),
        "invisible characters of transcripts (byte order marks, soft hyphens, marks of direction, controls): removed, "
        "or kept, as in runs of hra_jax before 0.2",
    )
    strict: bool = setting(
        False, boolean(), "True: the first unusable utterance is an error; False: it is skipped and reported"
    )
    draw: str = setting(
        "utterances",
        one_of(lambda: DRAWS),
        "what has its turn: utterances (a task has as many updates as its share of the data gives), or tasks (all have "
        "equally many, whatever their data; rates of sources must then be 'proportional')",
    )
    groups: str = setting(
        "",
        text(),
        "manifest tag; each of its values, at most 256, is drawn at a rate of its own, by its number of utterances; '' "
        "for none: sources are",
    )
    temperature: float = setting(
        1.0,
        number(0.1),
        "of rates that are 'proportional': a source or group of n utterances is drawn as n to the power of 1 / "
        "temperature",
    )
    cap_rows: int = setting(
        0, integer(0), "utterances; the most that count for such a rate, though all of them come; 0: all count"
    )
    max_seconds: float = setting(
        0.0,
        number(0, unit=" (seconds; 0: as far as batch.buckets go)"),
        "seconds; longer utterances are skipped; 0: the last of batch.buckets, or what a batch holds where that is a "
        "number",
    )
    threads: int = setting(4, integer(1), "threads that decode audio, per host")

    def __post_init__(self) -> None:
        check_settings(self, "data")

    @property
    def text_normalizer(self) -> str:
        """What `text.normalization.normalize_text` takes for transcripts."""
        return f"{self.normalizer}@{2 if self.format_characters == 'removed' else 1}"


def read_source(
    path: epath.PathLike, *, report: DataReport, texts: bool = True
) -> tuple[Sequence[Utterance], list[Refused]]:
    """Reads whatever a source is: a manifest, or a folder of shards.

    Args:
      path: of the manifest, or of the folder.
      report: gets every line that cannot be used.
      texts: whether the lines of a manifest need a text, as `read_manifest` has it.

    Returns:
      The usable utterances, and the other lines, both in the order of the source.

    Raises:
      UserError: it cannot be read, or a line is bad and the report strict.
    """
    if registry.is_named(path):
        folder = registry.shards_folder(*registry.name_and_split(os.fspath(path)), "DATA")
        raise UserError(f"{path} is a name; needed here: a manifest, or the folder of its shards, {folder}")
    if shards.is_shards(path):
        return shards.read_shards(path, report=report)
    if epath.Path(path).is_dir():
        raise UserError(
            f"the folder {os.fspath(path)} holds no {shards.INDEX}; needed: a manifest, or shards, which python -m "
            "hra_jax.data.cache makes, and completes where it was stopped"
        )
    if os.fspath(path).startswith(catalogue.PREFIX) and not epath.Path(path).exists():
        raise UserError(f"no manifest at {os.fspath(path)}; did you mean '{registry.SCHEME}{os.fspath(path)}'?")
    return read_manifest(path, report=report, texts=texts)


def located(source: str, *, data_dir: str, key: str = "data.sources", modules: Sequence[str] = ()) -> str:
    """Where a source of utterances lies: a manifest, or the shards of a seqio Task that is named.

    Args:
      source: a path, in which `{dir}` stands for `data_dir`, or `seqio:NAME/SPLIT`.
      data_dir: `data.dir`.
      key: what errors name.
      modules: `data.modules`.

    Raises:
      UserError: `data_dir` is needed and empty; there are no shards; it names a Mixture.
    """
    if registry.is_named(source):
        parts = registry.expand(source, data_dir=data_dir, modules=modules)
        if len(parts) > 1 or parts[0].share != 1:
            _, split = registry.name_and_split(source)
            rows = listed([f"{registry.SCHEME}{part.task}/{split}" for part in parts], show=str)
            raise UserError(f"{key}: {source} is a Mixture; allowed: its Tasks one by one, {rows}")
        return parts[0].folder
    if "{dir}" in source and not data_dir:
        raise UserError(f"{key}: the manifest {source!r} needs data.dir, which is ''; give --config.data.dir")
    return source.replace("{dir}", data_dir)


def read_sources(
    entries: Iterable[tuple[str, str, float | str]],
    *,
    report: DataReport,
    data_dir: str = "",
    modules: Sequence[str] = (),
) -> list[TableSource]:
    """Reads the sources of (name, source, rate) entries; bad lines go to the report.

    Args:
      entries: as in `data.sources`. A seqio Mixture becomes a source NAME/TASK for each of its Tasks: its rate is
        shared out as the Mixture has it, and `proportional` is the rows of all of them.
      report: gets what cannot be used.
      data_dir: `data.dir`.
      modules: `data.modules`.

    Raises:
      UserError: a source cannot be found or read, or a line is bad and the report strict.
    """
    sources = []
    for name, source, rate in entries:
        if registry.is_named(source):
            parts = registry.expand(source, data_dir=data_dir, modules=modules)
        else:
            parts = [registry.Source("", located(source, data_dir=data_dir), 1.0)]
        read = [read_source(part.folder, report=report) for part in parts]
        rows = sum(len(utterances) for utterances, _ in read)
        for part, (utterances, refused) in zip(parts, read, strict=True):
            if len(parts) == 1:
                sources.append(TableSource(name, utterances, rate, refused=refused))
            else:
                weight = part.share * (rows if isinstance(rate, str) else rate)
                sources.append(TableSource(f"{name}/{part.task}", utterances, weight, refused=refused))
    return sources
