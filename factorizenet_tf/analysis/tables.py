"""The tables of an analysis: an `Analysis`, saved and loaded, and the rows that measured layers give."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas

from ..data import Split
from ..files import atomic_write, write_text
from ..machine import versions
from .distributions import CHANNEL_BINS, Distribution

if TYPE_CHECKING:
    from .graph import FusedGraph
    from .measure import Errors, Outputs
    from .simulation import Quantization

__all__ = ["TABLES", "Analysis", "concat", "from_rows", "load_analysis", "node_data"]

TABLES = ("nets", "weights", "activations", "channels", "histograms", "errors", "output", "sensitivity", "notes")
SCHEME = ("scheme", "weight_bits", "activation_bits")
LOST = ("accuracy", "decrease_points", "decrease_percent", "top1_agreement", "qmse", "kl")
EMPTY = {  # the columns of tables that may have no row
    "notes": ["net", "source", "layer", "tensor", "note"],
    "sensitivity": ["net", "source", *SCHEME, "part", "layer", "block", "depth", *LOST],
}
PERCENT = 99.0  # percentile ranges lie between the 1st and the 99th percentile
BLOCK_PARTS = ("_spatial", "_pointwise", "_add")
# Operations of a .tflite that keep their input's scale: they have no row among the errors.
SAME_SCALE = frozenset(["PAD", "RESHAPE", "MAX_POOL_2D", "AVERAGE_POOL_2D"])
RED, YELLOW, GREEN = "#c62828", "#fff59d", "#2e7d32"


@dataclass(frozen=True, eq=False)
class Analysis:
    """Tables of one net or several, all with the columns net and source ("float" or "qat" weights).

    Args:
        nets: a row a net: level, width, MACs, parameters, data, images, scheme.
        weights: a row for each kernel, raw and BatchNorm-folded (`tensor`): ranges, average channel precision, kurtosis.
        activations: the same of each operation's float output over the calibration images.
        channels: the range and precision of each channel of these tensors.
        histograms: a row for each bin that holds values, by channel.
        errors: a row for each quantized output, scheme and numbers of bits: MSE and SQNR of the kernel, of the output
            with this layer alone quantized, and accumulated.
        output: a row a precision: QMSE, QCE, KL, top-1 agreement, accuracy (0..1) and what it lost.
        sensitivity: accuracy with weights only, activations only, one layer only or all but one quantized; empty where
            it was not asked for.
        notes: what is odd: NaN, constants, channels without range.
    """

    nets: pandas.DataFrame
    weights: pandas.DataFrame
    activations: pandas.DataFrame
    channels: pandas.DataFrame
    histograms: pandas.DataFrame
    errors: pandas.DataFrame
    output: pandas.DataFrame
    sensitivity: pandas.DataFrame
    notes: pandas.DataFrame

    @property
    def names(self) -> tuple[str, ...]:
        """The nets, in order."""
        return tuple(self.nets["net"])

    def renamed(self, names: Mapping[str, str]) -> Analysis:
        """Give the same tables with other names for some nets, new name by old."""
        tables = {name: getattr(self, name) for name in TABLES}
        return Analysis(
            **{key: table.assign(net=[names.get(net, net) for net in table["net"]]) for key, table in tables.items()}
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write each table as .parquet and .csv, analysis.json, and a Model Explorer overlay a net to a new folder.

        The histograms, some 40,000 rows a net, are .parquet only. analysis.json comes last: a folder with it is whole.

        Raises:
            FileExistsError: the folder is there and not empty.
            OSError: it cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already; choose another name or remove it")
        for name in TABLES:
            table = getattr(self, name)
            with atomic_write(folder / f"{name}.parquet") as aside:
                table.to_parquet(aside)
            if name != "histograms":
                write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        for net in self.names:
            overlay = json.dumps(node_data(self, net), indent=2)
            write_text(folder / f"overlay-{re.sub(r'[^A-Za-z0-9._@-]+', '_', net)}.json", overlay + "\n")
        facts = {"format": 1, "nets": json.loads(self.nets.to_json(orient="records")), "versions": versions()}
        write_text(folder / "analysis.json", json.dumps(facts, indent=2) + "\n")

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {len(getattr(self, name))}" for name in TABLES)
        return f"<Analysis of {', '.join(self.names)}: {rows} rows>"


def load_analysis(folder: str | os.PathLike) -> Analysis:
    """Load what `Analysis.save` wrote.

    Raises:
        FileNotFoundError: there is none, or it was not written whole.
        ValueError: a table is damaged.
    """
    folder = Path(folder)
    if not (folder / "analysis.json").is_file():
        raise FileNotFoundError(f"no analysis in {folder}: it has no analysis.json; Analysis.save writes it last")
    try:
        return Analysis(**{name: pandas.read_parquet(folder / f"{name}.parquet") for name in TABLES})
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise ValueError(
            f"the analysis in {folder} is damaged ({error}); remove the folder and analyze again"
        ) from None


def from_rows(tables: Mapping[str, list]) -> Analysis:
    """Make an analysis of lists of rows or of DataFrames, by table's name."""
    made = {}
    for name, rows in tables.items():
        is_framed = bool(rows) and isinstance(rows[0], pandas.DataFrame)
        made[name] = _stacked(rows) if is_framed else pandas.DataFrame(rows, columns=None if rows else EMPTY.get(name))
    return Analysis(**made)


