"""Public corpora by name, and Tasks and Mixtures of one's own.

    python -m hra_jax.data.corpora list
    python -m hra_jax.data.corpora show NAME
    python -m hra_jax.data.corpora prepare NAME --data_dir D

`python -m hra_jax.data.cache --source seqio:NAME/SPLIT --data_dir D` then makes shards, and a configuration trains on
`("name", "seqio:NAME/SPLIT", rate)` with `data.dir` D.
"""

import os
from collections.abc import Sequence

from absl import flags

from hra_jax import cli
from hra_jax.console import listed, say, stdout, table, tell
from hra_jax.data.corpora import catalogue, imported, prepared, registry
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError

FLAGS = flags.FLAGS
_MOST_CONFIGS = 4  # that are listed of a corpus
_SHOWN = 10  # files that are named


def list_corpora(*, data_dir: str | None = None, modules: Sequence[str] = ()) -> None:
    """Prints all corpora, and the Tasks and Mixtures that the modules register."""
    rows = []
    for name, corpus in catalogue.CORPORA.items():
        names = [f"{catalogue.PREFIX}{name}{config}" for config in corpus.configs]
        more = f" and {len(names) - 1} more" if len(names) > _MOST_CONFIGS else ""
        shown = names[:1] if more else names
        rows.append((", ".join(shown) + more, corpus.about, _by(corpus), _there(names, data_dir)))
    console = stdout()
    header = ("name", "what it is", "prepared from", f"in {data_dir}" if data_dir else "")
    console.print(table(header[: 4 if data_dir else 3], [row[: 4 if data_dir else 3] for row in rows], left=header))
    if modules:
        registry.import_modules(modules)
        own = [name for name in registry.own_names() if not name.startswith(catalogue.PREFIX)]
        say(console, f"from {', '.join(modules)}: {listed(own, most=100, show=str)}")


def _by(corpus: catalogue.Corpus) -> str:
    return "your download" if corpus.imported else "the network"


def _there(names: Sequence[str], data_dir: str | None) -> str:
    """Which of some corpora are prepared."""
    if not data_dir:
        return ""
    found = [name for name in names if _is_prepared(name, data_dir)]
    return listed([name.removeprefix(catalogue.PREFIX) for name in found], show=str) if found else ""


def _is_prepared(name: str, data_dir: str) -> bool:
    if catalogue.split_name(name)[2].imported:
        return imported.folder(name, data_dir).is_dir()
    return prepared.find(name, data_dir) is not None


def show(name: str, *, data_dir: str | None = None, modules: Sequence[str] = ()) -> None:
    """Prints what a corpus is, its splits, and the commands that make it ready; of a Mixture, its Tasks and rates.

    Raises:
      UserError: there is no such name.
    """
    if not name.startswith(catalogue.PREFIX) and name.split("/", 1)[0] not in catalogue.CORPORA:
        _show_own(name, data_dir=data_dir, modules=modules)
        return
    corpus_name, config, corpus = catalogue.split_name(name)
    full = catalogue.PREFIX + (f"{corpus_name}/{config}" if config else corpus_name)
    console = stdout()
    say(console, f"{full}: {corpus.about}; from {_by(corpus)}")
    place = data_dir or "D"
    there = data_dir is not None and _is_prepared(full, data_dir)
    sizes = prepared.sizes(full, place) if there and not corpus.imported else {}
    rows = []
    for split, parts in corpus.splits.items():
        count = "" if corpus.part is not None and split != "all" else _number([sizes.get(part) for part in parts])
        shards = "yes" if data_dir and registry.has_shards(full, split, data_dir) else ""
        rows.append((split, _made_of(corpus, split, parts), count, shards))
    console.print(table(("split", "what it holds", "rows", "shards"), rows, left=("what it holds",)))
    if not there:
        say(console, f"prepare:  {catalogue.prepare_command(full, place)}")
    split = next(iter(corpus.splits))
    say(console, f"cache:    python -m hra_jax.data.cache --source seqio:{full}/{split} --data_dir {place}")
    say(console, f'train on: data.sources = (("{corpus_name}", "seqio:{full}/{split}", "proportional"),)')


