"""The nets that a search chooses from, and what their specs alone say about a budget. No TensorFlow."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from .cost import cost_rows, count_macs
from .requirement import Requirement
from .spec import ModelSpec, max_level

__all__ = ["Space", "check_budget", "macs"]


@dataclass(frozen=True)
class Space:
    """The nets to choose from: every level in every stage, at each width.

    Args:
        spec: gives input shape, classes and stages.
        widths: of the stem; a single one, unless several are asked for.
    """

    spec: ModelSpec
    widths: tuple[int, ...]

    def net(self, level: int | tuple[int, ...], width: int | None = None) -> ModelSpec:
        """The net of a level, or of one level a stage; None: the first width."""
        return _net(self, level, self.widths[0] if width is None else width)

    def uniform(self, width: int) -> list[ModelSpec]:
        """The uniform levels of a width, coarse to fine."""
        return list(_uniform(self, width))

    def nets(self) -> Iterator[ModelSpec]:
        """Every net once."""
        for width in self.widths:
            last = self.net(max_level(self.net(0, width)), width).levels
            for levels in itertools.product(*(range(k + 1) for k in last)):
                yield self.net(levels, width)

    def changed(self, net: ModelSpec, stage: int, level: int) -> ModelSpec:
        """A net with another level in one stage, counted from 0."""
        return self.net((*net.levels[:stage], level, *net.levels[stage + 1 :]), net.width)

    def count(self) -> int:
        """How many nets there are."""
        return sum(math.prod(k + 1 for k in self.uniform(width)[-1].levels) for width in self.widths)

    def smallest(self) -> ModelSpec:
        """The net with the fewest MACs: the last level of the least width."""
        return self.uniform(min(self.widths))[-1]


@functools.lru_cache(maxsize=100_000)
def _net(space, level, width):
    base = space.spec
    return ModelSpec(level, width=width, input_shape=base.input_shape, num_classes=base.num_classes, stages=base.stages)


@functools.lru_cache(maxsize=1024)
def _uniform(space, width):
    return tuple(_net(space, level, width) for level in range(max_level(_net(space, 0, width)) + 1))


macs = functools.lru_cache(maxsize=100_000)(count_macs)


def check_budget(space: Space, requirement: Requirement) -> None:
    """Find out from the specs alone where nothing can fit. Raises ValueError, which names the smallest net."""
    smallest = space.smallest()
    limits = requirement.limits
    if macs(smallest) > limits.get("macs", math.inf):
        raise ValueError(
            f"max_macs is {limits['macs']:,}; the smallest net, {smallest.name}, has {macs(smallest):,} MACs"
        )
    weight_bytes = sum(row.weight_bytes for row in cost_rows(smallest))  # the file holds them all, and more
    if weight_bytes > limits.get("size_bytes", math.inf):
        raise ValueError(
            f"max_size_bytes is {limits['size_bytes']:,}; the weights of the smallest net, {smallest.name}, alone have {weight_bytes:,}"
        )
    height, width, channels = space.spec.input_shape
    stem_bytes = height * width * (channels + min(space.widths))  # the stem's input and output are held at once
    if stem_bytes > limits.get("ram_bytes", math.inf):
        raise ValueError(
            f"max_ram_bytes is {limits['ram_bytes']:,}; the stem of the smallest net, {smallest.name}, alone needs {stem_bytes:,}"
        )
