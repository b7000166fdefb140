"""From measured layers to tidy rows: what the DataFrames of an `Analysis` are made of."""

from __future__ import annotations

import numpy as np
import pandas

from .data import Split
from .distributions import CHANNEL_BINS, Distribution
from .folding import Graph
from .keras_layers import by_channel
from .measuring import Errors, Outputs
from .simulation import Quantization

__all__ = [
    "channel_table",
    "decrease",
    "distribution_row",
    "error_rows",
    "histogram_table",
    "notes_of",
    "output_row",
    "places",
    "sqnr_db",
]

PERCENT = 99.0  # percentile ranges lie between the 1st and the 99th percentile
BLOCK_PARTS = ("_spatial", "_pointwise", "_add")


def places(graph: Graph) -> dict[str, dict]:
    """Each operation's block and depth, which line up nets of different levels.

    A block's first operation has a whole number as its depth, the others follow in equal steps below the next; blocks
    are what the plan names (`stage1_block1`), and each operation of another net is one.
    """
    blocks = {}
    for op in graph.operations:
        block = next((op.name.removesuffix(part) for part in BLOCK_PARTS if op.name.endswith(part)), op.name)
        blocks.setdefault(block, []).append(op.name)
    return {
        name: {"block": block, "depth": number + place / len(names)}
        for number, (block, names) in enumerate(blocks.items())
        for place, name in enumerate(names)
    }


def distribution_row(found: Distribution) -> dict:
    """The numbers of one tensor."""
    ranges = found.channel_ranges
    known = ranges[~np.isnan(ranges)]
    low, middle, high = np.quantile(known, (0, 0.5, 1)) if len(known) else (np.nan,) * 3
    return {
        "channels": len(ranges),
        "numbers": found.count,
        "minimum": found.minimum,
        "maximum": found.maximum,
        "range": found.range,
        "percentile_range": found.percentile(PERCENT) - found.percentile(100 - PERCENT),
        "channel_range_min": low,
        "channel_range_median": middle,
        "channel_range_max": high,
        "average_channel_precision": found.average_channel_precision,
        "mean": found.mean,
        "std": found.std,
        "kurtosis": found.kurtosis,
        "zero_range_channels": int((known == 0).sum()),
        "not_finite": found.not_finite,
    }


def channel_table(found: Distribution, keys: dict) -> pandas.DataFrame:
    """A row a channel."""
    return pandas.DataFrame(
        keys
        | {
            "channel": np.arange(len(found.channel_minimum)),
            "minimum": found.channel_minimum,
            "maximum": found.channel_maximum,
            "range": found.channel_ranges,
            "precision": found.channel_precisions,
        }
    )


def histogram_table(found: Distribution, keys: dict) -> pandas.DataFrame:
    """A row for each bin of each channel that holds values; bins are equal and span the tensor's range."""
    channel, place = np.nonzero(found.counts)
    edges = np.linspace(found.minimum, found.maximum, CHANNEL_BINS + 1)
    return pandas.DataFrame(
        keys
        | {
            "channel": channel,
            "bin": place,
            "low": edges[place],
            "high": edges[place + 1],
            "count": found.counts[channel, place],
        }
    )


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(sum x^2 / sum (x - x_q)^2) dB; infinite without noise, NaN where there is no signal either."""
    if not noise > 0:
        return float("inf") if signal > 0 and noise == 0 else float("nan")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def error_rows(
    graph: Graph, quantization: Quantization, errors: dict[str, Errors], keys: dict, tensors: dict[str, str]
) -> list[dict]:
    """A row for each quantized operation: its kernel's error, its output's alone and accumulated.

    `tensors` names the output in the net's .tflite, where there is one.
    """
    scheme, place = quantization.scheme, places(graph)
    rows = []
    for op in graph.quantized:
        found = errors[op.name]
        signal = noise = mse = np.nan
        if op.kernel is not None:
            difference = (op.folded - quantization.kernels[op.name]).astype(np.float64)
            signal, noise = float(np.sum(op.folded.astype(np.float64) ** 2)), float(np.sum(difference**2))
            mse = noise / difference.size
        alone, accumulated = sqnr_db(found.signal, found.alone), sqnr_db(found.signal, found.accumulated)
        low, high = quantization.ranges[op.name]
        rows.append(
            keys
            | {"scheme": scheme.name, "weight_bits": scheme.weight_bits, "activation_bits": scheme.activation_bits}
            | {"layer": op.name, **place[op.name], "kind": op.kind, "groups": op.groups}
            | {
                "tensor": tensors.get(op.name),
                "weight_mse": mse,
                "weight_sqnr_db": sqnr_db(signal, noise),
                "output_low": low,
                "output_high": high,
                "mse": found.alone / found.numbers,
                "sqnr_db": alone,
                "accumulated_mse": found.accumulated / found.numbers,
                "accumulated_sqnr_db": accumulated,
                "accumulation_db": alone - accumulated if np.isfinite(alone) else np.nan,
            }
        )
    return rows


def output_row(reference: Outputs, found: Outputs, split: Split | None) -> dict:
    """The quantized net's outputs against the float net's, natural logarithms.

    QMSE is the mean squared difference of the outputs; QCE the cross entropy of the quantized probabilities under the
    float ones; KL their divergence, QCE less the float net's own entropy.
    """
    log_p, log_q = reference.log_probabilities(), found.log_probabilities()
    p = np.exp(log_p)
    qce, entropy = float(-(p * log_q).sum(1).mean()), float(-(p * log_p).sum(1).mean())
    row = {
        "qmse": float(np.mean(np.square(reference.values.astype(np.float64) - found.values))),
        "qce": qce,
        "kl": max(0.0, qce - entropy) if np.isfinite(qce) else qce,
        "top1_agreement": float(np.mean(reference.values.argmax(1) == found.values.argmax(1))),
        "images": len(found.values),
    }
    if split is None:
        return row | {"accuracy": np.nan, "decrease_points": np.nan, "decrease_percent": np.nan}
    before, after = (float(np.mean(o.values.argmax(1) == split.labels)) for o in (reference, found))
    return row | {"accuracy": after} | decrease(before, after)


def decrease(before: float, after: float) -> dict:
    """Accuracy lost: in points, and relative, 100 (A_float - A_quant) / A_float. Source: arXiv 2104.11849 (relative)."""
    return {
        "decrease_points": 100 * (before - after),
        "decrease_percent": 100 * (before - after) / before if before else np.nan,
    }


def notes_of(graph: Graph, distributions: dict[str, Distribution], keys: dict) -> list[dict]:
    """What is odd about a net's tensors: not finite, constant, channels without range."""
    notes = []

    def note(layer, tensor, text):
        notes.append(keys | {"layer": layer, "tensor": tensor, "note": text})

    for op in graph.kernels:
        rows = by_channel(op.folded, op.kind)
        broken = int((~np.isfinite(rows)).sum())
        dead = int((np.abs(rows).max(0) == 0).sum())
        if broken:
            note(op.name, "weights", f"{broken} of {rows.size} folded weights are NaN or infinite")
        if dead:
            note(op.name, "weights", f"{dead} of {rows.shape[1]} channels have no weights but zero")
    for name, found in distributions.items():
        still = int((found.channel_ranges == 0).sum())
        if found.not_finite:
            note(name, "activations", f"{found.not_finite} of {found.count} outputs are NaN or infinite")
        if found.range == 0:
            note(name, "activations", f"the output is constant ({found.minimum:g}) on the calibration images")
        elif still:
            note(name, "activations", f"{still} of {len(found.channel_ranges)} channels are constant on these images")
    return notes
