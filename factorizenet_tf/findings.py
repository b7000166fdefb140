"""What a family of nets shows about factorization and quantization: one row a net, and verdicts that say no more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .analysis import Analysis

__all__ = ["finding_rows", "findings_page", "trend"]

SPATIAL = ("conv", "grouped", "depthwise")
PRECISIONS = {
    "float": "float",
    "per_tensor W8A8": "per_tensor",
    "per_channel W8A8": "per_channel",
    "per_channel W4A8": "w4a8",
    "qat W8A8": "qat",
}
SMALL_POINTS = 2.0  # standard errors: differences within are not told apart
FLAT_DB = 1.0
FLAT_PRECISION = 0.02


def finding_rows(analysis: Analysis) -> list[dict]:
    """A dict a net, in order: MACs, accuracies (0..1), channel precisions and SQNR (dB) of kinds of layers, error at the end.

    Means are over layers. `spatial` are the 3x3 kernels of blocks, whatever their groups; `sums` the convolutions whose
    output a residual sum reads.
    """
    return [_row(analysis, net) for net in analysis.names]


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


def findings_page(analysis: Analysis) -> str:
    """Markdown: tables, and a sentence a question; where an expected effect is absent the sentence says so."""
    rows = finding_rows(analysis)
    names = ", ".join(row["net"] for row in rows)
    images = int(analysis.output["images"].max())
    return "\n".join(
        [
            f"# What quantization does to {names}",
            "",
            f"{_data(analysis)}; accuracy on {images:,} images, one of which is {100 / images:.2f} points.",
            "",
            *_table(rows, {"macs": "MACs", **{key: key.replace("_", " ") for key in _measured(rows)}}),
            "",
            *_table(
                rows,
                {
                    "spatial_precision": "3x3 channel precision",
                    "pointwise_precision": "pointwise channel precision",
                    "activation_precision": "3x3 outputs' channel precision",
                    "spatial_tensor_db": "3x3 weights per tensor, dB",
                    "spatial_channel_db": "3x3 weights per channel, dB",
                    "logits_tensor_db": "logits per tensor, dB",
                    "logits_channel_db": "logits per channel, dB",
                    "logits_qat_db": "logits QAT, dB",
                },
            ),
            "",
            *(f"- {sentence}" for sentence in _verdicts(analysis, rows, images)),
            "",
        ]
    )


def _row(analysis, net):
    output = analysis.output[analysis.output["net"] == net].set_index("precision")
    row = {"net": net, "macs": int(analysis.nets.loc[analysis.nets["net"] == net, "macs"].iloc[0])}
    key = "accuracy" if output["accuracy"].notna().any() else "top1_agreement"
    for precision, name in PRECISIONS.items():
        row[name] = float(output.loc[precision, key]) if precision in output.index else np.nan
    weights = analysis.weights[(analysis.weights["net"] == net) & (analysis.weights["tensor"] == "folded")]
    weights = weights[weights["source"] == weights["source"].iloc[0]]
    acts = analysis.activations[analysis.activations["net"] == net]
    acts = acts[acts["source"] == acts["source"].iloc[0]]
    inner = weights["block"] != weights["layer"]
    is_spatial = inner & weights["kind"].isin(SPATIAL)
    row["spatial_precision"] = weights.loc[is_spatial, "average_channel_precision"].mean()
    row["pointwise_precision"] = weights.loc[weights["kind"] == "pointwise", "average_channel_precision"].mean()
    spatial = set(weights.loc[is_spatial, "layer"])
    row["activation_precision"] = acts.loc[acts["layer"].isin(spatial), "average_channel_precision"].mean()
    errors = analysis.errors[(analysis.errors["net"] == net) & (analysis.errors["weight_bits"] == 8)]
    for scheme, short in (("per_tensor", "tensor"), ("per_channel", "channel"), ("qat", "qat")):
        chosen = errors[(errors["scheme"] == scheme) & (errors["activation_bits"] == 8)].replace(np.inf, np.nan)
        row[f"spatial_{short}_db"] = chosen.loc[chosen["layer"].isin(spatial), "weight_sqnr_db"].mean()
        row[f"logits_{short}_db"] = chosen["accumulated_sqnr_db"].iloc[-1] if len(chosen) else np.nan
        sums = chosen["layer"].isin(_before_sums(chosen["layer"].tolist()))
        row[f"sums_{short}_db"] = chosen.loc[sums, "sqnr_db"].mean()
        others = ~sums & chosen["weight_mse"].notna()
        row[f"others_{short}_db"] = chosen.loc[others, "sqnr_db"].mean()
    return row


def _before_sums(layers):
    """The layers right before a residual sum."""
    return [before for before, layer in itertools.pairwise(layers) if layer.endswith("_add")]


def _measured(rows):
    return [name for name in PRECISIONS.values() if not all(np.isnan(row[name]) for row in rows)]


def _table(rows, columns):
    lines = [f"| net | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        lines.append(f"| {row['net']} | {' | '.join(_cell(key, row[key]) for key in columns)} |")
    return lines


def _cell(key, value):
    if key == "macs":
        return f"{value:,}"
    if np.isnan(value):
        return ""
    if key in PRECISIONS.values():
        return f"{100 * value:.2f} %"
    return f"{value:.1f}" if key.endswith("_db") else f"{value:.2f}"


def _data(analysis):
    names = sorted({name for name in analysis.nets["dataset"] if isinstance(name, str)})
    return ", ".join(names) or "The caller's data"


def _verdicts(analysis, rows, images):
    yield _channel_precision(rows)
    yield _schemes(rows)
    yield _sums(rows)
    yield from _accuracies(rows, images)
    yield _accumulation(rows)
    if len(analysis.sensitivity):
        yield _sensitivity(analysis)


def _channel_precision(rows):
    values = [row["spatial_precision"] for row in rows]
    return (
        f"Average channel precision of the folded 3x3 kernels {trend(values, FLAT_PRECISION)} from coarse to fine "
        f"({values[0]:.2f} to {values[-1]:.2f}); that of their outputs "
        f"{trend([row['activation_precision'] for row in rows], FLAT_PRECISION)}. A finer kernel has fewer numbers a "
        "channel, which by itself narrows a channel's range."
    )


def _schemes(rows):
    lost = [row["spatial_channel_db"] - row["spatial_tensor_db"] for row in rows]
    return (
        f"One scale a tensor instead of one a channel costs the 3x3 weights {lost[0]:.1f} dB in {rows[0]['net']} and "
        f"{lost[-1]:.1f} dB in {rows[-1]['net']}; over the levels the loss {trend(lost, FLAT_DB)}."
    )


def _sums(rows):
    gaps = [row["others_channel_db"] - row["sums_channel_db"] for row in rows]
    if np.isnan(gaps).all():
        return "There are no residual sums."
    if np.nanmin(gaps) <= FLAT_DB:
        return (
            f"Convolutions before a residual sum lie {np.nanmin(gaps):.1f} to {np.nanmax(gaps):.1f} dB below the others in "
            "signal-to-noise ratio (per channel, this layer alone): no effect of the sums in every net."
        )
    return (
        f"Convolutions before a residual sum have a signal-to-noise ratio {np.nanmin(gaps):.1f} to {np.nanmax(gaps):.1f} dB "
        "below the others' (per channel, this layer alone); the converter gives them the sum's range, too."
    )


def _accuracies(rows, images):
    """A sentence for each pair of precisions, with what sampling alone makes of a difference of this size."""
    pairs = (
        ("per_channel", "float", "Per-channel PTQ against float"),
        ("per_tensor", "per_channel", "Per-tensor against per-channel PTQ"),
        ("qat", "per_channel", "QAT against per-channel PTQ"),
        ("w4a8", "per_channel", "W4A8 against W8A8, both per-channel PTQ"),
    )
    for name, other, title in pairs:
        changes = {row["net"]: 100 * (row[name] - row[other]) for row in rows if not np.isnan(row[name] - row[other])}
        if not changes:
            continue
        rate = float(np.mean([row[other] for row in rows if not np.isnan(row[other])]))
        error = 100 * np.sqrt(2 * max(rate * (1 - rate), 0.25 / images) / images)
        low, high = min(changes, key=changes.get), max(changes, key=changes.get)
        text = f"{title}: from {changes[low]:+.2f} points ({low}) to {changes[high]:+.2f} ({high})"
        if changes[low] == changes[high]:
            text = f"{title}: {changes[low]:+.2f} points in each net"
        if max(map(abs, changes.values())) <= SMALL_POINTS * error:
            text += f"; none is beyond {SMALL_POINTS * error:.2f} points, two standard errors of {images:,} images"
        yield text + "."


def _accumulation(rows):
    parts = [f"{row['net']} {row['logits_tensor_db']:.1f} and {row['logits_channel_db']:.1f}" for row in rows]
    values = [row["logits_channel_db"] for row in rows]
    return (
        f"With everything quantized the logits' signal-to-noise ratio, per tensor and per channel, is {'; '.join(parts)} dB: "
        f"per channel it {trend(values, FLAT_DB)} from coarse to fine."
    )


def _sensitivity(analysis):
    table = analysis.sensitivity[analysis.sensitivity["part"] == "only"]
    parts = []
    for net, rows in table.groupby("net", sort=False):
        rows = rows[rows["source"] == rows["source"].iloc[0]]
        worst = rows.sort_values("kl", ascending=False).iloc[0]
        parts.append(
            f"{net}: {worst['layer']} ({100 * worst['kl'] / rows['kl'].sum():.0f} % of all layers' KL together)"
        )
    return f"The layer that costs most when it alone is quantized: {'; '.join(parts)}."
