"""What every method costs as tasks grow: trained parameters, export and optimizer state. No weights are read or made.

python -m hra_jax.params --config quickstart --tasks 1,10,100,1000 --methods all --plot params.png

Trained parameters are affine in the tasks: shared + tasks x one task's. Full fine-tuning stands beside the adapters
twice: a fine-tuned copy of the backbone for each task, and one for all of them (what `method='full'` trains).
"""

import dataclasses
import functools
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import rich.console
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from hra_jax import cli
from hra_jax.adapters import initial, task_rows
from hra_jax.adapters import methods as adapters
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.formula import Formula, letters_in
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.config.files import validate_config
from hra_jax.config.keys import group
from hra_jax.console import near_matches, ratio, say, size, stdout, table, tell
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.stored_settings import to_json
from hra_jax.run import foundation
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import json_text
from hra_jax.training import train_state
from hra_jax.training.optimizer import OptimizerConfig

FLAGS = flags.FLAGS
FULL, FULL_JOINT = "full", "full_joint"
TASKS = ("1", "10", "100", "1000")
MOST_TASKS = int(task_rows.NO_ROW)  # rows are numbered by int32

_LABELS = {FULL: "full, one for each task", FULL_JOINT: "full, one for all tasks"}
_HEADER = ("method", "tasks", "shared", "a task", "trained", "of backbone", "of full", "export", "optimizer")
_LETTER = r"[A-Za-z]\w*"  # of a formula
_MARKS = "osD^vPX"  # of the lines of a plot


class _Cost(NamedTuple):
    """What one number of tasks costs."""

    shared: int  # parameters
    per_task: int  # parameters
    trained: int  # parameters
    export_bytes: int
    optimizer_bytes: int


def known_methods() -> tuple[str, ...]:
    """What can be counted: every registered method, and full fine-tuning in its two forms."""
    return (*adapters.METHODS, FULL, FULL_JOINT)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def account(config: ConfigDict, tasks: Iterable[int], methods: Iterable[str] | None = None) -> dict:
    """Counts what methods cost on the backbone of a configuration, each with that configuration's settings of it.

    Every number comes from the shapes of new weights and of their optimizer state, and is checked against the method's
    own formula.

    Args:
      config: a run's configuration. Of `config.backbone` only the geometry is read; 'abstract' is `pretrain.size` with
        a vocabulary of `pretrain.sentencepiece_size` pieces.
      tasks: distinct numbers of tasks, 1 to `MOST_TASKS`.
      methods: distinct names of `known_methods()`; None for the method of the configuration.

    Returns:
      What --json writes: {"backbone": {"name", "parameters", "features", "encoder"}, "methods": {name: {"label",
      "settings", "formula", "letters", "filled", "shared_parameters", "parameters_per_task", "shared_is_trained",
      "costs"}}}. "formula" and "filled" (its letters as numbers) are {"shared", "task"}. "costs" has for each number of
      tasks {"tasks", "trainable_parameters", "of_backbone" (the trained ones over those of the backbone), "of_full"
      (over those of a backbone for each task), "export_bytes", "optimizer_bytes"}. Exported bytes are those of the
      tensors (float32; of a fine-tuned backbone `export.dtype`) without the header of their file; optimizer bytes are
      those of two float32 moments for each trained parameter and of the step counts, for as many rows as tasks.

    Raises:
      UserError: a wrong number of tasks, method or configuration; no such backbone, or an abstract one of characters.
    """
    validate_config(config)
    tasks = _checked_tasks(list(tasks))
    chosen = group(config, "adapter")
    methods = _methods_of(config.method, chosen.name) if methods is None else _checked_methods(list(methods))
    optimizer = group(config, "optimizer", steps=config.steps)
    features, encoder = foundation.geometry(config.backbone, group(config, "pretrain"))
    backbone = nn.unbox(backbone_folder.abstract_params(features, encoder))
    parameters = train_state.count(backbone)
    found = {}
    for name in methods:
        if name in _LABELS:
            found[name] = _full(name, backbone, tasks, dtype=config.export.dtype, optimizer=optimizer)
        else:
            own = adapters.own_settings(config, name)
            adapter = _adapter(dataclasses.replace(chosen, name=name), own, encoder)
            costs = {
                count: _adapter_cost(adapter, encoder, count, train=chosen.train, optimizer=optimizer)
                for count in tasks
            }
            found[name] = _adapted(adapter, costs, encoder, train=chosen.train, backbone=parameters)
    return {
        "backbone": {
            "name": _name(config.backbone, config.pretrain.size),
            "parameters": parameters,
            "features": to_json(features),
            "encoder": to_json(encoder),
        },
        "methods": found,
    }


def _name(backbone: str, size: str) -> str:
    """The backbone for people: what the configuration says, with the size of an abstract one."""
    return f"{backbone} {size}" if backbone == foundation.ABSTRACT else backbone


