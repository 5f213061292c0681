"""Which gates close together: config.pruning.structure, read and checked. Nothing heavy is imported here.

unstructured   every gate by itself
encoder        every gate by itself, but for the pooler's and the head's, which stay open
head           an attention head: its columns of query, key and value, its rows of attention_output
ffn            a feed-forward column: its column of ffn_hidden, its row of ffn_output
pooler         a unit of the pooler: its column of the pooler's kernel, its row of the classifier or regressor
head+ffn, ...  several of these three, in this order
block:RxC      blocks of R inputs by C outputs
n:m            of every m consecutive inputs of an output, n stay open (2:4 is what sparse tensor cores take)

A structure covers the kernels that it names; blocks and n:m cover those of encoder. The sparsity that the schedule asks
for is that of the covered kernels, and all others stay open. With pruning.scope=global a head that has just been made
anew, its weights a tenth of the encoder's, would be the first to close: hence encoder, as the literature counts.

Units close whole: with pruning.scope=local a layer of h heads reaches multiples of 1/h only, the nearest to the target,
so that 90 percent closes all 4 heads of every layer. Few heads want pruning.scope=global, or head+ffn. A unit of the
pooler goes with what reads it: its column alone would leave the constant tanh(bias) behind.
"""

import re
from typing import NamedTuple

ALLOWED = (
    "unstructured, encoder, head, ffn, pooler, several of the last three joined by + in this order (such as head+ffn), "
    "block:RxC (such as block:32x32), n:m (such as 2:4)"
)
PARTS = {  # and the kernels of each
    "head": ("query", "key", "value", "attention_output"),
    "ffn": ("ffn_hidden", "ffn_output"),
    "pooler": ("pooler", "classifier or regressor"),
}


class Structure(NamedTuple):
    """kind: unstructured, encoder, parts joined by +, block or n:m. sizes: (R, C) or (n, m)."""

    kind: str
    sizes: tuple[int, int] = (0, 0)

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of head, ffn and pooler it is made of."""
        return tuple(part for part in self.kind.split("+") if part in PARTS)

    @property
    def covered(self) -> str:
        """The kernels it covers, in words."""
        names = [name for part in self.parts for name in PARTS[part]]
        return ", ".join(names) if names else "all kernels but the pooler's and the head's"


def parse(text: str) -> Structure:
    """The structure that config.pruning.structure names. ValueError if it names none."""
    given = text.split("+")
    if text in ("unstructured", "encoder") or given == [part for part in PARTS if part in given]:
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
