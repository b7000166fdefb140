"""The int8 convolutions of a .tflite, or of a family's specs, by shape. Needs no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .flatfile import read_flatbuffer, tensor_name
from .spec import ModelSpec, max_level

__all__ = [
    "Convolution",
    "convolution_operators",
    "described",
    "int8_convolutions",
    "largest_groups",
    "planned_convolutions",
]


@dataclass(frozen=True)
class Convolution:
    """The shape of an int8 CONV_2D, its groups left out.

    Args:
        input_shape: (height, width, channels).
        filters: output channels.
        kernel, stride, dilation: (height, width).
        padding: "SAME" or "VALID".
    """

    input_shape: tuple[int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: str

    def __str__(self) -> str:
        return (
            f"{'x'.join(map(str, self.kernel))} convolution of {'x'.join(map(str, self.input_shape))} to "
            f"{self.filters} channels, stride {'x'.join(map(str, self.stride))}"
        )

    def group_counts(self, most: int) -> tuple[int, ...]:
        """The divisors of `most` groups, what the kernel can be written as without loss."""
        return tuple(n for n in range(1, most + 1) if most % n == 0)


def int8_convolutions(content: bytes) -> list[tuple[str, Convolution, int]]:
    """(name, shape, groups) of each int8 CONV_2D of a .tflite, in order. Raises ValueError as `read_flatbuffer`."""
    return [
        (tensor_name(graph.tensors[operator.outputs[0]]), *described(graph, operator))
        for graph, operator in convolution_operators(read_flatbuffer(content))
    ]


def planned_convolutions(width: int, input_shape: tuple[int, int, int]) -> list[tuple[Convolution, int]]:
    """(shape, groups) of the 3x3 convolutions of every uniform level of a width's family, from its specs alone.

    Raises:
        ValueError: as `ModelSpec`.
    """
    found = []
    for level in range(max_level(ModelSpec(0, width=width, input_shape=input_shape)) + 1):
        for layer in ModelSpec(level, width=width, input_shape=input_shape).plan():
            if layer.kind == "grouped":
                sides = (layer.kernel, layer.kernel), (layer.stride, layer.stride), (1, 1)
                found.append((Convolution(layer.input_shape, layer.output_shape[2], *sides, "SAME"), layer.groups))
    return found


def largest_groups(convolutions: Iterable[tuple[Convolution, int]]) -> dict[Convolution, int]:
    """What `measure_convolutions` takes for (shape, groups) pairs: each grouped shape once, all its divisors in it."""
    most = {}
    for shape, groups in convolutions:
        if groups > 1:
            most[shape] = math.lcm(most.get(shape, 1), groups)
    return most


def convolution_operators(model) -> Iterator[tuple]:
    """(subgraph, operator) of each CONV_2D of a `ModelT` with constant int8 weights."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType

    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kernel = graph.tensors[operator.inputs[1]] if len(operator.inputs) > 1 else None
            if (
                max(code.builtinCode, code.deprecatedBuiltinCode) == BuiltinOperator.CONV_2D
                and kernel.type == TensorType.INT8
                and model.buffers[kernel.buffer].data is not None
            ):
                yield graph, operator


def described(graph, operator) -> tuple[Convolution, int]:
    """Shape and number of groups of a CONV_2D operator."""
    options = operator.builtinOptions
    image, kernel = (tuple(int(n) for n in graph.tensors[i].shape) for i in operator.inputs[:2])
    shape = Convolution(
        input_shape=image[1:],
        filters=kernel[0],
        kernel=kernel[1:3],
        stride=(options.strideH, options.strideW),
        dilation=(options.dilationHFactor, options.dilationWFactor),
        padding="VALID" if options.padding else "SAME",
    )
    return shape, image[3] // kernel[3]
