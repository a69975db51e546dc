"""Reads what a compiler made: memory traffic, collectives and buffers of a program, loops counted as often as they run.

XLA's own cost model counts the body of a loop once, and the layers of an encoder are one loop. So the text of the
compiled program is read: computations, instructions, and how often each loop runs, which follows from the start, the
step and the bound of its counter.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from hra_jax.tpu import device_groups

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|branch_computations)=(?:\{([^}]*)\}|([^,\s]+))"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WIDTH = re.compile(r"\d+")
_INDEX = re.compile(r"index=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")

# Instructions that move nothing themselves.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "iota",
        "async-start",
        "async-update",
        "async-done",
    ]
)
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place; which operand is written
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Array(NamedTuple):
    """An array in a type: `f32[8,128]`."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool  # lies in the chip's own memory (VMEM, SMEM), not in HBM

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(_found(_WIDTH, self.dtype)[0])
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `arrays` are what it gives, `operands` the names of what it takes."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # attributes
    root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, but for those of loops."""
        found = (listed or single for listed, single in _CALLED.findall(self.rest))
        return tuple(name.strip().lstrip("%") for names in found for name in names.split(","))


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of communication: how often it runs in a step, and bytes.

    `payload` is the size of what it gives (reduce-scatter: of what it takes) on one device; `moved` what a device sends
    for it around a ring: 2 (g - 1) / g of the payload for an all-reduce among g devices, (g - 1) / g for the others.
    """

    kind: str
    group: int  # devices that take part
    between_slices: bool
    count: int
    payload: int
    moved: float


