"""Measure how the operators of anybody's .tflite use their bits, in weights and in outputs. Needs no TensorFlow."""

from collections import Counter

import numpy as np

from ..tflite.flatbuffer import data_of, read_flatbuffer
from ..tflite.inspect import KERNELS, operator_rows
from ..tflite.int8_model import TFLiteModel
from .distributions import Distribution, describe

__all__ = ["layer_rows"]

WEIGHTS = ("weights", "scales", "weight_range", "average_channel_precision", "weight_bits")
QUANTIZED = ("int8", "uint8", "int16")
CHANNEL_AXIS = {"DEPTHWISE_CONV_2D": 3, "CONV_3D": 4}  # of a kernel; of all others the first


def layer_rows(model: TFLiteModel, images: np.ndarray) -> list[dict]:
    """Describe weights and output of each operator of the first subgraph, a row each in order, None for what it lacks.

    Of the weights: type, number of scales, range, average channel precision, and weight_bits of the channel with the fewest:
    log2 of the steps from its smallest to its largest weight. Of the output on the images: type, lowest and highest value,
    used (the share of the type's steps that these span, 0..1), clipped (the share of values at an end of the type, unless
    that end stands for 0), and the number of constant channels.

    Args:
        model: the file.
        images: uint8 (n, height, width, channels).

    Raises:
        TypeError, ValueError: as `TFLiteModel.predict`.
    """
    flatbuffer = read_flatbuffer(model.content)
    tensors = flatbuffer.subgraphs[0].tensors
    operators = [row for row in operator_rows(flatbuffer) if row["place"][0] == 0]
    outputs = {row["outputs"][0]: _quantization(tensors[row["outputs"][0]]) for row in operators}
    steps, types, clipped = {}, {}, Counter()

    def see(tensor):
        for number, (_, zero_points) in outputs.items():
            values = tensor(number)
            values, types[number] = values.reshape(-1, (values.shape or (1,))[-1]), values.dtype.name
            steps.setdefault(number, Distribution(values.shape[1])).widen(values)
            if types[number] in QUANTIZED:
                ends = {np.iinfo(values.dtype).min, np.iinfo(values.dtype).max} - {*zero_points.tolist()}
                clipped[number] += sum(np.count_nonzero(values == end) for end in ends)

    model.watch(images, see)
    rows = []
    for row in operators:
        number = row["outputs"][0]
        (scales, zero_points), found = outputs[number], steps[number]
        low, high = (float(scales[0] * (end - zero_points[0])) for end in (found.minimum, found.maximum))
        output = {"output": types[number], "low": low, "high": high, "used": None, "clipped": None}
        if types[number] in QUANTIZED:
            limits, numbers = np.iinfo(types[number]), int(found.finite.sum())
            output |= {"used": found.range / (limits.max - limits.min), "clipped": clipped[number] / numbers}
        output["constant_channels"] = int((found.channel_ranges == 0).sum())
        weights = _weights(flatbuffer, tensors, row) or dict.fromkeys(WEIGHTS)
        rows.append({"n": row["place"][1], "operator": row["operator"]} | weights | output)
    return rows


def _weights(flatbuffer, tensors, row) -> dict | None:
    """The columns WEIGHTS; None where there are no weights, or they are no constant or of another type."""
    if row["operator"] not in KERNELS:
        return None
    tensor = tensors[row["inputs"][1]]
    kernel = data_of(flatbuffer, tensor)
    if kernel is None or kernel.dtype == np.int32:
        return None
    kernel = np.moveaxis(kernel, CHANNEL_AXIS.get(row["operator"], 0), -1)
    values, (scales, zero_points) = kernel.reshape(-1, kernel.shape[-1]), _quantization(tensor)
    found, fewest = describe((values - zero_points) * scales).row(), np.ptp(values.astype(int), 0).min()
    kind = kernel.dtype.name
    columns = (kind, len(scales), found["range"], found["average_channel_precision"], float(np.log2(1 + fewest)))
    return dict(zip(WEIGHTS, columns)) | ({"scales": None, "weight_bits": None} if kind == "float32" else {})


def _quantization(tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of a tensor, (channels,) or (1,); 1 and 0 where it has none."""
    found = tensor.quantization
    if found is None or found.scale is None or not len(found.scale):
        return np.ones(1), np.zeros(1)
    return np.asarray(found.scale, np.float64), np.asarray(found.zeroPoint, np.float64)
