"""Write a flat CNN of stock layers as plain data, and build it from there, by tables of layers and fields; no code is run."""

import json

from .._keras import flat_nodes, keras
from ..spec import Architecture

__all__ = ["architecture_of", "build_architecture"]

_CONV = "kernel_size strides padding dilation_rate activation use_bias"
_POOL = "pool_size strides padding"
MERGES = ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")
# The fields that say what a layer computes, by class; initializers, regularizers and the like say nothing of it.
FIELDS = {
    **dict.fromkeys(("InputLayer", "Flatten", *MERGES), ""),
    "Conv2D": f"filters groups {_CONV}",
    "DepthwiseConv2D": f"depth_multiplier {_CONV}",
    "SeparableConv2D": f"filters depth_multiplier {_CONV}",
    "Conv2DTranspose": f"filters output_padding {_CONV}",
    "Dense": "units activation use_bias",
    "BatchNormalization": "axis momentum epsilon center scale",
    "Rescaling": "scale offset",
    "Activation": "activation",
    "ReLU": "max_value negative_slope threshold",
    "PReLU": "shared_axes",
    **dict.fromkeys(("ELU", "LeakyReLU"), "alpha"),
    **dict.fromkeys(("Concatenate", "Softmax"), "axis"),
    **dict.fromkeys(("MaxPooling2D", "AveragePooling2D"), _POOL),
    **dict.fromkeys(("GlobalAveragePooling2D", "GlobalMaxPooling2D"), "keepdims"),
    "ZeroPadding2D": "padding",
    "Cropping2D": "cropping",
    "UpSampling2D": "size interpolation",
    "Reshape": "target_shape",
    "Permute": "dims",
    "Dropout": "rate",
}
FIELDS = {kind: tuple(fields.split()) for kind, fields in FIELDS.items()}
# Activations of one meaning in both Kerases (`activate` builds the others of Keras 3's, relu6 among them).
SAME = tuple("linear relu sigmoid tanh softmax elu selu gelu softplus softsign exponential swish".split())  # noqa: SIM905
ACTIVATIONS = (*SAME, "relu6")
TF_CALLS = ("TFOpLambda", "SlicingOpLambda")  # what tf_keras makes of x * 2, x[:, 1:] and the like


def architecture_of(model: keras.Model, name: str | None = None) -> Architecture:
    """Write a model's architecture as data, from which `build_architecture` builds it, without its weights.

    Args:
        model: functional or sequential float tf_keras model, flat, one input and one output.
        name: of the net; None: the model's.

    Raises:
        TypeError: a Keras 3 model.
        ValueError: a layer or one of its fields is not in the tables; it is named.
    """
    rows, producers = [], {}
    for node in flat_nodes(model, "architecture_of"):
        layer, kind = node.layer, type(node.layer).__name__
        if kind not in FIELDS or not type(layer).__module__.startswith("tf_keras.src."):
            raise unknown_layer(layer.name, kind)
        if layer.name in (row[0] for row in rows):
            raise ValueError(f"the layer {layer.name!r} is used more than once; give each use its own layer")
        config = layer.get_config()
        fields = {field: config[field] for field in FIELDS[kind] if field in config}
        plain = json.dumps(fields, default=lambda value: value.item() if hasattr(value, "item") else str(value))
        fields = json.loads(plain)  # NumPy's numbers become Python's; anything else becomes text, which is refused next
        _check_fields(layer.name, kind, fields)
        inputs = [] if node.is_input else [producers[tensor] for tensor in node.flat_input_ids]
        producers[node.flat_output_ids[0]] = layer.name
        rows.append([layer.name, kind, fields, inputs])
    layers, shape = json.dumps(rows, separators=(",", ":")), tuple(model.input_shape[1:])
    name, classes = model.name if name is None else name, model.output_shape[-1]
    return Architecture(name=name, input_shape=shape, num_classes=classes, layers=layers)


def build_architecture(spec: Architecture) -> keras.Model:
    """Build the model of an architecture with random weights.

    Raises:
        ValueError: a layer or a field is not in the tables, or the layers do not fit each other, the images or the classes;
            the layer is named.
    """
    outputs, image, last = {}, None, None
    for name, kind, fields, inputs in json.loads(spec.layers):
        _check_fields(name, kind, fields)
        try:
            if kind == "InputLayer":
                outputs[name] = last = image = keras.Input(spec.input_shape, name=name)
                continue
            given = [outputs[source] for source in inputs]
            layer = getattr(keras.layers, kind)(name=name, **fields)
            outputs[name] = last = layer(given if kind in MERGES else given[0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(
                f"the layer {name!r} of {spec.name} cannot be built ({reason}); correct its fields"
            ) from None
    if image is None or tuple(last.shape) != (None, spec.num_classes):
        found = None if last is None else tuple(last.shape)
        raise ValueError(f"{spec.name} gives {found}; it must give (None, {spec.num_classes}), logits of its classes")
    return keras.Model(image, last, name=spec.name.replace(".", "_").replace("-", "_"))


def _check_fields(name, kind, fields) -> None:
    if kind not in FIELDS:
        raise unknown_layer(name, kind)
    for field, value in fields.items():
        is_plain = all(isinstance(v, (bool, int, float, str, type(None))) for v in _leaves(value))
        if field not in FIELDS[kind] or not is_plain or (field == "activation" and value not in ACTIVATIONS):
            raise ValueError(
                f"the layer {name!r}, a {kind}, has {field} {str(value)[:80]!r}, which cannot be rebuilt; use a stock one"
            )


def _leaves(value):
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]


def unknown_layer(name, kind, module="") -> ValueError:
    """Make the error of a layer that is in no table."""
    if kind == "Lambda":
        return ValueError(f"the layer {name!r} is a Lambda, whose code is not run; replace it by stock layers")
    if kind in TF_CALLS:
        remedy = "replace it by a stock layer, such as Rescaling for x * 2 + 1, Add, Multiply or ReLU"
        return ValueError(f"the layer {name!r} is a {kind}, a call of TensorFlow's functions; {remedy}")
    of = f" of {module}" if module.partition(".")[0] not in ("keras", "tf_keras", "") else ""
    return ValueError(
        f"the layer {name!r} is a {kind}{of}, which cannot be rebuilt; replace it by stock convolutions, dense layers, "
        "BatchNormalization, activations, pooling, Add, Concatenate and Multiply"
    )
