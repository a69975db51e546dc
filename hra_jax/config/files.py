"""Configurations: find them by name, load, check, store and compare them.

A configuration file is Python with a function `get_config()` that returns a locked `ml_collections.ConfigDict`. Every
key stands in `configs/base.py`; every other file starts from `load("base")` and holds differences only. `RULES` says
what is allowed for each key, and `validate_config` applies it before anything expensive starts.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hra_jax.config.keys import OWN_VOCABULARIES, PIECE_VOCABULARIES, RULES, SHARED_VOCABULARIES
from hra_jax.console import near_matches
from hra_jax.errors import UserError

# Installed, the files are package data in the package; in a checkout they are at the top level.
_ROOTS = (epath.Path(__file__).parents[1] / "configs", epath.Path(__file__).parents[2] / "configs")
_FOLDERS = {"configs": ".", "suites": "suites"}

# A run may be continued with other values of these groups and keys: the weights and the data order stay what they are.
RESUMABLE = ("steps", "eval", "checkpoint", "profile", "mesh", "distributed", "log")


def _root() -> epath.Path:
    for root in _ROOTS:
        if (root / "base.py").exists():
            return root
    raise UserError(f"the ready-made configurations are not installed: none of {[str(root) for root in _ROOTS]} exists")


def ready_made_names(*, kind: str = "configs") -> list[str]:
    """Returns the ready-made names, sorted: `quickstart`, ... for kind "configs"; `fsdd`, ... for kind "suites"."""
    folder = _root() / _FOLDERS[kind]
    return sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))


def near_key(key: str) -> str:
    """Returns the end of an error line about the unknown key `key`: near matches, or the groups of keys."""
    groups = tuple(dict.fromkeys(name.split(".")[0] for name in RULES))
    hint = near_matches(key, tuple(dict.fromkeys((*RULES, *groups))))
    if hint.startswith("did you mean"):
        return hint
    return f"allowed: {', '.join(name if name in RULES else f'{name}.*' for name in groups)}"


def find_config(name_or_path: str, *, kind: str = "configs") -> epath.Path:
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
    known = ready_made_names(kind=kind)
    noun = "suite" if kind == "suites" else "config"
    hint = near_matches(name.rsplit("/", 1)[-1], known)
    raise UserError(f"unknown {noun} {str(name_or_path)!r}: neither a file nor a ready-made {noun}; {hint}")


def load_config(name_or_path: str, *, kind: str = "configs") -> ConfigDict:
    """Runs `get_config()` of a configuration or suite file and locks what it returns.

    Args:
      name_or_path: as in `find_config`.
      kind: "configs" or "suites".

    Returns:
      The locked ConfigDict, not yet checked by `validate_config`.

    Raises:
      UserError: no such file, or the file is wrong (an unknown key, a value of another type, a syntax error).
    """
    path = find_config(name_or_path, kind=kind)
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


def flatten_config(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} with the keys in sorted order: `{"adapter.name": "hra", ...}`."""
    return dict(sorted(_leaves(config, "")))


