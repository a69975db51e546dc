"""Configurations: find them by name, load, check, store and compare them.

A configuration file is Python with a function `get_config()` that returns a locked `ml_collections.ConfigDict`. Every
key stands in `configs/base.py`; every other file starts from `load("base")` and holds differences only. `RULES` says
what is allowed for each key, and `validate` applies it before anything expensive starts.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from hra_jax.errors import UserError

# Installed, the files are package data beside this module; in a checkout they are at the top level.
_ROOTS = (epath.Path(__file__).parent / "configs", epath.Path(__file__).parent.parent / "configs")
_FOLDERS = {"configs": ".", "suites": "suites"}

# A run may be continued with other values of these groups and keys: the weights and the data order stay what they are.
RESUMABLE = ("steps", "eval", "checkpoint", "profile", "mesh", "log")

METHODS = ("adapter", "full", "pretrain")
ADAPTERS = ("hra",)
HEADS = ("linear", "ffn")
DTYPES = ("auto", "float32", "bfloat16")
STORAGE_DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full", "dots")
VOCABULARIES = ("characters", "sentencepiece")
SCHEDULES = ("cosine", "constant")
EXPORTS = ("last", "best")
BASE_TASK = "__base__"


def _root() -> epath.Path:
    for root in _ROOTS:
        if (root / "base.py").exists():
            return root
    raise UserError(f"the ready-made configurations are not installed: none of {[str(root) for root in _ROOTS]} exists")


def names(*, kind: str = "configs") -> list[str]:
    """Returns the ready-made names, sorted: `quickstart`, ... for kind "configs"; `fsdd`, ... for kind "suites"."""
    folder = _root() / _FOLDERS[kind]
    return sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))


def near(name: str, allowed: Sequence[str]) -> str:
    """Returns the end of an error line: the near matches of `name`, or the allowed names where none is near.

    Args:
      name: what the user wrote.
      allowed: what would have been right.

    Returns:
      For example `"did you mean 'steps'?"` or `"allowed: adapter, full, pretrain"`.
    """
    matches = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
    if not matches:
        matches = [word for word in allowed if word.split(".")[-1] == name][:3]
    if matches:
        return f"did you mean {' or '.join(map(repr, matches))}?"
    return f"allowed: {', '.join(allowed)}"


def near_key(key: str) -> str:
    """Returns the end of an error line about the unknown key `key`: near matches, or the groups of keys."""
    groups = tuple(dict.fromkeys(name.split(".")[0] for name in RULES))
    hint = near(key, tuple(dict.fromkeys((*RULES, *groups))))
    if hint.startswith("did you mean"):
        return hint
    return f"allowed: {', '.join(name if name in RULES else f'{name}.*' for name in groups)}"


def resolve(name_or_path: str, *, kind: str = "configs") -> epath.Path:
    """Finds a configuration or suite file.

    Args:
      name_or_path: the path of an existing file (which goes first), or a ready-made name such as `quickstart` or
        `suites/fsdd`; with kind "suites" the name alone is enough: `fsdd`.
      kind: "configs" or "suites".

    Returns:
      The path of the file.

    Raises:
      UserError: no such file and no such name; the line lists near matches.
    """
    path = epath.Path(name_or_path)
    if path.suffix == ".py" and path.exists():
        return path
    name = str(name_or_path).removesuffix(".py")
    folders = [_root() / _FOLDERS[kind]] + ([_root()] if kind != "configs" else [])
    for folder in folders:
        found = folder / f"{name}.py"
        if re.fullmatch(r"[\w-]+(/[\w-]+)*", name) and found.exists():
            return found
    known = names(kind=kind)
    noun = "suite" if kind == "suites" else "config"
    hint = near(name.rsplit("/", 1)[-1], known)
    raise UserError(f"unknown {noun} {str(name_or_path)!r}: neither a file nor a ready-made {noun}; {hint}")


def load(name_or_path: str, *, kind: str = "configs") -> ConfigDict:
    """Runs `get_config()` of a configuration or suite file and locks what it returns.

    Args:
      name_or_path: as in `resolve`.
      kind: "configs" or "suites".

    Returns:
      The locked ConfigDict, not yet checked by `validate`.

    Raises:
      UserError: no such file, or the file is wrong (an unknown key, a value of another type, a syntax error).
    """
    path = resolve(name_or_path, kind=kind)
    namespace: dict[str, Any] = {"__name__": f"hra_jax_config_{path.stem}", "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        config = namespace["get_config"]()
    except UserError:
        raise
    except (SyntaxError, NameError, AttributeError, KeyError, TypeError, ValueError, ImportError) as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; allowed: an ml_collections ConfigDict")
    return config.lock()


def _reason(error: Exception) -> str:
    """One line for an error inside a configuration file, without ConfigDict's dump of all fields."""
    inner = error
    while inner.args and isinstance(inner.args[0], Exception):
        inner = inner.args[0]
    text = str(inner.args[0]) if inner.args else str(inner)
    # ConfigDict writes to an unknown key with the first message, and reads one with the quoted key alone.
    unknown = re.match(r'Key "(.+?)" does not exist and cannot be added', text) or re.match(r"'(\w+)'(?:\n|$)", text)
    if unknown and isinstance(error, (KeyError, AttributeError)):
        return f"unknown key {unknown[1]!r}; {near_key(unknown[1])}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} with the keys in sorted order: `{"adapter.name": "hra", ...}`."""
    return dict(sorted(_leaves(config, "")))


