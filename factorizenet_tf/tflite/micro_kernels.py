"""Compute what a .tflite needs of a microcontroller's kernel library: scratch buffers, arena, and no groups for ESP-NN.

The interpreter of TensorFlow Lite Micro takes its kernels from the reference ones, from CMSIS-NN (Arm Cortex-M) or from
ESP-NN (Espressif). The optimized ones ask for scratch buffers that the reference ones do not need, so an arena that was
recorded with the reference kernels is too small for them. The formulas are those that the libraries publish, in our own
words; the functions are named where they are used.

Sources: CMSIS-NN 4ab83cc (33 commits after 7.0.0), which tflite-micro 90b983c of August 2026 takes; ESP-NN d45b843 (1.2.3)
with esp-tflite-micro 99f49e1 (1.4.0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .flatbuffer import operator_name, read_flatbuffer
from .latency import int8_convolutions
from .micro import arena_bytes
from .regroup import with_groups

__all__ = [
    "LIBRARIES",
    "check_kernels",
    "estimate_arenas",
    "operator_shapes",
    "planned_bytes",
    "without_groups",
]

LIBRARIES = {
    "reference": "TensorFlow Lite Micro's reference kernels",
    "cmsis-nn": "CMSIS-NN 4ab83cc on Arm Cortex-M",
    "esp-nn": "ESP-NN d45b843 on an ESP32-S3",
}
ALIGNMENT = 16  # bytes, of a buffer in the arena
# Optimized kernels keep longer records, and a handle for each scratch buffer: bytes in all, and for each operator that asks.
# With CMSIS-NN's in an x86-64 build it was 64 to 128 bytes a net.
BOOKKEEPING = 64, 32
MVE_CHANNELS = 124  # CH_IN_BLOCK_MVE: the channels of a depthwise convolution that CMSIS-NN's MVE kernels take at once


@dataclass(frozen=True)
class OperatorShape:
    """The numbers of an operator that its scratch buffers depend on.

    Args:
        name: of the builtin operator, e.g. "CONV_2D".
        input_shape, output_shape: of a batch of 1; (height, width, channels) of a convolution.
        kernel, stride, dilation: (height, width); (1, 1) where the operator has none.
        padding: rows above and columns to the left.
        groups: of a CONV_2D, else 1.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1


def check_kernels(kernels: str) -> None:
    """Raise ValueError where `kernels` is no key of LIBRARIES."""
    if kernels not in LIBRARIES:
        raise ValueError(f"kernels is {kernels!r}; it must be one of {', '.join(LIBRARIES)}")


def estimate_arenas(content: bytes, kernels: str) -> dict[str, int]:
    """Compute the arena that a net needs with a library's kernels.

    Args:
        content: of an int8 .tflite.
        kernels: a key of LIBRARIES.

    Returns:
        Bytes by kind of processor: "scalar" (such as Cortex-M0 and M3), "dsp" (M4, M7, M33) and "mve" (M55, M85), or
        "esp32s3"; empty for the reference kernels, whose arena `arena_bytes` records. An upper bound: that arena, what
        the plan grows by with the scratch buffers in it, and their bookkeeping.

    Raises:
        ValueError: other kernels, or a .tflite that is damaged or that tflite-micro cannot run.
        ModuleNotFoundError: tflite-micro is not installed.
    """
    check_kernels(kernels)
    arenas = {}
    for processor, scratch_bytes in SCRATCH[kernels].items():
        sizes = [scratch_bytes(shape) for shape in operator_shapes(content)]
        grown = planned_bytes(content, sizes) - planned_bytes(content)
        records = BOOKKEEPING[0] + BOOKKEEPING[1] * sum(size > 0 for size in sizes)
        arenas[processor] = _aligned(arena_bytes(content) + grown + records)
    return arenas


def without_groups(content: bytes) -> bytes:
    """Rewrite every grouped convolution of a .tflite as a dense one, zeros between the groups: the same outputs.

    ESP-NN's wrapper in TensorFlow Lite Micro takes dense and depthwise convolutions alone: of a grouped one it stops in
    a debug build and reads too few channels in another. A net without groups comes back byte by byte.
    """
    return with_groups(content, [1] * len(int8_convolutions(content)))


def operator_shapes(content: bytes) -> list[OperatorShape]:
    """The shapes of a .tflite's operators in order of execution. Raises ValueError as `read_flatbuffer`."""
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    shapes = []
    for operator in graph.operators:
        name, options = operator_name(model, operator), operator.builtinOptions
        input_, output = (_sides(graph.tensors[i]) for i in (operator.inputs[0], operator.outputs[0]))
        shape = OperatorShape(name, input_, output)
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            kernel = tuple(int(n) for n in graph.tensors[operator.inputs[1]].shape)
            shape = dataclasses.replace(
                shape,
                kernel=kernel[1:3],
                stride=(options.strideH, options.strideW),
                dilation=(options.dilationHFactor, options.dilationWFactor),
                groups=input_[2] // kernel[3] if name == "CONV_2D" else 1,
            )
            if not options.padding:  # SAME
                shape = dataclasses.replace(shape, padding=_same_padding(shape))
        shapes.append(shape)
    return shapes


