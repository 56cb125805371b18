"""Collectives of a compiled program, counted in its HLO text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVE_KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVE_KINDS)})\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]<=|\{\{([\d,]*)\})")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|\w+_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of communication of a program among groups of as many devices.

    count  how often it happens in a run of the program, or on average in one of its steps
    bytes  of its results on one device, over all of them
    """

    kind: str
    group: int
    count: float
    bytes: float

    @property
    def sent(self) -> float:
        """Bytes that one device sends, in rings."""
        others = self.group - 1
        shares = {  # of the bytes of the result
            "all-reduce": 2 * others / self.group,
            "all-gather": others / self.group,
            "reduce-scatter": others,
            "all-to-all": others / self.group,
            "collective-permute": 1,
        }
        return shares[self.kind] * self.bytes


def collectives_of(text: str) -> list[Collective]:
    """The collectives of a program between devices; those in loops of a known length, all times.

    text  `compiled.as_text()`, of a program for CPUs, whose collectives have no separate start
    """
    computations, entry = _computations(text)
    found = collections.defaultdict(lambda: [0, 0])
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for line in computations.get(name, ()):
            if match := _COLLECTIVE.search(line):
                group = _group(line)
                if group > 1:
                    totals = found[match[2], group]
                    totals[0] += times
                    totals[1] += times * _bytes(match[1])
            else:
                waiting += [(called, times * _trips(line)) for called in _called(line)]
    return [Collective(*key, *totals) for key, totals in sorted(found.items())]


def _computations(text):
    """{name: lines} and the name of the one that runs first."""
    computations, lines, entry = {}, [], ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif "=" in line:
            lines.append(line)
    return computations, entry


def _called(line) -> Iterator[str]:
    """The computations that an instruction runs, but for those of elements such as sums."""
    yield from _CALLED.findall(line)
    for names in _BRANCHES.findall(line):
        yield from re.findall(r"[\w.-]+", names)


def _trips(line):
    match = _TRIPS.search(line)
    return int(match[1]) if match else 1


def _group(line):
    """The number of devices that take part; a permutation names pairs."""
    if mesh := _MESH.search(line):  # axes, perhaps a part of one: 'a'=4,'b'=2 ... 'a','b':(1)2
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(mesh[2]))
    match = _GROUPS.search(line)
    if match is None:
        return 2 if "source_target_pairs={{" in line else 1
    return int(match[1]) if match[1] else len(match[2].split(","))


def _bytes(shapes):
    """Of a shape, or of a tuple of them."""
    return sum(
        math.prod(map(int, filter(None, sides.split(",")))) * _bits(dtype) // 8
        for dtype, sides in _SHAPE.findall(shapes)
    )


def _bits(dtype):
    return BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
