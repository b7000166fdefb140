"""Measure a net by passes over images, as tables: distributions, quantization errors, loss of accuracy, sensitivity."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas

from .._keras import tf, to_float
from ..data import Split
from .distributions import CHANNEL_BINS, Distribution, describe
from .graph import FusedGraph, FusedOp, by_channel
from .simulation import Quantization, forward
from .tables import SCHEME

__all__ = ["SENSITIVITY", "activations", "batch_count", "distribution_tables", "error_tables", "kernel_error", "notes"]
__all__ += ["output_ranges", "output_row", "outputs", "sensitivity_table", "values_by_channel"]

BATCH = 128
BLOCK_PARTS = ("_spatial", "_pointwise", "_add")
SENSITIVITY = [*SCHEME, "part", "layer", "block", "depth"]  # the columns of that table
SENSITIVITY += ["accuracy", "decrease_points", "decrease_percent", "top1_agreement", "qmse", "kl"]


def batches(images: np.ndarray, advance: Callable[[], None] | None = None) -> Iterator[tf.Tensor]:
    """Give uint8 images as float32 in 0..1, at most BATCH at a time; `advance` is called after each batch."""
    for start in range(0, len(images), BATCH):
        yield to_float(images[start : start + BATCH])
        if advance is not None:
            advance()


def batch_count(images: np.ndarray) -> int:
    """Give the number of batches that a pass over images takes."""
    return -(-len(images) // BATCH)


def values_by_channel(output: tf.Tensor) -> np.ndarray:
    """View an operation's output (batch, ..., channels) as (numbers, channels)."""
    return output.numpy().reshape(-1, output.shape[-1])


def activations(
    graph: FusedGraph, images: np.ndarray, advance: Callable[[], None] | None = None
) -> dict[str, Distribution]:
    """Measure the distribution of each operation's float output over images, uint8 (n, height, width, channels), in two passes."""
    found = {}
    for take_in in (Distribution.widen, Distribution.add):
        for batch in batches(images, advance):
            for op, _, output in forward(graph, batch):
                take_in(found.setdefault(op.name, Distribution(output.shape[-1])), values_by_channel(output))
    return found


def output_ranges(distributions: Mapping[str, Distribution], percentile: float) -> dict[str, tuple[float, float]]:
    """Give (low, high) of each output: the (100 - p)-th and the p-th percentile; with p = 100 minimum and maximum."""
    return {name: (d.percentile(100 - percentile), d.percentile(percentile)) for name, d in distributions.items()}


def outputs(
    graph: FusedGraph,
    images: np.ndarray,
    quantization: Quantization | None = None,
    weights=None,
    acts=None,
    advance: Callable[[], None] | None = None,
) -> np.ndarray:
    """Compute the net's outputs, float32 (n, classes), on uint8 images; the other arguments are as for `forward`."""
    parts = []
    for batch in batches(images, advance):
        ((_, _, last),) = collections.deque(forward(graph, batch, quantization, weights, acts), maxlen=1)
        parts.append(last.numpy())
    return np.concatenate(parts)


def operation_table(graph: FusedGraph, operations: Sequence[FusedOp]) -> pandas.DataFrame:
    """Tabulate operations' layer, block, depth, kind and groups; block and depth line up nets of different levels.

    Blocks are those that the plan names (`stage1_block1`); in any other net, each operation is a block. The depth of a block's
    first operation is a whole number, and the others follow in equal steps before the next whole number.
    """
    blocks = {}
    for op in graph.operations:
        block = next((op.name.removesuffix(part) for part in BLOCK_PARTS if op.name.endswith(part)), op.name)
        blocks.setdefault(block, []).append(op.name)
    place = {
        name: (block, number + place / len(names))
        for number, (block, names) in enumerate(blocks.items())
        for place, name in enumerate(names)
    }
    rows = [(op.name, *place[op.name], op.kind, op.groups) for op in operations]
    return pandas.DataFrame(rows, columns=["layer", "block", "depth", "kind", "groups"])


