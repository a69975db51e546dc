"""Keys of earlier versions: what they are called now, and how their values carry over.

Configuration files, `--config.key=value` and the config.json of work directories may have them. Each is told on stderr
in one line, for example `config.export.from is now config.export.step`.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from hra_jax import console
from hra_jax.config import keys
from hra_jax.errors import UserError


class Renamed(NamedTuple):
    """What became of a key.

    Attributes:
      new: its name now; None where it no longer does anything.
      default: what it was where nobody had set it.
      acts: whether its value had an effect, from the flat configuration. Where several old keys have one new name, the
        values that had one must be equal.
      where: `acts` in words.
    """

    new: str | None
    default: Any
    acts: Callable[[Mapping[str, Any]], bool] = lambda flat: True
    where: str = ""


def _dropout_of(name: str) -> Renamed:
    def acts(flat: Mapping[str, Any]) -> bool:
        return flat.get("method") == "adapter" and flat.get("adapter.name") == name

    return Renamed("adapter.dropout", 0.0, acts, f"adapter.name {name!r}")


def _trains_rows(flat: Mapping[str, Any]) -> bool:
    return flat.get("method") == "adapter"


def _trains_what_is_shared(flat: Mapping[str, Any]) -> bool:
    from hra_jax.adapters.settings import shares_what_trains

    return _trains_rows(flat) and shares_what_trains(flat)


RENAMED: dict[str, Renamed] = {
    "hra.dropout": _dropout_of("hra"),
    "residual.dropout": _dropout_of("residual"),
    "lora.dropout": _dropout_of("lora"),
    "optimizer.clip_row": Renamed("optimizer.clip", 1.0, _trains_rows, "method 'adapter'"),
    "optimizer.clip_controller": Renamed(
        "optimizer.clip", 1.0, _trains_what_is_shared, "an adapter that shares what it trains"
    ),
    "optimizer.clip_norm": Renamed(
        "optimizer.clip", 1.0, lambda flat: not _trains_rows(flat), "methods 'full' and 'pretrain'"
    ),
    "export.from": Renamed("export.step", "last"),
    "export.per_task_files": Renamed(None, False),
    "export.license": Renamed(None, ""),
    "data.prefetch": Renamed(None, 4),
    "log.every_steps": Renamed(None, 10),
}

# What a stored configuration means that lacks a key, because it was written before there was one. A new key adds a
# line, and no line ever changes: the defaults of today are none of its business.
MEANT_BEFORE: dict[str, Any] = {
    "adapter.dropout": 0.0,
    "optimizer.clip": 1.0,
    "export.step": "last",
    "optimizer.max_skipped_steps": 10,  # as it has been since
    "data.format_characters": "kept",
    "export.hashes": False,
    "export.voices": False,
    "data.draw": "utterances",
    "data.groups": "",
    "data.temperature": 1.0,
    "data.cap_rows": 0,
    "data.modules": (),
    "augment.noise_source": "",
    "augment.impulse_probability": 0.0,
    "augment.impulse_source": "",
    "augment.source_rows": 128,
    "augment.telephone_probability": 0.0,
    "augment.telephone_low_hz": (200.0, 400.0),
    "augment.telephone_high_hz": (2800.0, 3600.0),
    "augment.gain_db": (0.0, 0.0),
    "eval.calibrate": False,
    "decode.beam": 0,
    "decode.n_best": 1,
    "decode.lm": "",
    "decode.lm_weight": "tuned",
    "decode.token_bonus": "tuned",
    "decode.phrase_weight": "tuned",
    "decode.phrases": (),
}


class Translation(NamedTuple):
    """A flat configuration in today's keys.

    Attributes:
      flat: {key: value}.
      notices: a line for each old key, {old key: line}.
      conflicts: {new key: what cannot be said with it}; `flat` then has one of the values.
    """

    flat: dict[str, Any]
    notices: dict[str, str]
    conflicts: dict[str, str]


def translate(flat: Mapping[str, Any]) -> Translation:
    """Carries the values of old keys over; they win over what the new ones have.

    Raises:
      UserError: a value that the new key does not allow.
    """
    given = {key: flat[key] for key in RENAMED if key in flat}
    new = {key: value for key, value in flat.items() if key not in given}
    notices, conflicts = {}, {}
    for old, value in given.items():
        entry = RENAMED[old]
        if entry.new is None:
            notices[old] = f"config.{old} no longer does anything"
            continue
        notices[old] = f"config.{old} is now config.{entry.new}"
        rule = keys.rules()[entry.new]
        if not rule.accepts(value):
            raise UserError(f"config.{old} is {value!r}; allowed: {rule.describe()}")
        if not entry.acts(flat):
            notices[old] += f"; {value!r} is left out: it acted with {entry.where} alone"
            continue
        new[entry.new] = value
        acting = {
            key: given.get(key, other.default)
            for key, other in RENAMED.items()
            if other.new == entry.new and other.acts(flat)
        }
        if len(set(acting.values())) > 1:
            listed = " and ".join(f"config.{key} is {kept!r}" for key, kept in acting.items())
            conflicts[entry.new] = f"{listed}, which are one key now, config.{entry.new}"
    return Translation(new, notices, conflicts)


def accept_old_keys(config: ConfigDict) -> None:
    """Gives a locked configuration the old keys too, so that it takes values for them; `settle` takes them out."""
    with config.unlocked():
        for old, entry in RENAMED.items():
            group, name = old.split(".")
            if group not in config:
                config[group] = ConfigDict()
            if name not in config[group]:
                with config[group].unlocked():
                    config[group][name] = config_dict.placeholder(type(entry.default))


def settle(config: ConfigDict) -> None:
    """Translates the old keys of a configuration in place, with a line on stderr for each that has a value.

    Raises:
      UserError: a value that is not allowed, or values that one key cannot have together.
    """
    old = [(key, *key.split(".")) for key in RENAMED]
    present = [(key, group, name) for key, group, name in old if group in config and name in config[group]]
    if not present:
        return
    flat = dict(keys.flatten_config(config))
    unset = {key for key, *_ in present if flat[key] is None}
    found = translate({key: value for key, value in flat.items() if key not in unset})
    for conflict in found.conflicts.values():
        raise UserError(f"{conflict}: set that in their place")
    with config.unlocked():
        for _, group, name in present:
            del config[group][name]
            if not config[group]:
                del config[group]
        for entry in RENAMED.values():
            if entry.new is not None and entry.new in found.flat:
                group, name = entry.new.split(".")
                config[group][name] = found.flat[entry.new]
    tell(found.notices.values())


def tell(notices: Iterable[str]) -> None:
    """Prints lines on stderr."""
    console.tell(*notices, to=sys.stderr)


def complete(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a stored flat configuration the keys that it lacks, as they were meant before there were such keys.

    The settings of a method that the run does not use get their defaults: they never act.
    """
    idle = {name for name in keys.method_groups() if name != flat.get("adapter.name")}
    unused = {key: default for key, default in keys.defaults().items() if key.split(".")[0] in idle}
    return {**unused, **MEANT_BEFORE, **flat}
