"""Several processes, one run: how they find each other, and end.

On TPU pods, on GKE and with several slices jax finds the processes by itself. Elsewhere three flags say who is there;
the environment variables are their defaults:

    --coordinator_address HOST:PORT   HRA_COORDINATOR_ADDRESS   where process 0 listens for the others
    --num_processes N                 HRA_NUM_PROCESSES
    --process_id I                    HRA_PROCESS_ID            0 to N - 1

With none of them there is one process, and nothing here does anything.

All processes run the same program in the same order. Where one of them fails, the others wait for it in a collective:
a process that fails tells the others its status and leaves (`leave`), and they end with the same status. Where it could
not tell, as after kill -9, the heartbeat of jax ends them.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.config.settings import check_settings, integer, setting
from hra_jax.errors import UserError
from hra_jax.run import signals
from hra_jax.training.agreement import check_agreement

_VARIABLES = {
    "coordinator_address": "HRA_COORDINATOR_ADDRESS",
    "num_processes": "HRA_NUM_PROCESSES",
    "process_id": "HRA_PROCESS_ID",
}
_ALL_OR_NONE = f"allowed: all of {', '.join(_VARIABLES)} (or {', '.join(_VARIABLES.values())}), or none"
_FAREWELL_SECONDS = 4.0  # that process 0 waits for the others to end
_ENDED = "hra_jax/ended"  # the key under which a process that fails says its number and its status
_LOOK_SECONDS = 0.2  # between two looks at it
_LEFT = "hra_jax/left/"  # and the number of each process that has heard of it, or has failed itself
_OWN_WORDS_SECONDS = 0.8  # for a process to fail by itself, and say why, where another has failed already


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """The keys `distributed.*`."""

    heartbeat_seconds: int = setting(
        20,
        integer(1, unit=" (seconds)"),
        "seconds without a sign of life after which a process is taken for dead",
    )

    def __post_init__(self) -> None:
        check_settings(self, "distributed")


class Member(NamedTuple):
    """Which process of a run this one is."""

    coordinator_address: str  # HOST:PORT
    num_processes: int
    process_id: int


def define_flags() -> None:
    """The flags that say which process this is."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT where process 0 listens for the others; default: HRA_COORDINATOR_ADDRESS.",
    )
    flags.DEFINE_integer("num_processes", None, "Processes of the run; default: HRA_NUM_PROCESSES.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0; default: HRA_PROCESS_ID.")


