"""A Keras model as the operations that TFLite makes of it, with BatchNorm and activations fused in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._keras import functional_model, is_wrapped, keras, tf

__all__ = ["FusedGraph", "FusedOp", "by_channel", "fuse"]

# The layers with weights that are read, and what their kernel is called.
KERNELS = dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "Dense"), "kernel") | {"DepthwiseConv2D": "depthwise_kernel"}
UNKNOWN = ("Separable", "Transpose", "DepthwiseConv1D", "LocallyConnected", "Embedding", "LSTM", "GRU", "Attention")
# Layers whose output has its input's scale in TFLite: they make no values that were not there.
SAME_SCALE = frozenset({"Flatten", "Reshape", "Permute", "Dropout", "SpatialDropout2D", "GaussianNoise"})
SAME_SCALE |= {"ZeroPadding2D", "Cropping2D", "MaxPooling2D", "GlobalMaxPooling2D", "AveragePooling2D", "UpSampling2D"}
FUSED = ("relu", "relu6", "linear")  # activations that are part of the operation before them
FUSES_RELU = frozenset(["Add", "Subtract", "Multiply"])
POOLS = frozenset(["GlobalAveragePooling2D", "AveragePooling2D"])
# Ranges that TFLite fixes whatever the data: (low, high) at 8 bits.
FIXED = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}


@dataclass(frozen=True, eq=False)
class FusedOp:
    """One operation and the layers that are fused into it.

    Args:
        name: of its first layer, without TFMOT's "quant_".
        kind: "input", "conv", "grouped", "depthwise", "pointwise", "dense", "add", "pool", "activation" or "other".
        output: tensor id.
        inputs: tensor ids it reads.
        compute: (values by tensor id, kernel, bias) -> the output, float32 (batch, ..., channels); None for inputs.
        groups: of a convolution, else 1.
        input_scale_from: the operation whose output scale is this one's input scale; None for inputs.
        is_quantized: whether its output gets a scale of its own.
        fixed_range: (low, high) of the output where TFLite fixes it or the model learnt it, else None.
        kernel: float32, as trained; None where there is none.
        folded: the kernel with BatchNorm folded in.
        bias: float32 (channels,), BatchNorm folded in.
        learned_limits: max |w| of the folded kernel that a quantization-aware model learnt, (channels,) or (1,).
        rounds_like_average_pool: whether TFLite rounds the mean to its input's grid, even where the output has a scale
            of its own.
    """

    name: str
    kind: str
    output: str
    inputs: tuple[str, ...] = ()
    compute: Callable | None = None
    groups: int = 1
    input_scale_from: str | None = None
    is_quantized: bool = True
    fixed_range: tuple[float, float] | None = None
    kernel: np.ndarray | None = None
    folded: np.ndarray | None = None
    bias: np.ndarray | None = None
    learned_limits: np.ndarray | None = None
    rounds_like_average_pool: bool = False


@dataclass(frozen=True, eq=False)
class FusedGraph:
    """A model's operations in order; the last one gives the logits.

    Args:
        operations: all of them.
        input_shape: (height, width, channels).
        is_quantize_aware: whether ranges and limits were learnt.
        ends_in_softmax: whether it gives probabilities.
    """

    operations: tuple[FusedOp, ...]
    input_shape: tuple[int, ...]
    is_quantize_aware: bool
    ends_in_softmax: bool

    @property
    def kernels(self) -> tuple[FusedOp, ...]:
        """The operations with weights."""
        return tuple(op for op in self.operations if op.kernel is not None)

    @property
    def quantized(self) -> tuple[FusedOp, ...]:
        """The operations whose outputs are quantized."""
        return tuple(op for op in self.operations if op.is_quantized)

    def last_readers(self) -> dict[str, int]:
        """Give, by tensor id, the number of the operation that reads it last."""
        return {key: number for number, op in enumerate(self.operations) for key in op.inputs}


def by_channel(kernel: np.ndarray, kind: str) -> np.ndarray:
    """View a kernel as (numbers, output channels): conv (h, w, in, out), depthwise (h, w, in, multiplier), dense (in, out)."""
    channels = kernel.shape[-1] * (kernel.shape[-2] if kind == "depthwise" else 1)
    return kernel.reshape(-1, channels)


def fuse(model: keras.Model) -> FusedGraph:
    """Fuse the layers of a float or quantization-aware model into operations.

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
        _check_layer(_bare(node.layer))
    return _Fusion(model, nodes).graph()


