"""Rebuild a user's Keras 3 or tf_keras classifier, layer by layer, as a flat tf_keras model that takes pixels in 0..1.

Only layers and fields that `keras3_file` knows are rebuilt, and the result is compared with the original.
"""

import os
import warnings
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from .._keras import functional_model, in_float32, keras, nodes_of, tf
from ..pixels import Pixels
from .architecture import MERGES, SAME, TF_CALLS, unknown_layer
from .keras3_file import FIELDS, LEFT_OUT, MODELS, OPERATIONS, fields_of, load_keras3

__all__ = [
    "INPUT",
    "activation_of",
    "check_copies",
    "check_plain",
    "check_weights",
    "from_keras3",
    "is_other_float",
    "quantizable",
    "rebuilt",
]

INPUT = "image_0_to_1"  # what a rebuilt net's input is called: whoever loads it later knows what pixels it takes
LARGEST = 1e18  # float32 overflows where two such weights are multiplied
CHECKED = 2e-3  # of the outputs' deviation, by which a rebuilt model may differ from its original
CHECKED_HALF = 0.1  # the same where the original computes in 16 bits
OTHER_FLOATS = ("float16", "bfloat16", "float64")


def from_keras3(
    model: object,
    *,
    pixel_range: str | None = None,
    mean: Sequence[float] = (),
    deviation: Sequence[float] = (),
    size: int | None = None,
) -> keras.Model:
    """Rebuild a Keras 3 classifier in tf_keras, the Keras that TFMOT and so this package need, with its weights.

    Models inside the model are inlined. Rescaling and Normalization behind the input, and the conversion from 0..1 to
    `pixel_range`, are folded into the first convolution if that changes nothing, else they become a depthwise 1x1 convolution
    named "pixels" in front of it. Layers of augmentation and noise are left out. The result is compared with the original on
    random images.

    Args:
        model: functional or sequential Keras 3 model (a tf_keras one, too) of stock layers that takes images and gives
            (batch, classes), or the path of the .keras or .h5 file that Keras 3 wrote of one.
        pixel_range, mean, deviation: the pixels that it takes, as for `Pixels`.
        size: height and width in pixels of the images, if the model leaves them open.

    Returns:
        A flat functional tf_keras model, images in 0..1 in.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: it is no model.
        ValueError: a subclassed model, an unknown layer, field, activation or operation (Lambda and custom classes are always
            unknown), a layer used twice, several inputs or outputs, an open size, weights that are not finite or huge, a
            damaged file; the layer is named.
    """
    pixels = Pixels(pixel_range, mean, deviation)
    if isinstance(model, (str, os.PathLike)):
        model = load_keras3(model)
    return rebuilt(model, pixels, size)


def quantizable(model: keras.Model) -> keras.Model:
    """Replace layers of a float model that TFMOT cannot quantize by others that compute the same.

    A BatchNormalization that follows no convolution or dense layer becomes a depthwise 1x1 convolution, a swish or elu inside
    a layer one behind it, a ReLU with a slope a LeakyReLU, an Average a scaled sum. Pooled averages and elus are copied by a
    depthwise 1x1 convolution of ones before they are concatenated, since they keep ranges of their own. A SeparableConv2D becomes
    its two parts under names of its own: TFMOT gives them Keras's next automatic ones and, if the model has these, never ends.
    """
    for layer in model.layers:
        kind, activation = type(layer).__name__, activation_of(layer)
        if (
            (kind == "BatchNormalization" and not _follows_kernel(layer.input))
            or (activation == "swish" and kind != "Activation")
            or (activation == "elu" or _is_leaky(kind, layer.get_config()))
            or kind in ("Average", "SeparableConv2D")
            or (kind == "Concatenate" and any(map(_keeps_range, layer.input)))
        ):
            return rebuilt(model, Pixels("0..1"), for_qat=True)
    return model


