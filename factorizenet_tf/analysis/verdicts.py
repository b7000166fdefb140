"""Sentences that a family's numbers support, a section a question; an expected effect that is absent is called absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .differences import ERRORS, FLAT_DB, FLAT_PRECISION, changes, trend
from .published_findings import published_findings
from .requirements_met import requirement_texts
from .tables import Analysis

__all__ = ["sections"]


def sections(
    analysis: Analysis, rows: Sequence[dict], costs: Mapping[str, Mapping] | None
) -> Iterator[tuple[str, str | None, list[str]]]:
    """(title, name of a figure or None, paragraphs) of each question that the rows of `finding_rows` can answer."""
    images = int(analysis.output["images"].max())
    if len(rows) > 1 and not np.isnan([row["spatial_precision"] for row in rows]).any():
        yield "Does channel precision fall with the level?", "channel_precision", _channel_precision(rows)
    if np.isnan([row["first_db"] + row["logits_channel_db"] + row["logits_tensor_db"] for row in rows]).any():
        return  # no float weights: nothing was quantized after training
    yield "Where does the error accumulate?", "accumulation", [_accumulation(rows), *_sums(rows)]
    schemes = [
        *_schemes(rows),
        *_changes(rows, images, "per_tensor", "per_channel", "Per-tensor against per-channel PTQ"),
    ]
    yield "Per-tensor against per-channel weights", "sqnr", schemes
    trained = _changes(rows, images, "per_channel", "float", "Per-channel PTQ against float")
    trained += _changes(rows, images, "qat", "float", "QAT against float")
    trained += _changes(rows, images, "qat", "per_channel", "QAT against per-channel PTQ")
    yield "Post-training quantization against quantization-aware training", None, trained
    four = _changes(rows, images, "w4a8", "per_channel", "W4A8 against W8A8, both per-channel PTQ")
    if four:
        yield "Four-bit weights (W4A8)", None, four + _four_bits(rows)
    if len(analysis.sensitivity):
        yield "Which layer costs most alone?", "sensitivity", [_sensitivity(analysis)]
    if costs:
        yield "Which level is best under which requirement?", None, requirement_texts(costs)
    compared = published_findings(analysis, rows, images)
    if compared:
        yield "Beside the findings of arXiv 2104.11849", "ranges", compared


def _channel_precision(rows):
    kernels, shapes, outputs = (
        [row[key] for row in rows] for key in ("spatial_precision", "normal_precision", "activation_precision")
    )
    way = trend(kernels, FLAT_PRECISION)
    text = f"Average channel precision of the folded 3x3 kernels {way} from coarse to fine, {kernels[0]:.2f} to {kernels[-1]:.2f}"
    text += "." if way == "falls" else ": the fall that one expects is absent."
    drop, by_shape = kernels[0] - kernels[-1], shapes[0] - shapes[-1]
    if way == "falls":
        text += (
            f" A finer kernel has fewer numbers a channel, which alone narrows a channel's range: normal random numbers in the "
            f"same shapes go from {shapes[0]:.2f} to {shapes[-1]:.2f}, by {by_shape:.2f} of the {drop:.2f} measured."
        )
    ratios = [kernel / shape for kernel, shape in zip(kernels, shapes)]
    text += f" Measured over that of normal numbers it {trend(ratios, FLAT_PRECISION)}: {ratios[0]:.2f} to {ratios[-1]:.2f}."
    out = (
        f"That of the outputs of these layers {trend(outputs, FLAT_PRECISION)}, {outputs[0]:.2f} to {outputs[-1]:.2f}."
    )
    return [text, out]


def _accumulation(rows):
    ends = [row["logits_channel_db"] for row in rows]
    lost = [row["first_db"] - row["lowest_db"] for row in rows]
    alone = [row["alone_db"] for row in rows]
    at = sorted({row["step_layer"] for row in rows})
    text = (
        f"Per channel int8. No layer quantized alone falls below {min(alone):.1f} dB; with everything before it quantized, too, "
        f"the signal-to-noise ratio of an output goes down by {min(lost):.1f} to {max(lost):.1f} dB between the first layer "
        f"and the lowest. The largest single step is at {', '.join(at)}. That of the logits "
        f"{trend(ends, FLAT_DB)} from coarse to fine, {ends[0]:.1f} to {ends[-1]:.1f} dB."
    )
    if all(row["logits_channel_db"] > row["lowest_db"] + FLAT_DB for row in rows):
        text += " Averaging over the last layer's positions takes part of the error away again in every net."
    return text


def _sums(rows):
    gaps = [row["others_channel_db"] - row["sums_channel_db"] for row in rows]
    if np.isnan(gaps).all():
        return []
    text = (
        f"Convolutions before a residual sum lie {np.nanmin(gaps):.1f} to {np.nanmax(gaps):.1f} dB below the others in "
        "signal-to-noise ratio (this layer alone)"
    )
    if np.nanmin(gaps) <= FLAT_DB:
        return [f"{text}: not an effect of the sums in every net."]
    return [f"{text}; the converter gives them the sum's range, too."]


def _schemes(rows):
    lost = [row["spatial_channel_db"] - row["spatial_tensor_db"] for row in rows]
    if np.isnan(lost).any():
        return []
    ends = [row["logits_channel_db"] - row["logits_tensor_db"] for row in rows]
    widest = rows[int(np.argmax(ends))]["net"]
    return [
        f"One scale a tensor instead of one a channel costs the 3x3 weights {lost[0]:.1f} dB in {rows[0]['net']} and "
        f"{lost[-1]:.1f} dB in {rows[-1]['net']}; from coarse to fine the loss {trend(lost, FLAT_DB)}. At the logits it is "
        f"{min(ends):.1f} to {max(ends):.1f} dB, most in {widest}."
    ]


def _changes(rows, images, name, other, title):
    found = changes(rows, images, name, other)
    if not found:
        return []
    low, high = min(found, key=found.get), max(found, key=found.get)
    text = f"{title}: from {found[low][0]:+.2f} points ({low}) to {found[high][0]:+.2f} ({high})"
    if low == high:
        text = f"{title}: {found[low][0]:+.2f} points ({low})"
    clear = [net for net, (points, error) in found.items() if abs(points) > ERRORS * error]
    widest = ERRORS * max(error for _, error in found.values())
    if not clear:
        return [f"{text}. None is beyond two standard errors of these {images:,} images (at most {widest:.2f} points)."]
    return [f"{text}. Beyond two standard errors (at most {widest:.2f} points): {', '.join(clear)}."]


def _four_bits(rows):
    lost = [100 * (row["per_channel"] - row["w4a8"]) for row in rows if not np.isnan(row["w4a8"])]
    if len(lost) < 2:
        return []
    listed = ", ".join(f"{points:.2f}" for points in lost)
    return [f"Points lost, coarse to fine: {listed}; the loss {trend(lost, FLAT_DB)}. No net was trained for 4 bits."]


def _sensitivity(analysis):
    table = analysis.sensitivity[analysis.sensitivity["part"] == "only"]
    parts = []
    for net, rows in table.groupby("net", sort=False):
        rows = rows[rows["source"] == rows["source"].iloc[0]]
        worst = rows.sort_values("kl", ascending=False).iloc[0]
        parts.append(f"{net}: {worst['layer']} ({100 * worst['kl'] / rows['kl'].sum():.0f} %)")
    largest = analysis.sensitivity.loc[analysis.sensitivity["part"] == "only", "decrease_points"].max()
    text = f"By KL divergence, with its share of the sum over the layers: {'; '.join(parts)}."
    if not np.isnan(largest):
        text += f" No layer alone costs more than {max(largest, 0.0):.2f} points of accuracy."
    return text
