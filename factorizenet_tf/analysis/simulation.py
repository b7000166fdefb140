"""Simulate what quantization does to a net: quantized kernels and activations, 2 to 8 bits, layer by layer.

Weights are symmetric and activations affine, as TFLite has them (Jacob et al., arXiv 1712.05877); other widths than 8
bits are done alike, which is our choice.
"""

from __future__ import annotations

import collections
import dataclasses
import numbers
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .._keras import tf
from .graph import FusedGraph, FusedOp, by_channel

__all__ = ["QAT", "SCHEMES", "Quantization", "Scheme", "forward", "quantize_graph", "scheme_named"]

BITS = range(2, 9)
PERCENTILE = 99.99  # our choice
TIE = 2e-4  # above float32's error of a mean, below 1 / (2 n) for windows of up to 2,500 numbers


@dataclass(frozen=True)
class Scheme:
    """How a net is quantized.

    Args:
        name: as the tables have it.
        per_channel: a scale for each output channel of a kernel, or one for all.
        percentile: activations lie between the (100 - p)-th and the p-th percentile; None: minimum and maximum.
        is_learned: ranges come from quantization-aware training.
        weight_bits, activation_bits: 2 to 8.
    """

    name: str
    per_channel: bool
    percentile: float | None = None
    is_learned: bool = False
    weight_bits: int = 8
    activation_bits: int = 8

    @property
    def title(self) -> str:
        """The name with its numbers of bits, e.g. "per_channel W4A8"."""
        return f"{self.name} W{self.weight_bits}A{self.activation_bits}"

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells its rows in the tables: scheme, weight_bits, activation_bits."""
        return self.name, self.weight_bits, self.activation_bits


SCHEMES = {
    "per_channel": Scheme("per_channel", True),
    "per_tensor": Scheme("per_tensor", False),
    "per_channel_percentile": Scheme("per_channel_percentile", True, PERCENTILE),
    "per_tensor_percentile": Scheme("per_tensor_percentile", False, PERCENTILE),
}

QAT = Scheme("qat", True, is_learned=True)  # a quantization-aware model with the ranges that it learnt


def scheme_named(name: str, weight_bits: int = 8, activation_bits: int = 8) -> Scheme:
    """Look up a scheme and set its numbers of bits.

    Raises:
        ValueError: the name or a number of bits is unknown.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme is {name!r}; it must be one of {', '.join(SCHEMES)}")
    for what, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or bits not in BITS:
            raise ValueError(f"{what} is {bits!r}; it must be an int from 2 to 8")
    return dataclasses.replace(SCHEMES[name], weight_bits=int(weight_bits), activation_bits=int(activation_bits))


