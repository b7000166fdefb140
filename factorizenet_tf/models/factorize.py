"""Depth factorization of a trained net: its layers are split, and their weights computed in closed form.

A regular convolution of C channels and F filters becomes a grouped one in 2**level groups with M output channels, and a
pointwise one of F filters, with nothing between them. Both are computed from the old kernel and, if calibration images are
given, fitted by least squares: on the inputs that the net factorized so far yields, they reproduce the original layer's
outputs as well as possible. So later layers make up for the errors of earlier ones.

Source: decoupling by singular values is Guo et al., arXiv 1808.05517; groups between 1 and C, M other than C and the fit on
data (reduced-rank regression of each group in turn) are our choice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np

from .._keras import in_float32, keras, tf
from ..cost import count_macs
from ..data import check_images
from ..spec import groups_at, last_level
from ..tflite.latency import Convolution, convolution_chain, inference, measure_convolutions, time_in_turns
from ..tflite.regroup import regroup_fastest, regrouped
from .graph import BATCH, Graph, call, in_batches, reads_image, run
from .low_rank import Moments, NormalEquations, pointwise_first, regroup, spatial_first
from .native import use_native_kernels

if TYPE_CHECKING:
    import pandas

__all__ = ["factorization_table", "factorize", "levels_of_layers", "moments_of", "splits_of_layers", "with_latencies"]

MAX_MACS = 3_300_000_000  # of the images that errors are measured on, at least a batch: 256 at 12.5 M MACs, 64 at 50 M
MAX_PLACES = 131_072  # positions in a layer's outputs over all images; of more a sample is fitted on


@in_float32()
def factorize(
    model: keras.Model,
    level: int | Mapping[str, int],
    *,
    middle: float | Mapping[str, float] = 1,
    calibration: np.ndarray | None = None,
    stem: bool = False,
    advance: Callable[[], None] | None = None,
) -> keras.Model:
    """Factorize the convolutions of a trained net; the rest of it is copied.

    A regular KxK convolution (K > 1) `NAME` becomes `NAME_spatial`, in `groups_at(level, C)` groups, and `NAME_pointwise`;
    `NAME_pointwise` comes first if there are more channels than filters and that is cheaper. The spatial convolution gets
    stride, dilation and padding, the last one bias and activation. A grouped or depthwise convolution gets more groups. A
    layer that does not become cheaper stays as it is.

    Args:
        model: float tf_keras model, flat, functional or sequential, images in 0..1 in.
        level: for all layers, clipped to each layer's last one; or by layer name, and the others stay. 0 changes nothing.
        middle: channels between the two parts as a multiple of C (of F if the pointwise one comes first), for all layers or
            by layer name. The package's own nets have 1; with 2 or 3 a deep level loses much less accuracy, and at K * K,
            the largest, nothing is lost.
        calibration: images to fit on, uint8 (n, height, width, channels), hundreds of them; None: the kernels alone are
            approximated, which loses far more.
        stem: factorize the convolutions that read the image, too.
        advance: called after each layer.

    Returns:
        A float tf_keras model with the original's name, input and outputs; grouped convolutions run native kernels.

    Raises:
        TypeError: a Keras 3 model, or images that are not uint8.
        ValueError: an unbuilt, subclassed, nested or quantization-aware model, or of another precision than float32, a layer
            used twice or of the user's own code or activation, several inputs or outputs, weights that are not finite (the layer is named), no convolution to factorize, an unknown layer name, a named layer
            that would not become cheaper, or a number out of range.
    """
    graph = Graph.of(model)
    offered = levels_of_layers(model, stem=stem)
    levels = _by_layer("level", level, offered, 0)
    middles = _by_layer("middle", middle, offered, 1)
    chosen = {}
    for name, wanted in levels.items():
        layer, own, part = model.get_layer(name), offered[name], middles[name]
        if isinstance(wanted, bool) or not isinstance(wanted, Integral) or wanted < 0:
            raise ValueError(f"the level of {name} is {wanted!r}; it must be an int of 0 or more")
        whole = math.prod(layer.kernel_size)
        if not isinstance(part, Real) or not 0 < part <= whole:
            raise ValueError(f"middle of {name} is {part!r}; it must be above 0 and at most {whole} (no loss)")
        split = _split(layer, min(wanted, own[-1]), part)
        if split is not None and not split.inner and isinstance(middle, Mapping) and name in middle:
            raise ValueError(f"the layer {name} has groups already and stays one layer; leave its middle out")
        if split is not None and split.macs < _macs(layer):
            chosen[name] = split
        elif isinstance(level, Mapping) and wanted:
            raise ValueError(
                f"level {wanted} with middle {part:g} makes the layer {name} no cheaper; with middle 1 it may have level "
                f"{', '.join(map(str, own))}: give one of these"
            )
    if calibration is None:
        return _rebuild(model, graph, chosen, None, advance)
    check_images(calibration, model.input_shape[1:], "calibration")
    return _rebuild(model, graph, chosen, in_batches(calibration), advance)


def levels_of_layers(model: keras.Model, *, stem: bool = False) -> dict[str, list[int]]:
    """List the levels that make each convolution cheaper at middle 1, after 0 for the layer as it is, by layer name.

    Args:
        model, stem: as for `factorize`, whose errors it raises.
    """
    found, stems = {}, []
    for node in Graph.of(model).nodes:
        layer = node.layer
        if type(layer).__name__ not in ("Conv2D", "DepthwiseConv2D") or math.prod(layer.kernel_size) == 1:
            continue
        levels = range(1, last_level(layer.input_shape[-1]) + 1)
        if levels := [level for level in levels if _cheaper(layer, level, 1)]:
            if not stem and reads_image(node):
                stems.append(layer.name)
            else:
                found[layer.name] = [0, *levels]
    if not found:
        remedy = f", but for those that read the image ({', '.join(stems)}); for these give stem=True" if stems else ""
        raise ValueError(
            f"the model {model.name!r} has no convolution to factorize: none larger than 1x1 would become cheaper{remedy}"
        )
    return found


def splits_of_layers(
    model: keras.Model, middle: Sequence[float], *, stem: bool = False
) -> dict[str, dict[tuple[int, float], tuple[int, int, int]]]:
    """Describe, for each convolution that can be factorized, the parts that it becomes at the levels and middles that make it cheaper.

    Args:
        model, stem: as for `factorize`, whose errors it raises.
        middle: middles to choose from.

    Returns:
        By layer and (level, middle): (groups, channels between the parts, MACs); 0 channels: it stays one layer. (0, 1) is the
        layer as it is.
    """
    found = {}
    for name, levels in levels_of_layers(model, stem=stem).items():
        layer = model.get_layer(name)
        found[name] = {(0, 1): (_groups(layer), 0, _macs(layer))}
        for level, one in ((level, one) for level in levels[1:] for one in middle):
            if split := _cheaper(layer, level, one):
                found[name][level, one] = (split.groups, split.inner, split.macs)
    return found


@in_float32()
def factorization_table(
    model: keras.Model,
    calibration: np.ndarray,
    *,
    middle: Sequence[float] = (1, 2, 3),
    stem: bool = False,
    advance: Callable[[], None] | None = None,
) -> pandas.DataFrame:
    """Measure the error of factorizing each layer alone, at each level and middle, fitted on the images, without training.

    Args:
        model, calibration, stem: as for `factorize`; errors are measured on the first images alone where MAX_MACS says so.
        middle: middles to try.
        advance: called after each layer of the model.

    Returns:
        A row for each layer, level and middle that makes it cheaper, and for the layer as it is (level 0), with the columns

        * layer, level, middle, groups;
        * macs, params, weight_bytes: of the parts; macs_share: their share of the old layer's MACs;
        * energy_lost: the share, 0..1, of the kernel's sum of squares lost when the kernel alone is approximated;
        * output_error, logits_error: root mean square error of the layer's outputs and of the net's logits, over the
          original's standard deviation;
        * output_error_int8, logits_error_int8: the same with this layer's weights, and the values between its parts, in int8.
    """
    import pandas

    graph, offered = Graph.of(model), levels_of_layers(model, stem=stem)
    check_images(calibration, model.input_shape[1:], "calibration")
    batches = in_batches(calibration)
    measured = slice(max(1, MAX_MACS // (BATCH * count_macs(model))))
    rows, values = [], {graph.nodes[0].flat_output_ids[0]: batches}
    for number, node in enumerate(graph.nodes[1:], 1):
        layer, output = node.layer, node.flat_output_ids[0]
        given = run(node, layer, values)
        if layer.name in offered:
            source, before, logits = values[node.flat_input_ids[0]], given[measured], graph.rest(number + 1, values)
            moments, wanted = _moments(layer, source, source), logits(before)
            splits = (_cheaper(layer, level, one) for level in offered[layer.name][1:] for one in middle)
            cheaper = {(split.groups, split.inner): split for split in splits if split}
            for split in (_as_it_is(layer), *cheaper.values()):
                errors = {}
                parts = split.parts(moments)
                for ending, is_rounded in (("", False), ("_int8", True)):
                    after = _through(parts, source[measured], is_rounded)
                    errors["output_error" + ending] = _relative_error(after, before)
                    errors["logits_error" + ending] = _relative_error(logits(after), wanted)
                rows.append(split.row() | errors)
        values[output] = given
        graph.forget(node, values)
        if advance is not None:
            advance()
    return pandas.DataFrame(rows)


def with_latencies(
    model: keras.Model, table: pandas.DataFrame, *, advance: Callable[[], None] | None = None
) -> pandas.DataFrame:
    """Give a table a column `ms`: the milliseconds that what a layer becomes takes here, int8, on LiteRT and one thread.

    Each row is a .tflite of its own, of the layer's parts alone, as `export --regroup fastest` rewrites it (same outputs). The rows of
    one layer are timed in turns; layers of equal shape are timed once.

    Args:
        model: the net.
        table: its `factorization_table`.
        advance: called after each layer of the table.
    """
    found, known = table.copy(), {}
    for name, rows in table.groupby("layer", sort=False):
        layer = model.get_layer(name)
        splits = [_split(layer, level, middle) or _as_it_is(layer) for level, middle in zip(rows.level, rows.middle)]
        parts = tuple(tuple(split.convolutions) for split in splits)
        if parts not in known:
            latencies = measure_convolutions(
                (shape, groups) for one in parts for shape, groups in one if groups != shape.input_shape[2]
            )
            files = [regroup_fastest(convolution_chain(one), latencies).content for one in parts]
            known[parts] = np.median(time_in_turns([inference(file) for file in files]), axis=0)
        found.loc[rows.index, "ms"] = known[parts]
        if advance is not None:
            advance()
    return found


# The net


def _rebuild(model, graph, chosen, batches, advance):
    first = graph.nodes[0].flat_output_ids[0]
    symbols = {first: keras.Input(model.input_shape[1:], name=graph.nodes[0].layer.name)}
    inputs, old, new = symbols[first], {first: batches}, {first: batches}
    for node in graph.nodes[1:]:
        layer, output = node.layer, node.flat_output_ids[0]
        split = chosen.get(layer.name)
        if split is None:
            copy = type(layer).from_config(layer.get_config())
            symbols[output] = call(node, copy, symbols)
            copy.set_weights(layer.get_weights())
        else:
            source = node.flat_input_ids[0]
            parts = split.parts(_moments(layer, new[source], old[source]) if batches else None)
            symbols[output] = parts[1](parts[0](symbols[source])) if len(parts) > 1 else parts[0](symbols[source])
        if batches:
            is_same = all(old[key] is new[key] for key in node.flat_input_ids)
            old[output] = run(node, layer, old)
            if split is not None:
                new[output] = _through(parts, new[source], False)
            else:
                new[output] = old[output] if is_same else run(node, copy, new)
            graph.forget(node, old, new)
        if advance is not None:
            advance()
    return use_native_kernels(keras.Model(inputs, symbols[graph.output], name=model.name))


def _through(parts, batches, is_rounded: bool) -> list:
    """Compute the layers of a split one after the other; rounded: their kernels and the values between them, to 8 bits."""
    for number, part in enumerate(parts):
        kernel, *rest = weights = part.get_weights()
        if is_rounded:  # symmetric, a scale for each output channel
            axes = (0, 1) if type(part).__name__ == "DepthwiseConv2D" else (0, 1, 2)
            scale = np.maximum(np.abs(kernel).max(axes, keepdims=True) / 127, 1e-30)
            part.set_weights([np.round(kernel / scale) * scale, *rest])
        batches = [part(batch) for batch in batches]
        part.set_weights(weights)
        if is_rounded and number + 1 < len(parts):
            low, high = (float(of([of(batch.numpy()) for batch in batches])) for of in (np.min, np.max))
            low, high = min(low, 0.0), max(high, 0.0)
            batches = [tf.quantization.fake_quant_with_min_max_vars(batch, low, high) for batch in batches]
    return batches


def _relative_error(found, wanted) -> float:
    found, wanted = (np.concatenate([np.asarray(batch) for batch in batches]) for batches in (found, wanted))
    return float(np.sqrt(np.mean(np.square(found - wanted)) / max(float(wanted.var()), 1e-30)))


# A layer and what it becomes


@dataclass(frozen=True, eq=False)
class _Split:
    """What a layer becomes.

    Args:
        layer: the old one.
        level, middle: as asked for.
        groups: of the spatial part.
        inner: channels between the parts; 0: one layer takes its place, in more groups, or as it is.
        pointwise_first: whether the pointwise part reads the layer's input.
    """

    layer: keras.layers.Layer
    level: int
    middle: float
    groups: int
    inner: int
    pointwise_first: bool = False

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Kernel numbers for each output, filters and output places of each part."""
        layer, area = self.layer, math.prod(self.layer.kernel_size)
        (*_, channels), places = layer.input_shape, math.prod(layer.output_shape[1:3])
        filters = layer.output_shape[3]
        if not self.inner:
            return [(area * channels // self.groups, filters, places)]
        if self.pointwise_first:
            first = (channels, self.inner, math.prod(layer.input_shape[1:3]))
            return [first, (area * self.inner // self.groups, filters, places)]
        return [(area * channels // self.groups, self.inner, places), (self.inner, filters, places)]

    @property
    def convolutions(self) -> list[tuple[Convolution, int]]:
        """Shape and groups of each part."""
        layer = self.layer
        filters = layer.output_shape[3]
        _, height, width, channels = layer.input_shape
        own = layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding.upper()
        one = (1, 1), (1, 1), (1, 1), "VALID"
        if not self.inner:
            return [(Convolution((height, width, channels), filters, *own), self.groups)]
        if self.pointwise_first:
            first = Convolution((height, width, channels), self.inner, *one)
            return [(first, 1), (Convolution(first.output_shape, filters, *own), self.groups)]
        first = Convolution((height, width, channels), self.inner, *own)
        return [(first, self.groups), (Convolution(first.output_shape, filters, *one), 1)]

    @property
    def macs(self) -> int:
        """MACs of the parts."""
        return sum(numbers * filters * places for numbers, filters, places in self.shapes)

    def row(self) -> dict:
        """Give what the table has of it before anything is measured."""
        layer, params = self.layer, sum(numbers * filters for numbers, filters, _ in self.shapes)
        lost = 0.0
        if self.inner:
            parts = np.stack(np.split(_kernel(layer), self.groups, 3 if self.pointwise_first else 2))
            parts = np.moveaxis(parts, 3, 4) if self.pointwise_first else parts  # the channels' axis is the last
            parts = parts.reshape(self.groups, -1, parts.shape[4])
            values = np.square(np.linalg.svd(parts, compute_uv=False))
            lost = float(values[:, self.inner // self.groups :].sum() / max(values.sum(), 1e-30))
        return {
            "layer": layer.name,
            "level": self.level,
            "middle": self.middle,
            "groups": self.groups,
            "macs": self.macs,
            "params": params + layer.output_shape[3],
            "weight_bytes": params + 4 * sum(filters for _, filters, _ in self.shapes),
            "macs_share": self.macs / _macs(layer),
            "energy_lost": lost,
        }

    def parts(self, moments: Moments | None) -> list[keras.layers.Layer]:
        """Make the layers, built and with weights."""
        layer, config = self.layer, self.layer.get_config()
        if not self.inner and self.groups == _groups(layer):
            return [_built(type(layer).from_config(config), layer.input_shape, layer.get_weights())]
        *kernels, flat = self._fit(normal := self._normal(moments))
        bias = [normal.bias(flat)] if layer.use_bias or moments is not None else []
        options = {key: config[key] for key in ("strides", "padding", "dilation_rate")}
        last = {"activation": config["activation"]}
        if not self.inner:
            return [_convolution(layer.name, kernels[0], bias, self.groups, layer.input_shape, options | last)]
        kinds = [(f"{layer.name}_spatial", self.groups, options), (f"{layer.name}_pointwise", 1, {})]
        (name, groups, options), (last_name, last_groups, others) = kinds[::-1] if self.pointwise_first else kinds
        first = _convolution(name, kernels[0], [], groups, layer.input_shape, options)
        inner_shape = first.compute_output_shape(layer.input_shape)
        return [first, _convolution(last_name, kernels[1], bias, last_groups, inner_shape, others | last)]

    def _normal(self, moments) -> NormalEquations:
        layer = self.layer
        bias = layer.bias.numpy() if layer.use_bias else np.zeros(layer.output_shape[3])
        return NormalEquations.of(_kernel(layer), bias, moments)

    def _fit(self, normal: NormalEquations) -> tuple[np.ndarray, ...]:
        """Fit the parts' kernels; the last array is what they make together, (K * K * C, filters)."""
        if not self.inner:
            return regroup(normal, self.groups)
        rank = self.inner // self.groups
        return (pointwise_first if self.pointwise_first else spatial_first)(normal, self.groups, rank)


def _split(layer, level: int, middle: float) -> _Split | None:
    """Describe what a layer becomes at a level; None at level 0, and if there is no such split."""
    if level == 0:
        return None
    channels, filters, before = layer.input_shape[-1], layer.output_shape[-1], _groups(layer)
    groups = groups_at(level, channels)
    if before > 1:
        is_finer = groups > before and groups % before == 0 and filters % groups == 0
        return _Split(layer, level, 1, groups, 0) if is_finer else None

    def ranked(groups, channels, pointwise_first):
        rank = min(max(1, round(channels // groups * middle)), math.prod(layer.kernel_size) * channels // groups)
        return _Split(layer, level, middle, groups, rank * groups, pointwise_first)

    split = ranked(groups, channels, False)
    if channels > filters:
        return min(split, ranked(groups_at(level, filters), filters, True), key=lambda split: split.macs)
    return split


def _cheaper(layer, level: int, middle: float) -> _Split | None:
    """Give what a layer becomes where that has fewer MACs."""
    split = _split(layer, level, middle)
    return split if split is not None and split.macs < _macs(layer) else None


def _as_it_is(layer) -> _Split:
    return _Split(layer, 0, 1, _groups(layer), 0)


def _macs(layer) -> int:
    return _as_it_is(layer).macs


def _groups(layer) -> int:
    return layer.input_shape[-1] if type(layer).__name__ == "DepthwiseConv2D" else layer.groups


def _kernel(layer) -> np.ndarray:
    """Give the kernel of Conv2D or DepthwiseConv2D as one for all channels, float64 (height, width, channels, filters)."""
    groups, channels, filters = _groups(layer), layer.input_shape[-1], layer.output_shape[-1]
    kernel = layer.get_weights()[0].astype(np.float64)
    kernel = kernel.reshape(*kernel.shape[:2], channels // groups, filters)
    return np.moveaxis(regrouped(np.moveaxis(kernel, 3, 0), groups, 1), 0, 3)


def _built(layer, input_shape, weights):
    layer.build(input_shape)
    layer.set_weights(weights)
    return use_native_kernels(layer)


def _convolution(name, kernel, bias, groups, input_shape, options):
    """Make a grouped (or depthwise) convolution of a kernel (height, width, channels / groups, filters)."""
    options = options | {"kernel_size": kernel.shape[:2], "use_bias": bool(bias), "name": name}
    if groups == input_shape[-1]:
        multiplier = kernel.shape[-1] // groups
        layer = keras.layers.DepthwiseConv2D(depth_multiplier=multiplier, **options)
        kernel = kernel.reshape(*kernel.shape[:2], groups, multiplier)
    else:
        layer = keras.layers.Conv2D(kernel.shape[-1], groups=groups, **options)
    return _built(layer, input_shape, [kernel, *bias])


def _moments(layer, inputs: Sequence, originals: Sequence) -> Moments:
    """Sum up a layer's inputs in the new net, and its outputs before the activation in the original one."""
    kernel, bias = tf.constant(_kernel(layer), tf.float32), layer.bias.numpy() if layer.use_bias else 0
    options = {"strides": layer.strides, "padding": layer.padding.upper(), "dilations": layer.dilation_rate}
    return moments_of(layer, inputs, (tf.nn.conv2d(each, kernel, **options).numpy() + bias for each in originals))


def moments_of(layer: keras.layers.Layer, inputs: Sequence, outputs: Iterable[np.ndarray]) -> Moments:
    """Sum up, over output positions, the patches that a convolution reads in batches of inputs, and the outputs to reproduce."""
    random, moments = np.random.default_rng(0), None
    limit = -(-MAX_PLACES // len(inputs))
    for x, y in zip(inputs, outputs):
        y = y.reshape(-1, y.shape[3])
        sizes, strides, rates = ([1, *pair, 1] for pair in (layer.kernel_size, layer.strides, layer.dilation_rate))
        patches = tf.image.extract_patches(x, sizes, strides, rates, layer.padding.upper()).numpy().reshape(len(y), -1)
        moments = moments or Moments(patches.shape[1], y.shape[1])
        if len(y) > limit:
            places = random.choice(len(y), limit, replace=False)
            y, patches = y[places], patches[places]
        moments.add(patches, y)
    return moments


def _by_layer(what: str, given, offered: Mapping[str, list[int]], default) -> dict:
    """Give a number for each layer that can be factorized, from one for all or one by name."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(offered, given)
    for name in given:
        if name not in offered:
            near = difflib.get_close_matches(str(name), offered, n=1)
            raise ValueError(
                f"{what} names the layer {name!r}, which cannot be factorized"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(offered)}")
            )
    return {name: given.get(name, default) for name in offered}
