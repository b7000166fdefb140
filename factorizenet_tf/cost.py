"""What a net costs: MACs, parameters and bytes, in closed form from a spec or counted on any built tf_keras model.

One MAC is one multiply and one add. Counted: convolutions and dense layers, kernel numbers x output positions, batch 1.
Not counted: bias, activation, pooling, additions, BatchNorm (folded into its convolution at inference). MACs are neither
latency nor energy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .spec import Layer, ModelSpec

if TYPE_CHECKING:
    import pandas

__all__ = ["Cost", "cost_rows", "cost_table", "count_macs", "count_params", "layer_kind"]


class Cost(NamedTuple):
    """One layer with weights, the BatchNorm behind it folded in.

    Args:
        layer: its name.
        kind: "conv", "grouped", "depthwise", "pointwise", "dense", "separable", "transposed" or "batchnorm" (one that
            follows no convolution and folds into none).
        groups: of a convolution; 1 for others.
        output_shape: without the batch.
        macs: at batch 1.
        params: as Keras counts: kernel, bias, and four numbers a channel of BatchNorm.
        weight_bytes: int8 kernel plus an int32 bias a filter, as the .tflite holds them; scales and the file's
            structure come on top.
        activation_bytes: the int8 output at batch 1.
    """

    layer: str
    kind: str
    groups: int
    output_shape: tuple[int, ...]
    macs: int
    params: int
    weight_bytes: int
    activation_bytes: int


def count_macs(spec_or_model) -> int:
    """Count the MACs of one image; argument and errors as for `cost_rows`."""
    return sum(row.macs for row in cost_rows(spec_or_model))


def count_params(spec_or_model) -> int:
    """Count parameters as Keras does (BatchNorm's four a channel included, quantizers' ranges not)."""
    return sum(row.params for row in cost_rows(spec_or_model))


def cost_table(spec_or_model) -> pandas.DataFrame:
    """Tabulate each layer with weights, the fields of `Cost` as columns; argument and errors as for `cost_rows`."""
    import pandas

    return pandas.DataFrame(cost_rows(spec_or_model), columns=Cost._fields)


def cost_rows(spec_or_model) -> list[Cost]:
    """List the cost of each layer with weights, in order.

    Args:
        spec_or_model: a ModelSpec (closed form, nothing is built, no TensorFlow), or any functional or sequential
            tf_keras model, quantize-wrapped ones too.

    Raises:
        ValueError: a layer cannot be counted: unknown kind, or an output of unknown size. It is never taken as 0.
        TypeError: the argument is neither.
    """
    if isinstance(spec_or_model, ModelSpec):
        return [_from_plan(layer) for layer in spec_or_model.plan()]
    from ._keras import functional_model

    return _from_model(functional_model(spec_or_model, "the cost count"))


def _from_plan(layer: Layer) -> Cost:
    channels, filters = layer.input_shape[2], layer.output_shape[2]
    kernel = layer.kernel**2 * channels // layer.groups * filters
    is_dense = layer.kind == "dense"
    output_shape = (filters,) if is_dense else layer.output_shape
    size = math.prod(output_shape)
    macs, params = kernel * size // filters, kernel + (filters if is_dense else 4 * filters)
    return Cost(layer.name, layer.kind, layer.groups, output_shape, macs, params, kernel + 4 * filters, size)


# Layers whose multiplications, if any, are not counted (see above): these packages of tf_keras, Dot excepted, and others.
PACKAGES_WITHOUT_MACS = tuple(
    f"tf_keras.src.layers.{package}." for package in ("activation", "merging", "pooling", "regularization", "reshaping")
)
LAYERS_WITHOUT_MACS = ("InputLayer", "QuantizeLayer", "Activation", "Rescaling")

# The weights of a layer that are multiplied.
KERNELS = {
    **dict.fromkeys(
        ["Dense", "Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"], ("kernel",)
    ),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), ("depthwise_kernel",)),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), ("depthwise_kernel", "pointwise_kernel")),
}


def _from_model(model) -> list[Cost]:
    from ._keras import keras, nodes_of, unwrap

    rows: list[Cost] = []
    row_of = {}  # node of a convolution or dense layer -> its row
    seen = set()  # layers counted before: used again they cost MACs, and no more weights
    for node in nodes_of(model):
        bare = unwrap(node.layer)
        if isinstance(bare, keras.Model):
            new = _from_model(bare)
        elif _has_no_macs(bare):
            continue
        elif type(bare).__name__ == "BatchNormalization":
            parent = row_of.get(node.parent_nodes[0]) if node.parent_nodes else None
            new = [_batchnorm(bare, _shape(bare, node.output_shapes))]
            if parent is not None:
                params = rows[parent].params + (bare.name not in seen) * new[0].params
                rows[parent], new = rows[parent]._replace(params=params), []
        else:
            row_of[node] = len(rows)
            new = [_multiplying(bare, node)]
        rows += [row._replace(params=0, weight_bytes=0) for row in new] if bare.name in seen else new
        seen.add(bare.name)
    return rows


def _has_no_macs(layer) -> bool:
    name = type(layer).__name__
    is_in_package = type(layer).__module__.startswith(PACKAGES_WITHOUT_MACS)
    return name in LAYERS_WITHOUT_MACS or (is_in_package and name != "Dot")


def _shape(layer, shapes) -> tuple[int, ...]:
    shape = tuple(shapes)[1:]
    if any(not isinstance(d, int) for d in shape):
        raise ValueError(
            f"the layer {layer.name!r} has a shape of {tuple(shapes)}; to count it, build the model with one input and one output "
            "of fixed size"
        )
    return shape


def _batchnorm(layer, shape) -> Cost:
    channels = shape[layer.axis[0] - 1]
    # Folded into nothing, TFLite multiplies and adds with an int8 constant each.
    params = channels * (2 + layer.scale + layer.center)
    return Cost(layer.name, "batchnorm", 1, shape, 0, params, 2 * channels, math.prod(shape))


def _multiplying(layer, node) -> Cost:
    """A layer whose kernel is multiplied: once an output position, or (transposed) once an input position."""
    name = type(layer).__name__
    kernels = KERNELS.get(name)
    if kernels is None:
        raise ValueError(
            f"the layer {layer.name!r} is a {name}, whose MACs are not known here; to count the model, replace it by stock "
            "convolutions and dense layers"
        )
    input_shape, output_shape = _shape(layer, node.input_shapes), _shape(layer, node.output_shapes)
    outputs, inputs = math.prod(output_shape), math.prod(input_shape)
    channels_last = getattr(layer, "data_format", "channels_last") != "channels_first"
    filters = output_shape[-1] if channels_last else output_shape[0]
    numbers = sum(math.prod(getattr(layer, kernel).shape) for kernel in kernels)
    kind, groups = layer_kind(layer), getattr(layer, "groups", 1)
    positions = outputs // filters
    if kind == "transposed":
        positions = inputs // (input_shape[-1] if channels_last else input_shape[0])
    if kind == "depthwise":
        groups = math.prod(layer.depthwise_kernel.shape) // math.prod(layer.kernel_size) // layer.depth_multiplier
    macs, params = numbers * positions, numbers + (filters if layer.use_bias else 0)
    return Cost(layer.name, kind, groups, output_shape, macs, params, numbers + 4 * filters, outputs)


def layer_kind(layer) -> str:
    """Name the kind of a tf_keras layer with a kernel, as `Cost` has it."""
    name = type(layer).__name__
    if name == "Dense":
        return "dense"
    if name.endswith("Transpose"):
        return "transposed"
    if name.startswith(("Depthwise", "Separable")):
        return name.removesuffix("Conv1D").removesuffix("Conv2D").lower()
    if layer.groups > 1:
        return "grouped"
    return "pointwise" if math.prod(layer.kernel_size) == 1 else "conv"