def _is_leaky(kind, fields) -> bool:
    return kind == "ReLU" and bool(fields["negative_slope"]) and not fields["threshold"] and fields["max_value"] is None


def _keeps_range(tensor) -> bool:
    """Whether what gives a tensor (batch, height, width, channels) cannot take the range of a concatenation that it is part of."""
    layer = tensor._keras_history.layer
    while "Dropout" in type(layer).__name__:
        layer = layer.input._keras_history.layer
    return len(tensor.shape) == 4 and (
        type(layer).__name__ in ("AveragePooling2D", "ELU") or activation_of(layer) == "elu"
    )


def _follows_kernel(tensor) -> bool:
    """Whether BatchNormalization behind a tensor is folded by TFMOT into what gives it."""
    layer = tensor._keras_history.layer
    is_kernel = type(layer).__name__ in ("Conv2D", "DepthwiseConv2D", "Dense")
    return is_kernel and activation_of(layer) == "linear"


def activation_of(layer) -> str:
    """Name a layer's activation; "" where it has none, or a layer for it."""
    return getattr(getattr(layer, "activation", None), "__name__", "")


@in_float32()
def rebuilt(model, pixels: Pixels, size: int | None = None, *, for_qat: bool = False) -> keras.Model:
    """Rebuild a model as `from_keras3` does, from an object of either Keras; `for_qat` as `quantizable` says."""
    graph = _graph(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"the model {model.name!r} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; it needs one of each: "
            "make a model of the image and the classifier's output alone"
        )
    shape = _image_shape(model, graph.inputs[0].shape, size)
    for range_ in ("0..1", "0..255"):  # the second where the model makes its input so small, and none is given
        wanted = pixels.affine(shape[2], range_)
        builder, image = _Builder(for_qat), keras.Input(shape, name=INPUT)
        (value,) = builder.inline(model, [_Image(image, *wanted)])
        output = builder.tensor(value)
        if pixels.range is not None or builder.image_scale >= 0.1:
            break
    if not for_qat and (len(output.shape) != 2 or output.shape[1] is None):
        raise ValueError(f"the model {model.name!r} gives {tuple(output.shape)}; a classifier gives (batch, classes)")
    result = keras.Model(image, output, name=model.name)
    for layer, weights in builder.weights.items():
        given, needed = [weight.shape for weight in weights], [tuple(weight.shape) for weight in layer.weights]
        if given != needed:
            raise ValueError(
                f"the layer {layer.name!r} has weights of shapes {given}, not {needed}; merge adapters (LoRA) and remove Keras' "
                "own quantization"
            )
        layer.set_weights(weights)
    check_weights(result)
    _check_same(model, result, *wanted)
    return result


def check_weights(model: keras.Model) -> None:
    """Raise ValueError, with the layer's name, where weights are not finite or beyond LARGEST."""
    for layer in model.layers:
        for weights in layer.get_weights():
            size = float(np.abs(weights).max(initial=0)) if weights.dtype.kind == "f" else 0.0
            if not size <= LARGEST:
                what = f"as large as {size:.0e}" if np.isfinite(size) else "that are not finite"
                raise ValueError(f"the layer {layer.name!r} has weights {what}; train the model again, or restore it")


def check_plain(model: keras.Model) -> None:
    """Raise ValueError if a layer is not of float32, or the first ones scale pixels of 0..255 down: nets here take 0..1."""
    for layer in filter(is_other_float, model.layers):
        raise ValueError(
            f"the layer {layer.name!r} of {model.name!r} computes in {layer.compute_dtype}, and this package's nets in "
            "float32; factorizenet_tf.from_keras3(model) makes it one that does"
        )
    for layer in model.layers:
        kind = type(layer).__name__
        if kind not in ("InputLayer", "Rescaling", "Normalization", *LEFT_OUT):
            return
        if kind in ("Rescaling", "Normalization") and np.abs(_affine(layer, model.input_shape[-1])[0]).max() < 0.1:
            raise ValueError(
                f"the layer {layer.name!r} of {model.name!r} scales pixels of 0..255, and this package's nets take 0..1; "
                "factorizenet_tf.from_keras3(model) makes it one that does"
            )