def planned_bytes(content: bytes, scratch: Sequence[int] | None = None) -> int:
    """The bytes of the arena's part that TensorFlow Lite Micro plans: activations and scratch buffers.

    Follows its `GreedyMemoryPlanner`: the buffers by falling size, each at the lowest offset at which no buffer lies
    that is alive at the same time.

    Args:
        content: of an int8 .tflite.
        scratch: bytes for each operator beside the reference kernels' own; None for none.
    """
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    lives = {int(number): [0, 0] for number in graph.inputs}  # tensor -> first and last operator, counted from 1
    buffers = []
    for time, operator in enumerate(graph.operators, start=1):
        for number in (*operator.inputs, *operator.outputs):
            data = model.buffers[graph.tensors[number].buffer].data
            if number >= 0 and (data is None or not len(data)):  # no constant
                lives.setdefault(int(number), [time, time])[1] = time
        sizes = [0 if scratch is None else scratch[time - 1]]
        if operator_name(model, operator) == "MEAN":  # the reference kernel's position, axes and sums, 4 bytes each
            input_, axes, output = (graph.tensors[i] for i in (*operator.inputs[:2], operator.outputs[0]))
            sizes += [4 * len(input_.shape), 4 * prod(axes.shape), 4 * prod(output.shape)]
        buffers += [(_aligned(size), time, time) for size in sizes if size]
    for number in graph.outputs:
        lives[int(number)][1] = len(graph.operators)
    buffers = [(_aligned(prod(graph.tensors[n].shape)), *lives[n]) for n in sorted(lives)] + buffers
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    for size, first, last in sorted(buffers, key=lambda buffer: -buffer[0]):
        offset = 0
        for start, end, other_first, other_last in sorted(placed):
            if other_first <= last and first <= other_last:
                if start - offset >= size:
                    break
                offset = max(offset, end)
        placed.append((offset, offset + size, first, last))
    return int(max(end for _, end, _, _ in placed))


def _aligned(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


def _sides(tensor) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.shape[1:])


