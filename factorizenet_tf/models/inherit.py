"""Start a net from the trained weights of a net of other levels."""

import numpy as np

from .._keras import keras
from ..spec import Layer, ModelSpec
from ..tflite.regroup import regrouped
from .build import build
from .factorize import moments_of
from .graph import in_batches
from .low_rank import NormalEquations, spatial_first

__all__ = ["inherit"]


def inherit(
    parent: keras.Model,
    parent_spec: ModelSpec,
    spec: ModelSpec,
    *,
    seed: int = 0,
    calibration: np.ndarray | None = None,
) -> keras.Model:
    """Build a float model of `spec` that starts from the weights of a trained one of the same width and macro-architecture.

    Stem, head, and stages at the same level are copied. At a finer level, a stage's kernels are cut out of the coarser ones;
    at a coarser level they are block-diagonal, made of the finer ones, and compute the same function. Pointwise convolutions
    and BatchNorm are copied. Between level 0, which has no pointwise convolutions, and the others, a block is fitted to the
    parent's outputs by least squares on images (grouped kernels as in `factorize`, the values between the two convolutions
    shifted to the middle of ReLU6's linear range); without images it starts anew.

    Args:
        parent: float model of `parent_spec`.
        parent_spec, spec: they differ in level alone.
        seed: of the random weights.
        calibration: images to fit on, uint8 (n, height, width, channels), hundreds of them; None: nothing is fitted.

    Raises:
        ValueError: they differ in more than level.
    """
    same = ("width", "input_shape", "num_classes", "macro")
    both = ((name, getattr(parent_spec, name), getattr(spec, name)) for name in same)
    differing = [f"{name} ({its}, {ours})" for name, its, ours in both if its != ours]
    if differing:
        what = f"{spec.name} cannot inherit from {parent_spec.name}: they differ in {', '.join(differing)}"
        raise ValueError(f"{what}; give specs that differ in level alone")
    keras.utils.set_random_seed(seed)
    model = build(spec)
    before = {layer.name: layer for layer in parent_spec.plan()}
    batches = [] if calibration is None else in_batches(calibration)
    for layer in spec.plan():
        old = before.get(layer.name)
        if old is None:
            continue  # a pointwise layer behind a grouped one, which was fitted with it
        if (old.groups == 1) != (layer.groups == 1):
            if batches:
                _fit(parent, model, layer, batches)
            continue
        kernel = parent.get_layer(layer.name).get_weights()
        if old.groups != layer.groups:
            filters_first = np.moveaxis(kernel[0], _filters_axis(old), 0)
            kernel = [np.moveaxis(regrouped(filters_first, old.groups, layer.groups), 0, _filters_axis(layer))]
        model.get_layer(layer.name).set_weights(kernel)
        if layer.kind != "dense":
            model.get_layer(f"{layer.name}_bn").set_weights(parent.get_layer(f"{layer.name}_bn").get_weights())
    return model


def _fit(parent: keras.Model, model: keras.Model, layer: Layer, batches: list) -> None:
    """Fit a block that is regular in one of two nets and factorized in the other to what the parent gives before its activation."""
    spatial, pointwise = layer.name, layer.name.replace("_spatial", "_pointwise")
    is_regular = layer.groups == 1
    convolution = model.get_layer(spatial)
    inputs = _computed(model, convolution.input, batches)
    wanted = _computed(parent, parent.get_layer(f"{pointwise if is_regular else spatial}_bn").output, batches)
    moments = moments_of(convolution, inputs, wanted)
    shape = (layer.kernel, layer.kernel, layer.input_shape[2], wanted[0].shape[3])
    normal = NormalEquations.of(np.zeros(shape), np.zeros(shape[3]), moments)
    if is_regular:
        convolution.set_weights([np.linalg.solve(normal.xx, normal.xy).reshape(shape)])
    else:
        kernel = spatial_first(normal, layer.groups, layer.output_shape[2] // layer.groups)[0]
        convolution.set_weights([np.moveaxis(kernel, 2, 3) if layer.kind == "depthwise" else kernel])
        _normalize(model, spatial, batches, 3.0, 1.0)  # nearly all within 0..6, which ReLU6 leaves as it is
        inner = np.concatenate(_computed(model, model.get_layer(pointwise).input, batches))
        inner = inner.reshape(-1, layer.output_shape[2])
        outer = np.concatenate(wanted).reshape(len(inner), -1)
        centred = inner - inner.mean(0)
        found = np.linalg.lstsq(centred, outer - outer.mean(0), rcond=1e-6)[0]
        model.get_layer(pointwise).set_weights([found[None, None]])
    last = spatial if is_regular else pointwise
    _normalize(model, last, batches, moments.y / moments.count, None)


def _computed(model, tensor, batches) -> list[np.ndarray]:
    part = keras.Model(model.input, tensor)
    return [part(batch, training=False).numpy() for batch in batches]


def _normalize(model, name, batches, mean, deviation) -> None:
    """Set a BatchNorm's statistics to those of its inputs, and its outputs' mean and deviation; None: the inputs' deviation."""
    read = np.concatenate(_computed(model, model.get_layer(name).output, batches))
    variance, norm = read.var((0, 1, 2)), model.get_layer(f"{name}_bn")
    gamma = np.sqrt(variance + norm.epsilon) if deviation is None else np.full_like(variance, deviation)
    norm.set_weights([gamma, np.broadcast_to(mean, gamma.shape), read.mean((0, 1, 2)), variance])


def _filters_axis(layer: Layer) -> int:
    """Of Conv2D's kernel (height, width, channels / groups, filters), or DepthwiseConv2D's (height, width, channels, 1)."""
    return 2 if layer.kind == "depthwise" else 3
