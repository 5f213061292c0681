"""Which gates close together: config.pruning.structure, read and checked. Nothing heavy is imported here.

unstructured   every gate by itself
head           an attention head: its columns of query, key and value, its rows of attention_output
ffn            a feed-forward column: its column of ffn_hidden, its row of ffn_output
head+ffn       both
block:RxC      blocks of R inputs by C outputs
n:m            of every m consecutive inputs of an output, n stay open (2:4 is what sparse tensor cores take)

A structure covers the encoder's kernels that it names; blocks and n:m cover every kernel but the pooler's and the
head's. The sparsity that the schedule asks for is that of the covered kernels, and all others stay open.

Units close whole: with pruning.scope=local a layer of h heads reaches multiples of 1/h only, the nearest to the target,
so that 90 percent closes all 4 heads of every layer. Few heads want pruning.scope=global, or head+ffn.
"""

import re
from typing import NamedTuple

ALLOWED = "unstructured, head, ffn, head+ffn, block:RxC (such as block:32x32), n:m (such as 2:4)"
ATTENTION = ("query", "key", "value", "attention_output")
FFN = ("ffn_hidden", "ffn_output")


class Structure(NamedTuple):
    """kind: unstructured, head, ffn, head+ffn, block or n:m. sizes: (R, C) or (n, m)."""

    kind: str
    sizes: tuple[int, int] = (0, 0)

    @property
    def covered(self) -> str:
        """The kernels it covers, in words."""
        names = {"head": ATTENTION, "ffn": FFN, "head+ffn": ATTENTION + FFN}.get(self.kind)
        return ", ".join(names) if names else "all kernels but the pooler's and the head's"


def parse(text: str) -> Structure:
    """The structure that config.pruning.structure names. ValueError if it names none."""
    if text in ("unstructured", "head", "ffn", "head+ffn"):
        return Structure(text)
    for kind, pattern in (("block", r"block:(\d+)x(\d+)"), ("n:m", r"(\d+):(\d+)")):
        if match := re.fullmatch(pattern, text):
            first, second = int(match[1]), int(match[2])
            if first and second and (kind == "block" or first < second):
                return Structure(kind, (first, second))
    raise ValueError(f"{text!r} is no structure; allowed: {ALLOWED}")


def undivided(structure: Structure, widths: dict[str, int]) -> str | None:
    """The name of a side of a covered kernel that the structure does not divide, None if it fits. widths: the sides."""
    sides = {"block": structure.sizes, "n:m": structure.sizes[1:]}.get(structure.kind, ())
    return next((name for name, width in widths.items() for side in sides if width % side), None)
