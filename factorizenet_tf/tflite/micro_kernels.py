"""Compute the scratch buffers and the arena that a .tflite needs with a microcontroller's kernel library.

TensorFlow Lite Micro runs its reference kernels, CMSIS-NN's (Arm Cortex-M) or ESP-NN's (Espressif). The optimized ones ask
for scratch buffers that the reference ones do not need, so an arena recorded with the reference kernels is too small for
them. The formulas restate those that the libraries publish; each names the library's function.

Sources: CMSIS-NN 4ab83cc (33 commits after 7.0.0), which tflite-micro 90b983c of August 2026 takes; ESP-NN d45b843 (1.2.3)
with esp-tflite-micro 99f49e1 (1.4.0).
"""

from collections.abc import Sequence
from math import prod

from .flatbuffer import data_bytes, operator_name, read_flatbuffer
from .latency import Convolution, convolution_of
from .micro import arena_bytes

__all__ = ["LIBRARIES", "SCRATCH", "check_kernels", "estimate_arenas", "operator_shapes", "planned_bytes"]

LIBRARIES = {
    "reference": "TensorFlow Lite Micro's reference kernels",
    "cmsis-nn": "CMSIS-NN 4ab83cc on Arm Cortex-M",
    "esp-nn": "ESP-NN d45b843 on an ESP32-S3",
}
ALIGNMENT = 16  # bytes, of a buffer in the arena
# Bytes of bookkeeping, for the net and for each operator with a scratch buffer (its handle). CMSIS-NN's in an x86-64 build
# took 64 to 128 bytes a net.
BOOKKEEPING = 64, 32
MVE_CHANNELS = 124  # CH_IN_BLOCK_MVE: the channels of a depthwise convolution that CMSIS-NN's MVE kernels take at once


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
        "esp32s3"; empty for the reference kernels, whose arena `arena_bytes` records. The number is an upper bound: that
        arena, plus the growth of the memory plan by the scratch buffers, plus their bookkeeping.

    Raises:
        ValueError: a .tflite that is damaged or that tflite-micro cannot run.
        ModuleNotFoundError: tflite-micro is not installed.
    """
    operators, arenas = operator_shapes(content), {}
    for processor, formulas in SCRATCH[kernels].items():
        sizes = [formulas[name](shape, groups) if name in formulas else 0 for name, shape, groups in operators]
        grown = planned_bytes(content, sizes) - planned_bytes(content)
        records = BOOKKEEPING[0] + BOOKKEEPING[1] * sum(size > 0 for size in sizes)
        arenas[processor] = _aligned(arena_bytes(content) + grown + records)
    return arenas


def operator_shapes(content: bytes) -> list[tuple[str, Convolution, int]]:
    """List (operator, shape, groups) of a .tflite in order of execution. Raises ValueError as `read_flatbuffer`.

    Any other operator has the shape of a 1x1 convolution of its channels, which are all that the formulas need.
    """
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    shapes = []
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            shapes.append((name, *convolution_of(graph, operator)))
        else:
            ends = (graph.tensors[number].shape for number in (operator.inputs[0], operator.outputs[0]))
            channels, filters = (prod(map(int, sides[-1:])) for sides in ends)
            shapes.append((name, Convolution((1, 1, channels), filters, (1, 1), (1, 1), (1, 1), "VALID"), 1))
    return shapes


def planned_bytes(content: bytes, scratch: Sequence[int] | None = None) -> int:
    """Compute the bytes of the arena's planned part: activations and scratch buffers.

    As in TensorFlow Lite Micro's `GreedyMemoryPlanner`, buffers are placed by falling size, each at the lowest offset that
    overlaps no buffer alive at the same time.

    Args:
        content: of an int8 .tflite.
        scratch: bytes for each operator, in addition to the reference kernels' own; None for none.
    """
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    lives = {int(number): [0, 0] for number in graph.inputs}  # tensor -> first and last operator, counted from 1
    buffers = []
    for time, operator in enumerate(graph.operators, start=1):
        for number in (*operator.inputs, *operator.outputs):
            if number >= 0 and not data_bytes(model, graph.tensors[number]):  # no constant
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


# The formulas: bytes of an operator's scratch buffer by its `Convolution` and its groups.


def _is_pointwise(shape, groups) -> bool:
    """Whether a CONV_2D runs CMSIS-NN's 1x1 kernels (arm_nn_is_convolve_1x1)."""
    return shape.kernel == shape.dilation == (1, 1) and groups == 1


def _is_plain_depthwise(shape) -> bool:
    return shape.input_shape[2] == shape.filters and shape.dilation == (1, 1)


