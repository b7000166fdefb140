"""The int8 convolutions of a .tflite, or of a family's specs, by shape. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..spec import ModelSpec, max_level
from .flatbuffer import read_flatbuffer, tensor_name, write_flatbuffer

__all__ = [
    "Convolution",
    "LatencyTable",
    "convolution_operators",
    "described",
    "int8_convolutions",
    "largest_groups",
    "measure_convolutions",
    "planned_convolutions",
    "table_from_json",
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


FORMAT = 1
ROUNDS = 9  # in turns over the group counts, so that a change of the machine's speed meets all
ROUND_MS = 4.0  # of one measurement
LEAST_RUNS = 5


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one image by shape and number of groups, and what they were measured on.

    Args:
        milliseconds: for each shape a dict groups -> median milliseconds of one int8 convolution.
        machine: the processor.
        runtime: its name and version.
        threads: of one inference.
    """

    milliseconds: dict[Convolution, dict[int, float]]
    machine: str
    runtime: str
    threads: int

    def to_json(self) -> str:
        """What `table_from_json` reads back."""
        head = {"format": FORMAT, "machine": self.machine, "runtime": self.runtime, "threads": self.threads}
        rows = [dataclasses.asdict(shape) | {"milliseconds": ms} for shape, ms in self.milliseconds.items()]
        return json.dumps(head | {"convolutions": rows}, indent=1) + "\n"

    def rows(self) -> list[dict]:
        """A dict a shape and number of groups."""
        return [
            {"convolution": str(shape), "groups": groups, "ms": round(ms, 5)}
            for shape, by_groups in self.milliseconds.items()
            for groups, ms in by_groups.items()
        ]


def table_from_json(text: str, where: str = "the table") -> LatencyTable:
    """The table that `to_json` wrote.

    Raises:
        ValueError: it is none; the message names `where`.
    """
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']!r}; this version reads {FORMAT}")
        milliseconds = {}
        for row in fields["convolutions"]:
            sides = {key: tuple(int(n) for n in row[key]) for key in ("input_shape", "kernel", "stride", "dilation")}
            shape = Convolution(filters=int(row["filters"]), padding=str(row["padding"]), **sides)
            milliseconds[shape] = {int(groups): float(ms) for groups, ms in row["milliseconds"].items()}
        return LatencyTable(milliseconds, str(fields["machine"]), str(fields["runtime"]), int(fields["threads"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where} is no table of latencies ({error!r}); write it with `factorizenet latencies --out TABLE.json`"
        ) from None


def measure_convolutions(groups: dict[Convolution, int], *, threads: int = 1) -> LatencyTable:
    """Time each shape on LiteRT with XNNPACK, with every number of groups that divides the given one.

    Args:
        groups: the largest number of groups of each shape.
        threads: of one inference.

    Returns:
        Medians over rounds in turn; the call from Python, a few microseconds, is in each of them.
    """
    from importlib.metadata import version

    from ..machine import cpu_name

    milliseconds = {shape: _measured(shape, shape.group_counts(most), threads) for shape, most in groups.items()}
    return LatencyTable(milliseconds, cpu_name(), f"ai-edge-litert {version('ai-edge-litert')}, XNNPACK", threads)


def _measured(shape, counts, threads) -> dict[int, float]:
    from ai_edge_litert.interpreter import Interpreter

    invokes = []
    for groups in counts:
        interpreter = Interpreter(model_content=_one_convolution(shape, groups), num_threads=threads)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, np.zeros((1, *shape.input_shape), np.int8))
        interpreter.invoke()
        start = time.perf_counter()
        interpreter.invoke()
        once = 1e3 * (time.perf_counter() - start)
        invokes.append((interpreter.invoke, max(LEAST_RUNS, int(ROUND_MS / once))))
    rounds = [[_median_ms(invoke, runs) for invoke, runs in invokes] for _ in range(ROUNDS)]
    return dict(zip(counts, np.median(rounds, axis=0).tolist()))


def _median_ms(invoke, runs) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        invoke()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def _one_convolution(shape, groups) -> bytes:
    """A .tflite of one int8 convolution with random weights: its time does not depend on them."""
    from ai_edge_litert import schema_py_generated as schema

    height, width, channels = shape.input_shape
    reach = [(k - 1) * d + 1 for k, d in zip(shape.kernel, shape.dilation)]
    free = (height, width) if shape.padding == "SAME" else (height - reach[0] + 1, width - reach[1] + 1)
    output = [1, *(-(-size // stride) for size, stride in zip(free, shape.stride)), shape.filters]
    kernel = [shape.filters, *shape.kernel, channels // groups]
    random = np.random.default_rng(0)
    weights = random.integers(-127, 128, kernel, np.int8)
    bias = random.integers(-1000, 1000, shape.filters, np.int32)
    types = schema.TensorType

    def tensor(name, sides, kind, scales, zero_point=0, buffer=0, axis=0):
        quantization = schema.QuantizationParametersT(
            scale=scales, zeroPoint=[zero_point] * len(scales), quantizedDimension=axis
        )
        return schema.TensorT(shape=list(sides), type=kind, buffer=buffer, name=name, quantization=quantization)

    scales = [0.01] * shape.filters
    tensors = [
        tensor("image", (1, *shape.input_shape), types.INT8, [1 / 255], -128),
        tensor("weights", kernel, types.INT8, scales, buffer=1),
        tensor("bias", [shape.filters], types.INT32, [scale / 255 for scale in scales], buffer=2),
        tensor("sums", output, types.INT8, [0.02], -128),
    ]
    options = schema.Conv2DOptionsT(
        padding=int(shape.padding == "VALID"),
        strideH=shape.stride[0],
        strideW=shape.stride[1],
        dilationHFactor=shape.dilation[0],
        dilationWFactor=shape.dilation[1],
        fusedActivationFunction=schema.ActivationFunctionType.RELU6,
    )
    operator = schema.OperatorT(
        inputs=[0, 1, 2], outputs=[3], builtinOptions=options, builtinOptionsType=schema.BuiltinOptions.Conv2DOptions
    )
    code = schema.OperatorCodeT(
        builtinCode=schema.BuiltinOperator.CONV_2D, deprecatedBuiltinCode=schema.BuiltinOperator.CONV_2D, version=5
    )
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[3], operators=[operator], name="main")
    buffers = [schema.BufferT(data) for data in (None, weights.view(np.uint8).ravel(), bias.view(np.uint8).ravel())]
    return write_flatbuffer(schema.ModelT(version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers))
