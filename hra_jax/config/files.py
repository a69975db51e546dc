"""Configurations: find them by name, load, check, store and compare them.

A configuration file is Python with a function `get_config()` that returns a locked `ml_collections.ConfigDict`. Every
key is in `load("base")`, from which every other file starts to hold differences only. `keys.rules` says what is
allowed for each key, and `validate_config` applies it before anything expensive starts.
"""

import contextvars
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hra_jax.config import keys, renamed
from hra_jax.config.keys import flatten_config
from hra_jax.console import did_you_mean, near_matches
from hra_jax.errors import UserError
from hra_jax.storage.json_files import check_fields, parse_json, read_text

# Installed, the files are package data in the package; in a checkout they are at the top level.
_ROOTS = (epath.Path(__file__).parents[1] / "configs", epath.Path(__file__).parents[2] / "configs")
_FOLDERS = {"configs": ".", "suites": "suites"}

FORMAT = 2  # of config.json; 1 has no number, and keys that `renamed` knows

# A run may be continued with other values of these groups and keys: the weights and the data order stay what they are.
RESUMABLE = (
    "steps",
    "eval",
    "decode",
    "checkpoint",
    "profile",
    "mesh",
    "distributed",
    "optimizer.max_skipped_steps",
    "export.hashes",
    "export.voices",
)


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
    known = tuple(keys.rules())
    groups = tuple(dict.fromkeys(name.split(".")[0] for name in known))
    hint = did_you_mean(key, dict.fromkeys((*known, *groups)))
    return hint or f"allowed: {', '.join(name if name in known else f'{name}.*' for name in groups)}"


def find_config(name_or_path: str, *, kind: str = "configs") -> epath.Path:
    """Finds a configuration or suite file.

    Args:
      name_or_path: the path of an existing file (which goes first; W/config.json of a run is one), or a ready-made name
        such as `quickstart` or `suites/fsdd`; with kind "suites" the name alone is enough: `fsdd`.
      kind: "configs" or "suites".

    Returns:
      The path of the file.

    Raises:
      UserError: no such file and no such name; the line lists near matches.
    """
    path = epath.Path(name_or_path)
    if path.suffix in (".py", ".json") and path.exists():
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


# Whether the file that asks for a configuration is one itself: it may then set keys of earlier versions.
_loading = contextvars.ContextVar("loading", default=False)


def load_config(name_or_path: str, *, kind: str = "configs", unfinished: bool = False) -> ConfigDict:
    """Runs `get_config()` of a configuration or suite file and locks what it returns.

    Args:
      name_or_path: as in `find_config`.
      kind: "configs" or "suites".
      unfinished: for who goes on to set keys, those of earlier versions too, and then calls `renamed.settle`.

    Returns:
      The locked ConfigDict, not yet checked by `validate_config`. Keys of earlier versions are translated, with a line
      on stderr each.

    Raises:
      UserError: no such file, or the file is wrong (an unknown key, a value of another type, a syntax error).
    """
    path = find_config(name_or_path, kind=kind)
    if path.suffix == ".json":
        return config_from_json(read_text(path))
    namespace: dict[str, Any] = {"__name__": f"hra_jax_config_{path.stem}", "__file__": str(path)}
    inside = _loading.get()
    token = _loading.set(True)
    try:
        # As bytes: Python then knows a byte order mark, and the encoding that a file names in its first lines.
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        config = namespace["get_config"]()
    except UserError:
        raise
    except (SyntaxError, NameError, AttributeError, KeyError, TypeError, ValueError, ImportError) as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    finally:
        _loading.reset(token)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; allowed: an ml_collections ConfigDict")
    config.lock()
    if kind == "configs" and "optimizer" in config:  # of a run, and no suite
        (renamed.accept_old_keys if inside or unfinished else renamed.settle)(config)
    return config


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


