"""What the processes of a run tell each other. Where what each does for itself fails in one, it fails in all.

Everything here is a collective but `is_agreed`: all processes call the same functions in the same order. One process
alone passes through without a collective.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from hra_jax.errors import FAILURES, DamagedError, UserError, one_line
from hra_jax.storage import remote

_T = TypeVar("_T")
_Part = TypeVar("_Part")

_DAMAGE, _TROUBLE, _FAULT, _AWAY = range(4)  # kinds of failures; what counts for more comes last
_AGREED = "every process of the run knows of this error"  # a note of exceptions


def barrier(name: str) -> None:
    """Waits until every process is here; all pass the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """What every process passes, in the order of the processes.

    Args:
      value: JSON, of any size.
    """
    if jax.process_count() == 1:
        return [value]
    content = json.dumps(value).encode()
    lengths = multihost_utils.process_allgather(np.array([len(content)], np.int32)).reshape(-1)
    # Few sizes, and so few compiled programs.
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    parts = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [json.loads(part[:length].tobytes()) for part, length in zip(parts, lengths, strict=True)]


def check_agreement(facts: dict[str, str]) -> None:
    """Checks that all processes say the same.

    Args:
      facts: {what it is: its value or a hash of it}, the same names in every process.

    Raises:
      UserError: in every process, if they do not.
    """
    first, *others = gather(facts)
    for number, other in enumerate(others, start=1):
        for name, value in first.items():
            if other[name] != value:
                raise UserError(
                    f"process {number} has another {name} than process 0 ({other[name]:.80}, not {value:.80}); all "
                    "processes of a run need the same command, program and files"
                )


def agreed(act: Callable[[], _T]) -> _T:
    """What an act gives that every process does by itself; where it fails in one, it fails in all.

    Of several failures the worst is raised. Damage is passed over by some callers, and so counts for the least; storage
    that is away counts for the most, as the run is then started again.

    Args:
      act: no collective is in it. Of its exceptions those of `errors.FAILURES` are told to the others.

    Raises:
      Exception: with one process what the act raised. Else in every process, with a message that names the one where it
        failed: a DamagedError, a UserError for every other UserError or OSError (`remote.unavailable` knows those of
        storage that is away), and for all else a RuntimeError, but what was raised where it was raised. `is_agreed`
        knows them all.
    """
    if jax.process_count() == 1:
        return act()
    failure: Exception | None = None
    found: _T | None = None
    try:
        found = act()
    except FAILURES as error:
        failure = error
    told = gather(None if failure is None else [_kind(failure), one_line(failure)])
    failed = {number: words for number, words in enumerate(told) if words is not None}
    if not failed:
        return cast("_T", found)
    number = max(failed, key=lambda number: (failed[number][0], -number))
    kind, text = failed[number]
    if failure is not None and kind == _FAULT == _kind(failure):
        failure.add_note(_AGREED)
        raise failure
    worst, cause = _error(kind, f"process {number}: {text}"), failure
    if kind == _AWAY and remote.unavailable(failure) is None:
        cause = remote.StorageUnavailable(text)
    worst.add_note(_AGREED)
    raise worst from cause


def _kind(failure: Exception) -> int:
    if remote.unavailable(failure) is not None:
        return _AWAY
    if not isinstance(failure, (UserError, OSError)):
        return _FAULT
    return _DAMAGE if isinstance(failure, DamagedError) else _TROUBLE


def _error(kind: int, message: str) -> Exception:
    if kind == _FAULT:
        return RuntimeError(message)
    return DamagedError(message) if kind == _DAMAGE else UserError(message)


def is_agreed(error: BaseException) -> bool:
    """Whether every process has had this error, or its like, at the same place."""
    return _AGREED in getattr(error, "__notes__", ())


def shared_out(parts: Sequence[_Part], act: Callable[[_Part], _T]) -> list[_T]:
    """What an act gives of each of some parts, of which every process does its share: all of it, in every process.

    Args:
      parts: the same in every process.
      act: as for `agreed`. It gives JSON, which comes back as JSON has it.

    Raises:
      Exception: as `agreed`.
    """
    me, count = jax.process_index(), jax.process_count()
    told = gather(agreed(lambda: [act(part) for part in parts[me::count]]))
    return [told[number % count][number // count] for number in range(len(parts))]


def first_alone(act: Callable[[], object]) -> None:
    """Has process 0 do something for all; fails as `agreed` does."""
    agreed(act if jax.process_index() == 0 else lambda: None)
