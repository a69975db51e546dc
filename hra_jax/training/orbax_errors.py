"""What Orbax and TensorStore log and raise, as far as anybody needs to hear of it, and how long they ask a bucket."""

import concurrent.futures
import contextlib
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging as absl_logging
from orbax.checkpoint._src.serialization import tensorstore_utils

from hra_jax.storage import remote

# What they raise when storage fails; TensorStore reports I/O errors as ValueError.
STORAGE_ERRORS = (OSError, ValueError, RuntimeError)


class _AlreadyRaised(logging.Filter):
    """Drops what Orbax logs about things that reach the caller anyway, or that are as they should be."""

    def filter(self, record: logging.LogRecord) -> bool:
        if f"{os.sep}orbax{os.sep}" not in record.pathname:
            return True
        # A failed save is logged as up to three tracebacks before it is raised. Most steps have no metric, and who asks
        # for a directory to be read only knows it.
        return not record.exc_info and not any(text in str(record.msg) for text in ("tracked_metric", "read only"))


class _NobodyAsked(logging.Filter):
    """Drops what asyncio logs of the files that Orbax was writing when another one had already failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, STORAGE_ERRORS) or "never retrieved" not in record.getMessage():
            return True
        frames = traceback.extract_tb(error.__traceback__)
        return not any(f"{os.sep}orbax{os.sep}" in frame.filename for frame in frames)


def log_less() -> None:
    """Keeps from the log what is raised anyway; a second call does nothing."""
    logger = absl_logging.get_absl_logger()
    if not any(isinstance(known, _AlreadyRaised) for known in logger.filters):
        logger.addFilter(_AlreadyRaised())
        logging.getLogger("asyncio").addFilter(_NobodyAsked())
        sys.unraisablehook = functools.partial(_tell, sys.unraisablehook)


def _tell(hook: Callable[["sys.UnraisableHookArgs"], Any], what: "sys.UnraisableHookArgs") -> None:
    """Where one array cannot be written, TensorStore has nobody to tell of the others: no news of theirs."""
    trace = what.exc_traceback
    # It asks in C++, from whatever thread it is in: no function of Python's has asked.
    asked = None if trace is None else trace.tb_frame.f_code.co_name
    if asked != "call_soon_threadsafe" or str(what.exc_value) != "Event loop is closed":
        hook(what)


def bound_retries() -> None:
    """Has TensorStore ask a bucket again for as long as all other clients do; by itself it does so for 15 minutes."""
    pauses = remote.pauses()
    retries = {
        "max_retries": max(1, len(pauses)),
        "initial_delay": f"{int(1000 * pauses[0]) if pauses else 1}ms",
        "max_delay": f"{int(1000 * max(pauses, default=0.001))}ms",
    }
    # Orbax passes no context of ours on: it makes its own, for each act, from one of these.
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        getattr(tensorstore_utils, name, {}).update(gcs_request_retries=retries, s3_request_retries=retries)


@contextlib.contextmanager
def half_read() -> Iterator[None]:
    """A block in which Orbax may leave arrays half-read: it reads all at once, and goes on where one fails.

    Python would print a trace for each of them, when it is thrown away; the block is to do that.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda what: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def attempt(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What Orbax reads, or else what it raised: damage makes many things of its parsers, of no common kind."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        error = future.exception()
    if error is None:
        return future.result(), None
    # What Orbax wraps says more than it does.
    return None, error if isinstance(error, STORAGE_ERRORS) else error.__cause__ or error
