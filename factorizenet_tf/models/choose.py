"""Choose levels for a trained net's layers from its factorization table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._keras import keras
from ..cost import count_macs

if TYPE_CHECKING:
    import pandas

__all__ = ["choose_levels"]

PRICES = (0.0, *np.geomspace(1e-3, 1e4, 141).tolist())  # squared error at the logits for a millisecond


def choose_levels(
    model: keras.Model, table: pandas.DataFrame, max_macs: float, *, max_ms: float | None = None
) -> tuple[dict[str, int], dict[str, float]]:
    """Choose a level and a middle for each layer so that the net keeps to a budget and its logits change least.

    The squared errors of the layers alone are assumed to add up. Starting from the net as it is, the change with the smallest
    error for each MAC saved is made until the budget is kept; what is left of the budget goes to the layer that gains most.
    With `max_ms`, a millisecond has a price in error, the lowest of PRICES at which that is kept, too.

    Args:
        model: the net.
        table: its `factorization_table`; for `max_ms` `with_latencies`.
        max_macs: budget of the whole net.
        max_ms: budget of the table's layers together; the sum of `ms` at level 0 is what they take as they are.

    Returns:
        level and middle by layer name, as `factorize` takes them.

    Raises:
        ValueError: the net has more MACs even with the cheapest choice in each layer; the message has the number. Or no choice that
            was found keeps to `max_ms`; the message has the fewest.
    """
    if max_ms is not None and "ms" not in table:
        raise ValueError("max_ms is given and the table has no column ms; give it one by with_latencies(model, table)")
    spare, rows = max_macs - count_macs(model), list(table.itertuples(index=False))
    fewest = math.inf
    for price in (0.0,) if max_ms is None else PRICES:
        chosen = _within_macs(rows, spare, max_macs, price)
        fewest = 0 if max_ms is None else min(fewest, sum(row.ms for row in chosen))
        if max_ms is None or fewest <= max_ms:
            chosen = [row for row in chosen if row.level]
            return {row.layer: row.level for row in chosen}, {
                row.layer: row.middle for row in chosen if row.middle != 1
            }
    before = sum(row.ms for row in rows if not row.level)
    raise ValueError(
        f"max_ms is {max_ms:.4g} for the layers of the table, which take {before:.4g} as they are; within {max_macs:,.0f} MACs the "
        f"fewest that were found are {fewest:.4g}: give more of either"
    )


def _within_macs(rows: Sequence, spare: float, max_macs: float, price: float) -> list:
    """Choose a row for each layer; `spare` MACs are left with all layers as they are, each millisecond counts as an error of `price`."""
    loss = {row: row.logits_error_int8**2 + (price * row.ms if price else 0) for row in rows}
    now = {row.layer: row for row in rows if not row.level}  # each layer as it is

    def saved(row):
        return now[row.layer].macs - row.macs

    def gained(row):
        return loss[now[row.layer]] - loss[row]

    while spare < 0:
        cheaper = [row for row in rows if saved(row) > 0]
        if not cheaper:
            least = round(max_macs - spare)
            raise ValueError(
                f"max_macs is {max_macs:,.0f}; with the cheapest choice in each layer the net has {least:,}: give more"
            )
        row = max(cheaper, key=lambda row: gained(row) / saved(row))
        spare += saved(row)
        now[row.layer] = row
    while better := [row for row in rows if gained(row) > 0 and spare + saved(row) >= 0]:
        row = max(better, key=gained)
        spare += saved(row)
        now[row.layer] = row
    return list(now.values())
