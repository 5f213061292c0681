"""A weight that a function contracts with."""

from typing import NamedTuple


class Kernel(NamedTuple):
    """A weight that the function contracts with.

    Attributes:
      name, shape: of the weight.
      primitive: dot_general or conv_general_dilated.
      inputs: its axes that are contracted; outputs: those that count outputs.
      uses: how often it is used in one call, loops counted.
      flops: of all uses, two per multiplication and addition.
    """

    name: str
    shape: tuple[int, ...]
    primitive: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    uses: int
    flops: int