def config_of(values: Mapping[str, Any], *, where: str) -> ConfigDict:
    """The configuration whose keys have these values, and all others their defaults; locked and checked.

    Args:
      values: {dotted key: value}; a list stands for a tuple.
      where: what an error calls `values`.

    Raises:
      UserError: an unknown key, or a value that is not allowed.
    """
    known = keys.rules()
    for key in values:
        if key not in known:
            raise UserError(f"{where}[{key!r}]: unknown config key; {near_key(key)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    config = keys.nest_config({**keys.defaults(), **given})
    validate_config(config)
    return config


# --- What is allowed --------------------------------------------------------------------------------------------------


def validate_config(config: ConfigDict, *, stored: bool = False) -> None:
    """Checks that every key is there, no other is, and every value is of the right type and in range.

    Args:
      config: a run's configuration, as `load_config` returns it.
      stored: whether it was read from a work directory. Settings that nothing reads were refused, against the defaults
        of then, when it was written; the defaults of now say nothing about it.

    Raises:
      UserError: one line that names the key, the value and what is allowed.
    """
    flat, rules = flatten_config(config), keys.rules()
    for key in flat:
        if key not in rules:
            raise UserError(f"unknown config key {key!r}; {near_key(key)}")
    for key, rule in rules.items():
        if key not in flat:
            raise UserError(f"config key {key!r} is missing; allowed: {rule.describe()}")
        if not rule.accepts(flat[key]):
            hint = "" if rule.choices is None else did_you_mean(str(flat[key]), rule.choices())
            raise UserError(f"config.{key} is {flat[key]!r}; allowed: {rule.describe()}{hint and f' ({hint})'}")
    for key in ("eval.suite", "eval.select_suite"):
        if flat[key]:
            _check_suite(key, flat[key])
    buckets, what = flat["batch.buckets"], "the last of batch.buckets"
    if isinstance(buckets, int):
        limit, what = flat["batch.seconds"] / flat["batch.multiple"], "batch.seconds / batch.multiple"
    else:
        limit = buckets[-1]
    if flat["data.max_seconds"] > limit:
        value = flat["data.max_seconds"]
        raise UserError(f"config.data.max_seconds is {value!r}; allowed: at most {limit!r}, {what}")
    if not stored:
        _check_read(flat)
    from hra_jax.adapters.settings import shares_what_trains  # imported late, as the classes of `keys.groups`

    if flat["export.step"] != "last" and not flat["eval.select_suite"]:
        value = flat["export.step"]
        raise UserError(f"config.export.step is {value!r}; allowed: 'last' where config.eval.select_suite is ''")
    if flat["export.step"] == "best_per_task" and (flat["method"] != "adapter" or shares_what_trains(flat)):
        raise UserError(
            "config.export.step is 'best_per_task'; allowed: 'last', 'best' where the tasks share what is trained "
            "(config.adapter.train 'tasks' keeps what they share as it is)"
        )


def _check_read(flat: Mapping[str, Any]) -> None:
    """Refuses settings of adapters that nothing would read."""
    from hra_jax.adapters.methods import METHODS  # imported late, as the classes of `keys.groups`
    from hra_jax.adapters.output_kinds import OWN_VOCABULARIES, PIECE_VOCABULARIES, SHARED_VOCABULARIES
    from hra_jax.training.train_state import TRAINED

    if flat["adapter.output_size"] and flat["adapter.output"] not in OWN_VOCABULARIES:
        value, outputs = flat["adapter.output_size"], _either(OWN_VOCABULARIES)
        raise UserError(f"config.adapter.output_size is {value}; allowed: 0 unless config.adapter.output is {outputs}")
    if flat["adapter.output"] not in PIECE_VOCABULARIES or flat["adapter.start"]:
        # With a start the vocabularies there say how many pieces those of new tasks may have.
        value, default = flat["adapter.output_pieces"], keys.defaults()["adapter.output_pieces"]
        if value != default:
            raise UserError(
                f"config.adapter.output_pieces is {value}; allowed: {default} unless config.adapter.output is "
                f"{_either(PIECE_VOCABULARIES)} and config.adapter.start is ''"
            )
    if flat["adapter.layers"] and not METHODS[flat["adapter.name"]].adapts_layers:
        value, name = flat["adapter.layers"], flat["adapter.name"]
        raise UserError(f"config.adapter.layers is {value}; allowed: () with config.adapter.name {name!r}")
    if flat["adapter.dropout"] and flat["method"] == "adapter" and not METHODS[flat["adapter.name"]].uses_dropout:
        value, name = flat["adapter.dropout"], flat["adapter.name"]
        raise UserError(f"config.adapter.dropout is {value}; allowed: 0.0 with config.adapter.name {name!r}")
    if flat["data.draw"] == "tasks" and flat["method"] != "adapter":
        raise UserError(f"config.data.draw is 'tasks'; allowed: 'utterances' with config.method {flat['method']!r}")
    if flat["data.draw"] == "tasks" and len(flat["data.sources"]) > 1:
        for name, _, rate in flat["data.sources"]:
            if rate != "proportional":
                raise UserError(
                    f"config.data.sources: the rate of {name!r} is {rate!r}; allowed: 'proportional' where "
                    "config.data.draw is 'tasks', as every task then has equally many updates"
                )
    for key, off in (("data.groups", ""), ("data.temperature", 1.0), ("data.cap_rows", 0)):
        if flat["data.draw"] == "tasks" and flat[key] != off:
            raise UserError(
                f"config.{key} is {flat[key]!r}; allowed: {off!r} where config.data.draw is 'tasks', as every task "
                "then has equally many updates"
            )
    if flat["adapter.start"] and flat["method"] != "adapter":
        value, method = flat["adapter.start"], flat["method"]
        raise UserError(f"config.adapter.start is {value!r}; allowed: '' with config.method {method!r}")
    output, new = flat["adapter.output"], flat["method"] == "adapter" and not flat["adapter.start"]
    if new and "shared" in TRAINED[flat["adapter.train"]] and output in SHARED_VOCABULARIES:
        raise UserError(
            f"config.adapter.train is {flat['adapter.train']!r}; allowed: 'all' where config.adapter.start is '' and "
            f"config.adapter.output {output!r} (the new output layer of all tasks would stay as it starts)"
        )


def _either(values: Sequence[str]) -> str:
    *some, last = map(repr, values)
    return f"{', '.join(some)} or {last}"


def _check_suite(key: str, name: str) -> None:
    try:
        find_config(name, kind="suites")
    except UserError as error:
        raise UserError(f"config.{key} is {name!r}: {error}") from error


# --- Stored and compared ----------------------------------------------------------------------------------------------


def config_to_json(config: ConfigDict) -> str:
    """Returns the configuration as indented JSON with the number of its format, keys sorted; tuples become lists."""
    return json.dumps({"format": FORMAT, **config.to_dict()}, indent=2, sort_keys=True) + "\n"


def config_from_json(text: str, *, notify: bool = True) -> ConfigDict:
    """Reads what `config_to_json` wrote: lists become tuples again, and the result is locked.

    What an earlier version wrote is translated: old keys with the values that acted, and keys that it lacks as they
    were meant then.

    Args:
      text: of a config.json.
      notify: whether a line on stderr tells of each old key that had been set.

    Raises:
      UserError: the text is not a JSON object, or was written by a newer version.
    """
    found = _translated(text)
    if notify:
        renamed.tell(found.notices.values())
    _check_groups(found.flat)
    return keys.nest_config(found.flat)


def _check_groups(flat: Mapping[str, Any]) -> None:
    """Refuses, with a UserError, a value in the place of a group of keys."""
    groups = {key[:at] for key in flat for at, letter in enumerate(key) if letter == "."}
    for key in sorted(groups & flat.keys()):
        raise UserError(f"the stored configuration: {key!r} is {flat[key]!r:.80}; allowed: a group of keys")


def _translated(text: str) -> renamed.Translation:
    """The stored configuration in today's keys; there is no notice of old keys that had their default."""
    stored = _stored(text)
    format = stored.pop("format", 1)
    if format not in range(1, FORMAT + 1):
        raise UserError(f"the stored configuration has format {format!r}; allowed: at most {FORMAT}, of this version")
    flat = flatten_config(_tuples(stored))
    if format == FORMAT:
        return renamed.Translation(renamed.complete(flat), {}, {})
    found = renamed.translate(flat)
    notices = {key: line for key, line in found.notices.items() if flat[key] != renamed.RENAMED[key].default}
    return renamed.Translation(renamed.complete(found.flat), notices, found.conflicts)


def _stored(text: str) -> dict[str, Any]:
    where = "the stored configuration"
    return check_fields(parse_json(text, where=where), {}, where=where)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def stored_difference(text: str, config: ConfigDict, *, trains: bool = True) -> list[str]:
    """As `config_difference`, of a run's config.json; it may be of an earlier version.

    Args:
      text: of the config.json.
      config: the configuration that the run would be continued with.
      trains: whether there are steps left to train. If not, old values that no key of today can have are no obstacle.
    """
    found = _translated(text)
    lines = [
        line
        for line in config_difference(keys.nest_config(found.flat), config)
        if line.split(":")[0] not in found.conflicts
    ]
    return lines + (list(found.conflicts.values()) if trains else [])


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
        if key in RESUMABLE or key.split(".", 1)[0] in RESUMABLE:
            continue
        values = [repr(flat[key]) if key in flat else "(absent)" for flat in (before, after)]
        if key not in before or key not in after or before[key] != after[key]:
            lines.append(f"{key}: {values[0]} -> {values[1]}")
    return lines
