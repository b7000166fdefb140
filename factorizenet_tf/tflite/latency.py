"""Measure the latency of int8 convolutions on LiteRT, by shape and number of groups. Needs no TensorFlow."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..console import quiet_native_stderr
from ..spec import ModelSpec, max_level
from .flatbuffer import operator_name, output_name, read_flatbuffer, tensor_type, write_flatbuffer

__all__ = ["Convolution", "LatencyTable", "OpenSizeError", "convolution_chain", "convolution_of"]
__all__ += ["convolution_operators", "inference", "int8_convolutions", "measure_convolutions", "new_interpreter"]
__all__ += ["planned_convolutions", "read_table", "time_in_turns"]

FORMAT = 1


class OpenSizeError(ValueError):
    """A file leaves the height or width of its images open; LiteRT would take them as 1."""


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

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(height, width, filters)."""
        lost = (0, 0) if self.padding == "SAME" else tuple(reach - 1 for reach in self._reach)
        sides = (-(-(size - less) // stride) for size, less, stride in zip(self.input_shape, lost, self.stride))
        return (*sides, self.filters)

    @property
    def margins(self) -> tuple[int, int]:
        """Rows of zeros above the image and columns to its left."""
        if self.padding == "VALID":
            return 0, 0
        sides = zip(self.output_shape, self.stride, self._reach, self.input_shape)
        return tuple(max(0, (out - 1) * stride + reach - size) // 2 for out, stride, reach, size in sides)

    @property
    def _reach(self):
        return tuple((kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel, self.dilation))


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
        """Write the table as JSON that `read_table` reads back."""
        head = {"format": FORMAT, "machine": self.machine, "runtime": self.runtime, "threads": self.threads}
        rows = [dataclasses.asdict(shape) | {"milliseconds": ms} for shape, ms in self.milliseconds.items()]
        return json.dumps(head | {"convolutions": rows}, indent=1) + "\n"

    def rows(self) -> list[dict]:
        """Give a dict for each shape and number of groups."""
        return [
            {"convolution": str(shape), "groups": groups, "ms": round(ms, 5)}
            for shape, by_groups in self.milliseconds.items()
            for groups, ms in by_groups.items()
        ]


def read_table(path: str | os.PathLike) -> LatencyTable:
    """Read the table that `factorizenet latencies` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table of latencies at {path}; `factorizenet latencies --out {path}` writes one")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
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
            f"{path} is no table of latencies ({error!r}); write it with `factorizenet latencies --out TABLE.json`"
        ) from None


def int8_convolutions(content: bytes) -> list[tuple[str, Convolution, int]]:
    """List (name, shape, groups) of each int8 CONV_2D of a .tflite, in order. Raises as `read_flatbuffer`."""
    model = read_flatbuffer(content)
    found = convolution_operators(model)
    return [(output_name(model, graph, graph.operators.index(op)), *shape) for graph, op, *shape in found]


def convolution_operators(model) -> Iterator[tuple]:
    """Yield (subgraph, operator, shape, groups) of each CONV_2D of a `ModelT` with constant int8 weights."""
    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator_name(model, operator) == "CONV_2D":
                kernel = graph.tensors[operator.inputs[1]]
                if tensor_type(kernel) == "INT8" and model.buffers[kernel.buffer].data is not None:
                    yield graph, operator, *convolution_of(graph, operator)


def convolution_of(graph, operator) -> tuple[Convolution, int]:
    """Give shape and number of groups of a CONV_2D operator, or of a DEPTHWISE_CONV_2D, which counts as one group."""
    options = operator.builtinOptions
    sides = (*operator.inputs[:2], operator.outputs[0])
    image, kernel, output = (tuple(int(n) for n in graph.tensors[i].shape) for i in sides)
    shape = Convolution(
        input_shape=image[1:],
        filters=output[3],
        kernel=kernel[1:3],
        stride=(options.strideH, options.strideW),
        dilation=(options.dilationHFactor, options.dilationWFactor),
        padding="VALID" if options.padding else "SAME",
    )
    return shape, max(1, image[3] // kernel[3])


def planned_convolutions(width: int, input_shape: tuple[int, int, int]) -> list[tuple[Convolution, int]]:
    """List (shape, groups) of the 3x3 convolutions of every uniform level of a width's family, from its specs alone.

    Raises:
        ValueError: as `ModelSpec`.
    """
    planned = []
    for level in range(max_level(ModelSpec(0, width=width, input_shape=input_shape)) + 1):
        for layer in ModelSpec(level, width=width, input_shape=input_shape).plan():
            if layer.kind == "grouped":
                sides = (layer.kernel, layer.kernel), (layer.stride, layer.stride), (1, 1)
                planned.append((Convolution(layer.input_shape, layer.output_shape[2], *sides, "SAME"), layer.groups))
    return planned


def measure_convolutions(convolutions: Iterable[tuple[Convolution, int]], *, threads: int = 1) -> LatencyTable:
    """Time each grouped shape on LiteRT with XNNPACK, in all numbers of groups that divide those it occurs with.

    Args:
        convolutions: (shape, groups) of each.
        threads: of one inference.

    Returns:
        Medians over rounds taken in turns; each includes the call from Python, a few microseconds.
    """
    from importlib.metadata import version

    from ..machine import cpu_name

    largest: dict[Convolution, int] = {}
    for shape, groups in convolutions:
        if groups > 1:
            largest[shape] = math.lcm(largest.get(shape, 1), groups)
    milliseconds = {}
    for shape, groups in largest.items():
        counts = [n for n in range(1, groups + 1) if groups % n == 0]
        times = time_in_turns([inference(one_convolution(shape, count), threads) for count in counts])
        milliseconds[shape] = dict(zip(counts, np.median(times, axis=0).tolist()))
    return LatencyTable(milliseconds, cpu_name(), f"ai-edge-litert {version('ai-edge-litert')}, XNNPACK", threads)


def time_in_turns(
    calls: Sequence[Callable[[], object]], *, rounds: int = 9, seconds: float = 0.004, runs: int = 5
) -> np.ndarray:
    """Time functions in turns, so that a change of the machine's speed affects all of them.

    Args:
        calls: the functions; each is called once before.
        rounds: number of turns of each.
        seconds: minimum duration of a turn.
        runs: minimum number of calls in a turn.

    Returns:
        Milliseconds float (rounds, calls): the median call of each turn. Ratios of two of them are best taken round by
        round.
    """
    for call in calls:
        call()
    return np.array([[_median_ms(call, seconds, runs) for call in calls] for _ in range(rounds)])


def _median_ms(call, seconds, runs) -> float:
    times, end = [], time.perf_counter() + seconds
    while len(times) < runs or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def new_interpreter(content: bytes, threads: int = 1, kernels: str = "AUTO", *, keeps_all: bool = False):
    """Make LiteRT's interpreter of a .tflite, with XNNPACK ("AUTO") or other kernels, named as in `OpResolverType`.

    `keeps_all`: all tensors can be read after an inference. Raises ValueError or RuntimeError if it refuses the file,
    OpenSizeError if the input (batch, height, width, channels) has no size.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType[kernels]
    with quiet_native_stderr():
        options = {"experimental_op_resolver_type": resolver, "experimental_preserve_all_tensors": keeps_all}
        interpreter = Interpreter(model_content=content, num_threads=threads, **options)
        for found in interpreter.get_input_details():
            if len(shape := found["shape_signature"].tolist()) == 4 and -1 in shape[1:3]:
                raise OpenSizeError(f"leaves its images' size open, {shape}; convert it with a fixed height and width")
        interpreter.allocate_tensors()
    return interpreter


def inference(content: bytes, threads: int = 1) -> Callable[[], None]:
    """Make a function for timing: one inference on zeros. Raises as `new_interpreter`."""
    interpreter = new_interpreter(content, threads)
    for found in interpreter.get_input_details():
        interpreter.set_tensor(found["index"], np.zeros(found["shape"], found["dtype"]))
    return interpreter.invoke


def one_convolution(shape: Convolution, groups: int) -> bytes:
    """Make a .tflite of one int8 CONV_2D with random weights, on which its latency does not depend."""
    return _convolutions_file([(shape, groups, False)])


def convolution_chain(parts: Sequence[tuple[Convolution, int]]) -> bytes:
    """Make a .tflite of int8 convolutions, each reading the one before; as many groups as channels: DEPTHWISE_CONV_2D."""
    return _convolutions_file([(shape, groups, groups == shape.input_shape[2] > 1) for shape, groups in parts])


def _convolutions_file(parts: Sequence[tuple[Convolution, int, bool]]) -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    random, types = np.random.default_rng(0), schema.TensorType
    tensors, buffers, operators, codes = [], [schema.BufferT()], [], []

    def tensor(name, sides, kind, scales, zero_point=0, values=None, axis=0):
        quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=[zero_point] * len(scales))
        quantization.quantizedDimension = axis
        if values is not None:
            buffers.append(schema.BufferT(values.view(np.uint8).ravel()))
        buffer = 0 if values is None else len(buffers) - 1
        tensors.append(
            schema.TensorT(shape=list(sides), type=kind, buffer=buffer, name=name, quantization=quantization)
        )
        return len(tensors) - 1

    before, scale = tensor("image", (1, *parts[0][0].input_shape), types.INT8, [1 / 255], -128), 1 / 255
    for number, (shape, groups, is_depthwise) in enumerate(parts):
        ending, count = str(number or ""), shape.filters
        inside = shape.input_shape[2] // groups
        sides = [1, *shape.kernel, count] if is_depthwise else [count, *shape.kernel, inside]
        weights = random.integers(-127, 128, sides, np.int8)
        bias = random.integers(-1000, 1000, count, np.int32)
        inputs = [
            before,
            tensor("weights" + ending, sides, types.INT8, [0.01] * count, values=weights, axis=3 * is_depthwise),
            tensor("bias" + ending, [count], types.INT32, [0.01 * scale] * count, values=bias),
        ]
        before, scale = tensor("sums" + ending, (1, *shape.output_shape), types.INT8, [0.02], -128), 0.02
        kind = "DepthwiseConv2D" if is_depthwise else "Conv2D"
        options = getattr(schema, f"{kind}OptionsT")(
            padding=int(shape.padding == "VALID"),
            strideH=shape.stride[0],
            strideW=shape.stride[1],
            dilationHFactor=shape.dilation[0],
            dilationWFactor=shape.dilation[1],
            fusedActivationFunction=schema.ActivationFunctionType.RELU6,
        )
        if is_depthwise:
            options.depthMultiplier = count // groups
        code = getattr(schema.BuiltinOperator, "DEPTHWISE_CONV_2D" if is_depthwise else "CONV_2D")
        codes.append(
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=3 if is_depthwise else 5)
        )
        kinds = getattr(schema.BuiltinOptions, f"{kind}Options")
        operator = schema.OperatorT(inputs=inputs, outputs=[before], builtinOptions=options, builtinOptionsType=kinds)
        operator.opcodeIndex = number
        operators.append(operator)
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[before], operators=operators, name="main")
    return write_flatbuffer(schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers))
