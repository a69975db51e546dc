"""Names of tasks: reserved ones, rules for new ones, file names made from them, and the error for an unknown one."""

import collections
import hashlib
import urllib.parse
from collections.abc import Collection, Iterable

from hra_jax.console import near_matches
from hra_jax.errors import UserError

BASE_TASK = "__base__"  # no adapter: the backbone alone
MEAN_TASK = "__mean__"  # the mean of all task rows
FEW_TASK = "__few__"  # in suites: heads that are trained on a few utterances of the task itself
AUTO_TASK = "__auto__"  # the task that sounds most like the utterance, see `decoding.unknown_task`
# Every list of tasks and every suite means the same by them.
RESERVED_NAMES = ("", BASE_TASK, MEAN_TASK, FEW_TASK, AUTO_TASK)

_MOST_LISTED = 10  # names in an error
_LONGEST_QUOTED = 120  # characters; file systems allow 255 bytes, prefix and extension included


def check_name(name: str, taken: Collection[str] = (), *, where: str = "") -> None:
    """Refuses a name that no task can have.

    Args:
      name: the name of a new task.
      taken: names in use.
      where: the file that the name comes from, for the error.

    Raises:
      UserError: a reserved name, one that is not printable, or one of `taken`.
    """
    start = f"{where}: " if where else ""
    if name in RESERVED_NAMES or not name.isprintable():
        allowed = f"printable characters, and none of {', '.join(map(repr, RESERVED_NAMES))}"
        raise UserError(f"{start}a task cannot have the name {name!r}; allowed: {allowed}")
    if name in taken:
        raise UserError(f"{start}task {name!r} is there already; allowed: a name that is not in use")


def unknown_task(name: str, known: Iterable[str]) -> UserError:
    """The error of a task that is none of `known`: near matches, or some of them."""
    known = list(known)
    hint = near_matches(str(name), known, most=_MOST_LISTED) if known else "allowed: none, it has no task"
    return UserError(f"unknown task {name!r}; {hint}")


def check_tasks(names: Iterable[str], known: Collection[str]) -> None:
    """Refuses a task that is none of `known`, and one that is given twice.

    Raises:
      UserError: one line, with near matches.
    """
    for name, times in collections.Counter(names).items():
        if name not in known:
            raise unknown_task(name, known)
        if times > 1:
            raise UserError(f"task {name!r} is given twice; allowed: each task once")


def quote_task(name: str) -> str:
    """A task name with everything but ASCII letters, digits, `-` and `_` percent-quoted; no two names give the same."""
    return urllib.parse.quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def task_file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name (no extension) for each task: its quoted name, unique even where case or length does not count.

    A name that is too long, or differs from another in case only, ends in `~` and a hash; `quote_task` never gives `~`.
    """
    quoted = {name: quote_task(name) for name in names}
    folded = collections.Counter(name.casefold() for name in quoted.values())
    for name, file_name in quoted.items():
        if len(file_name) > _LONGEST_QUOTED or folded[file_name.casefold()] > 1:
            quoted[name] = f"{file_name[:_LONGEST_QUOTED]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return quoted