def _window(shape) -> int:
    return shape.input_shape[2] * prod(shape.kernel)


def _scalar_convolution(shape, groups) -> int:
    """Two columns of im2col as 16-bit numbers (arm_convolve_s8_get_buffer_size without MVE)."""
    return 0 if _is_pointwise(shape, groups) else 4 * _aligned(_window(shape), 4)


def _dsp_convolution(shape, groups) -> int:
    """As without DSP, but arm_convolve_1x1_s8_fast_get_buffer_size for 1x1 with Arm's compiler; with GCC that is 0."""
    if _is_pointwise(shape, groups):
        return 4 * shape.input_shape[2] if shape.stride == (1, 1) else 0
    return _scalar_convolution(shape, groups)


def _dsp_depthwise(shape, groups) -> int:
    """None for arm_depthwise_conv_3x3_s8, else arm_depthwise_conv_s8_opt_get_buffer_size."""
    return 2 * _window(shape) if _is_plain_depthwise(shape) and shape.kernel != (3, 3) else 0


def _mve_convolution(shape, groups) -> int:
    """Four columns of im2col in vectors of 16 (arm_convolve_wrapper_s8_get_buffer_size); images of one row need less."""
    return 0 if _is_pointwise(shape, groups) else 4 * _aligned(_window(shape), 16)


def _mve_depthwise(shape, groups) -> int:
    """Four blocks of MVE_CHANNELS, whatever there are (arm_depthwise_conv_s8_opt_get_buffer_size)."""
    if shape.input_shape[2] == 1 < shape.filters:  # it becomes a regular one: its buffer and its turned kernel
        return _mve_convolution(shape, groups) + shape.filters * prod(shape.kernel)
    return 4 * MVE_CHANNELS * prod(shape.kernel) if _is_plain_depthwise(shape) else 0


def _esp32s3_convolution(shape, groups) -> int:
    """The bytes of esp_nn_get_conv_scratch_size: weights, padded image and bias copied to where vectors can load them."""
    (height, width, channels), filters = shape.input_shape, shape.filters
    rows, columns = shape.kernel
    margin = 64
    if shape.kernel == shape.stride == (1, 1):
        padded = _aligned(channels, 8)
        image = height * width * padded if channels % 8 else 0
        turned = 16 * padded if height * width >= 8 else 0
        return image + padded * filters + turned + margin
    window = rows * columns * channels
    if columns * channels < 16 <= window:  # im2col
        return 4 * filters + 16 + filters * _aligned(window, 16) + 16 + _aligned(window, 16) + margin
    top, left = shape.margins
    image = (height + 2 * top) * (width + 2 * left) * channels if top or left else 0
    below, right = _missing(shape)
    edges = (height + below) * (width + right) * channels if below or right else 0
    kernel = rows * columns * _aligned(channels, 16) * filters
    return image + edges + kernel + _aligned(columns * channels, 16) * rows * filters + 4 * filters + margin


def _esp32s3_depthwise(shape, groups) -> int:
    """The bytes of esp_nn_get_depthwise_conv_scratch_size: kernel and padded image, as 8 or 16-bit numbers."""
    height, width, channels = shape.input_shape
    out_height, out_width, filters = shape.output_shape
    (rows, columns), (top, left) = shape.kernel, shape.margins
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
    sides = zip(shape.output_shape, shape.stride, shape.kernel, shape.input_shape)
    return tuple(max(0, out * stride + kernel - 1 - size) for out, stride, kernel, size in sides)


SCRATCH = {
    "reference": {},
    "cmsis-nn": {
        "scalar": {"CONV_2D": _scalar_convolution},
        "dsp": {
            "CONV_2D": _dsp_convolution,
            "DEPTHWISE_CONV_2D": _dsp_depthwise,
            "AVERAGE_POOL_2D": lambda shape, groups: 4 * shape.input_shape[2],  # arm_avgpool_s8_get_buffer_size
        },
        "mve": {
            "CONV_2D": _mve_convolution,
            "DEPTHWISE_CONV_2D": _mve_depthwise,
            "FULLY_CONNECTED": lambda shape, groups: 4 * shape.filters,  # arm_fully_connected_s8_get_buffer_size
        },
    },
    "esp-nn": {
        "esp32s3": {
            "CONV_2D": _esp32s3_convolution,
            "DEPTHWISE_CONV_2D": _esp32s3_depthwise,
            "SOFTMAX": lambda shape, groups: 4 * shape.input_shape[2],  # esp_nn_get_softmax_scratch_size
        }
    },
}
