"""Requirements on a net (limits of cost, a floor of accuracy), and the nets that meet them: the best, the frontier."""

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

__all__ = ["COSTS", "MEASURED", "Requirement", "amount", "best", "frontier", "meets", "ranked"]

COSTS = ("macs", "size_bytes", "ram_bytes", "latency_ms")
MEASURED = COSTS[1:]  # not known from the spec: taken from an int8 conversion
SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9}

Row = TypeVar("Row")  # of a table: a mapping, or an object with attributes


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Ask for the highest accuracy within the limits or, if a floor of accuracy is given, for the fewest MACs.

    Args:
        max_macs: of one image.
        max_size_bytes: of the int8 .tflite.
        max_ram_bytes: of its TFLite Micro arena (extra `micro`).
        max_latency_ms: of one inference on this machine, one thread, median.
        min_accuracy: int8 validation accuracy, 0..1.

    Raises:
        ValueError: nothing is required, or a number is out of its range.
        TypeError: a limit is no number (numbers of NumPy are numbers).
    """

    max_macs: int | None = None
    max_size_bytes: int | None = None
    max_ram_bytes: int | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None

    def __post_init__(self):
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            names = ", ".join(f"{name}=" for name in vars(self))
            raise ValueError(f"nothing is required; give at least one of {names}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} is {value!r}; it must be a number")
            highest = 1 if name == "min_accuracy" else math.inf
            if not 0 < value <= highest or math.isinf(value):
                raise ValueError(f"{name} is {value}; it must be above 0" + (" and at most 1" if highest == 1 else ""))
            is_count = name not in ("max_latency_ms", "min_accuracy")
            is_whole = isinstance(value, numbers.Integral) or (is_count and value == int(value))
            object.__setattr__(self, name, int(value) if is_whole else float(value))

    @property
    def limits(self) -> dict[str, float]:
        """The limits by cost, e.g. {"macs": 12_500_000}, those that are given."""
        return {cost: limit for cost in COSTS if (limit := getattr(self, f"max_{cost}")) is not None}

    def violation(self, costs: Mapping[str, float]) -> str | None:
        """Say which limit a net of these costs exceeds, or None; absent costs are not checked."""
        for cost, limit in self.limits.items():
            if cost in costs and costs[cost] > limit:
                return f"over budget: {costs[cost]:,} {cost} > {limit:,}"
        return None


def amount(text: str) -> int:
    """Read a whole number above 0 as people write it: 12500000, 12_500_000, 12.5e6, 12.5M or 100k (k, M, G).

    Raises:
        ValueError: the text is another; the message has it, and examples.
    """
    number = str(text).strip()
    suffix = SUFFIXES.get(number[-1:].lower(), 1)
    try:
        value = Decimal(number if suffix == 1 else number[:-1]) * suffix
        if 0 < value < 10**18 and value == int(value):
            return int(value)
    except ArithmeticError:  # no number, NaN, or one beyond all measure
        pass
    raise ValueError(f"{text!r} is no amount; give a whole number above 0, e.g. 12500000, 12.5e6, 12.5M or 100k")


def meets(row: object, requirement: Requirement | None, *, accuracy: str = "accuracy") -> bool:
    """Tell whether a row keeps every limit and reaches the floor; a row that lacks a number for a limit does not.

    Args:
        row: a mapping, or an object with attributes, of the fields in `COSTS`; None, "" and NaN are no number.
        requirement: None requires nothing.
        accuracy: the field that is held against the floor, 0..1.
    """
    return requirement is None or (_keeps_limits(row, requirement) and _reaches_floor(row, requirement, accuracy))


def ranked(rows: Iterable[Row], requirement: Requirement | None = None, *, accuracy: str = "accuracy") -> list[Row]:
    """Sort rows, best first; rows that are equal in accuracy and MACs stay in their order.

    Rows within the limits come before others, and of each those that reach the floor before others. Rows that reach a
    floor are sorted by fewest MACs, then accuracy, all others by highest accuracy, then MACs. Rows without an accuracy
    are left out.

    Args:
        rows: as for `meets`; each has `macs`.
        requirement: None sorts by accuracy, then MACs.
        accuracy: the field to rank by.
    """

    def key(row):
        score, macs = _number(row, accuracy), _number(row, "macs")
        if requirement is None:
            return -score, macs
        reaches = requirement.min_accuracy is not None and _reaches_floor(row, requirement, accuracy)
        return not _keeps_limits(row, requirement), not reaches, *((macs, -score) if reaches else (-score, macs))

    return sorted((row for row in rows if _number(row, accuracy) is not None), key=key)


def best(rows: Iterable[Row], requirement: Requirement | None = None, *, accuracy: str = "accuracy") -> Row | None:
    """Give the best row that meets the requirement, None where none does; arguments and order as for `ranked`."""
    found = ranked(rows, requirement, accuracy=accuracy)
    return next((row for row in found if meets(row, requirement, accuracy=accuracy)), None)


def frontier(rows: Iterable[Row], cost: str = "macs", accuracy: str = "accuracy") -> list[Row]:
    """Give the rows that are best under some limit of a cost, cheapest first: each beats all that cost no more.

    Args:
        rows: any; those without a number for cost or accuracy are left out.
        cost, accuracy: fields as for `meets`.
    """
    found, highest = [], -math.inf
    points = [(_number(row, cost), _number(row, accuracy), row) for row in rows]
    points = [point for point in points if None not in point[:2]]
    for _, score, row in sorted(points, key=lambda point: (point[0], -point[1])):
        if score > highest:
            highest = score
            found.append(row)
    return found


def _keeps_limits(row, requirement):
    values = ((_number(row, cost), limit) for cost, limit in requirement.limits.items())
    return all(value is not None and value <= limit for value, limit in values)


def _reaches_floor(row, requirement, accuracy):
    floor, score = requirement.min_accuracy, _number(row, accuracy)
    return floor is None or (score is not None and score >= floor)


def _number(row, field):
    """A row's number, or None where it has none."""
    value = row.get(field) if isinstance(row, Mapping) else getattr(row, field, None)
    return None if value is None or value == "" or math.isnan(value) else value
