"""Common Voice as it is downloaded: a folder for each language, with clips/ and a table for each split.

Tables have tabs between their cells. What the columns are depends on the version: `accent` has become `accents`, and
`sentence_id`, `sentence_domain` and `variant` were added. Quotes are characters of a sentence, but older versions put
quotes around sentences that hold some.
"""

from collections.abc import Callable, Iterator
from typing import Final

from etils import epath

from hra_jax.data.importers.corpus import Entry, Format, Split, canonical, folders, tabbed, words
from hra_jax.data.report import DataReport

_SPLITS: Final = ("train", "dev", "test")
# They hold the sentences and speakers of the others too, or what nobody has agreed on.
_NAMED_ONLY: Final = ("validated", "other", "invalidated")
_TAGS: Final = {"client_id": "speaker", "accents": "accent"}
_NO_TAGS: Final = ("path", "sentence")


def _splits(folder: epath.Path, audio_dir: epath.Path | None) -> list[Split]:
    del audio_dir
    languages = _folders(folder)
    found = []
    for name in (*_SPLITS, *_NAMED_ONLY):
        having = [path for path in languages if (path / f"{name}.tsv").exists()]
        if having:
            without = [path.name for path in languages if path not in having]
            notes = (f"no {name}.tsv in {', '.join(without)}",) if without else ()
            read = _reader(having, f"{name}.tsv")
            found.append(Split(canonical(name), f"{name}.tsv", read, named_only=name in _NAMED_ONLY, notes=notes))
    return found


def _folders(folder: epath.Path) -> list[epath.Path]:
    """The folders of languages that a folder is, or has."""
    return [path for path in (folder, *folders(folder)) if (path / "clips").is_dir()]


def languages(folder: epath.PathLike) -> dict[str, str]:
    """{name of a folder: its language, as the first row of its tables says, '' where they have no such column}."""
    return {path.name: _language(path) for path in _folders(epath.Path(folder))}


def _language(folder: epath.Path) -> str:
    for name in (*_SPLITS, *_NAMED_ONLY):
        if (folder / f"{name}.tsv").exists():
            for _, row in tabbed(folder / f"{name}.tsv", DataReport()):
                return row.get("locale", "")
    return ""


def _reader(languages: list[epath.Path], table: str) -> Callable[[DataReport], Iterator[Entry]]:
    def read(report: DataReport) -> Iterator[Entry]:
        for folder in languages:
            for where, row in tabbed(folder / table, report, name=f"{folder.name}/{table}"):
                missing = [name for name in _NO_TAGS if not row.get(name)]
                if missing:
                    report.add("no_text" if missing == ["sentence"] else "missing_field", where, f"no {missing[0]}")
                    continue
                # The first versions name clips without their suffix.
                clip = row["path"] if "." in row["path"] else f"{row['path']}.mp3"
                tags = {_TAGS.get(name, name): value for name, value in row.items() if value and name not in _NO_TAGS}
                tags.setdefault("locale", folder.name)
                yield Entry(where, str(folder / "clips" / clip), words(row["sentence"]), tags)

    return read


FORMAT = Format("common_voice", "the folder of a language of Common Voice, with clips and train.tsv in it", _splits)
