"""Rewrite grouped int8 convolutions with the number of groups that a target runs fastest, outputs equal to the bit.

XNNPACK runs a grouped int8 convolution with few channels in each group slower than one with fewer groups, though that has
more MACs. A kernel of G groups equals one of G / n groups with zeros between its blocks: more bytes, the same sums. XNNPACK
also lacks a kernel for depthwise convolutions with several filters a channel; these run ten times as fast with one filter a
channel on copies of the input.
"""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .flatbuffer import add_tensor, data_of, insert_operator, operator_name, read_flatbuffer, set_data, write_flatbuffer
from .int8_model import Int8Model
from .latency import LatencyTable, convolution_operators, int8_convolutions, measure_convolutions, time_in_turns
from .micro import arena_bytes

__all__ = ["Regrouping", "compare", "on_copies", "regroup_fastest", "regrouped", "with_groups"]

MARGIN = 0.95  # of the plain file's time: other groups must be faster than this, or timing noise would choose


@dataclass(frozen=True)
class Regrouping:
    """A regrouped .tflite and how it came about.

    Args:
        content: its bytes; its outputs are the plain file's, bit by bit.
        layers: for each grouped convolution its name, the number of `groups` in the plain file and the `chosen` one, and
            the latencies `plain_ms` and `chosen_ms` of one image in the table.
        table: the latencies that the choice is based on.
    """

    content: bytes
    layers: list[dict]
    table: LatencyTable


def regroup_fastest(content: bytes, latencies: LatencyTable | None = None) -> Regrouping:
    """Rewrite each grouped convolution of an int8 .tflite with the number of groups that runs fastest.

    Depthwise convolutions with several filters a channel are rewritten by `on_copies`.

    Args:
        content: the .tflite.
        latencies: measured on the target by `factorizenet latencies`; None measures the file's own shapes here.

    Raises:
        ValueError: the file is damaged, or the table lacks a shape or a number of groups that it has.
    """
    content = on_copies(content)
    convolutions = int8_convolutions(content)
    if latencies is None:
        latencies = measure_convolutions(row[1:] for row in convolutions)
    layers, choices = [], []
    for name, shape, groups in convolutions:
        if groups == 1:
            choices.append(1)
            continue
        times = latencies.milliseconds.get(shape, {})
        if groups not in times:
            raise ValueError(
                f"the table of {latencies.machine} has no latency of a {shape} in {groups} groups; measure this file's "
                "layers there with `factorizenet latencies FILE --out TABLE.json`"
            )
        fastest = min((n for n in times if groups % n == 0), key=times.__getitem__)
        chosen = fastest if times[fastest] < MARGIN * times[groups] else groups
        choices.append(chosen)
        row = {"name": _layer_name(name), "groups": groups, "chosen": chosen}
        layers.append(row | {"plain_ms": times[groups], "chosen_ms": times[chosen]})
    return Regrouping(with_groups(content, choices), layers, latencies)


def with_groups(content: bytes, groups: Sequence[int]) -> bytes:
    """Rewrite the int8 convolutions of a .tflite in fewer groups, zeros between them; scales and sums stay.

    Args:
        content: the .tflite; where nothing changes it comes back byte by byte.
        groups: for each of `int8_convolutions`, in order; a divisor of the number that it has.

    Raises:
        ValueError: there are more or fewer convolutions, or a number is no divisor.
    """
    model = read_flatbuffer(content)
    operators = list(convolution_operators(model))
    if len(operators) != len(groups):
        raise ValueError(f"{len(groups)} numbers of groups for {len(operators)} int8 convolutions; give one each")
    for (graph, operator, shape, before), fewer in zip(operators, groups):
        if fewer < 1 or before % fewer:
            raise ValueError(f"a {shape} has {before} groups; they cannot become {fewer}: give a divisor of {before}")
        if fewer != before:
            _rewrite(model, graph, operator, before, fewer)
    if list(groups) == [before for *_, before in operators]:
        return content
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return write_flatbuffer(model, files_of=content)


def compare(plain: bytes, regrouped: bytes) -> dict:
    """Compare bytes, RAM and latency of two .tflite files of the same net, on one thread in turns.

    Returns:
        bytes, ram_bytes (None without the extra `micro`) and ms of each, and `speedup`, the median of the ratios of
        each turn.
    """
    files = {"plain": plain, "regrouped": regrouped}
    times = time_in_turns([Int8Model(content).inference() for content in files.values()], runs=50)
    row = {}
    for (kind, content), ms in zip(files.items(), np.median(times, axis=0)):
        ram = None
        with contextlib.suppress(ModuleNotFoundError):
            ram = arena_bytes(content)
        row |= {f"{kind}_bytes": len(content), f"{kind}_ram_bytes": ram, f"{kind}_ms": round(float(ms), 4)}
    return row | {"speedup": round(float(np.median(times[:, 0] / times[:, 1])), 3)}