def member(given: dict[str, Any]) -> Member | None:
    """Which process this is, from flags and the environment variables that are their defaults.

    Args:
      given: {flag: value or None}.

    Returns:
      None where neither says anything.

    Raises:
      UserError: some of the three are missing, or a value is not allowed.
    """
    names, values = {}, {}
    for flag, variable in _VARIABLES.items():
        # An empty variable is one that a script did not fill in.
        value = os.environ.get(variable) or None
        names[flag], values[flag] = (flag, given[flag]) if given[flag] is not None else (variable, value)
    missing = [flag for flag, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        known = ", ".join(f"{names[flag]} = {value!r}" for flag, value in values.items() if value is not None)
        raise UserError(f"{known}: {' and '.join(missing)} not given; {_ALL_OR_NONE}")
    address = values["coordinator_address"]
    port = re.fullmatch(r"(?:[^:\s]+|\[[0-9a-fA-F:]+\]):(\d+)", address)
    if port is None or not 0 < int(port[1]) < 2**16:
        raise UserError(f"{names['coordinator_address']} = {address!r}; allowed: HOST:PORT, such as 10.0.0.1:8476")
    count = _integer(names["num_processes"], values["num_processes"], low=1)
    number = _integer(names["process_id"], values["process_id"], low=0)
    if number >= count:
        raise UserError(
            f"{names['process_id']} = {number}; allowed: 0 to {count - 1}, as {names['num_processes']} = {count}"
        )
    return Member(address, count, number)


def _integer(name: str, value: int | str, *, low: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    if number < low:
        raise UserError(f"{name} = {value!r}; allowed: an integer of at least {low}")
    return number


def initialize(*, heartbeat_seconds: int, resumable: bool = True) -> None:
    """Joins the other processes of the run, if there are any. To be called before anything that uses a device.

    Args:
      heartbeat_seconds: a process that has not been heard of for so long is taken for dead, and all others end.
      resumable: whether SIGTERM means to save and to stop (training.preemption); otherwise it ends the process.

    Raises:
      UserError: flags or environment variables that do not fit together, or processes that did not all come.
    """
    here = member({flag: flags.FLAGS[flag].value for flag in _VARIABLES})
    if here is not None and here.num_processes == 1:
        return
    # Older versions of jax, among them 0.7.2, have no such option: there the service is always on, and only SIGKILL
    # ends a run that is not resumable.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", resumable)
    with signals.sigterm_is_taken():
        if not _join(here, heartbeat_seconds):
            return
    cli.before_failing(leave)
    signals.before_end(_tell)
    sys.excepthook = _then_leave(sys.excepthook)
    watch = threading.Thread(target=_watch, name="other processes", daemon=True)
    watch.start()
    atexit.register(_stop_watching, watch)


def _join(here: Member | None, heartbeat_seconds: int) -> bool:
    """Joins the processes, which jax must find where `here` says nothing; whether there are any."""
    if here is None:
        return _found_by_jax(heartbeat_seconds)
    try:
        # Nothing is left to be detected, and jax would otherwise look for clusters to complete what it was given.
        jax.distributed.initialize(
            *here, heartbeat_timeout_seconds=heartbeat_seconds, cluster_detection_method="deactivate"
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"coordinator_address = {here.coordinator_address!r}: process {here.process_id} did not find the "
            f"{here.num_processes} processes of the run together there ({_first_line(error)})"
        ) from error
    return True


def _found_by_jax(heartbeat_seconds: int) -> bool:
    """Starts the run's processes where jax finds them by itself: on Cloud TPUs; whether it did."""
    # jax puts tpu first where it finds TPUs. Elsewhere it is not asked: its search for other kinds of clusters would
    # take a lone process inside one for a part of something.
    if "tpu" not in (jax.config.values["jax_platforms"] or ""):
        return False
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    except ValueError as error:
        # So it says that it found nothing: one TPU machine by itself.
        if "coordinator_address" not in str(error):
            raise
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- The end ----------------------------------------------------------------------------------------------------------


_leaving = threading.Event()  # this process says itself why it ends


def leave(status: int) -> None:
    """Ends a process that has failed, without the others.

    At a usual end the processes wait for each other, for minutes; those that are at work would wait for this one. They
    end with the same status.

    Args:
      status: the exit status.
    """
    if not jax.distributed.is_initialized():
        return
    _leaving.set()
    sys.stdout.flush()
    sys.stderr.flush()
    _tell(status)
    os._exit(status)


def _client() -> Any:
    """What the processes store words for each other with; None where there is one process."""
    from jax._src import distributed  # jax has no public name for it

    client = distributed.global_state.client
    return client if hasattr(client, "key_value_try_get") else None


def _tell(status: int) -> None:
    """Tells the other processes with which status this one ends; process 0 goes last."""
    client = _client()
    if client is None:
        return
    # Another process may have been first, or the one that stores the words may be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(_ENDED, f"{jax.process_index()} {status}")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_LEFT}{jax.process_index()}", "")
    if jax.process_index() != 0:
        return
    # The words are stored in this process, and who can no longer ask for them aborts.
    deadline = time.monotonic() + _FAREWELL_SECONDS
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while time.monotonic() < deadline and len(client.key_value_dir_get(_LEFT)) < jax.process_count():
            time.sleep(_LOOK_SECONDS / 4)
        time.sleep(_LOOK_SECONDS)  # from their last words to their end


def _told() -> tuple[int, int] | None:
    """The number and the status of a process that has failed; None where none has.

    Raises:
      JaxRuntimeError: the process that stores the words is gone.
    """
    client = _client()
    if client is None:
        return None
    try:
        number, status = client.key_value_try_get(_ENDED).split()
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise
    return int(number), int(status)


def _follow(number: int, status: int) -> NoReturn:
    """Ends this process as another one has ended."""
    _tell(status)
    signals.end(status, f"process {number} ended with status {status}, and so does this one", sys.stderr)


def _watch() -> None:
    """Ends this process with the status of another one that has failed; a thread of its own."""
    while _client() is not None and not _leaving.wait(_LOOK_SECONDS):
        try:
            told = _told()
        except jax.errors.JaxRuntimeError:
            return
        if told is not None and not _leaving.wait(_OWN_WORDS_SECONDS):
            _follow(*told)


def _stop_watching(watch: threading.Thread) -> None:
    """Waits for a thread that asks the other processes: Python aborts where one is in C++ when it ends."""
    _leaving.set()
    watch.join()


def _is_of_a_program(kind: type[BaseException], error: BaseException | None) -> bool:
    """Whether XLA raised an error: some of its collectives raise a ValueError, whose text begins with a status."""
    return issubclass(kind, jax.errors.JaxRuntimeError) or (
        issubclass(kind, ValueError) and re.match(r"[A-Z_]+: ", str(error)) is not None
    )


def _then_leave(hook: Callable) -> Callable:
    """An excepthook that shows an error as `hook` does, and leaves.

    A collective that fails because another process has ended shows nothing: that process has said why.
    """

    def ended(kind, error, traceback):
        if _is_of_a_program(kind, error):
            told = None
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                told = _told()
            if told is not None and told[0] != jax.process_index():
                _leaving.set()
                _follow(*told)
        hook(kind, error, traceback)
        leave(1)

    return ended


def check_same_command(workdir: epath.Path, config_json: str) -> None:
    """`check_agreement` on what a run is started with: the version of jax, the work directory, the configuration."""
    check_agreement(
        {
            "version of jax": jax.__version__,
            "work directory": str(workdir),
            "configuration": hashlib.sha256(config_json.encode()).hexdigest(),
        }
    )
