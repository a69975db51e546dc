"""Language models: made from texts, shown, and asked how likely texts are.

    python -m hra_jax.lm make --text FILE --output M.lm [--adapter DIR] [--backbone DIR] [--task NAME] [--order 6]
    python -m hra_jax.lm make --manifest M.jsonl --output M.lm [--adapter DIR] ...
    python -m hra_jax.lm make --workdir W --output M.lm [--task NAME]
    python -m hra_jax.lm make --arpa IN.arpa --output M.lm [--adapter DIR] ...
    python -m hra_jax.lm show M.lm [--adapter DIR] [--backbone DIR] [--task NAME] [--arpa OUT.arpa]
    python -m hra_jax.lm tune --adapter DIR --suite A --decode.lm=M.lm [--per_task] [--data_dir DIR] [--backbone DIR]
    python -m hra_jax.lm tune --workdir W --suite A [--decode.lm=train] [--per_task]
    python -m hra_jax.lm score M.lm --text FILE [--manifest M.jsonl] [--adapter DIR] ...

A model is one of the tokens of a vocabulary: that of the backbone (`builtin:tiny` where no other is named), or of a
task of the adapter that has its own. Texts are normalised as for training. A model gives back texts that it was made
from, as `show` shows: it is to be kept as they are.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
from absl import flags
from etils import epath
from tqdm import tqdm

from hra_jax import cli
from hra_jax.config.keys import group
from hra_jax.console import listed, say, size, stdout, table, tell
from hra_jax.data.columns import texts_of
from hra_jax.data.report import DataReport
from hra_jax.data.sources import read_sources
from hra_jax.decoding import flags as decode_flags
from hra_jax.errors import UserError, printable
from hra_jax.storage.files import read_bytes, write_file
from hra_jax.text import arpa, ngram
from hra_jax.text.labels import Labeller, Labels, joined
from hra_jax.text.ngram import LanguageModel
from hra_jax.text.normalization import normalize_texts, versioned
from hra_jax.text.smoothing import SMOOTHINGS
from hra_jax.text.vocabularies import Vocabulary, vocabulary_from_json

FLAGS = flags.FLAGS

BACKBONE = "builtin:tiny"  # where none is named
NORMALIZER = "basic"
_MOST_TEXT_BYTES = 2**34
_AT_ONCE = 65_536  # texts
_SHOWN = 12  # characters of a digest
_GZIP = b"\x1f\x8b"  # how its files begin


class Writer(NamedTuple):
    """Whose tokens a model is made of.

    Attributes:
      vocabulary: of the task, or of the backbone.
      name: for errors.
    """

    vocabulary: Vocabulary
    name: str


class _Texts(NamedTuple):
    """Normalised texts.

    Attributes:
      parts: the texts, some at a time.
      total: how many there are, where that is known.
      what: where they are from, for errors.
    """

    parts: Iterable[list[str]]
    total: int | None
    what: str


# --- Whose tokens, and which texts ------------------------------------------------------------------------------------


def writer(*, adapter: str | None, backbone: str | None, task: str | None) -> Writer:
    """The vocabulary that a task writes in.

    Args:
      adapter: folder of an exported adapter; None for the backbone alone.
      backbone: folder of the backbone, or builtin:NAME; None for what the adapter names, or `BACKBONE`.
      task: of the adapter; needed where each has a vocabulary of its own.

    Raises:
      UserError: one of them is not there, or the task is missing.
    """
    # Late: they import JAX.
    from hra_jax.adapters import adapter_folder, methods
    from hra_jax.models import backbone_folder
    from hra_jax.tasks.backbone import load_backbone
    from hra_jax.tasks.names import BASE_TASK, unknown_task
    from hra_jax.text.task_vocabularies import stored_vocabularies

    if adapter is None:
        if task not in (None, BASE_TASK):
            raise UserError(f"--task={task!r} needs --adapter")
        files = backbone_folder.load(backbone or BACKBONE, verify=False)
        return Writer(vocabulary_from_json(files.vocabulary), f"the backbone {files.info['name']!r}")
    exported = adapter_folder.read_adapter(adapter)
    if task is not None and task not in (*exported.tasks, BASE_TASK):
        raise unknown_task(task, [*exported.tasks, BASE_TASK])
    if task != BASE_TASK and methods.from_folder(exported.config).own_vocabulary:
        own, shared = stored_vocabularies(exported.config, exported.tasks_json, where=adapter)
        if shared is not None:
            return Writer(shared, f"the tasks of {adapter}")
        if task is None and len(own) != 1:
            raise UserError(f"--task is missing: each task of {adapter} has its own vocabulary; allowed: {listed(own)}")
        task = next(iter(own)) if task is None else task
        return Writer(own[task], f"task {task!r} of {adapter}")
    files = load_backbone(exported, backbone)
    return Writer(vocabulary_from_json(files.vocabulary), f"the backbone {files.info['name']!r}")


def _of_run(
    workdir: str,
    *,
    adapter: str | None,
    backbone: str | None,
    task: str | None,
    data_dir: str,
    modules: Sequence[str],
    normalizer: str | None,
) -> tuple[Writer, _Texts]:
    """The vocabulary that a run writes in, and the texts that it trains on: those of one task, where it is named."""
    from hra_jax.adapters.output_kinds import OWN_VOCABULARIES
    from hra_jax.data.learnt_vocabularies import texts_of_tasks
    from hra_jax.run import workdirs
    from hra_jax.run.read import training_sources

    config = workdirs.stored_config(workdir)
    folder = workdirs.named(workdir)
    own, whole = folder / workdirs.ADAPTER, folder / workdirs.BACKBONE
    if adapter is None and backbone is None:
        made = whole if config.method == "pretrain" else own
        if not made.exists() and (made is whole or config.adapter.output in OWN_VOCABULARIES):
            raise UserError(f"--workdir={workdir!r}: its vocabulary comes with {made}, which is not there yet")
        adapter = str(own) if own.exists() else None
    if backbone is None:
        backbone = str(whole) if whole.exists() else config.backbone
    written = writer(adapter=adapter, backbone=backbone, task=task)
    data, report = group(config, "data"), DataReport()
    # Not the modules that it names: the work directory may be a stranger's, and none of its modules is run.
    data = dataclasses.replace(data, dir=data_dir or data.dir, modules=tuple(modules))
    sources = training_sources(data, report)
    _tell_left_out(workdir, report)
    normalizer = normalizer or data.text_normalizer
    if task is None:
        parts = (normalize_texts(texts, normalizer) for texts in texts_of(source.utterances for source in sources))
        return written, _Texts(parts, sum(len(source.utterances) for source in sources), f"the run {workdir}")
    by_task = texts_of_tasks(sources, data.task_tag, [task], normalizer)
    if task not in by_task:
        raise UserError(f"--task={task!r}: the run {workdir} trains on no text of it")
    return written, _Texts(by_task[task], None, f"task {task!r} of the run {workdir}")


def _tell_left_out(where: str, report: DataReport) -> None:
    if any(report.counts().values()):
        tell(f"{where}: left out {report.summary()}")


def _given_texts(
    texts: Sequence[str], manifests: Sequence[str], *, data_dir: str, modules: Sequence[str], normalizer: str
) -> _Texts:
    """The texts of files and manifests."""
    parts = [_lines_of(file) for file in texts]
    if manifests:
        report = DataReport()
        entries = [(f"{number}", manifest, 1.0) for number, manifest in enumerate(manifests)]
        sources = read_sources(entries, report=report, data_dir=data_dir, modules=modules)
        _tell_left_out(listed(manifests, show=str), report)
        parts += texts_of(source.utterances for source in sources)
    some = (part[start : start + _AT_ONCE] for part in parts for start in range(0, len(part), _AT_ONCE))
    return _Texts(
        (normalize_texts(part, normalizer) for part in some),
        sum(map(len, parts)),
        listed([*texts, *manifests], show=str),
    )


def _lines_of(file: str) -> list[str]:
    """The lines of a text file that are not empty."""
    content = _read(file, what="a text file, a text in each line", most_bytes=_MOST_TEXT_BYTES)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{number}: is not UTF-8 ({error.reason})") from error
    return [line for line in lines if line.strip()]


def _read(file: str, *, what: str, most_bytes: int) -> bytes:
    """The content of a file, which must not be compressed."""
    content = read_bytes(file, what=what, most_bytes=most_bytes)
    if content.startswith(_GZIP):
        raise UserError(f"{file}: is compressed by gzip; allowed: {what}, unpacked")
    return content


def _labelled(texts: _Texts, vocabulary: Vocabulary) -> Iterator[tuple[list[str], Labels]]:
    """The texts and their tokens, some at a time; a bar shows how far they are."""
    labeller = Labeller(vocabulary)
    with tqdm(total=texts.total, desc="reading", unit="text", disable=None) as bar:
        for part in texts.parts:
            # A vocabulary of pieces takes its time.
            for start in range(0, len(part), 1024):
                some = part[start : start + 1024]
                yield some, labeller(some)
                bar.update(len(some))


# --- Making -----------------------------------------------------------------------------------------------------------


def make(
    *,
    output: str | None = None,
    text: Sequence[str] = (),
    manifest: Sequence[str] = (),
    workdir: str | None = None,
    arpa_file: str | None = None,
    adapter: str | None = None,
    backbone: str | None = None,
    task: str | None = None,
    data_dir: str = "",
    modules: Sequence[str] = (),
    normalizer: str | None = None,
    order: int = ngram.ORDER,
    smoothing: str = SMOOTHINGS[0],
    most_bytes: int = ngram.MOST_BYTES,
) -> None:
    """Makes a language model, writes it, and prints what it is.

    Args:
      output: the file to write, which ends in .lm.
      text: files of texts, one in each line.
      manifest: manifests, folders of shards, or seqio:NAME/SPLIT.
      workdir: a run, whose training texts are taken: those of `task` alone, where that is given.
      arpa_file: a model in the ARPA format, in place of texts.
      adapter, backbone, task: as for `writer`; with `workdir`, what the run has exported where they are not given.
      data_dir: what `{dir}` in a manifest's path stands for; '' for what the run says, or nothing.
      modules: modules that register seqio Tasks; those that a work directory names are not run.
      normalizer: of the texts; None for that of the run, or `NORMALIZER`.
      order, smoothing, most_bytes: as for `ngram.train`.

    Raises:
      UserError: nothing to make it of, or several things; or what `writer`, `ngram.train` and `arpa.from_bytes` raise.
    """
    if output is None:
        raise UserError("--output is missing; allowed: the path of a file to write that ends in .lm")
    cli.check_output("output", output, suffix=ngram.SUFFIX)
    given = {"--text or --manifest": text or manifest, "--workdir": workdir, "--arpa": arpa_file}
    named = [flag for flag, value in given.items() if value]
    if len(named) != 1:
        raise UserError(f"{' and '.join(named) or 'no text'} given; allowed: one of {', '.join(given)}")
    if arpa_file is not None:
        _check_idle(
            {
                "data_dir": data_dir,
                "modules": modules,
                "normalizer": normalizer,
                "order": order != ngram.ORDER,
                "smoothing": smoothing != SMOOTHINGS[0],
                "most_bytes": most_bytes != ngram.MOST_BYTES,
            }
        )
    ngram.check_settings(order=order, smoothing=smoothing)
    normalizer = None if normalizer is None else versioned(normalizer)
    name = epath.Path(output).stem
    if workdir is not None:
        written, texts = _of_run(
            workdir,
            adapter=adapter,
            backbone=backbone,
            task=task,
            data_dir=data_dir,
            modules=modules,
            normalizer=normalizer,
        )
    else:
        written = writer(adapter=adapter, backbone=backbone, task=task)
    if arpa_file is not None:
        content = _read(arpa_file, what="a language model in the ARPA format", most_bytes=arpa.MOST_BYTES)
        model = arpa.from_bytes(content, written.vocabulary, where=arpa_file, name=name)
        dropped = 0
    else:
        if workdir is None:
            normalizer = normalizer or NORMALIZER
            texts = _given_texts(text, manifest, data_dir=data_dir, modules=modules, normalizer=normalizer)
        labels = joined(found for _, found in _labelled(texts, written.vocabulary))
        if not len(labels.flat):
            raise UserError(f"{texts.what}: {len(labels.lengths)} texts, and no token of the vocabulary in them")
        dropped = int(labels.dropped.sum())
        model = ngram.train(
            labels, written.vocabulary, order=order, smoothing=smoothing, most_bytes=most_bytes, name=name
        )
    ngram.write(output, model)
    console = stdout()
    _print_model(console, model, where=output)
    if dropped:
        say(
            console,
            f"of {dropped:,} texts characters were left out that the vocabulary of {written.name} lacks",
        )


def _check_idle(given: Mapping[str, Any]) -> None:
    """Refuses flags that are given beside a model that is made already."""
    idle = [f"--{flag}" for flag, value in given.items() if value]
    if idle:
        raise UserError(f"{' and '.join(idle)} would do nothing: --arpa names a model, which is taken as it is")


# --- Looking ----------------------------------------------------------------------------------------------------------


def _print_model(console: rich.console.Console, model: LanguageModel, *, where: str) -> None:
    automaton = model.automaton
    made = f" from {model.texts:,} texts of {model.tokens:,} tokens" if model.texts else ""
    say(
        console,
        f"{where}: {model.name!r}, order {model.order}, {model.smoothing}{made}; digest {model.digest[:_SHOWN]}",
    )
    say(
        console,
        f"vocabulary of {automaton.vocabulary_size:,} tokens, digest {model.vocabulary_digest[:_SHOWN]}; "
        f"{automaton.states:,} states, {size(automaton.sparse_bytes)} with arcs, {size(automaton.dense_bytes)} dense",
    )
    least = [f"{few:,}" for few in model.least_counts] or ["-"] * len(model.ngrams)
    rows = zip(model.ngrams, model.left_out, least, strict=False)
    cells = [(f"{n}", f"{kept:,}", f"{out:,}", few) for n, (kept, out, few) in enumerate(rows, start=1)]
    console.print(table(("order", "n-grams", "left out", "kept from a count of"), cells))
    if model.one_discount:
        orders = ", ".join(map(str, model.one_discount))
        say(console, f"too few n-grams are rare for three discounts, so there is one: of order {orders}")


def show(
    file: str,
    *,
    adapter: str | None = None,
    backbone: str | None = None,
    task: str | None = None,
    arpa_file: str | None = None,
) -> None:
    """Prints what a language model is, and some texts that are drawn from it.

    Args:
      file: the model.
      adapter, backbone, task: as for `writer`; where none is given and the vocabulary is another one than that of
        `BACKBONE`, no texts are printed.
      arpa_file: a file to write the model to in the ARPA format.

    Raises:
      UserError: not a model, or one of another vocabulary.
    """
    cli.check_output("arpa", arpa_file, suffix=arpa.SUFFIX)
    model = ngram.read(file)
    named = adapter is not None or backbone is not None or task is not None or arpa_file is not None
    vocabulary = writer(adapter=adapter, backbone=backbone, task=task).vocabulary
    if named:
        model.check_vocabulary(vocabulary, where=file)
    console = stdout()
    _print_model(console, model, where=file)
    if ngram.vocabulary_digest(vocabulary) == model.vocabulary_digest:
        say(console, "texts drawn from it, parts of which may be as they were in those that it was made from:")
        for text in ngram.drawn_texts(model, blank_id=vocabulary.blank_id):
            say(console, f"  {printable(vocabulary.decode(text))}")
    else:
        say(
            console,
            f"no texts are drawn, as its vocabulary is not that of {BACKBONE}: --adapter and --backbone name others",
        )
    if arpa_file is not None:
        write_file(arpa_file, "".join(arpa.to_text(model, vocabulary)))
        say(console, f"written to {arpa_file}")


def score(
    file: str,
    *,
    text: Sequence[str] = (),
    manifest: Sequence[str] = (),
    adapter: str | None = None,
    backbone: str | None = None,
    task: str | None = None,
    data_dir: str = "",
    modules: Sequence[str] = (),
    normalizer: str | None = None,
) -> None:
    """Prints how likely texts are to a language model; arguments and errors as of `make`."""
    normalizer = versioned(normalizer or NORMALIZER)
    if not text and not manifest:
        raise UserError("no text given; allowed: --text FILE, --manifest M")
    model = ngram.read(file)
    written = writer(adapter=adapter, backbone=backbone, task=task)
    model.check_vocabulary(written.vocabulary, where=file)
    texts = _given_texts(text, manifest, data_dir=data_dir, modules=modules, normalizer=normalizer)
    count = words = tokens = characters = lost = 0
    total, unknown = 0.0, set[str]()
    for some, labels in _labelled(texts, written.vocabulary):
        rows = [row.tolist() for row in np.split(labels.flat, np.cumsum(labels.lengths)[:-1])]
        total += float(ngram.scores(model, rows).sum())
        for at in np.flatnonzero(labels.dropped):
            found = written.vocabulary.unknown_characters(some[at])
            unknown |= found
            lost += sum(character in found for character in some[at])
        count += len(some)
        words += sum(len(one.split()) for one in some)
        characters += sum(map(len, some))
        tokens += len(labels.flat)
    if not tokens:
        raise UserError(f"{texts.what}: {count} texts, and no token of the vocabulary in them")
    # The end of a text is predicted as a token is, and counts as one, and as a word.
    rates = [float(np.exp(-total / (symbols + count))) for symbols in (tokens, words)]
    console = stdout()
    cells = (
        f"{count:,}",
        f"{words:,}",
        f"{tokens:,}",
        *(f"{rate:.4g}" for rate in rates),
        f"{lost:,} of {characters:,}",
    )
    header = ("texts", "words", "tokens", "perplexity per token", "per word", "characters left out")
    console.print(table(header, [cells]))
    if unknown:
        say(console, f"characters that the vocabulary of {written.name} lacks: {listed(sorted(unknown))}")


# --- Tuning -----------------------------------------------------------------------------------------------------------


def tune(
    *,
    adapter: str | None = None,
    workdir: str | None = None,
    suite: str | None = None,
    backbone: str | None = None,
    data_dir: str = "",
    per_task: bool = False,
    **decode: str | None,
) -> None:
    """Finds the weights and the beam of decoding that are best on a validation suite, and stores them.

    Args:
      adapter, workdir, suite, backbone, data_dir, per_task: as for `run.tuning_stored.tune_stored`.
      **decode: the keys `decode.*`, written as in a configuration; None for those of the suite or the run.

    Raises:
      UserError: as `tune_stored`.
    """
    asked = decode_flags.parsed(decode)
    # Late: they import JAX.
    from hra_jax.run.jax_setup import setup_jax
    from hra_jax.run.tuning_stored import tune_stored

    setup_jax()
    tune_stored(
        adapter=adapter,
        workdir=workdir,
        suite=suite,
        backbone=backbone,
        data_dir=data_dir or None,
        decode=asked,
        per_task=per_task,
    )


# --- The command ------------------------------------------------------------------------------------------------------


_WHOSE = ("adapter", "backbone", "task")
_TEXTS = ("text", "manifest", "data_dir", "modules", "normalizer")
COMMANDS = {
    "make": cli.Command(
        make,
        "--text FILE|--manifest M|--workdir W|--arpa IN --output M.lm",
        0,
        0,
        ("output", *_TEXTS, "workdir", "arpa", *_WHOSE, "order", "smoothing", "most_bytes"),
    ),
    "show": cli.Command(show, "M.lm", 1, 1, (*_WHOSE, "arpa")),
    "tune": cli.Command(
        tune,
        "--adapter DIR|--workdir W --suite A",
        0,
        0,
        ("adapter", "workdir", "suite", "backbone", "data_dir", "per_task", *decode_flags.NAMES),
    ),
    "score": cli.Command(score, "M.lm --text FILE|--manifest M", 1, 1, (*_TEXTS, *_WHOSE)),
}
# Flags that are called otherwise in Python.
KEYWORDS = {"arpa": "arpa_file", **{name: name.partition(".")[2] for name in decode_flags.NAMES}}


def define_flags() -> None:
    """The flags of this command; COMMANDS tells which of them each takes."""
    flags.DEFINE_string("output", None, "make: the file to write, M.lm.")
    flags.DEFINE_multi_string("text", [], "make, score: a file with a text in each line; any number of times.")
    flags.DEFINE_multi_string(
        "manifest", [], "make, score: a manifest, a folder of shards, or seqio:NAME/SPLIT; any number of times."
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "make: a run, whose training texts are taken: of --task alone, if given. tune: a run and its export.",
    )
    flags.DEFINE_string("suite", None, "tune: name or path of a validation suite.")
    flags.DEFINE_bool("per_task", False, "tune: weights and a beam of its own for each task.")
    decode_flags.define_flags(otherwise="the suite or the run says")
    flags.DEFINE_string("arpa", None, "make: a model in the ARPA format to read. show: a file to write it to.")
    flags.DEFINE_string("adapter", None, "Folder of an exported adapter, whose tasks may have their own vocabulary.")
    flags.DEFINE_string(
        "backbone", None, f"Folder of the backbone, or builtin:NAME; else the adapter's, or {BACKBONE}."
    )
    flags.DEFINE_string("task", None, "Task of the adapter whose vocabulary it is.")
    flags.DEFINE_string(
        "data_dir", "", "What {dir} in manifests stands for, where corpora lie; with --workdir else what the run says."
    )
    flags.DEFINE_list(
        "modules", [], "Modules that register seqio Tasks, as data.modules; those that a run names are not run."
    )
    flags.DEFINE_string("normalizer", None, f"Of the texts, as data.normalizer; default: the run's, or {NORMALIZER}.")
    flags.DEFINE_integer("order", ngram.ORDER, f"make: tokens of the longest n-gram, 1 to {ngram.MOST_ORDER}.")
    flags.DEFINE_enum("smoothing", SMOOTHINGS[0], SMOOTHINGS, "make: modified Kneser-Ney, or absolute discounting.")
    flags.DEFINE_integer(
        "most_bytes", ngram.MOST_BYTES, "make: of the model; rare n-grams are left out where it would have more.", 1
    )


def main(argv: Sequence[str]) -> int | None:
    """Runs the command that the first word names; returns its exit status."""
    return cli.run_command(COMMANDS, argv, keywords=KEYWORDS)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags, takes_words=True)
