"""What a Keras layer, quantization-wrapped or not, is to TFLite: its kind, weights, activation, learnt range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._keras import keras, tf

__all__ = [
    "FIXED",
    "FUSED",
    "FUSES_RELU",
    "KERNELS",
    "SAME_SCALE",
    "FoldedWeights",
    "activation_name",
    "bare_layer",
    "by_channel",
    "check_layer",
    "folded_weights",
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
