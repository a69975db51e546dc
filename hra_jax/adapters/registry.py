"""Registries of what adapters are made of: methods, recurrences, heads and activations, each by its name.

An entry registers itself in the file that defines it. The modules of `hra_jax.adapters`, folders included, are found
and imported at the first look into any registry, so that a new file there is all that a new entry needs. A file
anywhere else does the same once it is imported. Files with entries import JAX and PyTorch at the first use only, so
that whoever looks needs neither.
"""

import importlib
import pkgutil
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from hra_jax.console import did_you_mean
from hra_jax.errors import UserError

_PACKAGE = "hra_jax.adapters"
_WITHOUT_ENTRIES = ("adapter_folder", "initial", "model_card", "settings", "task_rows")  # modules that are not searched
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_discovery = threading.RLock()
_discovered = False


class Named(Protocol):
    """What a registry holds: anything with a name."""

    @property
    def name(self) -> str:
        """The name by which a setting chooses the entry."""


EntryT = TypeVar("EntryT", bound=Named)


class Registry(Mapping[str, EntryT], Generic[EntryT]):
    """Entries of one kind by name, in alphabetical order.

    Args:
      kind: what an entry is, for messages: 'method'.
      lacks: what an entry lacks or has wrong, as the end of a sentence; None for an entry that is complete.
    """

    def __init__(self, kind: str, *, lacks: Callable[[EntryT], str | None]):
        self._kind, self._lacks = kind, lacks
        self._entries: dict[str, EntryT] = {}

    def register(self, entry: EntryT) -> EntryT:
        """Adds an entry and returns it, so that this serves as a decorator.

        Raises:
          UserError: the entry lacks something, or another one has its name.
        """
        name = getattr(entry, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"a {self._kind} has the name {name!r}; allowed: lower-case letters, digits and '_'")
        # The same class again is what reloading its module gives.
        if name in self._entries and _origin(self._entries[name]) != _origin(entry):
            raise UserError(f"{self._kind} {name!r} is registered twice; allowed: a name that no other has")
        problem = self._lacks(entry)
        if problem is not None:
            raise UserError(f"{self._kind} {name!r} {problem}")
        self._entries[name] = entry
        return entry

    @property
    def registered(self) -> Mapping[str, EntryT]:
        """What is registered so far: nothing is imported for it."""
        return self._entries

    def find(self, name: object, *, setting: str) -> EntryT:
        """The entry that the value `name` of a setting chooses.

        Raises:
          UserError: there is none; the line lists those that there are.
        """
        if isinstance(name, str) and name in self:
            return self[name]
        known = ", ".join(map(repr, self))
        hint = did_you_mean(str(name), tuple(self))
        raise UserError(f"{setting} = {name!r}: allowed: {known}{hint and f' ({hint})'}")

    def __getitem__(self, name: str) -> EntryT:
        _discover()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        _discover()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        _discover()
        return len(self._entries)


def without_torch(kind: str, name: str, part: str) -> UserError:
    """The error of what PyTorch cannot run: `part` is where its formula would stand."""
    return UserError(f"{kind} {name!r} has no PyTorch formula (`{part}`)")


def _origin(entry: object) -> tuple[str | None, str | None]:
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)


def _discover() -> None:
    """Imports the modules of the package once, so that each registers what it defines."""
    global _discovered
    with _discovery:
        if _discovered:
            return
        # Before the imports: a module that looks into a registry while it is imported must not start over.
        _discovered = True
        package = importlib.import_module(_PACKAGE)
        for module in pkgutil.walk_packages(package.__path__, f"{_PACKAGE}."):
            if module.name.removeprefix(f"{_PACKAGE}.") not in _WITHOUT_ENTRIES:
                importlib.import_module(module.name)
