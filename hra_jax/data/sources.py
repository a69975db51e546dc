"""Sources of utterances: what a run is asked to train on, and the reading of it. A source is a manifest."""

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
from hra_jax.data import mixtures
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.normalization import NORMALIZERS


@dataclass(frozen=True)
class TableSource:
    """One manifest's utterances.

    Attributes:
      name: what errors and the data report call it; unique in a table.
      utterances: as `manifest.read_manifest` gives them.
      rate: how often training draws it: a positive number, or 'proportional' (to its usable utterances).
      task: the adapter task of all of them, `__base__` included; None takes each one's from its tag.
      refused: the other lines of the manifest.
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
            lambda: "a tuple of (name, manifest path, rate), names distinct, rate a number above 0 or 'proportional'",
            _are_sources,
        ),
        "((name, manifest path, rate), ...); rate: relative weight, or 'proportional' to its rows",
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
        number(0, above=True),
        "of rates that are 'proportional': a source or group of n utterances is drawn as n to the power of 1 / "
        "temperature",
    )
    cap_rows: int = setting(
        0, integer(0), "utterances; the most that count for such a rate, though all of them come; 0: all count"
    )
    max_seconds: float = setting(
        0.0,
        number(0, unit=" (seconds; 0: the last of batch.buckets)"),
        "seconds; longer utterances are skipped; 0: the last of batch.buckets",
    )
    threads: int = setting(4, integer(1), "threads that decode audio, per host")

    def __post_init__(self) -> None:
        check_settings(self, "data")

    @property
    def text_normalizer(self) -> str:
        """What `text.normalization.normalize_text` takes for transcripts."""
        return f"{self.normalizer}@{2 if self.format_characters == 'removed' else 1}"


def read_sources(
    entries: Iterable[tuple[str, epath.PathLike, float | str]], *, report: DataReport
) -> list[TableSource]:
    """Reads the manifests of (name, path, rate) entries; bad lines go to the report.

    Raises:
      UserError: a manifest cannot be read, or a line is bad and the report strict.
    """
    sources = []
    for name, path, rate in entries:
        utterances, refused = read_manifest(path, report=report)
        sources.append(TableSource(name, utterances, rate, refused=refused))
    return sources