def distribution_tables(graph: FusedGraph, outs: Mapping[str, Distribution]) -> dict[str, pandas.DataFrame]:
    """Make the tables weights, activations, channels and histograms (bins that hold values); `outs`: from `activations`."""
    rows = {"weights": [], "activations": []}
    channels, histograms = [], []
    for op, at in zip(graph.operations, operation_table(graph, graph.operations).to_dict("records")):
        tensors = {"activations": outs[op.name]}
        if op.kernel is not None:
            kernels = {"raw": op.kernel, "folded": op.folded}
            tensors |= {tensor: describe(by_channel(kernel, op.kind)) for tensor, kernel in kernels.items()}
        for tensor, found in tensors.items():
            table = "activations" if tensor == "activations" else "weights"
            rows[table].append(at | {"tensor": tensor} | found.row())
            named = {"tensor": tensor, "layer": op.name}
            columns = {"minimum": found.channel_minimum, "maximum": found.channel_maximum}
            columns |= {"range": found.channel_ranges, "precision": found.channel_precisions}
            channels.append(pandas.DataFrame(named | {"channel": np.arange(len(found.finite))} | columns))
            channel, place = np.nonzero(found.counts)
            edges = np.linspace(found.minimum, found.maximum, CHANNEL_BINS + 1)
            bins = {"channel": channel, "bin": place, "low": edges[place], "high": edges[place + 1]}
            histograms.append(pandas.DataFrame(named | bins | {"count": found.counts[channel, place]}))
    tables = {table: pandas.DataFrame(found) for table, found in rows.items()}
    return tables | {"channels": pandas.concat(channels), "histograms": pandas.concat(histograms)}


def notes(graph: FusedGraph, outs: Mapping[str, Distribution]) -> pandas.DataFrame:
    """List anomalies of a net's tensors: values not finite, constant outputs, constant channels, channels of zero weights.

    Arguments as for `distribution_tables`.
    """
    found = []
    for op in graph.kernels:
        rows = by_channel(op.folded, op.kind)
        broken, dead = int((~np.isfinite(rows)).sum()), int((np.abs(rows).max(0) == 0).sum())
        if broken:
            found.append((op.name, "weights", f"{broken} of {rows.size} folded weights are NaN or infinite"))
        if dead:
            found.append((op.name, "weights", f"{dead} of {rows.shape[1]} channels have no weights but zero"))
    for name, out in outs.items():
        still, on = int((out.channel_ranges == 0).sum()), "activations"
        if out.not_finite:
            total = out.not_finite + out.finite.sum()
            found.append((name, on, f"{out.not_finite} of {total} outputs are NaN or infinite"))
        if out.range == 0:
            found.append((name, on, f"the output is constant ({out.minimum:g}) on the calibration images"))
        elif still:
            found.append((name, on, f"{still} of {len(out.channel_ranges)} channels are constant on these images"))
    return pandas.DataFrame(found, columns=["layer", "tensor", "note"])


def sqnr_db(signal, noise):
    """Compute 10 log10(sum x^2 / sum (x - x_q)^2) in dB; infinite without noise, NaN without noise and signal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(np.divide(signal, noise))


def kernel_error(op: FusedOp, kernel: np.ndarray) -> tuple[float, float]:
    """Compute (MSE, SQNR in dB) of a quantized kernel against the operation's folded one."""
    exact = op.folded.astype(np.float64)
    noise = float(np.sum((op.folded - kernel).astype(np.float64) ** 2))
    return noise / exact.size, float(sqnr_db(np.sum(exact**2), noise))


def error_tables(
    graph: FusedGraph,
    images: np.ndarray,
    quantizations: Sequence[Quantization],
    tensors: Mapping[str, str],
    advance: Callable[[], None] | None = None,
) -> list[pandas.DataFrame]:
    """Measure the error of each kernel and each quantized output against the float net's; give a table for each quantization.

    Errors "alone" are made by quantizing this layer's kernel, bias and output only; "accumulated" ones, by quantizing
    everything before it as well.

    Args:
        graph: the net.
        images: uint8 (n, height, width, channels).
        quantizations: to measure.
        tensors: by layer, the name of its output in the net's .tflite, if there is one.
        advance: called after each batch.
    """
    sums = {op.name: np.zeros((len(quantizations), 4)) for op in graph.quantized}
    for batch in batches(images, advance):
        runs = [forward(graph, batch, quantization) for quantization in quantizations]
        for op, inputs, output in forward(graph, batch):
            signal = float(tf.reduce_sum(tf.square(output)))
            for which, (quantization, run) in enumerate(zip(quantizations, runs)):
                _, _, accumulated = next(run)
                if not op.is_quantized:
                    continue
                alone = output
                if op.kernel is not None:
                    alone = op.compute(inputs, quantization.kernels[op.name], quantization.biases[op.name])
                alone = quantization.tensor(op.name, alone)
                noise = [float(tf.reduce_sum(tf.square(output - other))) for other in (alone, accumulated)]
                sums[op.name][which] += [np.prod(output.shape), signal, *noise]
    tables = []
    for which, quantization in enumerate(quantizations):
        numbers, signal, alone, accumulated = np.array([sums[op.name][which] for op in graph.quantized]).T
        kernels = {op.name: kernel_error(op, quantization.kernels[op.name]) for op in graph.kernels}
        table = operation_table(graph, graph.quantized)
        table["tensor"] = [tensors.get(layer) for layer in table["layer"]]
        table[["weight_mse", "weight_sqnr_db"]] = [kernels.get(layer, (np.nan, np.nan)) for layer in table["layer"]]
        table[["output_low", "output_high"]] = [quantization.ranges[layer] for layer in table["layer"]]
        table["mse"], table["sqnr_db"] = alone / numbers, sqnr_db(signal, alone)
        table["accumulated_mse"], table["accumulated_sqnr_db"] = accumulated / numbers, sqnr_db(signal, accumulated)
        lost = table["sqnr_db"] - table["accumulated_sqnr_db"]
        table["accumulation_db"] = lost.where(np.isfinite(table["sqnr_db"]))
        tables.append(table.assign(**quantization.scheme.key)[[*SCHEME, *table]])
    return tables