def _leaves(config: ConfigDict | Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- What is allowed --------------------------------------------------------------------------------------------------


def validate_config(config: ConfigDict) -> None:
    """Checks that every key is there, no other is, and every value is of the right type and in range.

    Args:
      config: a run's configuration, as `load_config` returns it.

    Raises:
      UserError: one line that names the key, the value and what is allowed.
    """
    flat = flatten_config(config)
    for key in flat:
        if key not in RULES:
            raise UserError(f"unknown config key {key!r}; {near_key(key)}")
    for key, rule in RULES.items():
        if key not in flat:
            raise UserError(f"config key {key!r} is missing; allowed: {rule.describe()}")
        if not rule.accepts(flat[key]):
            hint = ""
            if rule.choices is not None and difflib.get_close_matches(str(flat[key]), rule.choices()):
                hint = f" ({near_matches(str(flat[key]), rule.choices())})"
            raise UserError(f"config.{key} is {flat[key]!r}; allowed: {rule.describe()}{hint}")
    for key in ("eval.suite", "eval.select_suite"):
        if flat[key]:
            _check_suite(key, flat[key])
    limit = flat["batch.buckets"][-1]
    if flat["data.max_seconds"] > limit:
        value = flat["data.max_seconds"]
        raise UserError(f"config.data.max_seconds is {value!r}; allowed: at most {limit!r}, the last of batch.buckets")
    _check_read(flat)
    if flat["export.from"] != "last" and not flat["eval.select_suite"]:
        value = flat["export.from"]
        raise UserError(f"config.export.from is {value!r}; allowed: 'last' where config.eval.select_suite is ''")
    if flat["export.from"] == "best_per_task" and (flat["method"] != "adapter" or _shares_what_trains(flat)):
        raise UserError(
            "config.export.from is 'best_per_task'; allowed: 'last', 'best' where the tasks share what is trained "
            "(config.adapter.train 'tasks' keeps what they share as it is)"
        )


def _check_read(flat: Mapping[str, Any]) -> None:
    """Refuses settings of adapters that nothing would read."""
    from hra_jax.adapters.methods import METHODS  # imported late: the classes there take their rules from this package

    if flat["adapter.output_size"] and flat["adapter.output"] not in OWN_VOCABULARIES:
        value, outputs = flat["adapter.output_size"], _either(OWN_VOCABULARIES)
        raise UserError(f"config.adapter.output_size is {value}; allowed: 0 unless config.adapter.output is {outputs}")
    if flat["adapter.output"] not in PIECE_VOCABULARIES or flat["adapter.start"]:
        # With a start the vocabularies there say how many pieces those of new tasks may have.
        value, default = flat["adapter.output_pieces"], load_config("base").adapter.output_pieces
        if value != default:
            raise UserError(
                f"config.adapter.output_pieces is {value}; allowed: {default} unless config.adapter.output is "
                f"{_either(PIECE_VOCABULARIES)} and config.adapter.start is ''"
            )
    if flat["adapter.layers"] and not METHODS[flat["adapter.name"]].adapts_layers:
        value, name = flat["adapter.layers"], flat["adapter.name"]
        raise UserError(f"config.adapter.layers is {value}; allowed: () with config.adapter.name {name!r}")
    if flat["adapter.start"] and flat["method"] != "adapter":
        value, method = flat["adapter.start"], flat["method"]
        raise UserError(f"config.adapter.start is {value!r}; allowed: '' with config.method {method!r}")
    output, new = flat["adapter.output"], flat["method"] == "adapter" and not flat["adapter.start"]
    if new and flat["adapter.train"] == "tasks" and output in SHARED_VOCABULARIES:
        raise UserError(
            "config.adapter.train is 'tasks'; allowed: 'all' where config.adapter.start is '' and "
            f"config.adapter.output {output!r} (the new output layer of all tasks would stay as it starts)"
        )


def _either(values: Sequence[str]) -> str:
    *some, last = map(repr, values)
    return f"{', '.join(some)} or {last}"


def _shares_what_trains(flat: Mapping[str, Any]) -> bool:
    from hra_jax.adapters.methods import METHODS  # imported late: the classes there take their rules from this package

    shares = (
        METHODS[flat["adapter.name"]]().own_formula().shared != "0" or flat["adapter.output"] in SHARED_VOCABULARIES
    )
    return flat["adapter.train"] == "all" and shares


def _check_suite(key: str, name: str) -> None:
    try:
        find_config(name, kind="suites")
    except UserError as error:
        raise UserError(f"config.{key} is {name!r}: {error}") from error


# --- Stored and compared ----------------------------------------------------------------------------------------------


def config_to_json(config: ConfigDict) -> str:
    """Returns the configuration as indented JSON, keys sorted; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def config_from_json(text: str) -> ConfigDict:
    """Reads what `config_to_json` wrote: lists become tuples again, and the result is locked.

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


def config_difference(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lists what forbids to continue a run of `old` with `new`.

    Args:
      old: the configuration that the run was started with.
      new: the configuration that it would be continued with.

    Returns:
      Lines "key: old -> new", sorted by key, for every difference outside of `RESUMABLE`; a key that one side lacks
      counts as one, shown as "(absent)".
    """
    before, after = flatten_config(old), flatten_config(new)
    lines = []
    for key in sorted(before | after):
        if key.split(".", 1)[0] in RESUMABLE:
            continue
        values = [repr(flat[key]) if key in flat else "(absent)" for flat in (before, after)]
        if key not in before or key not in after or before[key] != after[key]:
            lines.append(f"{key}: {values[0]} -> {values[1]}")
    return lines
