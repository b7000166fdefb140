"""Pass over images, a batch at a time, and measure activations, quantization errors and outputs of a net."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .._keras import tf, to_float
from .distributions import Distribution, Histogram, Ranges
from .graph import FusedGraph
from .simulation import Quantization, forward

__all__ = ["BATCH", "Errors", "Outputs", "activations", "layer_errors", "output_ranges", "outputs"]

BATCH = 128


@dataclass
class Errors:
    """Sums over one layer's output: of squares, and of squared errors alone and accumulated."""

    numbers: int = 0
    signal: float = 0.0
    alone: float = 0.0
    accumulated: float = 0.0


@dataclass
class Outputs:
    """A net's outputs (images, classes) on a set of images; `is_softmax` where they are probabilities."""

    is_softmax: bool
    parts: list = field(default_factory=list)

    @property
    def values(self) -> np.ndarray:
        """float32 (images, classes)."""
        return np.concatenate(self.parts)

    def log_probabilities(self) -> np.ndarray:
        """float64 (images, classes)."""
        values = self.values.astype(np.float64)
        if self.is_softmax:
            return np.log(np.maximum(values, 1e-9) / np.maximum(values, 1e-9).sum(1, keepdims=True))
        shifted = values - values.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def activations(graph: FusedGraph, images: np.ndarray, advance=None) -> dict[str, Distribution]:
    """Measure the distribution of each operation's float output over images, in two passes.

    Args:
        graph: the net.
        images: uint8 (n, height, width, channels).
        advance: called after each batch of each pass.
    """
    ranges = {op.name: Ranges() for op in graph.operations}
    for batch in batches(images):
        for op, output in forward(graph, batch):
            ranges[op.name].add(_rows(output))
        _call(advance)
    histograms = {name: Histogram(found) for name, found in ranges.items()}
    for batch in batches(images):
        for op, output in forward(graph, batch):
            histograms[op.name].add(_rows(output))
        _call(advance)
    return {name: histogram.result() for name, histogram in histograms.items()}


def output_ranges(distributions: dict[str, Distribution], percentile: float | None) -> dict[str, tuple[float, float]]:
    """Give (low, high) of each output: the (100 - p)-th and the p-th percentile, or minimum and maximum for None."""
    percent = 100.0 if percentile is None else percentile
    return {name: (d.percentile(100 - percent), d.percentile(percent)) for name, d in distributions.items()}


def layer_errors(
    graph: FusedGraph, images: np.ndarray, quantizations: Sequence[Quantization], advance=None
) -> list[dict[str, Errors]]:
    """Sum the errors of each quantized output against the float net's, for each quantization.

    Alone: this layer's kernel, bias and output are quantized and its input is the float net's. Accumulated: everything
    before it is quantized, too.

    Returns:
        For each quantization the `Errors` by operation's name.
    """
    found = [{op.name: Errors() for op in graph.quantized} for _ in quantizations]
    last_readers = graph.last_readers()
    for batch in batches(images):
        values = {}
        runs = [forward(graph, batch, quantization) for quantization in quantizations]
        for number, (op, output) in enumerate(forward(graph, batch)):
            signal = float(tf.reduce_sum(tf.square(output)))
            for quantization, errors, run in zip(quantizations, found, runs):
                _, accumulated = next(run)
                if not op.is_quantized:
                    continue
                alone = output
                if op.kernel is not None:
                    alone = op.compute(values, quantization.kernels[op.name], quantization.biases[op.name])
                alone = quantization.tensor(op.name, alone)
                sums = errors[op.name]
                sums.numbers += int(np.prod(output.shape))
                sums.signal += signal
                sums.alone += float(tf.reduce_sum(tf.square(output - alone)))
                sums.accumulated += float(tf.reduce_sum(tf.square(output - accumulated)))
            values[op.output] = output
            for key in op.inputs:
                if last_readers[key] == number:
                    values.pop(key, None)
        _call(advance)
    return found


def outputs(
    graph: FusedGraph,
    images: np.ndarray,
    quantization: Quantization | None = None,
    weights=None,
    acts=None,
    advance=None,
) -> Outputs:
    """Compute the net's outputs on uint8 images; the other arguments are as for `forward`."""
    result = Outputs(graph.ends_in_softmax)
    for batch in batches(images):
        ((_, last),) = collections.deque(forward(graph, batch, quantization, weights, acts), maxlen=1)
        result.parts.append(last.numpy())
        _call(advance)
    return result


def batches(images: np.ndarray) -> Iterator[tf.Tensor]:
    """Give uint8 images as float32 in 0..1, at most BATCH at a time."""
    for start in range(0, len(images), BATCH):
        yield to_float(images[start : start + BATCH])


def _rows(output):
    values = output.numpy()
    return values.reshape(-1, values.shape[-1])


def _call(advance):
    if advance is not None:
        advance()