def is_other_float(layer) -> bool:
    """Whether a layer of either Keras computes in another precision than float32, as by Keras's mixed precision."""
    return getattr(layer, "compute_dtype", None) in OTHER_FLOATS


def check_copies(model: keras.Model) -> None:
    """Raise ValueError, with the layer's name, where a layer cannot be copied: it calls code of the user's own."""
    for layer in model.layers:
        kind, activation = type(layer).__name__, activation_of(layer)
        if kind in ("Lambda", *TF_CALLS):
            raise unknown_layer(layer.name, kind)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a lambda, which is refused
                type(layer).from_config(layer.get_config())
        except Exception as error:  # whatever the user's code raises
            what = f"has the activation {activation!r}, which cannot be copied"
            if activation in ("", *SAME):
                reason = str(error).strip().partition("\n")[0][:100]
                what = f"is a {kind}, which cannot be copied ({reason})"
            raise ValueError(f"the layer {layer.name!r} {what}; use a stock one") from None


# The graph of an object


def _graph(model):
    """What has a model's nodes: itself, or a Keras 3 Sequential's inner one."""
    if isinstance(model, keras.Model):
        return functional_model(model, "from_keras3")
    bases = {f"{base.__module__}.{base.__name__}" for base in type(model).__mro__}
    if not any(base.startswith("keras.") and base.endswith(".Model") for base in bases):
        raise TypeError(f"from_keras3 got {type(model).__name__}; it needs a Keras model, or the path of its file")
    graph = getattr(model, "_functional", None) or model
    if not hasattr(graph, "_nodes_by_depth"):
        if type(model).__name__ == "Sequential":
            raise ValueError(f"from_keras3 got the unbuilt model {model.name!r}; give its first layer an input shape")
        name = model.name
        raise ValueError(f"from_keras3 got the subclassed model {name!r}; it needs a functional or sequential one")
    return graph


def _nodes(graph):
    """(layer or operation, tensors in, tensors out, arguments) of each node of either Keras, inputs left out, in order."""
    for node in nodes_of(graph):
        if not node.is_input and hasattr(node, "operation"):
            yield node.operation, node.input_tensors, node.outputs, node.arguments.args
        elif not node.is_input:
            yield node.layer, node.keras_inputs, tf.nest.flatten(node.outputs), node.call_args


def _image_shape(model, shape, size):
    _, height, width, channels = (None, *shape)[-4:] if len(shape) == 4 else (None, 0, 0, 0)
    if channels not in (1, 3):
        raise ValueError(
            f"the model {model.name!r} takes {tuple(shape)}; it must take images (batch, height, width, channels) with 1 or 3 channels"
        )
    if None in (height, width):
        if size is None:
            raise ValueError(f"the model {model.name!r} leaves the size of its images open; give size=, in pixels")
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"size is {size!r}; it must be an int of at least 1")
        return height or int(size), width or int(size), channels
    if size is not None and (height, width) != (size, size):
        raise ValueError(f"size is {size}; the model {model.name!r} takes images of {height}x{width}: leave size out")
    return height, width, channels


