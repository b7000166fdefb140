"""Simulate a quantized net: kernels and activations in 2 to 8 bits, layer by layer.

Weights are symmetric and activations affine, as in TFLite (Jacob et al., arXiv 1712.05877); widths below 8 bits follow the
same rules, which is our choice.
"""

import collections
import numbers
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .._keras import tf
from .graph import FusedGraph, FusedOp, by_channel

__all__ = ["QAT", "SCHEMES", "Quantization", "Scheme", "forward", "quantize_graph"]

SCHEMES = ("per_channel", "per_tensor", "per_channel_percentile", "per_tensor_percentile")
BITS = range(2, 9)
PERCENTILE = 99.99  # our choice
TIE = 2e-4  # above float32's error of a mean, below 1 / (2 n) for windows of up to 2,500 numbers


@dataclass(frozen=True)
class Scheme:
    """How a net is quantized.

    Args:
        name: of `SCHEMES`: a scale for each output channel of a kernel, or one for all; activations lie between minimum
            and maximum, or between the 0.01st and the 99.99th percentile.
        weight_bits, activation_bits: 2 to 8.
        is_learned: ranges come from quantization-aware training; the name is then any.

    Raises:
        ValueError: the name or a number of bits is unknown.
    """

    name: str
    weight_bits: int = 8
    activation_bits: int = 8
    is_learned: bool = False

    def __post_init__(self):
        if self.name not in SCHEMES and not self.is_learned:
            raise ValueError(f"scheme is {self.name!r}; it must be one of {', '.join(SCHEMES)}")
        for what in ("weight_bits", "activation_bits"):
            bits = getattr(self, what)
            if isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or bits not in BITS:
                raise ValueError(f"{what} is {bits}; it must be an int from {BITS.start} to {BITS.stop - 1}")

    @property
    def per_channel(self) -> bool:
        """Whether each output channel of a kernel has a scale."""
        return not self.name.startswith("per_tensor")

    @property
    def percentile(self) -> float:
        """The p for which activations range from the (100 - p)-th to the p-th percentile; 100: minimum to maximum."""
        return PERCENTILE if self.name.endswith("_percentile") else 100.0

    @property
    def title(self) -> str:
        """The name with its numbers of bits, e.g. "per_channel W4A8"."""
        return f"{self.name} W{self.weight_bits}A{self.activation_bits}"

    @property
    def key(self) -> dict[str, str | int]:
        """The columns that identify its rows in the tables."""
        return {"scheme": self.name, "weight_bits": self.weight_bits, "activation_bits": self.activation_bits}


QAT = Scheme("qat", is_learned=True)  # a quantization-aware model with the ranges that it learnt


def quantized_kernel(
    kernel: np.ndarray, kind: str, *, per_channel: bool, bits: int = 8, limits: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a folded kernel, of a shape as in `by_channel`, as TFLite does: S = max |w| / (2**(bits - 1) - 1), zero point 0.

    `limits`, (channels,) or (1,), are used instead of the kernel's own max |w|.

    Returns:
        The dequantized kernel, and scales float32 (channels,) or (1,). A channel of zeros has scale 0 and stays zero.
    """
    highest = 2 ** (bits - 1) - 1
    rows = by_channel(kernel, kind)
    if limits is None:
        limits = np.abs(rows).max(0) if per_channel else np.abs(rows).max(keepdims=True).reshape(1)
    scales = (limits / highest).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales > 0, rows / np.where(scales > 0, scales, 1), np.where(np.isnan(scales), np.nan, 0))
    steps = np.clip(np.rint(steps), -highest, highest)
    return (steps * scales).astype(np.float32).reshape(kernel.shape), scales


def activation_scale(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Compute scale and zero point of affine integers from -(2**(bits - 1)) on: S = (high - low) / (2**bits - 1).

    The range is widened to contain 0, which becomes a grid point. The range 0 to 0 has scale 0.
    """
    low, high = min(0.0, low), max(0.0, high)
    scale = (high - low) / (2**bits - 1)
    if not scale > 0:
        return 0.0, 0
    return scale, int(np.clip(np.rint(-(2 ** (bits - 1)) - low / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


@dataclass(frozen=True, eq=False)
class Quantization:
    """A net under one scheme: by operation, the dequantized kernel, (low, high) of the output, and the bias.

    The bias is rounded to its int32 grid, input scale x kernel scale.
    """

    scheme: Scheme
    kernels: Mapping[str, np.ndarray]
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
    """Turn minima and maxima into the ranges that TFLite's converter records.

    During calibration TFLite stores a sum in the memory of an operand that no other operation reads, and the converter reads
    that memory again after the sum. So the convolution before a residual sum gets the union of its own range and the sum's,
    and with it a coarser scale. Source: tensorflow issue 127842, and the files that TensorFlow 2.21 writes.
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

    `ranges` has (low, high) of each quantized output over the calibration images: minima and maxima, which become those that
    TFLite's converter records (`converter_ranges`), or percentiles.
    """
    if scheme.percentile == 100 and not scheme.is_learned:
        ranges = converter_ranges(graph, ranges)
    fixed = {op.name: op.fixed_range or ranges[op.name] for op in graph.quantized}
    kernels, biases = {}, {}
    for op in graph.kernels:
        limits = op.learned_limits if scheme.is_learned else None
        options = {"per_channel": scheme.per_channel, "bits": scheme.weight_bits, "limits": limits}
        kernels[op.name], scales = quantized_kernel(op.folded, op.kind, **options)
        input_scale, _ = activation_scale(*fixed[op.input_scale_from], scheme.activation_bits)
        step = input_scale * scales.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            biases[op.name] = np.where(step > 0, np.rint(op.bias / step) * step, op.bias).astype(np.float32)
    return Quantization(scheme, kernels, fixed, biases)


def forward(
    graph: FusedGraph,
    images,
    quantization: Quantization | None = None,
    weights: Collection[str] | None = None,
    activations: Collection[str] | None = None,
) -> Iterator[tuple[FusedOp, dict[str, tf.Tensor], tf.Tensor]]:
    """Compute each operation's output in order, keeping a tensor until the last operation that reads it.

    Args:
        graph: the net.
        images: float32 (batch, height, width, channels) in 0..1.
        quantization: None computes in float.
        weights, activations: names of the operations whose kernels, or outputs, are quantized; None: all.

    Yields:
        (operation, its inputs by tensor id, its output), float32 (batch, ..., channels) each.
    """
    last_readers = {key: number for number, op in enumerate(graph.operations) for key in op.inputs}
    values = {}
    for number, op in enumerate(graph.operations):
        inputs = {key: values[key] for key in op.inputs}
        values = {key: value for key, value in values.items() if last_readers[key] > number}
        rounds_input = quantization is not None and (activations is None or op.input_scale_from in activations)
        rounds_output = quantization is not None and (activations is None or op.name in activations)
        kernel, bias = op.folded, op.bias
        if quantization is not None and op.kernel is not None and (weights is None or op.name in weights):
            kernel = quantization.kernels[op.name]
            if rounds_input:  # without an input scale the bias has no grid
                bias = quantization.biases[op.name]
        result = tf.convert_to_tensor(images, tf.float32) if op.kind == "input" else op.compute(inputs, kernel, bias)
        if rounds_input and op.rounds_like_average_pool:
            result = quantization.pooled(op.input_scale_from, result)
        if rounds_output and op.is_quantized:
            result = quantization.tensor(op.name, result)
        values[op.output] = result
        yield op, inputs, result
