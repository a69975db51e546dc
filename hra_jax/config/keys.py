"""What each configuration key allows: in words, as a predicate, and as a list of choices where there is one."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hra_jax.adapters.outputs import OUTPUTS, OWN_VOCABULARIES, PIECE_VOCABULARIES, SHARED_VOCABULARIES
from hra_jax.tasks.names import BASE_TASK

METHODS = ("adapter", "full", "pretrain")
TRAINED = ("all", "tasks")
BANKS = ("device", "host")
DTYPES = ("auto", "float32", "bfloat16")
STORAGE_DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full", "dots")
VOCABULARIES = ("characters", "sentencepiece")
SCHEDULES = ("cosine", "constant")
EXPORTS = ("last", "best", "best_per_task")


__all__ = ["OUTPUTS", "OWN_VOCABULARIES", "PIECE_VOCABULARIES", "SHARED_VOCABULARIES"]


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


def _methods() -> tuple[str, ...]:
    from hra_jax.adapters.methods import METHODS  # imported late: the classes there take their rules from this package

    return tuple(METHODS)


def _recurrences() -> tuple[str, ...]:
    from hra_jax.adapters.controllers import RECURRENCES

    return tuple(RECURRENCES)


def _activations() -> tuple[str, ...]:
    from hra_jax.adapters.activations import ACTIVATIONS

    return tuple(ACTIVATIONS)


def _heads() -> tuple[str, ...]:
    from hra_jax.adapters.heads import HEADS

    return tuple(HEADS)


def _sizes() -> tuple[str, ...]:
    from hra_jax.models.config import SIZES  # the one list of sizes; imported late, so that this module stays light

    return tuple(SIZES)


def _normalizers() -> tuple[str, ...]:
    from hra_jax.text.normalization import NORMALIZERS  # the one list of normalizers; imported late for the same reason

    return tuple(NORMALIZERS)


def _synthetic_sets() -> tuple[str, ...]:
    from hra_jax.data.synthetic.speakers import (
        SETS,  # the one list of synthetic sets; imported late for the same reason
    )

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


def _are_layers(value: Any) -> bool:
    numbers = isinstance(value, tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    return numbers and all(n >= 0 for n in value) and len(set(value)) == len(value)


def _are_names(value: Any) -> bool:
    return bool(value) and _are_tasks(value)


def _are_buckets(value: Any) -> bool:
    numbers = isinstance(value, tuple) and bool(value) and all(_is_number(edge) and edge > 0 for edge in value)
    return numbers and all(low < high for low, high in zip(value, value[1:], strict=False))


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


_BOOLEAN = Rule(lambda: "True or False", lambda value: isinstance(value, bool))
_SUITE = Rule(lambda: "'' or the name or path of a suite", lambda value: isinstance(value, str))

RULES: dict[str, Rule] = {
    "seed": Rule(
        lambda: "an integer of at least 0 and at most 4294967295",
        lambda value: _integer(0).accepts(value) and value < 2**32,
    ),
    "steps": _integer(1),
    "method": _one_of(lambda: METHODS),
    "backbone": _text(empty=False),
    "backbone_dtype": _one_of(lambda: DTYPES),
    "dropout": _number(0, 1),
    "remat": _one_of(lambda: REMAT),
    "attention_block": _integer(-1),
    "accumulate": _integer(1),
    "pretrain.size": _one_of(_sizes),
    "pretrain.vocabulary": _one_of(lambda: VOCABULARIES),
    "pretrain.sentencepiece_size": _integer(8),
    "adapter.name": _one_of(_methods),
    "adapter.layers": Rule(lambda: "a tuple of distinct layer numbers from 0, or () for all", _are_layers),
    "adapter.output": _one_of(lambda: OUTPUTS),
    "adapter.output_size": _integer(0),
    "adapter.output_pieces": _integer(3, unit=" pieces"),
    "adapter.train": _one_of(lambda: TRAINED),
    "adapter.start": _text(),
    "adapter.new_task": _text(empty=False),
    "adapter.slots": _integer(0),
    "adapter.bank": _one_of(lambda: BANKS),
    "hra.width": _integer(1),
    "hra.recurrence": _one_of(_recurrences),
    "hra.activation": _one_of(_activations),
    "hra.reads": _text(empty=False),
    "hra.head": _one_of(_heads),
    "hra.head_width": _integer(1),
    "hra.head_per_layer": _BOOLEAN,
    "hra.dropout": _number(0, 1),
    "residual.width": _integer(1),
    "residual.dropout": _number(0, 1),
    "lora.projections": Rule(lambda: "a tuple of distinct names of projections, at least one", _are_names),
    "lora.rank": _integer(1),
    "lora.alpha": _number(0, above=True),
    "lora.dropout": _number(0, 1),
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
    "mesh.fsdp": _integer(1, extra=-1),
    "mesh.tensor": _integer(1, extra=-1),
    "mesh.slices": _integer(1),
    "distributed.heartbeat_seconds": _integer(1, unit=" (seconds)"),
    "profile.start_step": _integer(-1),
    "profile.steps": _integer(1),
    "profile.peak_tflops": _number(0),
    "log.every_steps": _integer(1),
}
