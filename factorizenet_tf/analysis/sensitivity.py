"""How much accuracy each part of a net costs when it is quantized alone, or left in float alone."""

from __future__ import annotations

import numpy as np

from ..data import Split
from .graph import Graph
from .measure import BATCH, Outputs, outputs
from .simulation import Quantization
from .tables import SENSITIVITY_COLUMNS, output_row, places

__all__ = ["sensitivity_rows"]


def sensitivity_rows(
    graph: Graph,
    quantization: Quantization,
    images: np.ndarray,
    split: Split | None,
    reference: Outputs,
    keys: dict,
    progress,
) -> list[dict]:
    """A row for each part: "all", "weights", "activations", and "only" and "all_but" each layer with weights.

    A layer is its kernel, its bias and its output; "only" leaves the input image and all other layers in float,
    "all_but" leaves this one in float, the sum behind it quantized.
    """
    kernels = [op.name for op in graph.kernels]
    outs = [op.name for op in graph.quantized]
    parts = [("all", None, kernels, outs), ("weights", None, kernels, []), ("activations", None, [], outs)]
    for name in kernels:
        parts.append(("only", name, [name], [name]))
        rest = [other for other in kernels if other != name], [other for other in outs if other != name]
        parts.append(("all_but", name, *rest))
    place, scheme = places(graph), quantization.scheme
    bar = progress.bar(f"{keys['net']} {keys['source']} sensitivity", len(parts) * -(-len(images) // BATCH))
    rows = []
    for part, layer, weights, acts in parts:
        found = outputs(graph, images, quantization, frozenset(weights), frozenset(acts), bar.advance)
        row = output_row(reference, found, split)
        row |= keys | {"scheme": scheme.name, "weight_bits": scheme.weight_bits}
        row |= {"activation_bits": scheme.activation_bits, "part": part, "layer": layer}
        row |= place[layer] if layer else {"block": None, "depth": np.nan}
        rows.append({column: row[column] for column in SENSITIVITY_COLUMNS})
    return rows
