"""Which devices take part in a collective, from its attributes in the text of a compiled program."""

import math
import re

_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_LISTED = re.compile(r"replica_groups=\{\{(.*?)\}\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{\{(.*?)\}\}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


def groups(rest: str) -> list[list[int]]:
    """The groups of devices of a collective, in any of the forms in which they are written."""
    if found := _LISTED.search(rest):
        return [_numbers(group) for group in re.split(r"\},\s*\{", found[1])]
    if found := _IOTA.search(rest):
        shape, sizes = _numbers(found[1]), _numbers(found[2])
        order = _numbers(found[3]) if found[3] else list(range(len(sizes)))
        flat = _transposed(sizes, order)
        return [flat[start : start + shape[1]] for start in range(0, len(flat), shape[1])]
    if found := _NAMED.search(rest):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        inside = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[2])
        return _groups_of_axes(axes, inside)
    if found := _PAIRS.search(rest):
        return [_numbers(pair) for pair in re.split(r"\},\s*\{", found[1])]
    return []


def _groups_of_axes(sizes: dict[str, int], inside: list[tuple[str, str, str]]) -> list[list[int]]:
    """Groups along named axes of a mesh, or along parts of them: (name, size before the part, size of the part)."""
    parts: list[tuple[str, int, int]] = []  # (axis, size of what stands before within the axis, size)
    for name, size in sizes.items():
        cuts = sorted((int(before), int(length)) for axis, before, length in inside if axis == name and before)
        done = 1
        for before, length in cuts:
            if before > done:
                parts.append((name, done, before // done))
            parts.append((name, before, length))
            done = before * length
        if done < size:
            parts.append((name, done, size // done))
    wanted = [(axis, int(before or 1)) for axis, before, _ in inside]
    numbers = {(axis, before): number for number, (axis, before, _) in enumerate(parts)}
    within = [numbers[key] for key in wanted]
    others = [number for number in range(len(parts)) if number not in within]
    shape = [size for *_, size in parts]
    flat, group = _transposed(shape, others + within), math.prod(shape[number] for number in within)
    return [flat[start : start + group] for start in range(0, len(flat), group)]


def _transposed(sizes: list[int], order: list[int]) -> list[int]:
    """0, 1, 2, ... in the shape `sizes`, its axes in another order, flat."""
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    flat = [0]
    for axis in order:
        flat = [base + index * steps[axis] for base in flat for index in range(sizes[axis])]
    return flat