def _leaves(config: ConfigDict | Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- What is allowed --------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What one key allows: in words, as a predicate, and as the list of choices where there is one."""

    describe: Callable[[], str]
    accepts: Callable[[Any], bool]
    choices: Callable[[], tuple[str, ...]] | None = None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _integer(low: int, *, extra: int | None = None, unit: str = "") -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and (value >= low or value == extra)

    also = "" if extra is None else f", or {extra}"
    return Rule(lambda: f"an integer of at least {low}{unit}{also}", accepts)


def _number(low: float, high: float = float("inf"), *, above: bool = False, unit: str = "") -> Rule:
    """A number in [low, high], or in (low, high] where `above`."""
    bottom = f"above {low}" if above else f"of at least {low}"
    top = "" if high == float("inf") else f" and at most {high}"

    def accepts(value: Any) -> bool:
        return _is_number(value) and low <= value <= high and not (above and value == low)

    return Rule(lambda: f"a number {bottom}{top}{unit}", accepts)


def _one_of(choices: Callable[[], tuple[str, ...]]) -> Rule:
    def describe() -> str:
        return ", ".join(repr(choice) for choice in choices())

    return Rule(describe, lambda value: isinstance(value, str) and value in choices(), choices)


def _text(*, empty: bool = True) -> Rule:
    kind = "a string" if empty else "a string that is not empty"
    return Rule(lambda: kind, lambda value: isinstance(value, str) and (empty or bool(value)))


def _sizes() -> tuple[str, ...]:
    from hra_jax.models.config import SIZES  # the one list of sizes; imported late, so that this module stays light

    return tuple(SIZES)


def _normalizers() -> tuple[str, ...]:
    from hra_jax.data.text import NORMALIZERS  # the one list of normalizers; imported late for the same reason

    return tuple(NORMALIZERS)


def _synthetic_sets() -> tuple[str, ...]:
    from hra_jax.data.speakers import SETS  # the one list of synthetic sets; imported late for the same reason

    return ("", *SETS)


def _is_source(value: Any) -> bool:
    if not (isinstance(value, tuple) and len(value) == 3):
        return False
    name, manifest, rate = value
    rate_ok = rate == "proportional" or (_is_number(rate) and rate > 0)
    return isinstance(name, str) and bool(name) and isinstance(manifest, str) and bool(manifest) and rate_ok


def _are_sources(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and all(_is_source(item) for item in value)
        and len({item[0] for item in value}) == len(value)
    )


def _are_tasks(value: Any) -> bool:
    if not (isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)):
        return False
    return len(set(value)) == len(value) and BASE_TASK not in value


def _are_buckets(value: Any) -> bool:
    numbers = isinstance(value, tuple) and bool(value) and all(_is_number(edge) and edge > 0 for edge in value)
    return numbers and all(low < high for low, high in zip(value, value[1:], strict=False))


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


_BOOLEAN = Rule(lambda: "True or False", lambda value: isinstance(value, bool))
_SUITE = Rule(lambda: "'' or the name or path of a suite", lambda value: isinstance(value, str))

RULES: dict[str, Rule] = {
    "seed": _integer(0),
    "steps": _integer(1),
    "method": _one_of(lambda: METHODS),
    "backbone": _text(empty=False),
    "backbone_dtype": _one_of(lambda: DTYPES),
    "dropout": _number(0, 1),
    "remat": _one_of(lambda: REMAT),
    "accumulate": _integer(1),
    "pretrain.size": _one_of(_sizes),
    "pretrain.vocabulary": _one_of(lambda: VOCABULARIES),
    "pretrain.sentencepiece_size": _integer(8),
    "adapter.name": _one_of(lambda: ADAPTERS),
    "adapter.width": _integer(1),
    "adapter.head": _one_of(lambda: HEADS),
    "adapter.head_width": _integer(1),
    "adapter.dropout": _number(0, 1),
    "data.dir": _text(),
    "data.sources": Rule(
        lambda: "a tuple of (name, manifest path, rate), names distinct, rate a number above 0 or 'proportional'",
        _are_sources,
    ),
    "data.task_tag": _text(empty=False),
    "data.tasks": Rule(lambda: f"a tuple of distinct task names ({BASE_TASK!r} is reserved), or ()", _are_tasks),
    "data.synthetic": _one_of(_synthetic_sets),
    "data.normalizer": _one_of(_normalizers),
    "data.strict": _BOOLEAN,
    "data.max_seconds": _number(0, unit=" (seconds; 0: the last of batch.buckets)"),
    "data.threads": _integer(1),
    "data.prefetch": _integer(1),
    "batch.seconds": _number(0, above=True, unit=" (seconds of audio)"),
    "batch.multiple": _integer(1),
    "batch.max_tasks": _integer(1),
    "batch.buckets": Rule(lambda: "a tuple of ascending numbers above 0 (seconds), at least one", _are_buckets),
    "augment.speed": _number(0, 0.5),
    "augment.warp": _number(0, 0.5),
    "augment.time_masks": _integer(0),
    "augment.time_mask_fraction": _number(0, 1),
    "augment.freq_masks": _integer(0),
    "augment.freq_mask_bins": _integer(0),
    "augment.noise_probability": _number(0, 1),
    "augment.noise_snr_db": Rule(lambda: "(low, high) with low <= high (dB)", _is_range),
    "optimizer.learning_rate": _number(0, above=True),
    "optimizer.warmup_steps": _integer(0),
    "optimizer.schedule": _one_of(lambda: SCHEDULES),
    "optimizer.final_fraction": _number(0, 1),
    "optimizer.b1": _number(0, 1),
    "optimizer.b2": _number(0, 1),
    "optimizer.eps": _number(0, above=True),
    "optimizer.weight_decay": _number(0),
    "optimizer.clip_controller": _number(0, above=True),
    "optimizer.clip_row": _number(0, above=True),
    "optimizer.clip_norm": _number(0, above=True),
    "checkpoint.every_steps": _integer(1),
    "checkpoint.keep_latest": _integer(1),
    "checkpoint.keep_best": _integer(0),
    "eval.every_steps": _integer(1),
    "eval.suite": _SUITE,
    "eval.select_suite": _SUITE,
    "eval.batch_seconds": _number(0, above=True, unit=" (seconds of audio)"),
    "eval.bootstrap": _integer(0),
    "export.from": _one_of(lambda: EXPORTS),
    "export.per_task_files": _BOOLEAN,
    "export.dtype": _one_of(lambda: STORAGE_DTYPES),
    "export.license": _text(),
    "mesh.data": _integer(1, extra=-1),
    "mesh.fsdp": _integer(1),
    "mesh.tensor": _integer(1),
    "mesh.slices": _integer(1),
    "profile.start_step": _integer(-1),
    "profile.steps": _integer(1),
    "log.every_steps": _integer(1),
}


def validate(config: ConfigDict) -> None:
    """Checks that every key is there, no other is, and every value is of the right type and in range.

    Args:
      config: a run's configuration, as `load` returns it.

    Raises:
      UserError: one line that names the key, the value and what is allowed.
    """
    flat = flatten(config)
    for key in flat:
        if key not in RULES:
            raise UserError(f"unknown config key {key!r}; {near_key(key)}")
    for key, rule in RULES.items():
        if key not in flat:
            raise UserError(f"config key {key!r} is missing; allowed: {rule.describe()}")
        if not rule.accepts(flat[key]):
            hint = ""
            if rule.choices is not None and difflib.get_close_matches(str(flat[key]), rule.choices()):
                hint = f" ({near(str(flat[key]), rule.choices())})"
            raise UserError(f"config.{key} is {flat[key]!r}; allowed: {rule.describe()}{hint}")
    for key in ("eval.suite", "eval.select_suite"):
        if flat[key]:
            _check_suite(key, flat[key])
    limit = flat["batch.buckets"][-1]
    if flat["data.max_seconds"] > limit:
        value = flat["data.max_seconds"]
        raise UserError(f"config.data.max_seconds is {value!r}; allowed: at most {limit!r}, the last of batch.buckets")
    if flat["export.from"] == "best" and not flat["eval.select_suite"]:
        raise UserError("config.export.from is 'best'; allowed: 'last' where config.eval.select_suite is ''")


def _check_suite(key: str, name: str) -> None:
    try:
        resolve(name, kind="suites")
    except UserError as error:
        raise UserError(f"config.{key} is {name!r}: {error}") from error


# --- Stored and compared ----------------------------------------------------------------------------------------------


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as indented JSON, keys sorted; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote: lists become tuples again, and the result is locked.

    Raises:
      UserError: the text is not a JSON object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the stored configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"the stored configuration is a JSON {type(values).__name__}; allowed: an object")
    return ConfigDict(_tuples(values)).lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def difference(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lists what forbids to continue a run of `old` with `new`.

    Args:
      old: the configuration that the run was started with.
      new: the configuration that it would be continued with.

    Returns:
      Lines "key: old -> new", sorted by key, for every difference outside of `RESUMABLE`; a key that one side lacks
      counts as one, shown as "(absent)".
    """
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted(before | after):
        if key.split(".", 1)[0] in RESUMABLE:
            continue
        values = [repr(flat[key]) if key in flat else "(absent)" for flat in (before, after)]
        if key not in before or key not in after or before[key] != after[key]:
            lines.append(f"{key}: {values[0]} -> {values[1]}")
    return lines
