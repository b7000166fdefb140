"""Say in plain words what an analysis shows: each sentence is computed from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas

from .tables import Analysis

__all__ = ["precision_title", "summary", "trend"]

MIN_PRECISION = 0.02  # a difference of average channel precision that counts
ERRORS = 2.0  # standard errors of a difference on the same images, of which at most those of another class count


def summary(analysis: Analysis) -> tuple[list[str], list[str]]:
    """Write the sentences that the tables support; what they do not show is not said.

    Returns:
        (accuracies and what differs between the nets, what is to be said of each net's layers).
    """
    of_all = [*(_accuracy(analysis, net) for net in analysis.names), _one_image(analysis)]
    of_all += [_beyond_chance(analysis), _precision_by_level(analysis)]
    of_layers = []
    for net in analysis.names:
        of_layers += [_accumulation(analysis, net), _sensitivity(analysis, net)]
    return [s for s in of_all if s], [s for s in of_layers if s]


def trend(values: Sequence[float], flat: float) -> str:
    """Say how numbers go, coarse level to fine: "rises", "falls", "hardly changes" or "goes up and down".

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


def precision_title(row: Mapping) -> str:
    """Name a row's scheme and numbers of bits in words, e.g. "per channel int8"."""
    if row["scheme"] == "float":
        return "float"
    if row["scheme"] == "qat":
        return "quantization-aware int8"
    name = row["scheme"].replace("_", " ")
    is_int8 = row["weight_bits"] == row["activation_bits"] == 8
    return f"{name} int8" if is_int8 else f"{name} W{row['weight_bits']}A{row['activation_bits']}"


def _accuracy(analysis, net):
    rows = analysis.output[analysis.output["net"] == net]
    if rows["accuracy"].isna().all():
        parts = [
            f"{precision_title(r)} {100 * r['top1_agreement']:.1f} %"
            for _, r in rows.iterrows()
            if r["scheme"] != "float"
        ]
        return f"{net}: images with the class that the float net gives: {', '.join(parts)}."
    parts = []
    for _, row in rows.iterrows():
        change = "" if row["scheme"] == "float" else f" ({_signed(-row['decrease_points'])} points)"
        parts.append(f"{precision_title(row)} {100 * row['accuracy']:.2f} %{change}")
    return f"{net}: {', '.join(parts)}."


def _one_image(analysis):
    """What an image weighs in the accuracies; each number of images once."""
    counts = sorted({int(images) for images in analysis.output.loc[analysis.output["accuracy"].notna(), "images"]})
    parts = [f"of {images:,} is {100 / images:.2f} points" for images in counts]
    return f"One image {', '.join(parts)}." if parts else None


def _beyond_chance(analysis):
    """Which changes against float are more than the images of another class explain by chance."""
    rows = analysis.output[(analysis.output["scheme"] != "float") & analysis.output["decrease_points"].notna()]
    if not len(rows):
        return None
    error = 100 * np.sqrt((1 - rows["top1_agreement"]) / rows["images"])
    clear = rows[rows["decrease_points"].abs() > ERRORS * error]
    listed = ", ".join(f"{r['net']} {precision_title(r)} {_signed(-r['decrease_points'])}" for _, r in clear.iterrows())
    if not listed:
        return f"No change against float is beyond {ERRORS:g} standard errors: each may be chance."
    others = "" if len(clear) == len(rows) else "; each other change may be chance"
    return f"Changes against float beyond {ERRORS:g} standard errors, points: {listed}{others}."


def _signed(points):
    return f"{round(points, 2) + 0.0:+.2f}" if round(points, 2) else "0.00"


def _precision_by_level(analysis):
    """Whether the channel precision of the spatial kernels changes from the first net to the last."""
    spatial = analysis.weights[
        (analysis.weights["tensor"] == "folded") & analysis.weights["layer"].str.endswith("_spatial")
    ]
    first_source = spatial.groupby("net", sort=False)["source"].first()
    means = {
        net: float(rows[rows["source"] == first_source[net]]["average_channel_precision"].mean())
        for net, rows in spatial.groupby("net", sort=False)
    }
    if len(means) < 2:
        return None
    listed = ", ".join(f"{net} {value:.2f}" for net, value in means.items())
    verdict = trend(list(means.values()), MIN_PRECISION)
    return f"Average channel precision of the folded 3x3 kernels {verdict} from the first net to the last: {listed}."


def _accumulation(analysis, net):
    errors = analysis.errors[(analysis.errors["net"] == net)]
    rows = errors[errors["source"] == "qat"] if (errors["source"] == "qat").any() else errors
    first = rows.iloc[0]
    keys = ["source", "scheme", "weight_bits", "activation_bits"]
    rows = rows[(rows[keys] == first[keys]).all(axis=1) & rows["weight_mse"].notna()]
    values = rows["accumulated_sqnr_db"].replace([np.inf, -np.inf], np.nan).to_numpy(float)
    if np.isnan(values).any() or len(values) < 2:
        return None
    steps = np.diff(values)
    worst = int(np.argmin(steps))
    return (
        f"{net}, {precision_title(first)}: the accumulated signal-to-noise ratio goes from {values[0]:.1f} dB behind "
        f"{rows['layer'].iloc[0]} to {values[-1]:.1f} dB at {rows['layer'].iloc[-1]}, lowest {values.min():.1f} dB at "
        f"{rows['layer'].iloc[int(values.argmin())]}; the largest step down is {-steps[worst]:.1f} dB at "
        f"{rows['layer'].iloc[worst + 1]}."
    )


def _sensitivity(analysis, net):
    rows = analysis.sensitivity[analysis.sensitivity["net"] == net] if len(analysis.sensitivity) else pandas.DataFrame()
    if not len(rows) or rows["decrease_points"].isna().all():
        return None
    rows = rows[rows["source"] == rows["source"].iloc[0]]
    by_part = dict(list(rows.groupby("part")))
    only = by_part["only"].sort_values("kl", ascending=False)
    weights, acts = (float(by_part[part]["decrease_points"].iloc[0]) for part in ("weights", "activations"))
    total, worst = only["kl"].sum(), only["decrease_points"].max()
    text = (
        f"{net}, {precision_title(rows.iloc[0])}: with weights only quantized accuracy changes by {_signed(-weights)} points, with "
        f"activations only by {_signed(-acts)}; "
    )
    text += f"no layer alone costs more than {worst:.2f} points" if worst > 0 else "no layer alone costs accuracy"
    if not total > 0:
        return f"{text}."
    first = only.iloc[0]
    share = 100 * first["kl"] / total
    return f"{text}. By KL divergence {first['layer']} costs most alone, {share:.0f} % of the sum over the layers."