class Program:
    """A compiled program as text.

    Args:
      text: `compiled.as_text()`.
      slice_of: the slice of each device, by its place in the program's device assignment; None for one slice.
    """

    def __init__(self, text: str, *, slice_of: list[int] | None = None):
        self._computations: dict[str, list[Instruction]] = {}
        self._slice_of, self._entry = slice_of, ""
        current: list[Instruction] | None = None
        types: dict[str, str] = {}  # of the values of the current computation
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current, types = self._computations.setdefault(found[2], []), {}
                self._entry = found[2] if found[1] else self._entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                end = _type_end(found[3])
                instruction = _parsed(found[2], found[3], type_end=end, root=bool(found[1]))
                types[instruction.name] = found[3][:end]
                for operand in instruction.operands:
                    current += _elements(operand, types)
                current.append(instruction)
        if not self._entry:
            raise ValueError("the text of the program has no entry computation")

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Every array that any instruction of the program gives, with the instruction's name; inside fusions too."""
        for instructions in self._computations.values():
            for instruction in instructions:
                for array in instruction.arrays:
                    yield instruction.name, array

    def largest(self, count: int) -> list[dict]:
        """The largest buffers in HBM, one of each type: 'bytes', 'type' and the 'operator' that it comes from."""
        fused = {
            name for body in self._computations.values() for i in body if i.opcode == "fusion" for name in i.called
        }
        found: dict[Array, str] = {}
        for name, instructions in self._computations.items():
            if name in fused:
                continue
            for instruction in instructions:
                if instruction.opcode in ("tuple", "while", "conditional", "call", "bitcast", "get-tuple-element"):
                    continue  # these only name what others have made
                operator = re.search(r'op_name="([^"]*)"', instruction.rest)
                for array in instruction.arrays:
                    if not array.on_chip:
                        found.setdefault(array, operator[1] if operator else instruction.opcode)
        ranked = sorted(found.items(), key=lambda item: -item[0].bytes)[:count]
        return [
            {"bytes": array.bytes, "type": f"{array.dtype}[{','.join(map(str, array.shape))}]", "operator": operator}
            for array, operator in ranked
        ]

    def unknown_trips(self) -> int:
        """Loops of which it is not known how often they run; they are counted as if they ran once."""
        loops = ((name, i) for name, body in self._computations.items() for i in body if i.opcode == "while")
        return sum(self._trips(name, loop) is None for name, loop in loops)

    def traffic(self) -> int:
        """Bytes to and from HBM in one run on one device: what every instruction reads and writes."""
        return sum(times * self._bytes_of(name, i) for _, name, i, times in self._executed(self._entry, 1))

    def collectives(self) -> list[Collective]:
        """Communication of one run, by kind, size of group and reach; the largest first."""
        found: dict = collections.defaultdict(lambda: [0, 0, 0.0])
        seen = set()
        for home, _, instruction, times in self._executed(self._entry, 1, fusions=True):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            # One that runs beside other work stands in the fusions that begin it, drive it and end it.
            channel = _CHANNEL.search(instruction.rest)
            if channel and (home, channel[1]) in seen:
                continue
            seen.add((home, channel[1] if channel else instruction.name))
            group, between = self._group(instruction)
            payload = self._payload(kind, instruction, group)
            moved = {"all-reduce": 2.0 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
            entry = found[kind, group, between]
            entry[0] += times
            entry[1] += times * payload
            entry[2] += times * payload * moved
        listed = [Collective(*key, *entry) for key, entry in found.items()]
        return sorted(listed, key=lambda collective: -collective.moved)

    def _executed(
        self, name: str, times: int, *, fusions: bool = False, home: str = ""
    ) -> Iterator[tuple[str, str, Instruction, int]]:
        """(home, computation, instruction, how often) of everything that runs; insides of fusions only if asked for.

        `home` is the computation that the outermost fusion stands in.
        """
        for instruction in self._computations.get(name, ()):
            yield home or name, name, instruction, times
            if instruction.opcode == "while":
                inner = times * (self._trips(name, instruction) or 1)
                yield from self._executed(_found(_BODY, instruction.rest)[1], inner, fusions=fusions)
            elif instruction.opcode in ("conditional", "call", "async-start"):
                for called in instruction.called:
                    yield from self._executed(called, times, fusions=fusions)
            elif instruction.opcode == "fusion" and fusions:
                for called in instruction.called:
                    yield from self._executed(called, times, fusions=True, home=home or name)

    def _trips(self, computation: str, loop: Instruction) -> int | None:
        """How often a loop runs: the compiler's note, or from its counter."""
        if found := _TRIPS.search(loop.rest):
            return int(found[1])
        condition, body = _CONDITION.search(loop.rest), _BODY.search(loop.rest)
        if not condition or not body:
            return None
        test = self._root(condition[1])
        if test is not None and test.opcode == "fusion":
            # The counter and its bound are the operands, in the order in which the comparison inside has them.
            inside = self._root(test.called[0])
            test = dataclasses.replace(test, rest=inside.rest) if inside and inside.opcode == "compare" else None
        if test is None or len(test.operands) != 2 or "direction=LT" not in test.rest:
            return None
        counter = self._index(condition[1], test.operands[0])
        if counter is None:
            return None
        start, step = self._initial(computation, loop, counter), self._step(body[1], counter)
        bound = self._constant(condition[1], test.operands[1])
        if bound is None and (place := self._index(condition[1], test.operands[1])) is not None:
            bound = self._initial(computation, loop, place)
        if start is None or bound is None or step is None or step < 1:
            return None
        return max(math.ceil((bound - start) / step), 0)

    def _root(self, computation: str) -> Instruction | None:
        return next((i for i in self._computations.get(computation, ()) if i.root), None)

    def _source(self, computation: str, name: str) -> Instruction | None:
        """The instruction that makes a value, copies of it passed over."""
        found = self._table(computation).get(name)
        while found is not None and found.opcode in ("copy", "bitcast", "convert"):
            found = self._table(computation).get(found.operands[0])
        return found

    def _constant(self, computation: str, name: str) -> int | None:
        found = self._source(computation, name)
        if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.operands[0]):
            return None
        return int(found.operands[0])

    def _index(self, computation: str, name: str) -> int | None:
        """Which element of the loop's state a value is."""
        found = self._source(computation, name)
        return int(_found(_INDEX, found.rest)[1]) if found and found.opcode == "get-tuple-element" else None

    def _initial(self, computation: str, loop: Instruction, place: int) -> int | None:
        state = self._source(computation, loop.operands[0])
        if state is None or state.opcode != "tuple":
            return None
        return self._constant(computation, state.operands[place])

    def _step(self, body: str, place: int) -> int | None:
        state = self._root(body)
        if state is None or state.opcode != "tuple":
            return None
        added = self._source(body, state.operands[place])
        if added is None:
            return None
        if added.opcode == "fusion":
            # A fusion that gives the counter does nothing but count.
            constants = [i for i in self._computations.get(added.called[0], ()) if i.opcode == "constant"]
            numbers = [int(i.operands[0]) for i in constants if i.operands[0].isdigit()]
            return numbers[0] if len(numbers) == 1 else None
        if added.opcode != "add":
            return None
        steps = (self._constant(body, name) for name in added.operands)
        return next((step for step in steps if step is not None), None)

    def _bytes_of(self, computation: str, instruction: Instruction) -> int:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        if opcode == "copy-start":
            return _in_memory(instruction.arrays[:2])  # what is written, and what is read
        if opcode == "custom-call" and "AllocateBuffer" in instruction.rest:
            return 0
        written = _in_memory(instruction.arrays)
        inputs = [self._table(computation).get(name) for name in instruction.operands]
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        if opcode in _UPDATES:
            place = _UPDATES[opcode]
            update = inputs[place] if len(inputs) > place else None
            return 2 * _in_memory(update.arrays) if update else written
        if opcode == "fusion" and instruction.called:
            return self._fused(instruction, inputs)
        if opcode.endswith("-start"):
            written = 0  # the tuple repeats the operands; the reading side counts
        return written + sum(_in_memory(source.arrays) for source in inputs if source)

    def _fused(self, instruction: Instruction, inputs: list[Instruction | None]) -> int:
        """A fusion reads of an operand the slices that it takes, and writes of an updated one the update."""
        body, table = self._computations.get(instruction.called[0], []), self._table(instruction.called[0])
        total = 0
        for place, source in enumerate(inputs):
            whole = _in_memory(source.arrays) if source else 0
            taken = self._taken(instruction.called[0], place)
            total += whole if taken is None else min(whole, taken)
        root = next((inner for inner in body if inner.root), None)
        results = [root.name] if root and root.opcode != "tuple" else root.operands if root else ()
        if len(results) != len(instruction.arrays):
            return total + _in_memory(instruction.arrays)
        return total + sum(self._written(table, *result) for result in zip(results, instruction.arrays, strict=True))

    def _written(self, table: dict[str, Instruction], name: str, array: Array) -> int:
        """Bytes that a fusion writes for one of its results."""
        if array.on_chip:
            return 0
        made = table.get(name)
        while made is not None and made.opcode == "bitcast":
            made = table.get(made.operands[0])
        update = None
        if made is not None and made.opcode in _UPDATES and len(made.operands) > _UPDATES[made.opcode]:
            update = table.get(made.operands[_UPDATES[made.opcode]])
        return sum(part.bytes for part in update.arrays) if update else array.bytes

    def _taken(self, computation: str, place: int) -> int | None:
        """Bytes that a fused computation takes of its parameter of that number; None for all of it."""
        found = (i for i in self._computations.get(computation, ()) if i.opcode == "parameter")
        names = [i.name for i in found if i.operands == (str(place),)]
        return self._taken_of(computation, names[0]) if names else None

    def _taken_of(self, computation: str, name: str) -> int | None:
        """As `_taken`, of a value by its name."""
        total, users = 0, self._users(computation)[name]
        for user in users:
            part: int | None
            if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                part = sum(array.bytes for array in user.arrays)
            elif _updates(user, name):
                part = 0
            elif user.opcode == "bitcast":
                part = self._taken_of(computation, user.name)
            elif user.opcode == "fusion" and user.called:
                part = self._taken_by_fusion(user, name)
            else:
                part = None
            if part is None:
                return None
            total += part
        return total if users else None

    def _taken_by_fusion(self, fusion: Instruction, name: str) -> int | None:
        """As `_taken`, of all operands of a fusion that are the value of that name."""
        total = 0
        for number, operand in enumerate(fusion.operands):
            if operand == name:
                part = self._taken(fusion.called[0], number)
                if part is None:
                    return None
                total += part
        return total

    @functools.cache  # noqa: B019 - a program is read and dropped
    def _users(self, computation: str) -> dict[str, list[Instruction]]:
        """The instructions of a computation that take each value."""
        found = collections.defaultdict(list)
        for instruction in self._computations.get(computation, ()):
            for name in instruction.operands:
                found[name].append(instruction)
        return found

    @functools.cache  # noqa: B019 - a program is read and dropped
    def _table(self, computation: str) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self._computations.get(computation, ())}

    def _payload(self, kind: str, instruction: Instruction, group: int) -> int:
        arrays = instruction.arrays
        if instruction.opcode.endswith("-start") and len(arrays) > 1:
            # (operands..., results..., contexts): the results are as many as the operands.
            count = max(len(instruction.operands), 1)
            arrays = arrays[count : 2 * count] or arrays
        size = sum(array.bytes for array in arrays)
        return size * group if kind == "reduce-scatter" else size

    def _group(self, instruction: Instruction) -> tuple[int, bool]:
        groups = device_groups.groups(instruction.rest)
        slice_of = self._slice_of
        if slice_of is None:
            return len(groups[0]) if groups else 1, False
        if not groups:
            return max(len(slice_of), 1), len(set(slice_of)) > 1
        return len(groups[0]), any(len({slice_of[device] for device in group}) > 1 for group in groups)