def _check_layer(layer):
    if isinstance(layer, keras.Model):
        raise ValueError(
            f"the layer {layer.name!r} is a model inside the model; the analysis takes flat ones: build it as one "
            "functional model"
        )
    name = type(layer).__name__
    if any(part in name for part in UNKNOWN) or (name not in KERNELS and any(map(_is_kernel, layer.weights))):
        raise ValueError(
            f"the layer {layer.name!r} is a {name}, whose weights the analysis cannot read; replace it by stock "
            "convolutions and dense layers"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(
            f"the layer {layer.name!r} is channels_first; TFLite and the analysis take channels_last: build the model "
            "with data_format='channels_last'"
        )


class _Fusion:
    """Builds the operations of a model, node by node in the order of execution."""

    def __init__(self, model, nodes):
        self.model, self.nodes = model, nodes
        self.readers = {}
        for node in nodes:
            for tensor in () if node.is_input else node.flat_input_ids:
                self.readers.setdefault(tensor, []).append(node)
        self.result = str(id(model.outputs[0]))
        self.scale_from = {}  # tensor id -> the operation whose output scale the tensor has
        self.operations, self.names = [], {}
        self.is_quantize_aware = False

    def graph(self) -> FusedGraph:
        done = set()
        for node in self.nodes:
            if node not in done:
                chain = self._chain(node)
                done.update(chain)
                self._add(chain)
        return FusedGraph(
            tuple(self.operations),
            tuple(self.model.input_shape[1:]),
            is_quantize_aware=self.is_quantize_aware,
            ends_in_softmax=self.operations[-1].fixed_range == FIXED["softmax"],
        )

    def _chain(self, node):
        """A node and those behind it that TFLite makes one operation with it."""
        chain, bare = [node], _bare(node.layer)
        kind = type(bare).__name__
        following = self._only_reader(node)
        if node.is_input:
            return [node, following] if _is_a(following, "QuantizeLayer") else chain
        if kind in KERNELS and _activation_name(bare) == "linear" and _is_a(following, "BatchNormalization"):
            chain.append(following)
            following = self._only_reader(following)
        fuses = (kind in KERNELS or kind in FUSES_RELU) and _activation_name(bare) in FUSED
        if fuses and following is not None and _is_fused_relu(_bare(following.layer)):
            chain.append(following)
        return chain

    def _only_reader(self, node):
        output = node.flat_output_ids[0]
        readers = self.readers.get(output, [])
        return readers[0] if len(readers) == 1 and output != self.result else None

    def _add(self, chain):
        first, last = chain[0], chain[-1]
        bare, output = _bare(first.layer), last.flat_output_ids[0]
        name, type_name = self._name(bare), type(bare).__name__
        self.is_quantize_aware |= any(_learned_range(node.layer) is not None for node in chain)
        if first.is_input:
            fixed = _learned_range(last.layer) or (0.0, 1.0)
            self.operations.append(FusedOp(name, "input", output, fixed_range=fixed))
            self.scale_from |= {output: name, first.flat_output_ids[0]: name}
            return
        kind, has_kernel = _kind(bare), type_name in KERNELS
        norm = next((_bare(node.layer) for node in chain[1:] if _is_a(node, "BatchNormalization")), None)
        weights = _folded_weights(first.layer, norm) if has_kernel else {}
        own = _activation_name(bare) if has_kernel else ""
        fixed = _learned_range(last.layer)
        if type_name == "Softmax":
            fixed = FIXED["softmax"]
        elif type_name == "Activation":
            fixed = FIXED.get(_activation_name(bare), fixed)
        groups = getattr(bare, "groups", 1) if kind in ("conv", "grouped", "pointwise") else 1
        if kind == "depthwise":
            groups = weights["kernel"].shape[-2]
        keeps_scale = type_name in SAME_SCALE and fixed is None
        scale_from = self.scale_from[first.flat_input_ids[0]]
        steps = tuple(node for node in chain[1:] if not _is_a(node, "BatchNormalization"))
        op = FusedOp(
            name,
            kind,
            output,
            tuple(first.flat_input_ids),
            _layers(first, bare, own in FUSED, steps),
            groups,
            scale_from,
            not keeps_scale,
            fixed,
            rounds_like_average_pool=type(_bare(last.layer)).__name__ == "AveragePooling2D",
            **weights,
        )
        self.scale_from[output] = scale_from if keeps_scale else name
        if not own or own in FUSED:
            self.operations.append(op)
            return
        before, behind = f"{output}-{own}", f"{name}_{own}"  # the activation is an operation of its own in TFLite
        function, fixed = _unwrapped_activation(bare.activation), FIXED.get(own)

        def activate(values, kernel, bias):
            return function(values[before])

        options = {"input_scale_from": name, "fixed_range": fixed}
        self.operations.append(dataclasses.replace(op, output=before))
        self.operations.append(FusedOp(behind, "activation", output, (before,), activate, **options))
        self.scale_from[output] = behind

    def _name(self, bare):
        name = bare.name.removeprefix("quant_")
        self.names[name] = self.names.get(name, 0) + 1
        return name if self.names[name] == 1 else f"{name}@{self.names[name]}"  # a layer used again


def _layers(node, bare, fuses_activation, steps):
    """The arithmetic of an operation's layers on values by tensor id."""
    ids = node.flat_input_ids

    def compute(values, kernel, bias):
        if kernel is not None:
            x = _multiplied(bare, values[ids[0]], kernel) + bias
            if fuses_activation:
                x = _unwrapped_activation(bare.activation)(x)
        else:
            args, kwargs = node.map_arguments({key: [values[key]] * len(ids) for key in ids})
            x = _run(bare, args, kwargs)
        for step in steps:
            x = _run(_bare(step.layer), (x,), {})
        return x

    return compute


# What a Keras layer, quantization-wrapped or not, is to TFLite


def _bare(layer):
    """The layer inside a quantization wrapper, or the layer itself."""
    return layer.layer if is_wrapped(layer) else layer


def _is_a(node, kind):
    return node is not None and type(_bare(node.layer)).__name__ == kind


def _kind(layer):
    name = type(layer).__name__
    if name in ("Conv1D", "Conv2D", "Conv3D"):
        if layer.groups > 1:
            return "grouped"
        return "pointwise" if np.prod(layer.kernel_size) == 1 else "conv"
    kinds = {"DepthwiseConv2D": "depthwise", "Dense": "dense"} | dict.fromkeys(POOLS, "pool")
    kinds |= dict.fromkeys(("ReLU", "Activation", "Softmax"), "activation") | dict.fromkeys(FUSES_RELU, "add")
    return kinds.get(name, "other")


def _is_fused_relu(layer):
    """Whether TFLite makes the layer a part of the operation before it."""
    if type(layer).__name__ == "Activation":
        return _activation_name(layer) in ("relu", "relu6")
    if type(layer).__name__ != "ReLU":
        return False
    return layer.max_value in (None, 6) and not layer.negative_slope and not layer.threshold


def _activation_name(layer):
    activation = _unwrapped_activation(getattr(layer, "activation", None))
    if activation is None or type(activation).__name__ == "NoOpActivation":
        return "linear"
    return getattr(activation, "__name__", type(activation).__name__)


def _unwrapped_activation(activation):
    while type(activation).__name__ == "QuantizeAwareActivation":
        activation = activation.activation
    return activation


def _folded_weights(layer, norm) -> dict[str, np.ndarray | None]:
    """Kernel, folded kernel, bias and learnt limits of a layer, with the BatchNorm behind it (or None) folded in."""
    bare = _bare(layer)
    kernel, limits = _kernel_and_limits(layer, bare)
    rows = by_channel(kernel, _kind(bare))
    bias = bare.bias.numpy() if bare.use_bias else np.zeros(rows.shape[1], np.float32)
    folded = kernel
    if norm is not None:
        gamma = norm.gamma.numpy() if norm.scale else np.float32(1)
        beta = norm.beta.numpy() if norm.center else np.float32(0)
        scale = (gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)).astype(np.float32)
        folded = (rows * scale).reshape(kernel.shape).astype(np.float32)
        bias = ((bias - norm.moving_mean.numpy()) * scale + beta).astype(np.float32)
        limits = None if limits is None else np.abs(limits * scale)
    return {"kernel": kernel, "folded": folded, "bias": bias, "learned_limits": limits}


