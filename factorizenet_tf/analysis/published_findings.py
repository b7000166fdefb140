"""What Yun & Wong, arXiv 2104.11849, find in depthwise-separable nets, looked for in our own family.

Source: the abstract of arXiv 2104.11849; the measures are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .differences import ERRORS, FLAT_DB, FLAT_PRECISION, changes
from .tables import Analysis

__all__ = ["published_findings"]

FLAT_RANGE = 0.1  # of the mean binary logarithm of neighbours' ratio


def published_findings(analysis: Analysis, rows: Sequence[dict], images: int) -> list[str]:
    """Paragraphs: four findings of that paper's abstract, each beside the same measure of our regular and depthwise nets.

    Args:
        analysis: of the family; without both kinds of nets there is nothing to say.
        rows: of `finding_rows`.
        images: that accuracies were measured on.
    """
    kinds = {
        net: set(table.loc[table["layer"].str.endswith("_spatial"), "kind"])
        for net, table in analysis.weights.groupby("net", sort=False)
    }
    regular = next((row for row in rows if kinds[row["net"]] == {"conv"}), None)
    separable = next((row for row in reversed(rows) if kinds[row["net"]] == {"depthwise"}), None)
    if regular is None or separable is None:
        return []
    first, last = regular["net"], separable["net"]
    losses = changes([regular, separable], images, "per_tensor", "float")
    (a, a_error), (b, b_error) = losses[first], losses[last]
    is_clear = -b > ERRORS * b_error and a - b > ERRORS * np.hypot(a_error, b_error)
    texts = [
        f"That paper compares depthwise-separable nets with regular ones; here {last} beside {first}.",
        f"- Depthwise-separable nets lose much accuracy by post-training quantization: {_agrees(is_clear)} at 8 bits, per tensor "
        f"({b:+.2f} points against {a:+.2f})." + _at_four_bits(regular, separable, images),
    ]
    facts = (
        (
            "Ranges go up and down more from layer to layer",
            "range_step",
            FLAT_RANGE,
            1,
            "mean binary logarithm of the ratio of neighbours' ranges",
        ),
        (
            "Channels match their layer less",
            "spatial_precision",
            FLAT_PRECISION,
            -1,
            "average channel precision of 3x3 kernels",
        ),
        ("More quantization error accumulates", "logits_channel_db", FLAT_DB, -1, "dB at the logits, per channel"),
    )
    for claim, key, flat, sign, what in facts:
        seen = sign * (separable[key] - regular[key]) > flat
        texts.append(f"- {claim}: {_agrees(seen)} ({what}: {separable[key]:.2f} against {regular[key]:.2f}).")
    return [texts[0], "\n".join(texts[1:])]


def _at_four_bits(regular, separable, images):
    found = changes([regular, separable], images, "w4a8", "float")
    if len(found) < 2:
        return ""
    (a, a_error), (b, b_error) = found[regular["net"]], found[separable["net"]]
    is_clear = -b > ERRORS * b_error and a - b > ERRORS * np.hypot(a_error, b_error)
    return f" With 4-bit weights, per channel: {_agrees(is_clear)} ({b:+.2f} against {a:+.2f})."


def _agrees(seen):
    return "seen here, too" if seen else "not seen here"
