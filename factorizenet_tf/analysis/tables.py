"""From measured layers to tidy rows: what the DataFrames of an `Analysis` are made of."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from ..data import Split
from ..files import write_text, written_aside
from ..machine import versions
from .distributions import CHANNEL_BINS, Distribution
from .graph import Graph, by_channel
from .measure import Errors, Outputs
from .simulation import Quantization

__all__ = [
    "TABLES",
    "Analysis",
    "analysis_of",
    "channel_table",
    "decrease",
    "distribution_row",
    "error_rows",
    "histogram_table",
    "join",
    "load_analysis",
    "node_data",
    "notes_of",
    "output_row",
    "places",
    "sqnr_db",
    "tensor_names",
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
    made = [name for operator, name in tflite.operator_outputs if operator not in SAME_SCALE]
    if len(made) != len(layers):
        raise ValueError(
            f"the .tflite has {len(made)} quantizing operations, the analysis {len(layers)} layers; give the net's own"
        )
    return dict(zip(layers, made))


SENSITIVITY_COLUMNS = [
    "net",
    "source",
    "scheme",
    "weight_bits",
    "activation_bits",
    "part",
    "layer",
    "block",
    "depth",
    "accuracy",
    "decrease_points",
    "decrease_percent",
    "top1_agreement",
    "qmse",
    "kl",
]
TABLES = ("nets", "weights", "activations", "channels", "histograms", "errors", "output", "sensitivity", "notes")


@dataclass(frozen=True, eq=False)
class Analysis:
    """Tables of one net or several, all with the columns net and source ("float" or "qat" weights).

    Args:
        nets: a row a net: level, width, MACs, parameters, data, images, scheme.
        weights: a row for each kernel, raw and BatchNorm-folded (`tensor`): ranges, average channel precision, kurtosis.
        activations: the same of each operation's float output over the calibration images.
        channels: the range and precision of each channel of these tensors.
        histograms: a row for each bin that holds values, by channel.
        errors: a row for each quantized output and scheme: MSE and SQNR of the kernel, of the output with this layer
            alone quantized, and accumulated.
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
            with written_aside(folder / f"{name}.parquet") as aside:
                table.to_parquet(aside)
            if name != "histograms":
                write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        for net in self.names:
            write_text(folder / f"overlay-{net}.json", json.dumps(node_data(self, net), indent=2) + "\n")
        facts = {"format": 1, "nets": json.loads(self.nets.to_json(orient="records")), "versions": versions()}
        write_text(folder / "analysis.json", json.dumps(facts, indent=2) + "\n")

    def __repr__(self) -> str:
        return (
            f"<Analysis of {', '.join(self.names)}: {', '.join(f'{n} {len(getattr(self, n))}' for n in TABLES)} rows>"
        )


def load_analysis(folder: str | os.PathLike) -> Analysis:
    """What `Analysis.save` wrote.

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


def analysis_of(tables: dict[str, list]) -> Analysis:
    """From rows or frames by table's name."""
    empty = {"notes": ["net", "source", "layer", "tensor", "note"], "sensitivity": SENSITIVITY_COLUMNS}
    made = {}
    for name, rows in tables.items():
        if rows and isinstance(rows[0], pandas.DataFrame):
            made[name] = _joined(rows)
        else:
            made[name] = pandas.DataFrame(rows, columns=empty.get(name) if not rows else None)
    return Analysis(**made)


def join(analyses: Sequence[Analysis]) -> Analysis:
    """Several analyses as one."""
    return Analysis(**{name: _joined([getattr(analysis, name) for analysis in analyses]) for name in TABLES})


def _joined(tables) -> pandas.DataFrame:
    filled = [table for table in tables if len(table)] or tables[:1]
    return pandas.concat(filled, ignore_index=True)
