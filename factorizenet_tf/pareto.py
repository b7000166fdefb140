"""What no other beats at as low a cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["pareto_front"]

Item = TypeVar("Item")


def pareto_front(items: Iterable[Item], cost: Callable[[Item], float], accuracy: Callable[[Item], float]) -> list[Item]:
    """The items that are best under some budget, cheapest first: each is more accurate than all that cost no more."""
    best, found = -math.inf, []
    for item in sorted(items, key=lambda item: (cost(item), -accuracy(item))):
        if accuracy(item) > best:
            best = accuracy(item)
            found.append(item)
    return found
