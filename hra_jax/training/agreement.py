"""What every process of a run does for itself, such as to read a checkpoint: where it fails in one, it fails in all."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import remote

_T = TypeVar("_T")

_BYTES = 1000  # of a message that the others hear
_NONE, _DAMAGE, _TROUBLE, _AWAY = range(4)  # what counts for more comes last


def together(act: Callable[[], _T]) -> _T:
    """Does something in every process; a collective.

    Trouble that may pass counts for more than damage: nothing is to be passed over then. A process that ends with any
    other error leaves by itself, and the others with it.

    Args:
      act: what is done, without a collective.

    Returns:
      What it gives in this process.

    Raises:
      UserError: in every process, where one of them has raised a UserError or an OSError; with several processes the
        message names it. It is a DamagedError where nothing worse than that was raised.
    """
    failure: UserError | OSError | None = None
    try:
        result = act()
    except (UserError, OSError) as error:
        failure = error
    if jax.process_count() > 1:
        _raise_worst(failure)
    if failure is not None:
        raise failure
    return result


def _raise_worst(failure: UserError | OSError | None) -> None:
    """Raises what is worst of what the processes have, if anything."""
    said = np.zeros(1 + _BYTES, np.uint8)
    text = str(failure or "").encode()[:_BYTES]
    said[0], said[1 : 1 + len(text)] = _kind(failure), np.frombuffer(text, np.uint8)
    heard = np.asarray(multihost_utils.process_allgather(said)).reshape(-1, len(said))
    number = int(heard[:, 0].argmax())
    kind = heard[number, 0]
    if kind == _NONE:
        return
    message = f"process {number}: {bytes(heard[number, 1:]).rstrip(bytes(1)).decode(errors='ignore')}"
    if kind == _AWAY:
        raise UserError(message) from (failure if _kind(failure) == _AWAY else remote.StorageUnavailable(message))
    raise (DamagedError if kind == _DAMAGE else UserError)(message) from failure


def _kind(failure: UserError | OSError | None) -> int:
    if failure is None:
        return _NONE
    if remote.unavailable(failure) is not None:
        return _AWAY
    return _DAMAGE if isinstance(failure, DamagedError) else _TROUBLE