def _affine(layer, channels):
    """Scale and offset (channels,) of a Rescaling or a Normalization over the last axis."""
    kind, name, config = type(layer).__name__, layer.name, layer.get_config()
    if kind == "Rescaling":
        scale, offset = np.array(config["scale"], float), np.array(config["offset"], float)
    else:
        fields = fields_of(kind, config, name)
        if fields.get("invert") or fields.get("axis") not in (-1, 3, (-1,), [-1], (3,), [3], None):
            raise ValueError(
                f"the layer {name!r} normalizes another axis than the channels, or inverts; use axis=-1 and invert=False"
            )
        values = (keras.backend.get_value(v) if isinstance(v, tf.Variable) else v for v in (layer.mean, layer.variance))
        mean, variance = (np.asarray(value, float).reshape(-1) for value in values)
        scale = 1 / np.maximum(np.sqrt(variance), 1e-7)
        offset = -mean * scale
    if {scale.size, offset.size} - {1, channels}:
        raise ValueError(f"the layer {name!r} has {scale.size} scales for {channels} channels; give one a channel")
    return np.broadcast_to(scale.reshape(-1), channels), np.broadcast_to(offset.reshape(-1), channels)


class _Image:
    """The image, and what has still to be done to its pixels: times scale (channels,), plus offset."""

    def __init__(self, tensor, scale, offset):
        self.tensor, self.scale, self.offset, self.applied = tensor, scale, offset, None