def _same_padding(shape) -> tuple[int, int]:
    total = (
        (out - 1) * stride + (kernel - 1) * dilation + 1 - size
        for out, stride, kernel, dilation, size in zip(
            shape.output_shape, shape.stride, shape.kernel, shape.dilation, shape.input_shape
        )
    )
    return tuple(max(0, n) // 2 for n in total)


def _cmsis_scalar(shape: OperatorShape) -> int:
    # arm_convolve_s8_get_buffer_size; the 1x1, depthwise and pooling kernels need none without vectors
    return _two_columns(shape) if shape.name == "CONV_2D" and not _is_pointwise(shape) else 0


def _cmsis_dsp(shape: OperatorShape) -> int:
    channels = shape.input_shape[-1]
    if shape.name == "CONV_2D" and _is_pointwise(shape):
        # arm_convolve_1x1_s8_fast_get_buffer_size with Arm's compiler; with GCC it is 0
        return 4 * channels if shape.stride == (1, 1) else 0
    if shape.name == "DEPTHWISE_CONV_2D" and _is_plain_depthwise(shape):
        # arm_depthwise_conv_3x3_s8, else arm_depthwise_conv_s8_opt_get_buffer_size
        return 0 if shape.kernel == (3, 3) and max(shape.padding) <= 1 else 2 * channels * prod(shape.kernel)
    if shape.name == "AVERAGE_POOL_2D":
        return 4 * channels  # arm_avgpool_s8_get_buffer_size
    return _cmsis_scalar(shape)


def _cmsis_mve(shape: OperatorShape) -> int:
    if shape.name == "CONV_2D":
        return _mve_convolution(shape)
    if shape.name == "DEPTHWISE_CONV_2D":
        channels = shape.output_shape[2]
        if shape.input_shape[2] == 1 < channels:  # it becomes a regular one: its buffer and its turned kernel
            return _mve_convolution(shape) + channels * prod(shape.kernel)
        # arm_depthwise_conv_s8_opt_get_buffer_size
        return 4 * MVE_CHANNELS * prod(shape.kernel) if _is_plain_depthwise(shape) else 0
    if shape.name == "FULLY_CONNECTED":
        return 4 * shape.output_shape[-1]  # arm_fully_connected_s8_get_buffer_size
    return 0


def _mve_convolution(shape) -> int:
    """The bytes of arm_convolve_wrapper_s8_get_buffer_size with MVE: four columns of im2col in vectors of 16."""
    if _is_pointwise(shape):
        return 0
    channels, columns = shape.input_shape[2], 4 * _aligned(shape.input_shape[2] * prod(shape.kernel), 16)
    (height, width), out_width = shape.input_shape[:2], shape.output_shape[1]
    kernel, stride, left = shape.kernel[1], shape.stride[1], shape.padding[1]
    one_row = height == shape.kernel[0] == shape.dilation[1] == shape.groups == 1
    if not one_row or stride * channels % 4:
        return columns
    # arm_convolve_1_x_n_s8: the padded edges alone are copied, unless all is edge.
    odd = ((out_width - 1) * stride + kernel - width) % 2
    edges = [max(1, -(-n // stride)) if n else 0 for n in (left, left + odd)]
    if sum(edges) > out_width:
        return columns
    right = edges[1] if odd else left
    return channels * max(kernel + left, kernel - 1 + right)


def _two_columns(shape) -> int:
    """The bytes of arm_convolve_s8_get_buffer_size without MVE: two columns of im2col as 16-bit numbers."""
    return 4 * _aligned(shape.input_shape[2] * prod(shape.kernel), 4)


def _is_pointwise(shape) -> bool:
    """Whether a CONV_2D runs CMSIS-NN's 1x1 kernels (arm_nn_is_convolve_1x1)."""
    return shape.kernel == shape.dilation == (1, 1) and shape.padding == (0, 0) and shape.groups == 1


def _is_plain_depthwise(shape) -> bool:
    return shape.input_shape[2] == shape.output_shape[2] and shape.dilation == (1, 1)


def _esp32s3(shape: OperatorShape) -> int:
    if shape.name == "CONV_2D":
        return _esp32s3_convolution(shape)
    if shape.name == "DEPTHWISE_CONV_2D":
        return _esp32s3_depthwise(shape)
    return 4 * shape.input_shape[-1] if shape.name == "SOFTMAX" else 0  # esp_nn_get_softmax_scratch_size


def _esp32s3_convolution(shape) -> int:
    """The bytes of esp_nn_get_conv_scratch_size: weights, padded image and bias copied to where vectors can load them."""
    (height, width, channels), filters = shape.input_shape, shape.output_shape[2]
    rows, columns = shape.kernel
    margin = 64
    if shape.kernel == shape.stride == (1, 1) and shape.padding == (0, 0):
        padded = _aligned(channels, 8)
        image = height * width * padded if channels % 8 else 0
        turned = 16 * padded if height * width >= 8 else 0
        return image + padded * filters + turned + margin
    window = rows * columns * channels
    if columns * channels < 16 <= window:  # im2col
        return 4 * filters + 16 + filters * _aligned(window, 16) + 16 + _aligned(window, 16) + margin
    top, left = shape.padding
    image = (height + 2 * top) * (width + 2 * left) * channels if top or left else 0
    below, right = _missing(shape)
    edges = (height + below) * (width + right) * channels if below or right else 0
    kernel = rows * columns * _aligned(channels, 16) * filters
    return image + edges + kernel + _aligned(columns * channels, 16) * rows * filters + 4 * filters + margin


def _esp32s3_depthwise(shape) -> int:
    """The bytes of esp_nn_get_depthwise_conv_scratch_size: kernel and padded image, as 8 or 16-bit numbers."""
    height, width, channels = shape.input_shape
    out_height, out_width, filters = shape.output_shape
    (rows, columns), (top, left) = shape.kernel, shape.padding
    kernel, image = rows * columns * filters, height * width * channels
    if filters > channels:
        return 2 * (kernel + image) + 32 if filters // channels % 4 == 0 else 32
    if channels % 8:
        if channels <= 3:
            return 32
        padded = _aligned(channels, 8)
        sizes = (2 * rows * columns * padded, 2 * height * width * padded, out_height * out_width * padded)
        return sum(_aligned(size) for size in sizes) + 12 * padded + 16
    if shape.kernel != (3, 3):
        if 2 * (kernel + image) <= 48 * 1024:
            return 2 * (kernel + image) + 32
        return 2 * (kernel + width * rows * channels) + 32  # a strip of rows at a time
    below, right = _missing(shape)
    if channels % 16 == 0:
        if top or left:
            below, right = 2 * top, 2 * left
        if not (below or right):
            return kernel + 16
        padded = (height + below) * (width + right) * channels
        return kernel + 16 + (padded if padded <= 40 * 1024 else (width + right) * rows * channels)
    if channels < 12:
        return 2 * (kernel + image) + 32
    padded = (height + 2 * top + below) * (width + 2 * left + right)
    return _aligned(channels) * (9 + padded + out_height * out_width) + 64


def _missing(shape) -> tuple[int, int]:
    """Rows below and columns to the right that a window over the last output would reach beyond the image."""
    return tuple(
        max(0, out * stride + kernel - 1 - size)
        for out, stride, kernel, size in zip(shape.output_shape, shape.stride, shape.kernel, shape.input_shape)
    )


SCRATCH = {
    "reference": {},
    "cmsis-nn": {"scalar": _cmsis_scalar, "dsp": _cmsis_dsp, "mve": _cmsis_mve},
    "esp-nn": {"esp32s3": _esp32s3},
}
