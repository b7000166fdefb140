"""What a net must keep to: budgets of cost, a floor of accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["COSTS", "MEASURED", "Requirement", "pareto_front"]

COSTS = ("macs", "size_bytes", "ram_bytes", "latency_ms")
MEASURED = COSTS[1:]  # not known from the spec: taken from an int8 conversion


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Under budgets alone the highest accuracy is looked for, with a floor the fewest MACs that reach it.

    Args:
        max_macs: of one image.
        max_size_bytes: of the int8 .tflite.
        max_ram_bytes: of its TFLite Micro arena (extra `micro`).
        max_latency_ms: of one inference on this machine, one thread, median.
        min_accuracy: int8 validation accuracy, 0..1.

    Raises:
        ValueError: nothing is required, or a number is out of its range.
        TypeError: a limit is no number.
    """

    max_macs: int | None = None
    max_size_bytes: int | None = None
    max_ram_bytes: int | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None

    def __post_init__(self):
        values = dataclasses.asdict(self)
        if all(value is None for value in values.values()):
            raise ValueError(f"nothing is required; give at least one of {', '.join(values)}")
        for name, value in values.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} is {value!r}; it must be a number")
            most = 1 if name == "min_accuracy" else math.inf
            if not 0 < value <= most or math.isinf(value):
                raise ValueError(f"{name} is {value}; it must be above 0" + (" and at most 1" if most == 1 else ""))

    @property
    def limits(self) -> dict[str, float]:
        """The budgets by cost, e.g. {"macs": 12_500_000}, those that are given."""
        limits = {cost: getattr(self, f"max_{cost}") for cost in COSTS}
        return {cost: limit for cost, limit in limits.items() if limit is not None}

    def excess(self, costs: Mapping[str, float]) -> str | None:
        """Why a net of these costs does not fit, or None where it does; costs that are absent are not looked at."""
        for cost, limit in self.limits.items():
            if cost in costs and costs[cost] > limit:
                return f"over budget: {costs[cost]:,} {cost} > {limit:,}"
        return None


Item = TypeVar("Item")


def pareto_front(items: Iterable[Item], cost: Callable[[Item], float], accuracy: Callable[[Item], float]) -> list[Item]:
    """The items that are best under some budget, cheapest first: each is more accurate than all that cost no more."""
    best, found = -math.inf, []
    for item in sorted(items, key=lambda item: (cost(item), -accuracy(item))):
        if accuracy(item) > best:
            best = accuracy(item)
            found.append(item)
    return found