def concat(analyses: Sequence[Analysis]) -> Analysis:
    """Put analyses into one; where two nets have one name, the later ones are numbered: "fnet-l2 (2)"."""
    taken, distinct = set(), []
    for analysis in analyses:
        names = {}
        for name in analysis.names:
            new, number = name, 1
            while new in taken:
                number += 1
                new = f"{name} ({number})"
            taken.add(new)
            names[name] = new
        distinct.append(analysis.renamed(names) if any(old != new for old, new in names.items()) else analysis)
    return Analysis(**{name: _stacked([getattr(analysis, name) for analysis in distinct]) for name in TABLES})


def _stacked(tables) -> pandas.DataFrame:
    return pandas.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def node_data(analysis: Analysis, net: str) -> dict:
    """Colour a net's graph in Model Explorer: green where a layer keeps its signal, red where it loses it.

    The value is the accumulated SQNR in dB, of the quantization-aware weights where there are, else of the scheme asked
    for. The keys are the output tensors of the net's .tflite, which Model Explorer matches when that file is open in it;
    for a net without a file they are its layers' names, which match no node.

    Raises:
        ValueError: no such net.
    """
    errors = analysis.errors[analysis.errors["net"] == net]
    if errors.empty:
        raise ValueError(f"no net {net!r} in the analysis; there are {', '.join(analysis.names)}")
    first = errors.iloc[-1] if (errors["source"] == "qat").any() else errors.iloc[0]
    keys = ["source", *SCHEME]
    chosen = errors[(errors[keys] == first[keys]).all(axis=1) & (errors["kind"] != "input")]
    names = chosen["tensor"].where(chosen["tensor"].notna(), chosen["layer"])
    results = {
        name: {"value": round(float(db), 4)}
        for name, db in zip(names, chosen["accumulated_sqnr_db"])
        if np.isfinite(db)
    }
    colors = [{"stop": stop, "bgColor": color} for stop, color in ((0, RED), (0.5, YELLOW), (1, GREEN))]
    return {"results": results, "gradient": colors}


def tensor_names(tflite, layers: list[str]) -> dict[str, str]:
    """Give, by layer, the output tensor in a .tflite: quantized layers without the input, in order of execution.

    Raises:
        ValueError: the file has another number of such operations.
    """
    written = [name for operator, name in tflite.operator_outputs if operator not in SAME_SCALE]
    if len(written) != len(layers):
        raise ValueError(
            f"the .tflite has {len(written)} quantizing operations, the analysis {len(layers)} layers; give the net's own"
        )
    return dict(zip(layers, written))


# Rows


def block_and_depth(graph: FusedGraph) -> dict[str, dict]:
    """Give each operation's block and depth, which line up nets of different levels.

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
    """Give the numbers of one tensor."""
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
    """Give a row for each channel."""
    ends = {"minimum": found.channel_minimum, "maximum": found.channel_maximum}
    ranges = {"range": found.channel_ranges, "precision": found.channel_precisions}
    return pandas.DataFrame(keys | {"channel": np.arange(len(found.channel_minimum))} | ends | ranges)


def histogram_table(found: Distribution, keys: dict) -> pandas.DataFrame:
    """Give a row for each bin of each channel that holds values; bins are equal and span the tensor's range."""
    channel, place = np.nonzero(found.counts)
    edges = np.linspace(found.minimum, found.maximum, CHANNEL_BINS + 1)
    bins = {"channel": channel, "bin": place, "low": edges[place], "high": edges[place + 1]}
    return pandas.DataFrame(keys | bins | {"count": found.counts[channel, place]})


def sqnr_db(signal: float, noise: float) -> float:
    """Give 10 log10(sum x^2 / sum (x - x_q)^2) in dB; infinite without noise, NaN where there is no signal either."""
    if not noise > 0:
        return float("inf") if signal > 0 and noise == 0 else float("nan")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def error_rows(
    graph: FusedGraph, quantization: Quantization, errors: dict[str, Errors], keys: dict, tensors: dict[str, str]
) -> list[dict]:
    """Give a row for each quantized operation: its kernel's error, its output's alone and accumulated.

    `tensors` names the output in the net's .tflite, where there is one.
    """
    place, rows = block_and_depth(graph), []
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
            | dict(zip(SCHEME, quantization.scheme.key))
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
    """Compare the quantized net's outputs with the float net's, in natural logarithms.

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
    """Give the accuracy lost in points, and relative, 100 (A_float - A_quant) / A_float. Source: arXiv 2104.11849 (relative)."""
    return {
        "decrease_points": 100 * (before - after),
        "decrease_percent": 100 * (before - after) / before if before else np.nan,
    }


def find_anomalies(graph: FusedGraph, distributions: dict[str, Distribution], keys: dict) -> list[dict]:
    """Note what is odd about a net's tensors: not finite, constant, channels without range."""
    from .graph import by_channel

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
