"""Per-layer results as node data that Model Explorer lays over the graph of a .tflite.

Source: google-ai-edge/model-explorer's custom node data: values by node, and a gradient of colours. Its graph of a .tflite
has a node for each operation, numbered; a value's key is that number or the name of a tensor that the node gives.
"""

from __future__ import annotations

import numpy as np

__all__ = ["node_data", "tensor_names"]

GRADIENT = ({"stop": 0, "bgColor": "#c62828"}, {"stop": 0.5, "bgColor": "#fff59d"}, {"stop": 1, "bgColor": "#2e7d32"})
# Operations of a .tflite that keep their input's scale: they have no row among the errors.
SAME_SCALE = frozenset(["PAD", "RESHAPE", "MAX_POOL_2D", "AVERAGE_POOL_2D"])


def node_data(analysis, net: str, *, metric: str = "accumulated_sqnr_db", tflite=None) -> dict:
    """The overlay of one net: green where a layer keeps its signal, red where it loses it.

    The keys are output tensors of the net's .tflite, which Model Explorer matches when that file is open in it: of the
    file that was published or trained with the net, or of `tflite`. For a model without a file they are the layers'
    names, which match no node.

    Args:
        analysis: of the net.
        net: its name.
        metric: a column of `errors`; of the QAT weights where there are, else of the scheme asked for.
        tflite: an `Int8Model` converted from the net.

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
    chosen = errors[(errors[keys] == first[keys]).all(axis=1) & (errors["kind"] != "input")]
    made = chosen.get("tensor", chosen["layer"])
    names = {layer: tensor if isinstance(tensor, str) else layer for layer, tensor in zip(chosen["layer"], made)}
    if tflite is not None:
        names = tensor_names(tflite, list(names))
    values = {row.layer: float(getattr(row, metric)) for row in chosen.itertuples()}
    results = {names[layer]: {"value": round(v, 4)} for layer, v in values.items() if np.isfinite(v)}
    return {"results": results, "gradient": list(GRADIENT)}


def tensor_names(tflite, layers: list[str]) -> dict[str, str]:
    """The output tensor in a .tflite of each layer that is quantized, the input left out, by order of execution.

    Raises:
        ValueError: the file has another number of such operations.
    """
    plain = tflite._plain()
    names = {tensor["index"]: tensor["name"] for tensor in plain.get_tensor_details()}
    made = [names[op["outputs"][0]] for op in plain._get_ops_details() if op["op_name"] not in SAME_SCALE]
    if len(made) != len(layers):
        raise ValueError(
            f"the .tflite has {len(made)} quantizing operations, the analysis {len(layers)} layers; give the net's own"
        )
    return dict(zip(layers, made))
