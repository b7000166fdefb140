"""What a Keras layer, quantization-wrapped or not, is to TFLite: its kind, weights, activation, learnt range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._keras import functional_model, keras, tf

__all__ = [
    "FIXED",
    "FUSED",
    "FUSES_RELU",
    "KERNELS",
    "SAME_SCALE",
    "FoldedWeights",
    "Graph",
    "Operation",
    "activation_name",
    "bare_layer",
    "by_channel",
    "check_layer",
    "folded_weights",
    "graph_of",
    "is_fused_relu",
    "kind_of",
    "learned_range",
    "multiplied",
    "run_layer",
    "unwrapped",
]

KERNELS = {
    "Conv1D": "kernel",
    "Conv2D": "kernel",
    "Conv3D": "kernel",
    "DepthwiseConv2D": "depthwise_kernel",
    "Dense": "kernel",
}
UNKNOWN = ("Separable", "Transpose", "DepthwiseConv1D", "LocallyConnected", "Embedding", "LSTM", "GRU", "Attention")
WRAPPERS = ("QuantizeWrapper", "QuantizeWrapperV2")
# What TFLite gives its input's scale: no values are made that were not there.
SAME_SCALE = frozenset(
    [
        "Flatten",
        "Reshape",
        "Permute",
        "Dropout",
        "SpatialDropout2D",
        "GaussianNoise",
        "ZeroPadding2D",
        "Cropping2D",
        "MaxPooling2D",
        "GlobalMaxPooling2D",
        "AveragePooling2D",
        "UpSampling2D",
    ]
)
FUSED = ("relu", "relu6", "linear")  # activations that are part of the operation before them
FUSES_RELU = frozenset(["Add", "Subtract", "Multiply"])
POOLS = frozenset(["GlobalAveragePooling2D", "AveragePooling2D"])
# Ranges that TFLite fixes whatever the data: (low, high) at 8 bits.
FIXED = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}


def by_channel(kernel: np.ndarray, kind: str) -> np.ndarray:
    """A kernel as (numbers, output channels): conv (h, w, in, out), depthwise (h, w, in, multiplier), dense (in, out)."""
    channels = kernel.shape[-1] * (kernel.shape[-2] if kind == "depthwise" else 1)
    return kernel.reshape(-1, channels)


@dataclass(frozen=True, eq=False)
class FoldedWeights:
    """A layer's kernel as trained and with BatchNorm folded in, its bias, and max |w| where that was learnt."""

    kernel: np.ndarray
    folded: np.ndarray
    bias: np.ndarray
    limits: np.ndarray | None


def folded_weights(layer, norm) -> FoldedWeights:
    """The weights of a layer with those of the BatchNorm behind it, or None, folded in."""
    bare, kind = bare_layer(layer), kind_of(bare_layer(layer))
    kernel, limits = _kernel_and_limits(layer, bare)
    rows = by_channel(kernel, kind)
    bias = bare.bias.numpy() if bare.use_bias else np.zeros(rows.shape[1], np.float32)
    if norm is None:
        return FoldedWeights(kernel, kernel, bias, limits)
    gamma = norm.gamma.numpy() if norm.scale else np.float32(1)
    beta = norm.beta.numpy() if norm.center else np.float32(0)
    scale = (gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)).astype(np.float32)
    folded = (rows * scale).reshape(kernel.shape).astype(np.float32)
    bias = ((bias - norm.moving_mean.numpy()) * scale + beta).astype(np.float32)
    return FoldedWeights(kernel, folded, bias, None if limits is None else np.abs(limits * scale))


def _kernel_and_limits(layer, bare):
    """The trained kernel, and max |w| as a quantization wrapper holds it."""
    if type(layer).__name__ not in WRAPPERS:
        return getattr(bare, KERNELS[type(bare).__name__]).numpy(), None
    for weight, _, variables in layer._weight_vars:
        if weight.name.split(":")[0].endswith("kernel"):
            limits = np.maximum(np.abs(variables["min_var"].numpy()), np.abs(variables["max_var"].numpy()))
            return weight.numpy(), limits.reshape(-1) if limits.size > 1 else limits.reshape(1)
    return getattr(bare, KERNELS[type(bare).__name__]).numpy(), None


