"""Convert a Keras model to the operations that TFLite makes of it, BatchNorm and activations fused in."""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .._keras import flat_nodes, is_wrapped, keras, tf, unwrap
from ..cost import layer_kind
from ..models.quantize import is_quantize_aware

__all__ = ["FusedGraph", "FusedOp", "by_channel", "fuse"]

# The layers whose weights can be analyzed, with the names of their kernels.
KERNELS = dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "Dense"), "kernel") | {"DepthwiseConv2D": "depthwise_kernel"}
UNKNOWN = ("Separable", "Transpose", "DepthwiseConv1D", "LocallyConnected", "Embedding", "LSTM", "GRU", "Attention")
# Layers whose output has its input's scale in TFLite, since they make no new values.
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
        inputs: ids of the tensors that it reads.
        compute: (values by tensor id, kernel, bias) -> the output, float32 (batch, ..., channels); None for inputs.
        groups: of a convolution, else 1.
        input_scale_from: name of the operation whose output scale is this one's input scale; None for inputs.
        is_quantized: whether its output gets a scale of its own.
        fixed_range: (low, high) of the output if TFLite fixes it or the model learnt it, else None.
        kernel: float32, as trained; None without weights.
        folded: the kernel with BatchNorm folded in.
        bias: float32 (channels,), BatchNorm folded in.
        learned_limits: max |w| of the folded kernel that a quantization-aware model learnt, (channels,) or (1,).
        rounds_like_average_pool: whether TFLite rounds the mean to its input's grid, even if the output has a scale of its
            own.
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
    """A model's operations in order, the last one giving the output, for images of `input_shape` (height, width, channels).

    `is_quantize_aware`: ranges and limits were learnt.
    """

    operations: tuple[FusedOp, ...]
    input_shape: tuple[int, ...]
    is_quantize_aware: bool

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the outputs are probabilities."""
        return self.operations[-1].fixed_range == FIXED["softmax"]

    @property
    def kernels(self) -> tuple[FusedOp, ...]:
        """The operations with weights."""
        return tuple(op for op in self.operations if op.kernel is not None)

    @property
    def quantized(self) -> tuple[FusedOp, ...]:
        """The operations whose outputs are quantized."""
        return tuple(op for op in self.operations if op.is_quantized)


def by_channel(kernel: np.ndarray, kind: str) -> np.ndarray:
    """View a kernel as (numbers, output channels): conv (h, w, in, out), depthwise (h, w, in, multiplier), dense (in, out)."""
    channels = kernel.shape[-1] * (kernel.shape[-2] if kind == "depthwise" else 1)
    return kernel.reshape(-1, channels)


def fuse(model: keras.Model) -> FusedGraph:
    """Fuse the layers of a float or quantization-aware model into operations.

    BatchNorm right behind a convolution or dense layer is folded into it: s = gamma / sqrt(var + eps), W' = s W,
    b' = (b - mean) s + beta. ReLU and ReLU6 right behind it become part of it. Other layers run as they are.

    Raises:
        TypeError: a Keras 3 model.
        ValueError: an unbuilt or nested model, one with several inputs or outputs, or a layer whose weights cannot be
            read (named).
    """
    nodes = flat_nodes(model, "the analysis")
    readers = collections.defaultdict(list)  # by tensor id
    for node in nodes:
        _check_layer(unwrap(node.layer))
        for tensor in () if node.is_input else node.flat_input_ids:
            readers[tensor].append(node)
    readers[str(id(model.outputs[0]))].append(None)  # the caller
    operations, uses, done = [], collections.Counter(), set()
    scale_from = {}  # tensor id -> the operation whose output scale the tensor has
    for node in nodes:
        if node in done:
            continue
        chain = _chain(node, readers)
        done.update(chain)
        name = unwrap(node.layer).name.removeprefix("quant_")
        uses[name] += 1
        for op in _operations(chain, name if uses[name] == 1 else f"{name}@{uses[name]}"):  # a layer used again
            source = scale_from[op.inputs[0]] if op.inputs else None
            operations.append(dataclasses.replace(op, input_scale_from=source))
            scale_from[op.output] = op.name if op.is_quantized else source
    return FusedGraph(tuple(operations), tuple(model.input_shape[1:]), is_quantize_aware(model))


def _check_layer(layer):
    name, remedy = type(layer).__name__, "replace it by stock convolutions and dense layers"
    if any(part in name for part in UNKNOWN) or (name not in KERNELS and any(map(_is_kernel, layer.weights))):
        raise ValueError(f"the layer {layer.name!r} is a {name}, whose weights the analysis cannot read; {remedy}")


def _chain(node, readers):
    """A node and those behind it that TFLite makes one operation with it."""

    def only_reader(node):
        found = readers[node.flat_output_ids[0]]
        return found[0] if len(found) == 1 else None

    chain, layer, following = [node], unwrap(node.layer), only_reader(node)
    kind = type(layer).__name__
    if node.is_input:
        return [node, following] if _is_a(following, "QuantizeLayer") else chain
    if kind in KERNELS and _activation_name(layer) == "linear" and _is_a(following, "BatchNormalization"):
        chain.append(following)
        following = only_reader(following)
    fuses = (kind in KERNELS or kind in FUSES_RELU) and _activation_name(layer) in FUSED
    if fuses and following is not None and _is_fused_relu(unwrap(following.layer)):
        chain.append(following)
    return chain


def _operations(chain, name) -> Iterator[FusedOp]:
    """Yield the operation of a chain, then its activation if TFLite makes that a separate operation."""
    first, last = chain[0], chain[-1]
    layer, output, fixed = unwrap(first.layer), last.flat_output_ids[0], _learned_range(last.layer)
    if first.is_input:
        yield FusedOp(name, "input", output, fixed_range=fixed or (0.0, 1.0))
        return
    kind, type_name = _kind(layer), type(layer).__name__
    activation = "softmax" if type_name == "Softmax" else _activation_name(layer)
    weights, groups, is_fused = {}, 1, True
    if type_name in KERNELS:
        norm = next((unwrap(node.layer) for node in chain if _is_a(node, "BatchNormalization")), None)
        weights = _folded_weights(first.layer, norm)
        groups = weights["kernel"].shape[-2] if kind == "depthwise" else getattr(layer, "groups", 1)
        is_fused = activation in FUSED
    else:
        fixed = FIXED.get(activation, fixed)
    steps = [node for node in chain[1:] if not _is_a(node, "BatchNormalization")]
    before = output if is_fused else f"{output}-{activation}"
    compute, inputs = _layers(first, layer, is_fused, steps), tuple(first.flat_input_ids)
    output_is = {"is_quantized": type_name not in SAME_SCALE or fixed is not None, "fixed_range": fixed}
    output_is["rounds_like_average_pool"] = _is_a(last, "AveragePooling2D")
    yield FusedOp(name, kind, before, inputs, compute, groups, **output_is, **weights)
    if not is_fused:
        function = _unwrapped_activation(layer.activation)
        compute, fixed = (lambda values, kernel, bias: function(values[before])), FIXED.get(activation)
        yield FusedOp(f"{name}_{activation}", "activation", output, (before,), compute, fixed_range=fixed)


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
            x = _run(unwrap(step.layer), (x,), {})
        return x

    return compute


# What a Keras layer, quantization-wrapped or not, is to TFLite


def _is_a(node, kind):
    return node is not None and type(unwrap(node.layer)).__name__ == kind


def _kind(layer):
    name = type(layer).__name__
    if name in KERNELS:
        return layer_kind(layer)
    kinds = dict.fromkeys(POOLS, "pool") | dict.fromkeys(("ReLU", "Activation", "Softmax"), "activation")
    return (kinds | dict.fromkeys(FUSES_RELU, "add")).get(name, "other")


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
    bare = unwrap(layer)
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
