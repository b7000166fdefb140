"""Summarize each net of an analysis in one row: channel precision, accumulation of the error, sensitivity."""

from collections.abc import Mapping

import numpy as np
import pandas

from .tables import Analysis

__all__ = ["accumulated", "net_table", "precision_title"]


def net_table(analysis: Analysis) -> pandas.DataFrame:
    """Make a table with a row for each net; values that were not measured or do not exist are NaN or None.

    Columns: net; channel_precision_3x3, the mean over the BatchNorm-folded spatial kernels (of the float weights if there are
    any); logits_<scheme>_sqnr_db, accumulated, with 8-bit weights; precision and the columns of `accumulated`; and, from the
    sensitivity, weights_points and activations_points (accuracy lost with these alone quantized), worst_layer (the layer that
    alone costs most KL divergence) and worst_share (its share of the sum over layers, 0..1).
    """
    rows = []
    for net in analysis.names:
        tables = analysis.weights, analysis.errors, analysis.sensitivity
        weights, errors, lost = (table[table["net"] == net] for table in tables)
        kernels = weights[(weights["source"] == weights["source"].iloc[0]) & (weights["tensor"] == "folded")]
        spatial = kernels.loc[kernels["layer"].str.endswith("_spatial"), "average_channel_precision"]
        row = {"net": net, "channel_precision_3x3": float(spatial.mean())}
        for scheme in ("per_tensor", "per_channel", "qat"):
            chosen = errors[(errors["scheme"] == scheme) & (errors["weight_bits"] == 8)]
            last = chosen["accumulated_sqnr_db"].replace([np.inf, -np.inf], np.nan)
            row[f"logits_{scheme}_sqnr_db"] = float(last.iloc[-1]) if len(last) else None
        main = analysis.accumulation(net)
        row |= {"precision": precision_title(main.iloc[0])} | accumulated(main)
        if len(lost):
            parts = dict(list(lost[lost["source"] == lost["source"].iloc[0]].groupby("part")))
            row |= {f"{part}_points": parts[part]["decrease_points"].iloc[0] for part in ("weights", "activations")}
            only = parts["only"].sort_values("kl", ascending=False)
            share = only["kl"].iloc[0] / (only["kl"].sum() or np.nan)
            row |= {"worst_layer": only["layer"].iloc[0], "worst_share": share}
        rows.append(row)
    return pandas.DataFrame(rows)


def accumulated(errors: pandas.DataFrame) -> dict:
    """Summarize how accumulated SQNR, dB, falls along the layers with weights of one net in one precision.

    Returns:
        first_db, lowest_db, lowest_layer, alone_db (the lowest SQNR of a layer quantized alone), step_db and step_layer (the
        largest step down); NaN and "" if a number is unknown.
    """
    rows = errors[errors["weight_mse"].notna()].replace(np.inf, np.nan)
    values = rows["accumulated_sqnr_db"].to_numpy(float)
    if len(values) < 2 or np.isnan(values).any():
        unknown = dict.fromkeys(("first_db", "lowest_db", "alone_db", "step_db"), np.nan)
        return unknown | {"lowest_layer": "", "step_layer": ""}
    steps, lowest = -np.diff(values), int(values.argmin())
    return {
        "first_db": values[0],
        "lowest_db": values[lowest],
        "lowest_layer": rows["layer"].iloc[lowest],
        "alone_db": rows["sqnr_db"].min(),
        "step_db": steps.max(),
        "step_layer": rows["layer"].iloc[int(steps.argmax()) + 1],
    }


def precision_title(row: Mapping) -> str:
    """Name a row's scheme and bits, e.g. "per channel int8", "per channel W4A8", "QAT int8" or "float"."""
    if row["scheme"] == "float":
        return "float"
    name = f"{row['scheme']} W{row['weight_bits']}A{row['activation_bits']}"
    return name.replace("_", " ").replace("W8A8", "int8").replace("qat", "QAT")
