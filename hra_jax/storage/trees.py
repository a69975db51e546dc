"""Trees of arrays, nested dicts, as flat dicts of paths, and back."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], *, separator: str = "/") -> dict[str, Any]:
    """{"a": {"b": x}} as {"a/b": x}, sorted by path. An empty dict has no path, so it is lost.

    Raises:
      ValueError: a key that is not a string, is empty, or holds the separator.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not key or separator in key:
            raise ValueError(f"a key of a tree must be a string that is not empty, without {separator!r}; got {key!r}")
        if isinstance(value, Mapping):
            flat |= {f"{key}{separator}{path}": leaf for path, leaf in flatten(value, separator=separator).items()}
        else:
            flat[key] = value
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any], *, separator: str = "/") -> dict[str, Any]:
    """The tree whose `flatten` is `flat`.

    Raises:
      ValueError: a path with an empty part, or one that goes through another path's leaf.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(separator)
        node: Any = tree
        for part in parents:
            node = node.setdefault(part, {}) if part else None
            if not isinstance(node, dict):
                raise ValueError(f"the path {path!r} goes through a leaf or has an empty part")
        if not last or last in node:
            raise ValueError(f"the path {path!r} ends at another path or has an empty part")
        node[last] = leaf
    return tree
