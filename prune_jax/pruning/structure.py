"""Which gates close together: the text that names a structure, and the groups of units that a network describes.

unstructured   every gate by itself
encoder        every gate by itself, but for those outside the network's body (its head), which stay open
head+ffn, ...  the units of groups that the network has: kinds, names, or regular expressions for names, joined by +
auto           the units of all its groups that can be cut without a change of what it computes
block:RxC      blocks of R inputs by C outputs
n:m            of every m consecutive inputs of an output, n stay open (2:4 is what sparse tensor cores take)

A structure covers the kernels that its groups name; blocks and n:m cover those of encoder. The sparsity that a schedule
asks for is that of the covered kernels, and all others stay open. With the global scope a head that has just been made
anew, its weights a tenth of the encoder's, would be the first to close: hence encoder, as the literature counts.

Units close whole: with the local scope a layer of h heads reaches multiples of 1/h only, the nearest to the target that
leaves one: 90 percent closes 3 of the 4 heads of every layer. Few heads want the global scope, or head+ffn.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

ALLOWED = (
    "unstructured, encoder, auto, kinds or names of groups joined by + (such as head+ffn), block:RxC (such as "
    "block:32x32), n:m (such as 2:4)"
)


class Member(NamedTuple):
    """An axis of a weight along which a group runs.

    Attributes:
      name: of the weight, "layer_0/query/kernel".
      axis: of the weight.
      units: (length of the axis,) int32, the unit that each of its indices belongs to, -1 for none.
    """

    name: str
    axis: int
    units: np.ndarray

    @classmethod
    def split(cls, name: str, axis: int, sizes: tuple[int, ...], place: int = 0) -> "Member":
        """The member of an axis that is made of these sizes, major to minor, the units counted at one place."""
        view = [1] * len(sizes)
        view[place] = sizes[place]
        counts = np.arange(sizes[place], dtype=np.int32).reshape(view)
        return cls(name, axis, np.broadcast_to(counts, sizes).reshape(-1))


class Group(NamedTuple):
    """Units that close as one: unit i is all that belongs to i in every member.

    Attributes:
      name: "layer_0.heads", unique in a network.
      kind: what a structure calls it: "heads".
      size: the number of units.
      members: the axes that they run along.
      reason: why none of them can be cut, None if they can.
      exact: whether a network without a closed unit computes the same as with it.
      inexact_because: what still reads a closed unit as other than 0, None if nothing does.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    reason: str | None = None
    exact: bool = True
    inexact_because: str | None = None

    @property
    def prunable(self) -> bool:
        """Whether units of it can be cut."""
        return self.reason is None


class Structure(NamedTuple):
    """A structure as it was named.

    Attributes:
      text: what was given.
      kind: unstructured, encoder, groups, block or n:m.
      kinds: the kinds of groups, where kind is groups.
      sizes: (R, C) of blocks, (n, m) of n:m.
    """

    text: str
    kind: str
    kinds: tuple[str, ...] = ()
    sizes: tuple[int, int] = (0, 0)


def parse(text: str) -> Structure:
    """The structure that a text names. ValueError if it names none."""
    if text in ("unstructured", "encoder"):
        return Structure(text, text)
    for kind, pattern in (("block", r"block:(\d+)x(\d+)"), ("n:m", r"(\d+):(\d+)")):
        if match := re.fullmatch(pattern, text):
            first, second = int(match[1]), int(match[2])
            if first and second and (kind == "block" or first < second):
                return Structure(text, kind, sizes=(first, second))
    if re.fullmatch(r"[A-Za-z_.(\[\\][\w./\\*+?()\[\]|^$-]*", text):  # names, or regular expressions for names
        names = tuple(text.split("+"))
        alone = {"unstructured", "encoder", "auto"} & set(names) and len(names) > 1  # what nothing can be joined to
        if all(names) and len(set(names)) == len(names) and not alone:
            return Structure(text, "groups", names)
    raise ValueError(f"{text!r} is no structure; allowed: {ALLOWED}")


def chosen(structure: Structure, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups that the structure names, by kind, by name, or by a regular expression for names, in their order.

    "auto" names all whose units can be cut without a change of what the network computes.

    Raises:
      ValueError: the network has none of a name, or none that can be cut; the message lists those that it has.
    """
    able = tuple(group for group in groups if group.prunable)
    if structure.text == "auto":
        picked = {group.name for group in able if names(structure, group)}
        if not picked:
            why = "".join(f"; {group.name}: {group.reason or group.inexact_because}" for group in groups[:3])
            raise ValueError(f"structure is 'auto', and this network has no group whose units can be cut{why}")
    else:
        picked = set()
        for pattern in structure.kinds:
            hits = {group.name for group in able if _is(pattern, group)}
            if not hits:
                auto = ("auto",) if any(group.exact for group in able) else ()
                allowed = ("unstructured", *auto, *dict.fromkeys(group.kind for group in able), "block:RxC", "n:m")
                locked = [group for group in groups if _is(pattern, group)]
                found = f"has no groups of kind {pattern!r}"
                if locked:
                    found = f"has {pattern!r}, of which no unit can be cut ({locked[0].name}: {locked[0].reason})"
                raise ValueError(
                    f"structure is {structure.text!r}, and this network {found}; allowed: {', '.join(allowed)}"
                )
            picked |= hits
    return tuple(group for group in groups if group.name in picked)


def held(groups: Sequence[Group], ruled: Mapping[str, str]) -> str:
    """What of its groups keeps a structure from closing any, for a message; ruled: weight -> the rule that names it."""
    by: dict[str, list[str]] = {}
    for group in groups:
        weight = next((m.name for m in group.members if m.name in ruled), None)
        if weight is not None:
            by.setdefault(ruled[weight], []).append(f"{group.name} ({weight})")
    told = [f"{rule!r} of {', '.join(own[:6])}{', ...' if len(own) > 6 else ''}" for rule, own in by.items()]
    return f"the rules name a weight of each group that it closes: {'; '.join(told[:6])}"


def names(structure: Structure, group: Group) -> bool:
    """Whether the structure names a group that can be cut."""
    if structure.text == "auto":
        return group.exact
    return any(_is(pattern, group) for pattern in structure.kinds)


def _is(pattern: str, group: Group) -> bool:
    """Whether a pattern is the kind or the name of a group, or a regular expression for its name."""
    if pattern in (group.kind, group.name):
        return True
    try:
        return re.fullmatch(pattern, group.name) is not None
    except re.error:
        return False


def divides(structure: Structure, shape: tuple[int, ...], inputs: int = -2) -> str | None:
    """Why a kernel of this shape cannot have the structure (blocks, n:m), None if it can.

    Args:
      inputs: the axis of the kernel that counts its inputs; blocks take the next axis for the outputs, cyclically.
    """
    if structure.kind not in ("block", "n:m"):
        return None
    if len(shape) < 2:
        return f"{structure.text} needs a kernel of two axes and more, this one is of shape {shape}"
    axis = inputs % len(shape)
    sides = [(axis, structure.sizes[1])]
    if structure.kind == "block":
        sides = [(axis, structure.sizes[0]), (outputs_of(axis, len(shape)), structure.sizes[1])]
    for side, size in sides:
        if shape[side] % size:
            return f"{structure.text} does not divide axis {side} of a kernel of shape {shape}"
    return None


def outputs_of(inputs: int, rank: int) -> int:
    """The axis of a kernel's outputs, where axis `inputs` counts its inputs: the last, or else the one before."""
    return rank - 1 if inputs != rank - 1 else rank - 2