def _checked_tasks(tasks: list) -> list[int]:
    for count in tasks:
        if type(count) is not int or not 1 <= count <= MOST_TASKS:
            raise UserError(f"tasks: {count!r}; allowed are integers from 1 to {MOST_TASKS}")
    return _distinct(tasks, "tasks")


def _checked_methods(methods: list) -> list[str]:
    for name in methods:
        if name not in known_methods():
            raise UserError(f"methods: {name!r}; {near_matches(str(name), known_methods())}")
    return _distinct(methods, "methods")


def _distinct(values: list, what: str) -> list:
    if not values or len(set(values)) < len(values):
        raise UserError(f"{what}: {','.join(map(str, values)) or 'none'}; needed is at least one, each given once")
    return values


def _methods_of(method: str, adapter: str) -> list[str]:
    if method == "pretrain":
        raise UserError("config.method is 'pretrain', which has no tasks; allowed: 'adapter', 'full'")
    return [adapter] if method == "adapter" else [FULL, FULL_JOINT]


def _adapter(settings: AdapterSettings, own: Mapping[str, Any], encoder: EncoderConfig) -> Adapter:
    """The adaptation method of settings that all methods have and of its own, checked."""
    adapter = adapters.from_config(settings, own, output_size=settings.output_size or encoder.vocab_size)
    adapters.check(adapter, encoder)
    return adapter


def _adapted(
    adapter: Adapter, costs: Mapping[int, _Cost], encoder: EncoderConfig, *, train: str, backbone: int
) -> dict:
    """The entry of an adaptation method; `backbone` is the number of the backbone's parameters."""
    return _entry(
        costs,
        label=adapter.name,
        settings=adapters.settings(adapter),
        formula=adapter.formula(),
        letters=adapter.letters(encoder),
        shared_is_trained="shared" not in train_state.TRAINED[train],
        backbone=backbone,
    )


def _adapter_cost(
    adapter: Adapter, encoder: EncoderConfig, tasks: int, *, train: str, optimizer: OptimizerConfig
) -> _Cost:
    new = functools.partial(initial.new_weights, adapter, encoder=encoder, tasks=tasks)
    weights = jax.eval_shape(new, jax.random.key(0))
    found = train_state.accounting(weights, tasks, 0, train=train)
    return _Cost(
        shared=found["shared_parameters"],
        per_task=found["parameters_per_task"],
        trained=found["trainable_parameters"],
        export_bytes=_bytes(weights),
        optimizer_bytes=_optimizer_bytes(optimizer, weights, train=train),
    )


def _full(name: str, backbone: dict, tasks: list[int], *, dtype: str, optimizer: OptimizerConfig) -> dict:
    """The entry of full fine-tuning; `backbone` is the tree of its shapes."""
    parameters = train_state.count(train_state.moving(backbone))
    stored = train_state.count(backbone) * jnp.dtype(dtype).itemsize
    moments = _optimizer_bytes(optimizer, {"backbone": backbone}, train="all")
    shared, per_task = (0, parameters) if name == FULL else (parameters, 0)
    costs = {}
    for count in tasks:
        copies = count if name == FULL else 1
        costs[count] = _Cost(shared, per_task, copies * parameters, copies * stored, copies * moments)
    formula = Formula("0", "backbone") if name == FULL else Formula("backbone", "0")
    return _entry(
        costs,
        label=_LABELS[name],
        settings={"name": FULL},
        formula=formula,
        letters={"backbone": parameters},
        shared_is_trained=True,
        backbone=parameters,
    )


def _optimizer_bytes(settings: OptimizerConfig, weights: dict, *, train: str) -> int:
    return _bytes(jax.eval_shape(lambda tree: train_state.create(tree, settings, train=train).optimizer, weights))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _entry(
    costs: Mapping[int, _Cost],
    *,
    label: str,
    settings: dict,
    formula: Formula,
    letters: Mapping[str, int],
    shared_is_trained: bool,
    backbone: int,
) -> dict:
    used = letters_in(" ".join(formula))
    shared, per_task = formula.evaluate(letters)
    return {
        "label": label,
        "settings": settings,
        "formula": formula._asdict(),
        "letters": {letter: letters[letter] for letter in sorted(used)},
        "filled": {
            part: re.sub(_LETTER, lambda match: str(letters[match[0]]), text)
            for part, text in formula._asdict().items()
        },
        "shared_parameters": shared,
        "parameters_per_task": per_task,
        "shared_is_trained": shared_is_trained,
        "costs": [
            {
                "tasks": count,
                "trainable_parameters": cost.trained,
                "of_backbone": cost.trained / backbone,
                "of_full": cost.trained / (count * backbone),
                "export_bytes": cost.export_bytes,
                "optimizer_bytes": cost.optimizer_bytes,
            }
            for count, cost in costs.items()
        ],
    }


# --- For people -------------------------------------------------------------------------------------------------------


