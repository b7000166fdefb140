"""What a family of nets shows about factorization and quantization: one row a net, and a page of tables and verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from .tables import Analysis
from .verdicts import sections

__all__ = ["finding_rows", "findings_page"]

SPATIAL = ("conv", "grouped", "depthwise")
PRECISIONS = {
    "float": "float",
    "per_tensor W8A8": "per_tensor",
    "per_channel W8A8": "per_channel",
    "per_channel W4A8": "w4a8",
    "qat W8A8": "qat",
}
TITLES = {
    "float": "float",
    "per_tensor": "PTQ per tensor",
    "per_channel": "PTQ per channel",
    "w4a8": "W4A8",
    "qat": "QAT",
}
FIGURES = {
    "accuracy": "accuracy against MACs, a line for each precision",
    "channel_precision": "average channel precision along the depth, a line for each net",
    "accumulation": "signal-to-noise ratio of outputs along the depth, alone and accumulated",
    "sqnr": "signal-to-noise ratio of weights along the depth, per channel and per tensor",
    "sensitivity": "KL divergence with one layer quantized, and with all but one",
    "ranges": "ranges of weights and outputs along the depth",
}
COLUMNS = {
    "Does channel precision fall with the level?": {
        "spatial_precision": "3x3 kernels",
        "normal_precision": "normal numbers of their shape",
        "pointwise_precision": "pointwise kernels",
        "activation_precision": "3x3 outputs",
    },
    "Where does the error accumulate?": {
        "first_db": "behind the first layer, dB",
        "lowest_db": "lowest, dB",
        "lowest_layer": "where",
        "logits_channel_db": "logits, dB",
        "step_db": "largest step down, dB",
        "step_layer": "at",
    },
    "Per-tensor against per-channel weights": {
        "spatial_tensor_db": "3x3 weights per tensor, dB",
        "spatial_channel_db": "3x3 weights per channel, dB",
        "logits_tensor_db": "logits per tensor, dB",
        "logits_channel_db": "logits per channel, dB",
    },
}


def finding_rows(analysis: Analysis) -> list[dict]:
    """A dict a net, in order: MACs, accuracies (0..1), channel precisions and SQNR (dB) of kinds of layers, error at the end.

    Means are over layers. `spatial` are the 3x3 kernels of blocks, whatever their groups; `sums` the convolutions whose
    output a residual sum reads.
    """
    return [_row(analysis, net) for net in analysis.names]


def findings_page(
    analysis: Analysis,
    costs: Mapping[str, Mapping] | None = None,
    *,
    figures: str = "figures",
    command: str | None = None,
) -> str:
    """Markdown: a section a question, tables, figures and verdicts; where an expected effect is absent the words say so.

    Args:
        analysis: of a family, coarse to fine.
        costs: by net: "macs", "size_bytes", "ram_bytes", "latency_ms" (None where unknown), "accuracy" (0..1, int8 on
            validation) and "images" (of it). None: the section on requirements is left out.
        figures: where `write_figures` put them, as seen from the page.
        command: what makes the page again; None: not said.
    """
    rows = finding_rows(analysis)
    parts = [
        "# What depth factorization does to a net under quantization",
        _about(analysis, rows),
        *([] if command is None else [f"Made by\n\n```sh\n{command}\n```"]),
        "## Accuracy in each precision",
        _table(rows, {"macs": "MACs", **{key: TITLES[key] for key in _measured(rows)}}),
        _figure(figures, "accuracy"),
    ]
    for title, figure, texts in sections(analysis, rows, costs):
        table = [_table(rows, COLUMNS[title])] if title in COLUMNS else []
        drawn = [_figure(figures, figure)] if figure else []
        parts += [f"## {title}", *table, *texts, *drawn]
    return "\n\n".join(parts) + "\n"


def _about(analysis, rows):
    images = int(analysis.output["images"].max())
    what = "accuracy" if analysis.output["accuracy"].notna().any() else "images of the float net's class"
    names = sorted({name for name in analysis.nets["dataset"] if isinstance(name, str)})
    widths = sorted({int(width) for width in analysis.nets["width"].dropna()})
    wide = f", width {' and '.join(map(str, widths))}" if widths else ""
    return (
        f"{', '.join(row['net'] for row in rows)}, coarse to fine{wide}. {', '.join(names) or 'The data of the caller'}; distributions "
        f"and errors on {int(analysis.nets['calibration_images'].max()):,} training images; {what} on {images:,} "
        f"validation images, one of which is {100 / images:.2f} points. Quantized nets are simulated as TensorFlow Lite "
        "computes them, with ranges from these training images; the accuracies of the files themselves are on the models' "
        "cards. Each level was trained once: what differs between levels is in part the luck of a training."
    )


def _figure(folder, name):
    return f"![{FIGURES[name]}]({folder}/{name}.png)"


def _row(analysis, net):
    output = analysis.output[analysis.output["net"] == net].set_index("precision")
    row = {"net": net, "macs": int(analysis.nets.loc[analysis.nets["net"] == net, "macs"].iloc[0])}
    key = "accuracy" if output["accuracy"].notna().any() else "top1_agreement"
    for precision, name in PRECISIONS.items():
        row[name] = float(output.loc[precision, key]) if precision in output.index else np.nan
        found = float(output.loc[precision, "top1_agreement"]) if precision in output.index else np.nan
        row[f"{name}_agreement"] = found
    weights = analysis.weights[(analysis.weights["net"] == net) & (analysis.weights["tensor"] == "folded")]
    weights = weights[weights["source"] == weights["source"].iloc[0]]
    acts = analysis.activations[analysis.activations["net"] == net]
    acts = acts[acts["source"] == acts["source"].iloc[0]]
    inner = weights["block"] != weights["layer"]
    is_spatial = inner & weights["kind"].isin(SPATIAL)
    row["spatial_precision"] = weights.loc[is_spatial, "average_channel_precision"].mean()
    row["normal_precision"] = _normal_precision(weights[is_spatial])
    row["range_step"] = float(np.abs(np.diff(np.log2(weights.sort_values("depth")["range"]))).mean())
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
    return row | _accumulated(errors[(errors["scheme"] == "per_channel") & (errors["activation_bits"] == 8)])


def _normal_precision(kernels):
    """Average channel precision of normal random numbers in kernels of these shapes: what the shape alone makes."""
    random, found = np.random.default_rng(0), []
    for numbers, channels in zip(kernels["numbers"], kernels["channels"]):
        values = random.standard_normal((64, int(numbers // channels), int(channels)))
        found.append(float(np.mean(np.ptp(values, axis=1) / np.ptp(values, axis=(1, 2))[:, None])))
    return float(np.mean(found)) if found else np.nan


def _accumulated(errors):
    """Along the layers with weights, everything before quantized, too: where the signal-to-noise ratio goes."""
    rows = errors[errors["weight_mse"].notna()].replace(np.inf, np.nan)
    values = rows["accumulated_sqnr_db"].to_numpy(float)
    if len(values) < 2 or np.isnan(values).any():
        return dict.fromkeys(("first_db", "lowest_db", "alone_db", "step_db"), np.nan) | {
            "lowest_layer": "",
            "step_layer": "",
        }
    steps, lowest = -np.diff(values), int(values.argmin())
    return {
        "first_db": values[0],
        "lowest_db": values[lowest],
        "lowest_layer": rows["layer"].iloc[lowest],
        "alone_db": rows["sqnr_db"].min(),
        "step_db": steps.max(),
        "step_layer": rows["layer"].iloc[int(steps.argmax()) + 1],
    }


def _before_sums(layers):
    """The layers right before a residual sum."""
    return [before for before, layer in itertools.pairwise(layers) if layer.endswith("_add")]


def _measured(rows):
    return [name for name in PRECISIONS.values() if not all(np.isnan(row[name]) for row in rows)]


def _table(rows, columns):
    columns = {key: title for key, title in columns.items() if not all(_is_unknown(row[key]) for row in rows)}
    lines = [f"| net | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        lines.append(f"| {row['net']} | {' | '.join(_cell(key, row[key]) for key in columns)} |")
    return "\n".join(lines)


def _is_unknown(value):
    return isinstance(value, float) and np.isnan(value)


def _cell(key, value):
    if isinstance(value, str):
        return value
    if key == "macs":
        return f"{value:,}"
    if np.isnan(value):
        return ""
    if key in PRECISIONS.values():
        return f"{100 * value:.2f} %"
    return f"{value:.1f}" if key.endswith("_db") else f"{value:.2f}"