def multiplied(layer, x, kernel):
    """The layer's product of its input (batch, ..., channels) with another kernel of the same shape."""
    if type(layer).__name__ == "Dense":
        return tf.tensordot(x, kernel, 1)
    if type(layer).__name__ == "DepthwiseConv2D":
        return keras.backend.depthwise_conv2d(
            x,
            kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
    return layer.convolution_op(x, kernel)


def run_layer(layer, args, kwargs):
    """What a layer without a kernel makes of its inputs."""
    if type(layer).__name__ == "Activation":  # a quantization wrapper puts its own in the layer
        return unwrapped(layer.activation)(*args)
    return layer(*args, **kwargs)


def bare_layer(layer):
    """The layer inside a quantization wrapper, or the layer itself."""
    return layer.layer if type(layer).__name__ in WRAPPERS else layer


def unwrapped(activation):
    """The activation that a quantization-aware one wraps."""
    while type(activation).__name__ == "QuantizeAwareActivation":
        activation = activation.activation
    return activation


def activation_name(layer):
    """The name of a layer's activation, "linear" where it has none."""
    activation = unwrapped(getattr(layer, "activation", None))
    if activation is None or type(activation).__name__ == "NoOpActivation":
        return "linear"
    return getattr(activation, "__name__", type(activation).__name__)


def is_fused_relu(layer):
    """Whether TFLite makes the layer a part of the operation before it."""
    if type(layer).__name__ == "Activation":
        return activation_name(layer) in ("relu", "relu6")
    if type(layer).__name__ != "ReLU":
        return False
    return layer.max_value in (None, 6) and not layer.negative_slope and not layer.threshold


def learned_range(layer):
    """(low, high) of a quantization-aware layer's output, or None."""
    variables = None
    if type(layer).__name__ == "QuantizeLayer":
        variables = layer.quantizer_vars
    elif type(layer).__name__ in WRAPPERS:
        if layer._output_quantizers:
            variables = layer._output_quantizer_vars
        for activation in layer._quantize_activations:
            before = getattr(activation, "_pre_activation_vars", variables)  # a softmax has its input's only
            variables = getattr(activation, "_post_activation_vars", before)
    if not variables:
        return None
    return float(variables["min_var"].numpy()), float(variables["max_var"].numpy())


def kind_of(layer):
    """What TFLite calls a layer: "conv", "grouped", "pointwise", "depthwise", "dense", "activation", "pool", "add" or "other"."""
    name = type(layer).__name__
    if name in ("Conv1D", "Conv2D", "Conv3D"):
        if layer.groups > 1:
            return "grouped"
        return "pointwise" if np.prod(layer.kernel_size) == 1 else "conv"
    table = {"DepthwiseConv2D": "depthwise", "Dense": "dense", "ReLU": "activation", "Activation": "activation"}
    table |= {"Softmax": "activation"} | dict.fromkeys(POOLS, "pool")
    return table.get(name, "add" if name in FUSES_RELU else "other")


def check_layer(layer):
    """Raise ValueError where the weights of a layer cannot be read, or it is a model or channels_first."""
    if isinstance(layer, keras.Model):
        raise ValueError(
            f"the layer {layer.name!r} is a model inside the model; the analysis takes flat ones: build it as one "
            "functional model"
        )
    name = type(layer).__name__
    if any(part in name for part in UNKNOWN) or (
        name not in KERNELS and any(w.name.split(":")[0].endswith("kernel") for w in layer.weights)
    ):
        raise ValueError(
            f"the layer {layer.name!r} is a {name}, whose weights the analysis cannot read; replace it by stock "
            "convolutions and dense layers"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(f"the layer {layer.name!r} is channels_first; TFLite and the analysis take channels_last")


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
