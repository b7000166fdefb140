"""When a difference counts: trends over levels, and accuracy changes against what sampling makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["ERRORS", "FLAT_DB", "FLAT_PRECISION", "changes", "trend"]

ERRORS = 2.0  # standard errors: differences within are not told apart
FLAT_DB = 1.0
FLAT_PRECISION = 0.02


def trend(values: Sequence[float], flat: float) -> str:
    """How numbers go, coarse level to fine: "rises", "falls", "hardly changes" or "goes up and down".

    A step within `flat` counts as neither; the whole change must exceed it.
    """
    values = np.asarray(values, float)
    if np.isnan(values).any() or len(values) < 2:
        return "is not known"
    steps = np.diff(values)
    if np.ptp(values) <= flat:
        return "hardly changes"
    if (steps <= flat).all() and values[-1] < values[0] - flat:
        return "falls"
    if (steps >= -flat).all() and values[-1] > values[0] + flat:
        return "rises"
    return "goes up and down"


def changes(rows: Sequence[dict], images: int, name: str, other: str) -> dict[str, tuple[float, float]]:
    """By net: points from precision `other` to `name`, and their standard error.

    Both are measured on the same images, so only those can differ whose class changed; at most as many as changed
    class from the float net's to either.
    """
    found = {}
    for row in rows:
        points = 100 * (row[name] - row[other])
        if not np.isnan(points):
            changed = 2 - row[f"{name}_agreement"] - row[f"{other}_agreement"]
            found[row["net"]] = points, 100 * float(np.sqrt(max(changed, 0.0) / images))
    return found
