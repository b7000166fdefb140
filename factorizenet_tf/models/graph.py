"""Run a flat model node by node on batches of values, and tell which of its layers read the image."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .._keras import flat_nodes, tf, to_float
from .keras3 import check_copies, check_plain, check_weights
from .quantize import is_quantize_aware

__all__ = ["BATCH", "Graph", "call", "in_batches", "reads_image", "run"]

BATCH = 64


@dataclass(frozen=True, eq=False)
class Graph:
    """A model's nodes in order, the last reader of each tensor by the tensor's id, and the output's id."""

    nodes: list
    last_reader: dict
    output: str

    @classmethod
    def of(cls, model) -> Graph:
        """List the nodes of a flat float model. Raises TypeError and ValueError as `factorize` does."""
        nodes = flat_nodes(model, "factorize")
        if is_quantize_aware(model):
            raise ValueError(f"the model {model.name!r} is quantization-aware already; give the float one")
        name, uses = Counter(node.layer.name for node in nodes).most_common(1)[0]
        if uses > 1:
            raise ValueError(f"the layer {name!r} is used {uses} times; give each use its own layer")
        check_weights(model)
        check_plain(model)
        check_copies(model)
        readers = {tensor: node for node in nodes if not node.is_input for tensor in node.flat_input_ids}
        return cls(nodes, readers, str(id(model.outputs[0])))

    def forget(self, node, *stores: dict) -> None:
        """Drop from stores of values, by tensor id, the tensors of which this node is the last reader."""
        for tensor in node.flat_input_ids:
            if self.last_reader[tensor] is node:
                for store in stores:
                    store.pop(tensor, None)

    def rest(self, first: int, values: dict) -> Callable[[list], list]:
        """Compile the nodes from one on: a function that gives the net's outputs of the batches that the node before it gives.

        `values` are batches by tensor id: what the nodes from it on read beside.
        """
        given = self.nodes[first - 1].flat_output_ids[0]
        others = [dict(zip(values, batch)) for batch in zip(*values.values())]

        @functools.partial(tf.function, autograph=False)
        def output(values):
            for node in self.nodes[first:]:
                values = values | {node.flat_output_ids[0]: call(node, node.layer, values)}
            return values[self.output]

        return lambda outputs: [output(batch | {given: each}) for batch, each in zip(others, outputs)]


def call(node, function, values):
    """Call a function as a node calls its layer, on values by tensor id."""
    ids = node.flat_input_ids
    arguments, options = node.map_arguments({key: [values[key]] * len(ids) for key in ids})
    return function(*arguments, **options)


def run(node, function, values) -> list:
    """Call a function on each batch of values by tensor id."""
    ids = node.flat_input_ids
    batches = zip(*(values[key] for key in ids))
    return [call(node, function, dict(zip(ids, batch))) for batch in batches]


def in_batches(images) -> list:
    """Cut uint8 images (n, height, width, channels) into batches of floats in 0..1."""
    return [to_float(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]


def reads_image(node) -> bool:
    """Whether no convolution other than depthwise 1x1 ones stands between the image and a node's layer."""
    return all(_is_pixelwise(parent.layer) and reads_image(parent) for parent in node.parent_nodes)


def _is_pixelwise(layer) -> bool:
    kernel = getattr(layer, "kernel_size", None)
    return kernel is None or (type(layer).__name__ == "DepthwiseConv2D" and math.prod(kernel) == 1)