def regrouped(kernel: np.ndarray, groups: int, new_groups: int) -> np.ndarray:
    """Write a grouped convolution's kernel for other groups: weights that both have are kept, others dropped or 0.

    Args:
        kernel: (filters, height, width, channels / groups).
        groups, new_groups: divisors of filters and channels.

    Returns:
        (filters, height, width, channels / new_groups); with fewer groups it computes the same function.
    """
    filters, height, width, inside = kernel.shape
    new_inside = inside * groups // new_groups
    result = np.zeros((filters, height, width, new_inside), kernel.dtype)
    for number in range(filters):  # each reads the channels of its group
        first, new_first = number * groups // filters * inside, number * new_groups // filters * new_inside
        low, high = max(first, new_first), min(first + inside, new_first + new_inside)
        result[number, ..., low - new_first : high - new_first] = kernel[number, ..., low - first : high - first]
    return result


def on_copies(content: bytes) -> bytes:
    """Rewrite int8 depthwise convolutions with several filters a channel: one filter a channel, on copies of the input.

    The output must be read by a single pointwise convolution, whose weights are reordered to match; other depthwise
    convolutions stay as they are. The sums stay the same; the copies take RAM.

    Args:
        content: the .tflite; where nothing changes it comes back byte by byte.
    """
    model = read_flatbuffer(content)
    changed = False
    for graph in model.subgraphs:
        for operator in [op for op in graph.operators if operator_name(model, op) == "DEPTHWISE_CONV_2D"]:
            image = graph.tensors[operator.inputs[0]]
            copies = operator.builtinOptions.depthMultiplier
            channels, output = int(image.shape[3]), operator.outputs[0]
            readers = [op for op in graph.operators if output in op.inputs]
            if len(operator.inputs) < 3 or min(operator.inputs) < 0:  # no bias
                continue
            is_alone = len(readers) == 1 and output not in graph.outputs
            if copies < 2 or not is_alone or operator_name(model, readers[0]) != "CONV_2D":
                continue
            pointwise = graph.tensors[readers[0].inputs[1]]
            weights = (data_of(model, graph.tensors[n]) for n in (*operator.inputs[1:], readers[0].inputs[1]))
            is_int = all(own is not None and own.dtype in (np.int8, np.int32) for own in weights)
            if not is_int or list(pointwise.shape[1:]) != [1, 1, channels * copies]:
                continue
            order = np.arange(channels * copies).reshape(channels, copies).T.ravel()
            for reader, place in ((operator, 1), (operator, 2), (readers[0], 1)):
                _reorder(model, graph, reader, place, order)
            wide = copy.copy(image)
            wide.shape, wide.shapeSignature, wide.buffer = [*map(int, image.shape[:3]), channels * copies], None, 0
            joined, place = add_tensor(graph, wide), graph.operators.index(operator)
            sources = [operator.inputs[0]] * copies
            insert_operator(model, graph, place, "Concatenation", sources, joined, version=2, axis=3)
            operator.inputs = [joined, *operator.inputs[1:]]
            operator.builtinOptions.depthMultiplier, changed = 1, True
    return write_flatbuffer(model, files_of=content) if changed else content


def _reorder(model, graph, operator, place, order) -> None:
    """Put the last axis of an operator's constant input in another order, its scales with it."""
    tensor = copy.copy(graph.tensors[operator.inputs[place]])
    set_data(model, tensor, data_of(model, tensor)[..., order])
    scales = tensor.quantization
    if scales.scale is not None and len(scales.scale) > 1 and scales.quantizedDimension == len(tensor.shape) - 1:
        tensor.quantization = scales = copy.copy(scales)
        scales.scale = np.asarray(scales.scale)[order]
    operator.inputs = [*operator.inputs[:place], add_tensor(graph, tensor), *operator.inputs[place + 1 :]]


def _rewrite(model, graph, operator, groups, fewer):
    number = operator.inputs[1]
    tensor = graph.tensors[number]
    if sum(number in other.inputs for other in graph.operators) > 1:  # the others keep what they have
        tensor = copy.copy(tensor)
        own = add_tensor(graph, tensor)
        operator.inputs = [own if n == number else n for n in operator.inputs]
    set_data(model, tensor, regrouped(data_of(model, tensor), groups, fewer))


def _layer_name(name):
    parts = name.rpartition(";")[2].split("/")  # model/quant_stage1_block1_spatial/Conv2D1
    return parts[-2] if len(parts) > 1 else name