class _Builder:
    """Build tf_keras layers; `weights` are set once the model is complete, `image_scale` is the factor of the pixels."""

    def __init__(self, for_qat):
        self.for_qat, self.image_scale = for_qat, 1.0
        self.weights, self.names, self.used = {}, set(), set()

    def inline(self, model, inputs) -> list:
        graph = _graph(model)
        values = dict(zip(map(id, graph.inputs), inputs))
        for layer, sources, outputs, arguments in _nodes(graph):
            if id(layer) in self.used:
                raise ValueError(f"the layer {layer.name!r} is used more than once; give each use its own layer")
            self.used.add(id(layer))
            given = [values[id(source)] for source in sources]
            kind, module = type(layer).__name__, type(layer).__module__
            if kind in MODELS:
                if len(given) != 1 or len(outputs) != 1:
                    raise ValueError(f"the model {layer.name!r} in the model has several inputs or outputs; inline it")
                results = self.inline(layer, given)
            elif module.startswith("keras.src.ops.") and kind in OPERATIONS:
                results = [self.operation(layer, given, [_number(a, layer) for a in arguments])]
            elif kind in FIELDS and module.startswith(("keras.src.layers.", "tf_keras.src.layers.", "keras.layers.")):
                results = [self.layer(layer, given)]
            elif kind in LEFT_OUT and module.startswith(("keras.", "tf_keras.")):
                results = given
            else:
                raise unknown_layer(layer.name, kind, module)
            values.update(zip(map(id, outputs), results))
        return [values[id(output)] for output in graph.outputs]

    def tensor(self, value):
        """A tf_keras tensor, what the image's pixels want applied first."""
        if not isinstance(value, _Image):
            return value
        if np.all(value.scale == 1) and np.all(value.offset == 0):
            return value.tensor
        if value.applied is None:
            value.applied = self.convolved("pixels", value.tensor, value.scale, value.offset)
        return value.applied

    def convolved(self, name, x, scale, offset):
        """Scale and shift each channel by a depthwise 1x1 convolution."""
        layer = keras.layers.DepthwiseConv2D(1, name=self.name(name))
        self.weights[layer] = [scale.reshape(1, 1, -1, 1), offset]
        return layer(x)

    def copied(self, name, x):
        channels = x.shape[-1]
        return self.convolved(f"{name}_part", x, np.ones(channels), np.zeros(channels))

    def name(self, wanted):
        name, number = wanted, 1
        while name in self.names:
            name, number = f"{wanted}_{number}", number + 1
        self.names.add(name)
        return name

    def operation(self, layer, given, arguments):
        """Do x + y and the like of Keras 3: of two tensors a merging layer, with a number a Rescaling."""
        kind = type(layer).__name__
        if len(given) == 2 and kind in MERGES:
            merge = getattr(keras.layers, kind)(name=self.name(layer.name))
            return merge([self.tensor(value) for value in given])
        numbers = [argument for argument in arguments if argument is not None]
        if len(given) != 1 or len(numbers) != 1 or (arguments[0] is not None and "Divide" in kind):
            raise unknown_layer(layer.name, kind, "keras.ops")
        number, is_first = numbers[0], arguments[0] is not None
        if kind == "Add":
            scale, offset = 1.0, number
        elif kind == "Subtract":
            scale, offset = (-1.0, number) if is_first else (1.0, -number)
        else:
            scale, offset = number if kind == "Multiply" else 1 / number, 0.0
        return self.rescaled(layer.name, given[0], scale, offset)

    def rescaled(self, name, value, scale, offset):
        if isinstance(value, _Image):
            self.image_scale = np.abs(value.scale * scale).max()
            return _Image(value.tensor, value.scale * scale, value.offset * scale + offset)
        scale, offset = (v.tolist() if isinstance(v, np.ndarray) else v for v in (scale, offset))
        return keras.layers.Rescaling(scale, offset, name=self.name(name))(value)

    def layer(self, layer, given):
        kind, is_keras3 = type(layer).__name__, not isinstance(layer, keras.layers.Layer)
        fields = fields_of(kind, layer.get_config(), layer.name)
        if kind in ("Rescaling", "Normalization"):
            channels = (given[0].scale if isinstance(given[0], _Image) else given[0]).shape[-1]
            return self.rescaled(layer.name, given[0], *_affine(layer, channels))
        weights = [np.asarray(array, np.float32) for array in layer.get_weights()]
        if isinstance(given[0], _Image) and not given[0].offset.any() and kind == "ZeroPadding2D":
            padded = keras.layers.ZeroPadding2D(name=self.name(layer.name), **fields)(given[0].tensor)
            return _Image(padded, given[0].scale, given[0].offset)
        if isinstance(given[0], _Image) and kind == "Conv2D" and fields.get("groups", 1) == 1:
            pads = fields["padding"] == "same" and max(fields["kernel_size"]) > 1
            if not (pads and given[0].offset.any()):
                fields, weights = _folded(given[0], fields, weights)
                given = [given[0].tensor]
        if kind == "LeakyReLU" and "negative_slope" in fields:
            fields["alpha"] = fields.pop("negative_slope")
        after = None
        if "activation" in fields:
            after = "swish" if fields["activation"] == "silu" else fields["activation"]
            is_known = (after in SAME or not is_keras3) and not (self.for_qat and after == "elu")
            if kind == "Activation" and not is_known:
                return self.activate(layer.name, self.tensor(given[0]), after)
            stays = is_known and not (self.for_qat and after == "swish" and kind != "Activation")
            fields["activation"], after = (after, None) if stays else ("linear", after)
        if self.for_qat and _is_leaky(kind, fields):
            kind, fields = "LeakyReLU", {"alpha": fields["negative_slope"]}
        tensors = [self.tensor(value) for value in given]
        is_norm = kind == "BatchNormalization" and len(tensors[0].shape) == 4
        if self.for_qat and is_norm and not _follows_kernel(tensors[0]):
            return self.convolved(layer.name, tensors[0], *_batchnorm(fields, weights))
        if self.for_qat and kind == "SeparableConv2D":
            own = {
                field: fields.pop(field)
                for field in FIELDS["DepthwiseConv2D"]
                if field not in ("use_bias", "activation")
            }
            spatial = keras.layers.DepthwiseConv2D(use_bias=False, name=self.name(f"{layer.name}_depthwise"), **own)
            kind, fields, tensors = "Conv2D", {"kernel_size": 1, **fields}, [spatial(tensors[0])]
            self.weights[spatial], weights = weights[:1], weights[1:]
        if self.for_qat and kind == "Average":
            total = keras.layers.Add(name=self.name(f"{layer.name}_sum"))(tensors)
            return self.rescaled(layer.name, total, 1 / len(tensors), 0.0)
        if self.for_qat and kind == "Concatenate":
            tensors = [self.copied(layer.name, x) if _keeps_range(x) else x for x in tensors]
        new = getattr(keras.layers, kind)(name=self.name(layer.name), **fields)
        result = new(tensors if kind in MERGES else tensors[0])
        if weights or new.weights:
            self.weights[new] = weights
        return result if after is None else self.activate(layer.name, result, after)

    def activate(self, name, x, activation):
        """An activation of Keras 3's that tf_keras lacks or means otherwise, of stock layers."""
        if activation == "elu" and self.for_qat:
            return keras.layers.ELU(name=self.name(f"{name}_elu"))(x)
        if activation in SAME:
            return keras.layers.Activation(activation, name=self.name(f"{name}_{activation}"))(x)
        if activation == "relu6":
            return keras.layers.ReLU(6, name=self.name(f"{name}_relu6"))(x)
        if activation == "leaky_relu":
            return keras.layers.LeakyReLU(0.2, name=self.name(f"{name}_leaky_relu"))(x)
        if activation not in ("hard_sigmoid", "hard_silu", "hard_swish"):
            raise ValueError(
                f"the layer {name!r} has the activation {activation!r}, which cannot be rebuilt; use a stock one"
            )
        gate = self.rescaled(f"{name}_plus_3", x, 1.0, 3.0)
        gate = keras.layers.ReLU(6, name=self.name(f"{name}_relu6"))(gate)
        gate = self.rescaled(f"{name}_sixth", gate, 1 / 6, 0.0)
        if activation == "hard_sigmoid":
            return gate
        return keras.layers.Multiply(name=self.name(f"{name}_gated"))([x, gate])


