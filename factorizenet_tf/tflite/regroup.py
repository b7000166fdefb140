"""Grouped int8 convolutions rewritten as what runs fastest on a target, without changing an output bit.

XNNPACK runs a grouped int8 convolution with few channels a group slower than one of fewer groups, though that has
more MACs. A kernel of G groups is one of G / n groups with zeros between its blocks: more bytes, the same sums.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .flatbuffer import associated_files, read_flatbuffer, with_associated_files, write_flatbuffer
from .int8_model import Int8Model
from .latency import (
    LatencyTable,
    convolution_operators,
    described,
    int8_convolutions,
    largest_groups,
    measure_convolutions,
    table_from_json,
)

__all__ = [
    "LOWERINGS",
    "LoweredLayer",
    "Lowering",
    "check_lower",
    "compare",
    "lower_fastest",
    "read_table",
    "with_groups",
]

LOWERINGS = ("none", "fastest")
COMPARED_TURNS = 9
MARGIN = 0.95  # a rewriting must be faster by this, else timing noise would choose


@dataclass(frozen=True)
class LoweredLayer:
    """What was chosen for one grouped convolution.

    Args:
        name: of its output in the file.
        groups: of the plain file.
        chosen: groups of the lowered one.
        plain_ms, chosen_ms: of the table, one image.
    """

    name: str
    groups: int
    chosen: int
    plain_ms: float
    chosen_ms: float


@dataclass(frozen=True)
class Lowering:
    """A lowered .tflite and how it came about.

    Args:
        plain: bytes of the file that it was made from.
        content: its own bytes; its outputs are the plain file's, bit by bit.
        layers: a choice for each grouped convolution.
        table: the latencies that were chosen by.
    """

    plain: bytes
    content: bytes
    layers: tuple[LoweredLayer, ...]
    table: LatencyTable

    def rows(self) -> list[dict]:
        """A dict a grouped convolution, the converter's long names cut to the layer's."""
        return [dataclasses.asdict(layer) | {"name": _layer_name(layer.name)} for layer in self.layers]


def check_lower(lower: str, latencies: LatencyTable | None) -> None:
    """Raise ValueError where `lower` is none of LOWERINGS, or there is a table and nothing to lower by it."""
    if lower not in LOWERINGS:
        raise ValueError(f"lower is {lower!r}; it must be one of {', '.join(LOWERINGS)}")
    if lower == "none" and latencies is not None:
        raise ValueError('latencies are for lower="fastest"; give that, or leave them out')


def lower_fastest(content: bytes, latencies: LatencyTable | None = None, *, threads: int = 1) -> Lowering:
    """Rewrite each grouped convolution of an int8 .tflite with the number of groups that runs fastest.

    Args:
        content: the .tflite.
        latencies: measured on the target by `factorizenet latencies`; None measures the file's own shapes here.
        threads: of that measurement.

    Raises:
        ValueError: the file is damaged, or the table lacks a shape or a number of groups that it has.
    """
    found = int8_convolutions(content)
    if latencies is None:
        latencies = measure_convolutions(largest_groups(row[1:] for row in found), threads=threads)
    layers = []
    for name, shape, groups in found:
        times = latencies.milliseconds.get(shape, {}) if groups > 1 else {1: 0.0}
        if groups not in times:
            raise ValueError(
                f"the table of {latencies.machine} has no latency of a {shape} in {groups} groups; measure this file's "
                "layers there with `factorizenet latencies FILE --out TABLE.json`"
            )
        fastest = min((n for n in shape.group_counts(groups) if n in times), key=times.__getitem__)
        chosen = fastest if times[fastest] < MARGIN * times[groups] else groups
        layers.append(LoweredLayer(name, groups, chosen, times[groups], times[chosen]))
    lowered = with_groups(content, [layer.chosen for layer in layers])
    return Lowering(content, lowered, tuple(layer for layer in layers if layer.groups > 1), latencies)


def with_groups(content: bytes, groups: Sequence[int]) -> bytes:
    """A .tflite with its int8 convolutions in fewer groups, zeros between them; scales and sums as they are.

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
    changed = False
    for (graph, operator), wanted in zip(operators, groups):
        shape, now = described(graph, operator)
        if wanted < 1 or now % wanted:
            raise ValueError(f"a {shape} has {now} groups; they cannot become {wanted}: give a divisor of {now}")
        if wanted != now:
            _rewrite(model, graph, operator, now, wanted)
            changed = True
    if not changed:
        return content
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return with_associated_files(write_flatbuffer(model), associated_files(content))


def compare(plain: bytes, lowered: bytes, *, threads: int = 1) -> dict:
    """Bytes, RAM and latency of two .tflite files of the same net, latency in turns.

    Args:
        plain, lowered: their content.
        threads: of one inference.

    Returns:
        bytes, ram_bytes (None without the extra `micro`) and latency_ms of each, and `speedup`, the median of the
        ratios of each turn.
    """
    from .micro import arena_bytes

    models = [Int8Model(content, threads=threads) for content in (plain, lowered)]
    times = np.array(
        [[model.latency_ms(runs=50, warm_up=5).median_ms for model in models] for _ in range(COMPARED_TURNS)]
    )
    row = {}
    for kind, content, ms in zip(("plain", "lowered"), (plain, lowered), np.median(times, axis=0)):
        try:
            ram = arena_bytes(content)
        except ModuleNotFoundError:
            ram = None
        row |= {f"{kind}_bytes": len(content), f"{kind}_ram_bytes": ram, f"{kind}_ms": round(float(ms), 4)}
    return row | {"speedup": round(float(np.median(times[:, 0] / times[:, 1])), 3)}


def read_table(path: str | os.PathLike) -> LatencyTable:
    """The table in a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table of latencies at {path}; `factorizenet latencies --out {path}` writes one")
    return table_from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def block_dense(kernel: np.ndarray, groups: int, fewer: int) -> np.ndarray:
    """The kernel (filters, height, width, channels / groups) as one of `fewer` groups, zeros between its blocks."""
    filters, height, width, inside = kernel.shape
    joined = groups // fewer  # groups that become one
    wide = np.zeros((filters, height, width, inside * joined), kernel.dtype)
    for number in range(groups):
        rows = slice(number * filters // groups, (number + 1) * filters // groups)
        place = number % joined * inside
        wide[rows, ..., place : place + inside] = kernel[rows]
    return wide


def _rewrite(model, graph, operator, groups, fewer):
    from ai_edge_litert import schema_py_generated as schema

    number = operator.inputs[1]
    tensor = graph.tensors[number]
    kernel = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8).reshape(tensor.shape)
    wide = block_dense(kernel, groups, fewer)
    # A buffer may serve several tensors and a tensor several operators: those keep what they have.
    model.buffers.append(schema.BufferT(wide.view(np.uint8).ravel()))
    if sum(number in other.inputs for other in graph.operators) > 1:
        tensor = copy.copy(tensor)
        graph.tensors.append(tensor)
        operator.inputs = [len(graph.tensors) - 1 if n == number else n for n in operator.inputs]
    tensor.shape, tensor.buffer = list(wide.shape), len(model.buffers) - 1


def _layer_name(name):
    parts = name.rpartition(";")[2].split("/")  # model/quant_stage1_block1_spatial/Conv2D1
    return parts[-2] if len(parts) > 1 else name