def quantized_kernel(
    kernel: np.ndarray, kind: str, *, per_channel: bool, bits: int = 8, limits: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize a kernel as TFLite does: symmetric, S = max |w| / (2**(bits - 1) - 1), zero point 0.

    Args:
        kernel: float32, BatchNorm folded in; shapes as for `by_channel`.
        kind: of the operation.
        per_channel: a scale for each output channel, or one in all.
        bits: 2 to 8; integers reach from -(2**(bits - 1) - 1) to 2**(bits - 1) - 1.
        limits: max |w| to take instead of the kernel's own, (channels,) or (1,).

    Returns:
        (integers int8 of the kernel's shape, scales float32 (channels,) or (1,), the kernel dequantized). A channel of
        zeros has scale 0 and stays zero.
    """
    highest = 2 ** (bits - 1) - 1
    rows = by_channel(kernel, kind)
    if limits is None:
        limits = np.abs(rows).max(0) if per_channel else np.abs(rows).max(keepdims=True).reshape(1)
    scales = (limits / highest).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales > 0, rows / np.where(scales > 0, scales, 1), np.where(np.isnan(scales), np.nan, 0))
    steps = np.clip(np.rint(steps), -highest, highest)
    integers = np.nan_to_num(steps).astype(np.int8).reshape(kernel.shape)
    return integers, scales, (steps * scales).astype(np.float32).reshape(kernel.shape)


def activation_scale(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Give scale and zero point of affine integers from -(2**(bits - 1)): S = (high - low) / (2**bits - 1).

    The range is widened to contain 0, which is a grid point. A range of 0 alone has scale 0.
    """
    low, high = min(0.0, low), max(0.0, high)
    scale = (high - low) / (2**bits - 1)
    if not scale > 0:
        return 0.0, 0
    return scale, int(np.clip(np.rint(-(2 ** (bits - 1)) - low / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


@dataclass(frozen=True, eq=False)
class Quantization:
    """A net's quantized constants under one scheme, by operation.

    Args:
        scheme: which.
        kernels: the dequantized kernel.
        scales: of the kernel, (channels,) or (1,).
        ranges: (low, high) of the output.
        biases: the bias on its int32 grid, input scale x kernel scale.
    """

    scheme: Scheme
    kernels: Mapping[str, np.ndarray]
    scales: Mapping[str, np.ndarray]
    ranges: Mapping[str, tuple[float, float]]
    biases: Mapping[str, np.ndarray]

    def tensor(self, name: str, values):
        """Round an operation's output to its grid, as float32 again."""
        low, high = self.ranges[name]
        low, high = min(0.0, low), max(0.0, high)
        if not high > low:  # constant zero, or NaN, which stays NaN
            return values * 0.0 if high == low else values
        return tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=self.scheme.activation_bits)

    def pooled(self, source: str, values):
        """Round means of an operation's quantized output as TFLite's average pooling does, on the same grid.

        The kernel adds int8 numbers and rounds half away from the int8 number 0, which is not the zero point.
        """
        scale, zero_point = activation_scale(*self.ranges[source], self.scheme.activation_bits)
        if not scale > 0:
            return self.tensor(source, values)
        numbers = values / scale + zero_point
        rounded = tf.sign(numbers) * tf.floor(tf.abs(numbers) + (0.5 + TIE))
        return (rounded - zero_point) * scale


def converter_ranges(graph: FusedGraph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Change minima and maxima into what TFLite's converter records.

    While it calibrates, TFLite writes a sum over the memory of an operand that no other operation reads, and the
    converter looks at that memory once more after the sum. So the convolution before a residual sum gets the union of
    its own range and the sum's, and with it a coarser scale. Source: tensorflow issue 127842, and the files that
    TensorFlow 2.21 writes.
    """
    ranges = dict(ranges)
    readers = collections.Counter(key for op in graph.operations for key in op.inputs)
    by_output = {op.output: op for op in graph.operations}
    for op in graph.operations:
        if op.kind != "add":
            continue
        alone = [key for key in op.inputs if readers[key] == 1 and by_output[key].is_quantized]
        if alone and op.name in ranges:
            operand = by_output[alone[0]].name
            ends = (*ranges[operand], *ranges[op.name])
            ranges[operand] = (min(ends), max(ends))
    return ranges


def quantize_graph(graph: FusedGraph, scheme: Scheme, ranges: Mapping[str, tuple[float, float]]) -> Quantization:
    """Quantize a net's kernels and biases, and fix its outputs' ranges.

    Args:
        graph: the net.
        scheme: how.
        ranges: (low, high) of each quantized output over the calibration images, or between its percentiles. Minima
            and maxima become what TFLite's converter records (`converter_ranges`).
    """
    if scheme.percentile is None and not scheme.is_learned:
        ranges = converter_ranges(graph, ranges)
    fixed = {op.name: op.fixed_range or ranges[op.name] for op in graph.quantized}
    kernels, scales, biases = {}, {}, {}
    for op in graph.kernels:
        limits = op.learned_limits if scheme.is_learned else None
        _, scales[op.name], kernels[op.name] = quantized_kernel(
            op.folded, op.kind, per_channel=scheme.per_channel, bits=scheme.weight_bits, limits=limits
        )
        step = activation_scale(*fixed[op.input_scale_from], scheme.activation_bits)[0] * scales[op.name].astype(
            np.float64
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            biases[op.name] = np.where(step > 0, np.rint(op.bias / step) * step, op.bias).astype(np.float32)
    return Quantization(scheme, kernels, scales, fixed, biases)


def forward(
    graph: FusedGraph,
    images,
    quantization: Quantization | None = None,
    weights: Collection[str] | None = None,
    activations: Collection[str] | None = None,
) -> Iterator[tuple[FusedOp, tf.Tensor]]:
    """Compute each operation's output in order; a tensor is let go after the last operation that reads it.

    Args:
        graph: the net.
        images: float32 (batch, height, width, channels) in 0..1.
        quantization: None computes in float.
        weights: the operations whose kernels are quantized; None: all.
        activations: the operations whose outputs are quantized; None: all.

    Yields:
        (operation, output float32 (batch, ..., channels)).
    """
    last_readers, values = graph.last_readers(), {}
    for number, op in enumerate(graph.operations):
        kernel, bias = op.folded, op.bias
        if quantization is not None and op.kernel is not None and (weights is None or op.name in weights):
            kernel = quantization.kernels[op.name]
            if activations is None or op.input_scale_from in activations:  # without an input scale the bias has no grid
                bias = quantization.biases[op.name]
        result = tf.convert_to_tensor(images, tf.float32) if op.kind == "input" else op.compute(values, kernel, bias)
        if (
            quantization is not None
            and op.rounds_like_average_pool
            and (activations is None or op.input_scale_from in activations)
        ):
            result = quantization.pooled(op.input_scale_from, result)
        if quantization is not None and op.is_quantized and (activations is None or op.name in activations):
            result = quantization.tensor(op.name, result)
        values[op.output] = result
        yield op, result
        for key in op.inputs:
            if last_readers[key] == number:
                values.pop(key, None)
