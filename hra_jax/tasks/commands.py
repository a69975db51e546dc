"""The life of a task in an exported adapter: a folder such as W/adapter.

    python -m hra_jax.tasks list ADAPTER [--json PATH]
    python -m hra_jax.tasks show ADAPTER TASK [--json PATH]
    python -m hra_jax.tasks add ADAPTER TASK --init zero|mean|NAME [--backbone DIR] [--output DIR]
    python -m hra_jax.tasks add ADAPTER TASK --init zero|mean|NAME --manifest M.jsonl [--steps N] [--workdir W]
    python -m hra_jax.tasks remove ADAPTER TASK [TASK ...] [--output DIR]
    python -m hra_jax.tasks rename ADAPTER OLD NEW [--output DIR]
    python -m hra_jax.tasks export ADAPTER TASK [TASK ...] --output DIR [--with-lm] [--lm FILE ...]
    python -m hra_jax.tasks import ADAPTER FROM [--task NAME ...] [--as NEW] [--output DIR]
    python -m hra_jax.tasks export-checkpoint --workdir W --output DIR [--step N|last|best] [--backbone DIR]
        [--rename OLD=NEW ...]
    python -m hra_jax.tasks specialize ADAPTER TASK --output DIR [--backbone DIR] [--peft]
    python -m hra_jax.tasks centroids ADAPTER --manifest M.jsonl|--workdir W [--tag speaker] [--backbone DIR]
        [--output DIR]
    python -m hra_jax.tasks gate ADAPTER --suite A [--tolerance 0.01] [--check] [--backbone DIR] [--data_dir DIR]
    python -m hra_jax.tasks gate ADAPTER --results RESULTS.json [--tolerance 0.01] [--check]
    python -m hra_jax.tasks calibrate ADAPTER --suite A [--backbone DIR] [--data_dir DIR]

Without --output the adapter is changed in place. Whatever a command is not about stays the same bytes.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.adapters import methods, task_records
from hra_jax.adapters.adapter_folder import CONFIG_FILE, ExportedAdapter, read_adapter
from hra_jax.console import listed, percent, say, stdout, table, tell
from hra_jax.convert import peft_export
from hra_jax.errors import UserError
from hra_jax.storage import folders, locks
from hra_jax.storage.files import is_remote, real_path, write_file
from hra_jax.storage.json_files import json_text
from hra_jax.tasks import adding, calibrating, centroids, descriptions, gate, language_models, library, merging
from hra_jax.tasks.backbone import load_backbone
from hra_jax.tasks.names import check_name, check_tasks

FLAGS = flags.FLAGS

HARMFUL = 4  # exit status of `gate --check`
_KNOWN_FIELDS = ("name", "row", "file", "step", "wer", "parameters", "norm", "tensors")


# --- Where from and where to ------------------------------------------------------------------------------------------


def _destination(adapter: str, output: str | None, *, in_place: bool = True) -> epath.Path:
    """The folder that a command writes; refuses one that holds anything, but for the adapter that is changed."""
    if output is None:
        return epath.Path(adapter)
    folder = epath.Path(output)
    same = not is_remote(output) and real_path(output) == real_path(adapter)
    if same and in_place:
        return epath.Path(adapter)
    if not output or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"--output={output!r} is there already; allowed: a folder that is not, or an empty one")
    return folder


@contextlib.contextmanager
def _writing(adapter: str, output: str | None, command: str, *, in_place: bool = True) -> Iterator[epath.Path]:
    """The folder that a command writes, which nobody else writes meanwhile; what was half done before is mended."""
    if not is_remote(adapter) and not epath.Path(adapter).exists() and not folders.is_to_be_mended(adapter):
        raise UserError(f"{adapter!r} is not there; needed is a folder")  # the lock would make those that it lies in
    changed = adapter if output is None else output
    with locks.hold_beside(changed, f"tasks {command}"):
        folders.recover(changed, last=CONFIG_FILE)
        if output is not None:
            _mend(adapter)
        yield _destination(adapter, output, in_place=in_place)


def _mend(adapter: str) -> None:
    """Mends what a killed process left half done, unless another command is at it, or nothing may be written.

    Without the lock of the adapter, what a command is writing at the moment would be removed.
    """
    if folders.is_to_be_mended(adapter):
        with contextlib.suppress(UserError, OSError), locks.hold_beside(adapter, "recovery"):
            folders.recover(adapter, last=CONFIG_FILE)


def _read(adapter: str) -> ExportedAdapter:
    """Reads an adapter folder; what a killed process left half done is mended first, where it can be."""
    _mend(adapter)
    return read_adapter(adapter)


def _finish(folder: epath.Path, exported: ExportedAdapter, done: str) -> None:
    """Writes an adapter, and prints what was done and what is there now."""
    library.write(folder, exported)
    shared, own = library.parameters(exported)
    count = len(exported.tasks)
    tell(f"{done}; {folder} has {count:,} tasks, {shared:,} + {count:,} x {own:,} parameters")


# --- Looking ----------------------------------------------------------------------------------------------------------


def _print_header(console: rich.console.Console, adapter: str, found: Mapping[str, Any]) -> None:
    settings = ", ".join(f"{key} {value}" for key, value in found["method"].items() if key != "name")
    backbone, count = found["backbone"], len(found["tasks"])
    shared, own = found["shared_parameters"], found["parameters_per_task"]
    total = shared + count * own
    for line in (
        f"{adapter}: method {found['method']['name']}{f' ({settings})' if settings else ''}",
        f"backbone {backbone['name']}, fingerprint {backbone['fingerprint'][:12]}",
        f"parameters: {shared:,} shared (norm {found['shared_norm']:.4g}) + {count:,} tasks x {own:,} = {total:,}, "
        f"{total / found['backbone_parameters']:.2%} of the backbone's {found['backbone_parameters']:,}",
    ):
        say(console, line)


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    step = "-" if entry["step"] is None else str(entry["step"])
    rate = percent(entry["wer"] if isinstance(entry["wer"], (int, float)) else None)
    return (entry["name"], str(entry["row"]), step, rate, f"{entry['parameters']:,}", f"{entry['norm']:.4g}")


def list_tasks(adapter: str, *, json: str | None = None) -> None:
    """Prints a table of the tasks of an adapter folder, and writes `descriptions.describe` to `json` where it is given.

    Raises:
      UserError: not an adapter folder, or `json` is a folder.
    """
    cli.check_output("json", json)
    exported = _read(adapter)
    found = descriptions.describe(exported)
    console = stdout()
    _print_header(console, adapter, found)
    header = ("task", "row", "step", "WER", "parameters", "norm")
    console.print(table(header, [_cells(entry) for entry in found["tasks"]]))
    untrained = [entry["name"] for entry in found["tasks"] if descriptions.is_untrained(entry)]
    if untrained:
        say(console, f"without a training step: {listed(untrained)}")
    models = exported.records.get(task_records.LM, {})
    if models:
        say(console, f"with a language model for: {'all tasks' if '' in models else listed(sorted(models))}")
    aside = task_records.set_aside(found["tasks"])
    if aside:
        say(console, f"set aside, and recognised by the backbone alone: {listed(sorted(aside))}")
    if json is not None:
        write_file(json, json_text(found))


def show(adapter: str, task: str, *, json: str | None = None) -> None:
    """Prints everything known of one task, and writes `descriptions.describe_task` to `json` where that is given.

    Raises:
      UserError: not an adapter folder, an unknown task, or `json` is a folder.
    """
    cli.check_output("json", json)
    exported = _read(adapter)
    found = descriptions.describe_task(exported, task)
    console = stdout()
    _print_header(console, adapter, descriptions.describe(exported))
    name, row, step, rate, count, norm = _cells(found)
    say(console, f"task {name!r}: row {row}, trained at step {step}, WER {rate}, {count} parameters of norm {norm}")
    if model := language_models.name_of(exported, task):
        say(console, f"language model {model}")
    for key in sorted(found.keys() - _KNOWN_FIELDS):
        text = json_text(found[key]).strip() if not isinstance(found[key], str) else found[key]
        say(console, f"{key}: {' '.join(text.split())}")
    rows = [
        (path, " x ".join(map(str, t["shape"])), t["dtype"], *(f"{t[key]:.4g}" for key in ("norm", "largest")))
        + (t["sha256"][:12],)
        for path, t in found["tensors"].items()
    ]
    console.print(table(("tensor", "shape", "dtype", "norm", "largest", "SHA-256"), rows))
    if json is not None:
        write_file(json, json_text(found))


# --- A new task -------------------------------------------------------------------------------------------------------


def add(
    adapter: str,
    task: str,
    *,
    init: str | None,
    output: str | None = None,
    backbone: str | None = None,
    manifest: str | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    workdir: str | None = None,
) -> int:
    """Adds a task to an adapter folder, and with a manifest trains it: its own parameters alone.

    Args:
      adapter: the folder.
      task: name of the new task.
      init: 'zero' (no effect), 'mean' of the tasks, or the name of the task to copy.
      output: where the result goes; None changes the folder in place.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.
      manifest: the recordings to train on, every one of them as this task whatever its tags say.
      steps: optimizer steps; as `adding.train_task`.
      learning_rate: as `adding.train_task`.
      workdir: as `adding.train_task`.

    Returns:
      The exit status: 0, or 75 after SIGTERM and 130 after Ctrl-C, when the adapter is as it was.

    Raises:
      UserError: a name that is not allowed or in use, another backbone, a bad manifest, or a setting without use.
    """
    if init is None:
        raise UserError("add needs --init; allowed: zero, mean, or the name of a task")
    training: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "workdir": workdir}
    for name, value in training.items():
        if manifest is None and value is not None:
            raise UserError(f"--{name}={value} has no use without --manifest, the recordings to train on")
    if manifest is None and init != "zero" and backbone is not None:
        raise UserError(f"--backbone={backbone!r} has no use with --init {init}; allowed: with zero or --manifest")
    # Held while it trains too: the adapter that the task was trained for is the one that gets it.
    with _writing(adapter, output, "add") as destination:
        exported = read_adapter(adapter)
        check_name(task, exported.tasks)
        adding.check_start(exported, init)
        if manifest is None:
            result = adding.started_task(exported, task, init=init, backbone=backbone)
        else:
            status, trained = adding.trained_task(
                adapter, exported, task, init=init, manifest=manifest, backbone=backbone, **training
            )
            if trained is None:
                again = "the same command continues" if workdir else "a run with --workdir could be continued"
                tell(f"stopped; {adapter} is as it was; {again}")
                return status
            result = trained
        entry = result.tasks_json[-1]
        how = f"started as {init}" + (f", trained for {entry['step']} steps" if manifest else "")
        _finish(destination, result, f"added {task!r} in row {entry['row']}, {how}")
    return 0


# --- Tasks that are there ---------------------------------------------------------------------------------------------


def remove(adapter: str, *tasks: str, output: str | None = None) -> None:
    """Takes tasks out of an adapter folder.

    Raises:
      UserError: an unknown task, or an output that is there already.
    """
    with _writing(adapter, output, "remove") as destination:
        result = library.removed(read_adapter(adapter), tasks)
        _finish(destination, result, f"removed {listed(tasks)}")


def rename(adapter: str, old: str, new: str, *, output: str | None = None) -> None:
    """Gives a task of an adapter folder another name.

    Raises:
      UserError: an unknown task, a name that is not allowed or in use, or an output that is there already.
    """
    with _writing(adapter, output, "rename") as destination:
        result = library.renamed(read_adapter(adapter), old, new)
        _finish(destination, result, f"renamed {old!r} to {new!r}")


def export_tasks(
    adapter: str, *tasks: str, output: str | None, with_lm: bool = False, models: Sequence[str] = ()
) -> None:
    """Writes an adapter folder with some tasks of another one and all that they share.

    Args:
      adapter: the folder.
      *tasks: names.
      output: the folder to write.
      with_lm: whether the language models of the tasks go with them, which give back the texts that they were made of.
      models: files of these models; none takes what the adapter has, or the run beside it.

    Raises:
      UserError: an unknown task, or no output, or one that is there already; a language model that is not there.
    """
    _check_output_given("export", output)
    if models and not with_lm:
        raise UserError(f"--lm={models[0]!r} has no use without --with-lm, which puts language models into the adapter")
    with _writing(adapter, output, "export", in_place=False) as destination:
        result = library.picked(read_adapter(adapter), tasks)
        put = language_models.with_models(result, adapter, models) if with_lm else None
        result = put or language_models.without(result)
        what = " with their language models" if with_lm else ""
        _finish(destination, result, f"exported {listed(result.tasks)}{what}")


def _check_output_given(command: str, output: str | None) -> None:
    if output is None:
        raise UserError(f"{command} needs --output, the folder to write")


def import_tasks(
    adapter: str,
    source: str,
    *more: str,
    tasks: Sequence[str] = (),
    new_name: str | None = None,
    output: str | None = None,
) -> None:
    """Brings tasks of another adapter folder in.

    Args:
      adapter: the folder that gets them.
      source: the folder that they come from; of the same backbone, method, vocabulary and shared part.
      *more: as `tasks`.
      tasks: names; none means all of the source.
      new_name: what the task is called here; for one task alone.
      output: where the result goes; None changes the folder in place.

    Raises:
      UserError: an adapter of another kind, an unknown task, a name in use, or an output that is there already.
    """
    with _writing(adapter, output, "import") as destination:
        other = read_adapter(source)
        names = list(dict.fromkeys((*tasks, *more))) or list(other.tasks)
        result = library.merged_in(read_adapter(adapter), other, names, new_name=new_name)
        called = "" if new_name is None else f" as {new_name!r}"
        _finish(destination, result, f"imported {listed(names)}{called} from {source}")


def specialize(adapter: str, task: str, *, output: str | None, backbone: str | None = None, peft: bool = False) -> None:
    """Writes one task by itself: merged into a backbone folder, or where that is impossible an adapter of this task.

    Args:
      adapter: the folder.
      task: one of its tasks.
      output: the folder to write.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names. Unused without merging.
      peft: write an adapter folder of PEFT's instead, for the published model that the backbone was converted from.

    Raises:
      UserError: an unknown task, another backbone, an output that is there already, or what PEFT does not have.
    """
    _check_output_given("specialize", output)
    with _writing(adapter, output, "specialize", in_place=False) as destination:
        exported = read_adapter(adapter)
        check_tasks([task], exported.tasks)
        method = methods.from_folder(exported.config)
        reason = None if peft else merging.why_not_merged(method)
        if reason is not None:
            alone = language_models.without(library.picked(exported, [task]))
            _finish(destination, alone, f"exported {task!r} alone; {reason}")
            return
        files = load_backbone(exported, backbone)
        if peft:
            count = folders.replace_folder(
                destination, lambda fresh: peft_export.write(fresh, exported, task, method, files)
            )
            tell(f"{task!r} for PEFT: {count} modules, rank {exported.config['method']['rank']}; {destination}")
            return
        name, fingerprint = folders.replace_folder(
            destination, lambda fresh: merging.write_merged(fresh, exported, task, files)
        )
        trained_on = exported.config["backbone"]
        tell(
            f"merged {task!r} ({method.name}) into {trained_on['name']} ({trained_on['fingerprint'][:12]}): "
            f"{destination} is the backbone {name!r}, fingerprint {fingerprint[:12]}"
        )


def add_centroids(
    adapter: str,
    *,
    manifest: str | None = None,
    workdir: str | None = None,
    tag: str | None = None,
    backbone: str | None = None,
    output: str | None = None,
) -> None:
    """Tells an adapter folder how its tasks sound, by which the task `__auto__` finds that of a recording.

    Args:
      adapter: the folder.
      manifest: recordings of its tasks.
      workdir: in place of it, the work directory of a run, for the recordings that it was trained on.
      tag: which names the task of a recording; None for 'speaker', or what the run had.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.
      output: where the result goes; None changes the folder in place.

    Raises:
      UserError: not an adapter folder, no recordings, or none of a task that has no centroid yet.
    """
    sources, wanted = centroids.utterances_of(manifest, workdir, tag=tag)
    with _writing(adapter, output, "centroids") as destination:
        read = read_adapter(adapter)
        result, heard = centroids.with_centroids(adapter, read, sources, tag=wanted, backbone=backbone)
        _finish(destination, result, f"heard the tasks {listed(heard)}")


def gate_tasks(
    adapter: str,
    *,
    suite: str | None = None,
    results: str | None = None,
    tolerance: float = 0.0,
    check: bool = False,
    backbone: str | None = None,
    data_dir: str | None = None,
    output: str | None = None,
) -> int:
    """Sets the tasks aside that a validation suite finds worse with the adapter than without.

    Args:
      adapter: the folder.
      suite: name or path of the suite, which is recognised with the adapter and without.
      results: in place of it, the results.json of such an evaluation of this adapter.
      tolerance: by how much a task may be worse: a fraction of words, by the point estimate.
      check: whether nothing is written, and the exit status tells.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.
      data_dir: what `{dir}` in the manifests of the suite stands for.
      output: where the result goes; None changes the folder in place.

    Returns:
      The exit status: 0; with `check`, `HARMFUL` where a task is worse and not set aside, or was not scored.

    Raises:
      UserError: not an adapter folder, a suite that cannot be scored or is not of its tasks, or flags that do not go
        together.
    """
    if (suite is None) == (results is None):
        raise UserError("gate needs --suite, a validation suite, or else --results, what an evaluation wrote")
    if results is not None and (backbone is not None or data_dir is not None):
        raise UserError("--backbone and --data_dir have no use with --results: nothing is recognised")
    with contextlib.nullcontext(None) if check else _writing(adapter, output, "gate") as destination:
        exported = _read(adapter)
        if results is not None:
            found = gate.stored_results(results, exported)
        else:
            found = gate.scored(exported, str(suite), backbone=backbone, data_dir=data_dir)
        decisions = gate.decide(found, tasks=exported.tasks, tolerance=tolerance)
        for decision in decisions:
            tell(decision.line)
        silent = gate.not_decided(found)
        tell(*silent)
        worse = [decision.task for decision in decisions if decision.worse]
        if destination is None:
            aside = task_records.set_aside(exported.tasks_json)
            harmful = [name for name in worse if name not in aside]
            for name in harmful:
                tell(f"task {name!r} is worse with the adapter by more than {tolerance:g}, and is not set aside")
            return HARMFUL if harmful or silent else 0
        kept = gate.gated(exported, decisions, suite=found["suite"], tolerance=tolerance)
        _finish(destination, kept, f"set aside by {found['suite']!r}: {listed(worse)}")
    return 0


def calibrate(
    adapter: str,
    *,
    suite: str | None = None,
    backbone: str | None = None,
    data_dir: str | None = None,
    output: str | None = None,
) -> None:
    """Measures on a validation suite how sure the words of the tasks are, and by how much they come late.

    Args:
      adapter: the folder.
      suite: name or path of the suite.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.
      data_dir: what `{dir}` in the manifests of the suite stands for.
      output: where the result goes; None changes the folder in place.

    Raises:
      UserError: no suite, or as `calibrating.measured`.
    """
    if suite is None:
        raise UserError("calibrate needs --suite, a validation suite")
    with _writing(adapter, output, "calibrate") as destination:
        exported = _read(adapter)
        found = calibrating.measured(adapter, exported, suite, backbone=backbone, data_dir=data_dir)
        tell(*calibrating.lines(found))
        _finish(destination, calibrating.with_calibrations(exported, found), calibrating.summary(found))


def export_checkpoint(
    *,
    workdir: str | None,
    output: str | None,
    step: str | None = None,
    backbone: str | None = None,
    renames: Sequence[str] = (),
) -> None:
    """Writes the adapter of any checkpoint of a run, or the backbone that it trained.

    Args:
      workdir: the work directory of the run.
      output: the folder to write.
      step: last, best or a number; None for last.
      backbone: as for `specialize`; None takes what the run names.
      renames: 'OLD=NEW' for each task that is to have another name in the adapter.

    Raises:
      UserError: as `hra_jax.run.checkpoint_export.export_checkpoint`; no output, or one that is there already.
    """
    from hra_jax.run import checkpoint_export  # it imports what training needs

    if workdir is None:
        raise UserError("export-checkpoint needs --workdir, the work directory of the run")
    _check_output_given("export-checkpoint", output)
    with _writing(workdir, output, "export-checkpoint", in_place=False) as destination:
        wanted = step or "last"
        number, tasks = checkpoint_export.export_checkpoint(
            workdir, destination, step=int(wanted) if wanted.isdigit() else wanted, backbone=backbone, renames=renames
        )
        what = listed(tasks) if tasks else "a backbone"
        tell(f"exported checkpoint {number} of {workdir} to {destination}: {what}")


# --- The command ------------------------------------------------------------------------------------------------------


_MANY = float("inf")
COMMANDS = {
    "list": cli.Command(list_tasks, "ADAPTER", 1, 1, ("json",)),
    "show": cli.Command(show, "ADAPTER TASK", 2, 2, ("json",)),
    "add": cli.Command(
        add,
        "ADAPTER TASK --init zero|mean|NAME",
        2,
        2,
        ("init", "output", "backbone", "manifest", "steps", "learning_rate", "workdir"),
    ),
    "remove": cli.Command(remove, "ADAPTER TASK [TASK ...]", 2, _MANY, ("output",)),
    "rename": cli.Command(rename, "ADAPTER OLD NEW", 3, 3, ("output",)),
    "export": cli.Command(export_tasks, "ADAPTER TASK [TASK ...] --output DIR", 2, _MANY, ("output", "with-lm", "lm")),
    "export-checkpoint": cli.Command(
        export_checkpoint, "--workdir W --output DIR", 0, 0, ("workdir", "output", "step", "backbone", "rename")
    ),
    "import": cli.Command(import_tasks, "ADAPTER FROM [--task NAME ...]", 2, _MANY, ("task", "as", "output")),
    "centroids": cli.Command(
        add_centroids,
        "ADAPTER --manifest M.jsonl|--workdir W",
        1,
        1,
        ("manifest", "workdir", "tag", "backbone", "output"),
    ),
    "gate": cli.Command(
        gate_tasks,
        "ADAPTER --suite A",
        1,
        1,
        ("suite", "results", "tolerance", "check", "backbone", "data_dir", "output"),
    ),
    "calibrate": cli.Command(calibrate, "ADAPTER --suite A", 1, 1, ("suite", "backbone", "data_dir", "output")),
    "specialize": cli.Command(specialize, "ADAPTER TASK --output DIR", 2, 2, ("output", "backbone", "peft")),
}
# Flags that are called otherwise in Python.
_KEYWORDS = {"task": "tasks", "as": "new_name", "rename": "renames", "with-lm": "with_lm", "lm": "models"}


def define_flags(flag_values: flags.FlagValues = FLAGS) -> None:
    """The flags of this command; `main` tells which of them each of COMMANDS takes."""
    strings = {
        "json": "list, show: a file to write everything to.",
        "output": "The folder to write; without it the adapter is changed in place (where that is possible).",
        "tag": "centroids: manifest tag that names the task of a recording; speaker if not given.",
        "backbone": "add, specialize, centroids, gate, calibrate, export-checkpoint: its folder, or builtin:NAME.",
        "suite": "gate, calibrate: name or path of the validation suite.",
        "results": "gate: in place of --suite, the results.json of an evaluation of this adapter.",
        "data_dir": "gate, calibrate: what {dir} in the suite's manifests stands for.",
        "init": "add: what the task starts as: zero (no effect), mean of the tasks, or the name of a task.",
        "manifest": "add: recordings to train the task on; what tasks share stays as it is. centroids: of all tasks.",
        "workdir": "add: where it trains; without it a temporary folder. export-checkpoint, centroids: of the run.",
        "step": "export-checkpoint: last (if not given), best, or the number of a checkpoint.",
        "as": "import: another name for the task.",
    }
    for name, text in strings.items():
        flags.DEFINE_string(name, None, text, flag_values=flag_values)
    flags.DEFINE_bool("check", False, "gate: write nothing; status 4 where a task is worse.", flag_values=flag_values)
    flags.DEFINE_float(
        "tolerance", 0.0, "gate: how much worse a task may be, a fraction of words.", 0.0, 1.0, flag_values=flag_values
    )
    flags.DEFINE_bool(
        "with-lm", False, "export: put the tasks' language models into the adapter.", flag_values=flag_values
    )
    flags.DEFINE_multi_string("lm", [], "export: a language model to put there, any number.", flag_values=flag_values)
    flags.DEFINE_bool("peft", False, "specialize: write a LoRA as PEFT reads it.", flag_values=flag_values)
    flags.DEFINE_integer("steps", None, "add: optimizer steps; 300 if not given.", 1, flag_values=flag_values)
    flags.DEFINE_float("learning_rate", None, "add: peak learning rate.", 0.0, flag_values=flag_values)
    flags.DEFINE_multi_string("task", [], "import: a task to bring in, any number of times.", flag_values=flag_values)
    flags.DEFINE_multi_string(
        "rename",
        [],
        "export-checkpoint: OLD=NEW, any number of times.",
        flag_values=flag_values,
    )


def main(argv: Sequence[str]) -> int | None:
    """Runs the command that the first word names; returns its exit status."""
    return cli.run_command(COMMANDS, argv, flag_values=FLAGS, keywords=_KEYWORDS)
