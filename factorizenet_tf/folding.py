"""A tf_keras model as TFLite runs it: operations with BatchNorm folded and activations fused, in order of execution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ._keras import functional_model, keras
from .keras_layers import (
    FIXED,
    FUSED,
    FUSES_RELU,
    KERNELS,
    SAME_SCALE,
    activation_name,
    bare_layer,
    check_layer,
    folded_weights,
    is_fused_relu,
    kind_of,
    learned_range,
    multiplied,
    run_layer,
    unwrapped,
)

__all__ = ["Graph", "Operation", "graph_of"]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation and what is fused into it.

    Args:
        name: of its first layer, without TFMOT's "quant_".
        kind: "input", "conv", "grouped", "depthwise", "pointwise", "dense", "add", "pool", "activation" or "other".
        groups: of a convolution, else 1.
        source: the operation whose output's scale is this one's input scale; None for inputs.
        is_quantized: whether its output gets a scale of its own.
        fixed_range: (low, high) where TFLite or the model fixes or learnt the output's range, else None.
        kernel: float32, as trained; None where there is none.
        folded: the kernel with BatchNorm folded in.
        bias: float32 (channels,), BatchNorm folded in.
        learned_limits: max |w| of the folded kernel that a quantization-aware model learnt: one a channel or one in all.
        compute: (values by tensor id, kernel, bias) -> the output, float32 (batch, ..., channels).
        output: tensor id.
        used: tensor ids it reads.
        is_mean: whether TFLite rounds it to its source's grid, even where it has one of its own: average pooling.
    """

    name: str
    kind: str
    groups: int
    source: str | None
    is_quantized: bool
    fixed_range: tuple[float, float] | None
    kernel: np.ndarray | None
    folded: np.ndarray | None
    bias: np.ndarray | None
    learned_limits: np.ndarray | None
    compute: Callable
    output: str
    used: tuple[str, ...]
    is_mean: bool = False


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in order, the last one gives the logits.

    Args:
        name: of the model.
        operations: all of them.
        input_shape: (height, width, channels).
        is_quantize_aware: whether ranges and limits were learnt.
        ends_in_softmax: whether it gives probabilities.
    """

    name: str
    operations: tuple[Operation, ...]
    input_shape: tuple[int, ...]
    is_quantize_aware: bool
    ends_in_softmax: bool

    @property
    def kernels(self) -> tuple[Operation, ...]:
        """The operations with weights."""
        return tuple(op for op in self.operations if op.kernel is not None)

    @property
    def quantized(self) -> tuple[Operation, ...]:
        """The operations whose outputs are quantized."""
        return tuple(op for op in self.operations if op.is_quantized)


def graph_of(model: keras.Model) -> Graph:
    """The operations of a float or quantization-aware model.

    BatchNorm right behind a convolution or dense layer is folded: s = gamma / sqrt(var + eps), W' = s W,
    b' = (b - mean) s + beta. ReLU and ReLU6 right behind one are part of it. Other layers run as they are.

    Raises:
        TypeError: a Keras 3 model.
        ValueError: an unbuilt or nested model, one with several inputs or outputs, or a layer whose weights cannot be
            read (named).
    """
    functional_model(model, "the analysis")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"the model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "the analysis takes one of each"
        )
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    for node in nodes:
        check_layer(bare_layer(node.layer))
    return _Builder(model, nodes).graph()


class _Builder:
    def __init__(self, model, nodes):
        self.model, self.nodes = model, nodes
        self.readers = {}
        for node in nodes:
            for tensor in () if node.is_input else node.flat_input_ids:
                self.readers.setdefault(tensor, []).append(node)
        self.result = str(id(model.outputs[0]))
        self.sources, self.operations, self.names = {}, [], {}
        self.aware = False

    def graph(self) -> Graph:
        done = set()
        for node in self.nodes:
            if node in done:
                continue
            chain = self._chain(node)
            done.update(chain)
            self._add(chain)
        return Graph(
            self.model.name,
            tuple(self.operations),
            tuple(self.model.input_shape[1:]),
            is_quantize_aware=self.aware,
            ends_in_softmax=self.operations[-1].fixed_range == FIXED["softmax"],
        )

    def _chain(self, node):
        """A node and those behind it that TFLite makes one operation with it."""
        chain, bare = [node], bare_layer(node.layer)
        kind = type(bare).__name__
        following = self._only_reader(node)
        if node.is_input:
            if following is not None and type(following.layer).__name__ == "QuantizeLayer":
                chain.append(following)
            return chain
        if kind in KERNELS and activation_name(bare) == "linear" and _is_a(following, "BatchNormalization"):
            chain.append(following)
            following = self._only_reader(following)
        fuses = kind in KERNELS or kind in FUSES_RELU
        if (
            fuses
            and activation_name(bare) in FUSED
            and following is not None
            and is_fused_relu(bare_layer(following.layer))
        ):
            chain.append(following)
        return chain

    def _only_reader(self, node):
        output = node.flat_output_ids[0]
        readers = self.readers.get(output, [])
        return readers[0] if len(readers) == 1 and output != self.result else None

    def _add(self, chain):
        first, last = chain[0], chain[-1]
        bare = bare_layer(first.layer)
        name = self._name(bare)
        self.aware |= any(learned_range(node.layer) is not None for node in chain)
        if first.is_input:
            self._append(name, "input", 1, None, True, learned_range(last.layer) or (0.0, 1.0), None, _identity, last)
            self.sources[first.flat_output_ids[0]] = name
            return
        kind = kind_of(bare)
        source = self.sources[first.flat_input_ids[0]]
        norm = next((bare_layer(node.layer) for node in chain[1:] if _is_a(node, "BatchNormalization")), None)
        weights = folded_weights(first.layer, norm) if type(bare).__name__ in KERNELS else None
        own = activation_name(bare) if weights is not None else ""
        fixed = learned_range(last.layer)
        if weights is None and type(bare).__name__ == "Softmax":
            fixed = FIXED["softmax"]
        elif weights is None and type(bare).__name__ == "Activation":
            fixed = FIXED.get(activation_name(bare), fixed)
        stays = type(bare).__name__ in SAME_SCALE and fixed is None
        steps = tuple(node for node in chain[1:] if not _is_a(node, "BatchNormalization"))
        compute = _Compute(first, bare, weights is not None, own in FUSED, steps)
        groups = getattr(bare, "groups", 1) if kind in ("conv", "grouped", "pointwise") else 1
        if kind == "depthwise":
            groups = weights.kernel.shape[-2]
        self._append(name, kind, groups, source, not stays, fixed, weights, compute, last)
        if stays:
            self.sources[last.flat_output_ids[0]] = source
        if own and own not in FUSED:  # an operation of its own in TFLite
            inner = self.operations.pop()
            before = f"{inner.output}-{own}"
            self.operations.append(dataclasses.replace(inner, output=before))
            activation = unwrapped(bare.activation)
            self.operations.append(
                Operation(
                    f"{name}_{own}",
                    "activation",
                    1,
                    name,
                    True,
                    FIXED.get(own),
                    None,
                    None,
                    None,
                    None,
                    _Apply(before, activation),
                    inner.output,
                    (before,),
                )
            )
            self.sources[inner.output] = f"{name}_{own}"

    def _append(self, name, kind, groups, source, is_quantized, fixed, weights, compute, last):
        output = last.flat_output_ids[0]
        used = () if kind == "input" else tuple(compute.node.flat_input_ids)
        folded = (None,) * 4 if weights is None else (weights.kernel, weights.folded, weights.bias, weights.limits)
        is_mean = type(bare_layer(last.layer)).__name__ == "AveragePooling2D"
        self.operations.append(
            Operation(name, kind, groups, source, is_quantized, fixed, *folded, compute, output, used, is_mean)
        )
        self.sources[output] = name

    def _name(self, bare):
        name = bare.name.removeprefix("quant_")
        self.names[name] = self.names.get(name, 0) + 1
        return name if self.names[name] == 1 else f"{name}@{self.names[name]}"  # a layer used again


class _Compute:
    """An operation's arithmetic on values by tensor id."""

    def __init__(self, node, bare, has_kernel, is_fused, steps):
        self.node, self.bare, self.has_kernel, self.is_fused, self.steps = node, bare, has_kernel, is_fused, steps

    def __call__(self, values, kernel, bias):
        if self.has_kernel:
            x = multiplied(self.bare, values[self.node.flat_input_ids[0]], kernel) + bias
            if self.is_fused:
                x = unwrapped(self.bare.activation)(x)
        else:
            ids = self.node.flat_input_ids
            args, kwargs = self.node.map_arguments({key: [values[key]] * len(ids) for key in ids})
            x = run_layer(self.bare, args, kwargs)
        for node in self.steps:
            x = run_layer(bare_layer(node.layer), (x,), {})
        return x


class _Apply:
    """One function of one tensor."""

    def __init__(self, source, function):
        self.source, self.function = source, function

    def __call__(self, values, kernel, bias):
        return self.function(values[self.source])


def _identity(values, kernel, bias):
    raise RuntimeError("an input is given, not computed")


def _is_a(node, kind):
    return node is not None and type(bare_layer(node.layer)).__name__ == kind