def _formula_line(entry: Mapping[str, Any]) -> str:
    """A method's number of parameters: in letters, with numbers for them, multiplied out."""
    counts = {"shared": f"{entry['shared_parameters']:,}", "task": f"{entry['parameters_per_task']:,}"}
    sums = [_sum_of(**parts) for parts in (entry["formula"], entry["filled"], counts)]
    still = "" if entry["shared_is_trained"] or not entry["shared_parameters"] else "; the shared part is not trained"
    return f"{entry['label']}: {' = '.join(sums)}{still}"


def _sum_of(shared: str, task: str) -> str:
    """shared + tasks x task, without a term that is 0."""
    task = f"({task})" if " " in task else task
    return " + ".join([shared] * (shared != "0") + [f"tasks x {task}"] * (task != "0"))


def print_table(accounted: Mapping[str, Any], *, console: rich.console.Console | None = None) -> None:
    """Prints what `account` returned: a formula for every method, then a row for each number of tasks."""
    console = console or stdout(width=150)
    backbone = accounted["backbone"]
    say(console, f"backbone {backbone['name']}: {backbone['parameters']:,} parameters")
    for entry in accounted["methods"].values():
        say(console, _formula_line(entry))
    console.print(table(_HEADER, *map(_rows, accounted["methods"].values())))
    say(
        console,
        "'of full' compares with a fine-tuned backbone for each task. The export is counted without the headers of its "
        "files; the optimizer keeps two float32 moments for each trained parameter, and step counts.",
    )


def _rows(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a method, a row for each number of tasks."""
    counts = [f"{entry[key]:,}" for key in ("shared_parameters", "parameters_per_task")]
    return [
        (
            entry["label"],
            f"{cost['tasks']:,}",
            *counts,
            f"{cost['trainable_parameters']:,}",
            *(ratio(cost[key]) for key in ("of_backbone", "of_full")),
            *(size(cost[key]) for key in ("export_bytes", "optimizer_bytes")),
        )
        for cost in entry["costs"]
    ]


def growth_plot(accounted: Mapping[str, Any]) -> bytes:
    """A PNG of what `account` returned: trained parameters against tasks, a line for each method, both axes log."""
    backbone = accounted["backbone"]
    figure = Figure(figsize=(7.5, 5.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    methods = {name: entry for name, entry in accounted["methods"].items() if name != FULL_JOINT}
    for number, entry in enumerate(methods.values()):
        costs = sorted(entry["costs"], key=lambda cost: cost["tasks"])
        counts = [[cost[key] for cost in costs] for key in ("tasks", "trainable_parameters")]
        # Some methods cost nearly the same: a line that lies on another is thinner.
        thickness = {"ms": 10 - number, "lw": 4 - 0.5 * number, "alpha": 0.85}
        axes.loglog(*counts, label=entry["label"], marker=_MARKS[number], **thickness)
    label = f"backbone, {backbone['parameters']:,} (one for all tasks)"
    axes.axhline(backbone["parameters"], color="black", linestyle="--", lw=1, label=label)
    axes.set_xlabel("tasks")
    axes.set_ylabel("trained parameters")
    # A `$` would start mathematics.
    axes.set_title(f"backbone {backbone['name']}".replace("$", r"\$"))
    axes.grid(which="major", color="#e5e5e5", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


# --- Command ----------------------------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_list("tasks", list(TASKS), "Numbers of tasks, separated by commas.")
    flags.DEFINE_list("methods", None, f"The config's own, or 'all', or some of {', '.join(known_methods())}.")
    flags.DEFINE_string("json", None, "File to write all numbers to.")
    flags.DEFINE_string("plot", None, "PNG file to draw the growth of the parameters to.")


def _parsed_tasks(words: Sequence[str]) -> list[int]:
    for word in words:
        if not re.fullmatch(r"\d+", word, flags=re.ASCII):
            raise UserError(f"--tasks: {word!r}; allowed are integers from 1 to {MOST_TASKS}, separated by commas")
    return [int(word) for word in words]


def _all_methods(config) -> tuple[str, ...]:
    """Every method but those that cannot have the configuration's output layer."""
    output = config.adapter.output
    refused = [name for name in adapters.METHODS if not adapters.takes_output(name, output)]
    if refused:
        tell(f"not counted: {', '.join(refused)}, since adapter.output = {output!r} leaves nothing to adapt")
    return tuple(name for name in known_methods() if name not in refused)


def main(argv: Sequence[str]) -> None:
    """Counts, prints, and writes what is asked for."""
    del argv
    cli.check_output("json", FLAGS.json)
    cli.check_output("plot", FLAGS.plot, suffix=".png")
    methods = _all_methods(FLAGS.config) if FLAGS.methods == ["all"] else FLAGS.methods
    accounted = account(FLAGS.config, _parsed_tasks(FLAGS.tasks), methods)
    print_table(accounted)
    if FLAGS.json is not None:
        write_file(FLAGS.json, json_text(accounted))
    if FLAGS.plot is not None:
        write_file(FLAGS.plot, growth_plot(accounted))


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, config_flag=True))