def _folded(image, fields, weights):
    """A convolution's fields and weights that do to the image itself what they do to its rescaled pixels."""
    kernel, bias = weights[0], weights[1] if fields["use_bias"] else 0.0
    shift = np.einsum("hwcf,c->f", kernel.astype(float), image.offset)
    if shift.any():
        fields, bias = fields | {"use_bias": True}, (bias + shift).astype(np.float32)
    kernel = (kernel * image.scale[:, None]).astype(np.float32)
    return fields, [kernel, bias] if fields["use_bias"] else [kernel]


def _batchnorm(fields, weights):
    """Scale and offset (channels,) of a BatchNormalization at inference."""
    *rest, mean, variance = (array.astype(float) for array in weights)
    gamma = rest.pop(0) if fields["scale"] else 1.0
    scale = gamma / np.sqrt(variance + fields["epsilon"])
    return scale, (rest[0] if fields["center"] else 0.0) - mean * scale


def _number(argument, layer):
    """A number that an operation of Keras 3 was given; None for a tensor."""
    if hasattr(argument, "shape") and hasattr(argument, "_keras_history"):
        return None
    if np.size(argument) != 1:
        raise ValueError(f"the layer {layer.name!r} computes with an array; use Rescaling or stock layers")
    return float(np.asarray(argument).reshape(()))


def _check_same(model, result, scale, offset):
    """Raise ValueError where the rebuilt model gives other outputs on random images than the original."""
    images = np.random.default_rng(0).random((4, *result.input_shape[1:])).astype(np.float32)
    before = model((images * scale + offset).astype(np.float32), training=False)
    before = np.asarray(before.detach().cpu() if hasattr(before, "detach") else before, float)  # PyTorch's, or others'
    after = result(images, training=False).numpy()
    difference = float(np.abs(after - before).max())
    checked = CHECKED_HALF if any(map(is_other_float, model.layers)) else CHECKED
    if not difference <= checked * max(before.std(), 1e-3 * np.abs(before).max(), 1e-6):
        raise ValueError(
            f"the model {model.name!r}, rebuilt, gives outputs up to {difference:.3g} off the original's, whose deviation is "
            f"{before.std():.3g}; is a layer's behaviour changed by its own code?"
        )