def _made_of(corpus: catalogue.Corpus, split: str, parts: Sequence[str]) -> str:
    if corpus.part is not None:
        return "all of it" if split == "all" else f"a part: {corpus.parted}"
    if split == "validated":
        return "validated, which holds train, validation and test"
    return " + ".join(parts)


def _number(counts: Sequence[int | None]) -> str:
    known = [count for count in counts if count is not None]
    return f"{sum(known):,}" if known and len(known) == len(counts) else ""


def _show_own(name: str, *, data_dir: str | None, modules: Sequence[str]) -> None:
    parts = registry.tasks_of(name, modules=modules, data_dir=data_dir or "")
    console = stdout()
    rows = [(task, ", ".join(splits), rate) for task, splits, rate in parts]
    console.print(table(("Task", "splits", "rate"), rows, left=("splits",)))


def prepare(name: str, *, data_dir: str | None = None, source: str | None = None, splits: Sequence[str] = ()) -> None:
    """Prepares a corpus: TensorFlow Datasets downloads it, or it is imported from a folder.

    Raises:
      UserError: there is no such corpus, a flag is missing or has no meaning for it, or it cannot be prepared.
    """
    corpus_name, config, corpus = catalogue.split_name(name)
    full = catalogue.PREFIX + (f"{corpus_name}/{config}" if config else corpus_name)
    if not data_dir:
        raise UserError(f"prepare {full} needs --data_dir, the folder of all corpora")
    if corpus.imported:
        if not source:
            raise UserError(f"prepare {full} needs --source, the folder that the corpus is downloaded as")
        for path, report in imported.prepare(full, data_dir, source=source, splits=splits).items():
            _print_bad(report, path)
    else:
        for flag, value in (("source", source), ("splits", splits)):
            if value:
                raise UserError(f"--{flag}: TensorFlow Datasets downloads {full}, all of it; allowed: no --{flag}")
        report = DataReport()
        before = prepared.find(full, data_dir)
        found = prepared.prepare(full, data_dir, report=report)
        _print_bad(report, full)
        sizes = prepared.sizes(full, data_dir)
        counts = ", ".join(f"{split} {count:,}" for split, count in sizes.items())
        tell(f"{full} {found.version} {'was' if before else 'is'} prepared in {os.fspath(found.folder)}: {counts}")
    split = next(iter(corpus.splits))
    tell(f"next: python -m hra_jax.data.cache --source seqio:{full}/{split} --data_dir {data_dir}")


def _print_bad(report: DataReport, name: str) -> None:
    for kind, rows in report.to_json()["utterances"].items():
        tell(f"{name}: {kind}: {len(rows)}, such as {rows[0]['name']}: {rows[0]['detail']}")


# --- The command ------------------------------------------------------------------------------------------------------


COMMANDS = {
    "list": cli.Command(list_corpora, "", 0, 0, ("data_dir", "modules")),
    "show": cli.Command(show, "NAME", 1, 1, ("data_dir", "modules")),
    "prepare": cli.Command(prepare, "NAME --data_dir D", 1, 1, ("data_dir", "source", "splits")),
}


def define_flags(flag_values: flags.FlagValues = FLAGS) -> None:
    """The flags of this command; `main` tells which of them each of COMMANDS takes."""
    flags.DEFINE_string("data_dir", None, "The folder of all corpora, as data.dir.", flag_values=flag_values)
    flags.DEFINE_string(
        "source",
        None,
        "prepare: the folder that the corpus is downloaded as, where it is not fetched.",
        flag_values=flag_values,
    )
    flags.DEFINE_list("splits", [], "prepare: of an imported corpus, these splits only.", flag_values=flag_values)
    flags.DEFINE_list(
        "modules", [], "list, show: modules that register Tasks and Mixtures, as data.modules.", flag_values=flag_values
    )


def main(argv: Sequence[str]) -> int | None:
    """Runs the command that the first word names."""
    return cli.run_command(COMMANDS, argv, flag_values=FLAGS)