def _kernel_and_limits(layer, bare):
    """The trained kernel, and max |w| as a quantization wrapper holds it, (channels,) or (1,)."""
    for weight, _, variables in layer._weight_vars if is_wrapped(layer) else ():
        if _is_kernel(weight):
            limits = np.maximum(np.abs(variables["min_var"].numpy()), np.abs(variables["max_var"].numpy()))
            return weight.numpy(), limits.reshape(-1)
    return getattr(bare, KERNELS[type(bare).__name__]).numpy(), None


def _is_kernel(weight):
    return weight.name.split(":")[0].endswith("kernel")


def _learned_range(layer):
    """(low, high) of a quantization-aware layer's output, or None."""
    variables = None
    if type(layer).__name__ == "QuantizeLayer":
        variables = layer.quantizer_vars
    elif is_wrapped(layer):
        if layer._output_quantizers:
            variables = layer._output_quantizer_vars
        for activation in layer._quantize_activations:
            before = getattr(activation, "_pre_activation_vars", variables)  # a softmax has its input's only
            variables = getattr(activation, "_post_activation_vars", before)
    if not variables:
        return None
    return float(variables["min_var"].numpy()), float(variables["max_var"].numpy())


def _multiplied(layer, x, kernel):
    """The layer's product of its input (batch, ..., channels) with another kernel of the same shape."""
    if type(layer).__name__ == "Dense":
        return tf.tensordot(x, kernel, 1)
    if type(layer).__name__ == "DepthwiseConv2D":
        options = {key: getattr(layer, key) for key in ("strides", "padding", "dilation_rate", "data_format")}
        return keras.backend.depthwise_conv2d(x, kernel, **options)
    return layer.convolution_op(x, kernel)


def _run(layer, args, kwargs):
    """What a layer without a kernel makes of its inputs."""
    if type(layer).__name__ == "Activation":  # a quantization wrapper puts its own in the layer
        return _unwrapped_activation(layer.activation)(*args)
    return layer(*args, **kwargs)
