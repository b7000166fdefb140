"""Per-layer results as node data that Model Explorer lays over a graph of the net.

Source: the JSON of google-ai-edge/model-explorer's custom node data: values by node, and a gradient of colours.
"""

from __future__ import annotations

import numpy as np

__all__ = ["node_data"]

GRADIENT = ({"stop": 0, "bgColor": "#c62828"}, {"stop": 0.5, "bgColor": "#fff59d"}, {"stop": 1, "bgColor": "#2e7d32"})


def node_data(analysis, net: str, *, metric: str = "accumulated_sqnr_db", tflite=None) -> dict:
    """The overlay of one net: green where a layer keeps its signal, red where it loses it.

    Args:
        analysis: of the net.
        net: its name.
        metric: a column of `errors`; of the QAT weights where there are, else of the scheme asked for.
        tflite: the net's `Int8Model`. With it the keys are the .tflite's output tensors, which Model Explorer matches
            when the file is open in it; without it they are the layers' names.

    Raises:
        ValueError: no such net or column, or a .tflite of another net.
    """
    errors = analysis.errors[analysis.errors["net"] == net]
    if errors.empty:
        raise ValueError(f"no net {net!r} in the analysis; there are {', '.join(analysis.names)}")
    if metric not in errors.select_dtypes("number").columns:
        raise ValueError(f"metric is {metric!r}; it must be a number of errors, e.g. sqnr_db or accumulated_sqnr_db")
    first = errors.iloc[-1] if (errors["source"] == "qat").any() else errors.iloc[0]
    keys = ["source", "scheme", "weight_bits", "activation_bits"]
    chosen = errors[(errors[keys] == first[keys]).all(axis=1)]
    values = {row.layer: float(getattr(row, metric)) for row in chosen.itertuples()}
    names = {layer: layer for layer in values} if tflite is None else _tensors(tflite, list(values))
    results = {names[layer]: {"value": round(v, 4)} for layer, v in values.items() if layer in names and np.isfinite(v)}
    return {"results": results, "gradient": list(GRADIENT)}


def _tensors(tflite, layers):
    """Each layer's output tensor in the file, by order of execution."""
    plain = tflite._plain()
    names = {tensor["index"]: tensor["name"] for tensor in plain.get_tensor_details()}
    made = [names[op["outputs"][0]] for op in plain._get_ops_details()]
    computed = [layer for layer in layers if not layer.startswith("image") and layer != "input"]
    if len(made) != len(computed):
        raise ValueError(
            f"the .tflite has {len(made)} operations, the analysis {len(computed)} layers; give the net's own"
        )
    return dict(zip(computed, made))