def output_row(reference: np.ndarray, found: np.ndarray, split: Split | None, *, is_softmax: bool) -> dict:
    """Compare a quantized net's outputs (n, classes) with the float net's.

    QMSE is the mean squared difference of the outputs, QCE the cross entropy of the quantized probabilities under the float
    ones, KL their divergence: QCE minus the float net's own entropy, in nats. The loss of accuracy is given in points, and
    relative: 100 (A_float - A_quant) / A_float. Source: arXiv 2104.11849 (relative).
    """
    log_p, log_q = (_log_probabilities(values.astype(np.float64), is_softmax) for values in (reference, found))
    p = np.exp(log_p)
    qce, entropy = float(-(p * log_q).sum(1).mean()), float(-(p * log_p).sum(1).mean())
    row = {
        "qmse": float(np.mean(np.square(reference.astype(np.float64) - found))),
        "qce": qce,
        "kl": max(0.0, qce - entropy) if np.isfinite(qce) else qce,
        "top1_agreement": float(np.mean(reference.argmax(1) == found.argmax(1))),
        "images": len(found),
    }
    if split is None:
        return row | {"accuracy": np.nan, "decrease_points": np.nan, "decrease_percent": np.nan}
    before, after = (float(np.mean(values.argmax(1) == split.labels)) for values in (reference, found))
    lost = 100 * (before - after)
    return row | {"accuracy": after, "decrease_points": lost, "decrease_percent": lost / before if before else np.nan}


def _log_probabilities(values, is_softmax):
    if is_softmax:
        return np.log(np.maximum(values, 1e-9) / np.maximum(values, 1e-9).sum(1, keepdims=True))
    shifted = values - values.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def sensitivity_table(
    graph: FusedGraph,
    images: np.ndarray,
    quantization: Quantization,
    reference: np.ndarray,
    split: Split | None,
    advance: Callable[[], None] | None = None,
) -> pandas.DataFrame:
    """Quantize parts of a net, and compare the outputs with the reference's (n, classes), a row for each part.

    Parts are "all", "weights", "activations", and "only" and "all_but" for each layer with weights. A layer means its kernel,
    its bias and its output: "only" leaves the input image and all other layers in float; "all_but" leaves this layer in
    float, but not a sum behind it.
    """
    kernels, outs = {op.name for op in graph.kernels}, {op.name for op in graph.quantized}
    parts = [("all", None, kernels, outs), ("weights", None, kernels, set()), ("activations", None, set(), outs)]
    for op in graph.kernels:
        parts.append(("only", op.name, {op.name}, {op.name}))
        parts.append(("all_but", op.name, kernels - {op.name}, outs - {op.name}))
    rows = []
    for part, layer, weights, acts in parts:
        found = outputs(graph, images, quantization, weights, acts, advance)
        lost = output_row(reference, found, split, is_softmax=graph.ends_in_softmax)
        rows.append({"part": part, "layer": layer} | quantization.scheme.key | lost)
    places = operation_table(graph, graph.kernels)[["layer", "block", "depth"]]
    table = pandas.DataFrame(rows).merge(places, "left", "layer")
    return table.assign(block=table["block"].where(table["layer"].notna(), None))[SENSITIVITY]