def _found(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = pattern.search(text)
    if found is None:
        raise ValueError(f"the text of a program must hold {pattern.pattern!r} in {text!r:.200}")
    return found


def _updates(user: Instruction, name: str) -> bool:
    return user.opcode in _UPDATES and user.operands[:1] == (name,)


def _in_memory(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size), bool(re.search(r"S\([1-9]", layout)))
        for dtype, shape, layout in _ARRAY.findall(text)
    )


def _type_end(text: str) -> int:
    """Where the type ends that an instruction begins with."""
    return _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")


def _elements(operand: str, types: dict[str, str]) -> list[Instruction]:
    """The instructions that newer compilers leave out of their texts: `%loop#2` is element 2 of what `%loop` gives.

    Args:
      operand: the name of a value.
      types: {name of a value of the computation: its type}; gets those of the elements.
    """
    source, _, index = operand.rpartition("#")
    if not source or operand in types:
        return []
    found = _elements(source, types)
    types[operand] = _parts(types[source])[int(index)]
    element = Instruction(operand, "get-tuple-element", _arrays(types[operand]), (source,), f", index={index}", False)
    return [*found, element]


def _parts(text: str) -> list[str]:
    """The types that the type of a tuple is made of."""
    parts, depth, start = [], 0, 1
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            parts.append(text[start:place].strip())
            start = place + 1
    return parts


def _parsed(name: str, text: str, *, type_end: int, root: bool) -> Instruction:
    """An instruction from what stands after its equals sign: type, opcode, operands, attributes."""
    arrays = _arrays(text[:type_end])
    found = re.match(r"\s*([\w\-]+)\(", text[type_end:])
    if not found:
        return Instruction(name, "", arrays, (), text[type_end:], root)
    start = type_end + found.end() - 1
    close = _closing(text, start)
    inside = text[start + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)*)", inside)) or tuple(part for part in (inside.strip(),) if part)
    return Instruction(name, found[1], arrays, operands, text[close + 1 :], root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)
