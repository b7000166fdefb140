"""Turn a float model into a quantization-aware one (TFMOT), its ranges initialised, the input's fixed to 0..1."""

import contextlib
from collections.abc import Iterator

import numpy as np

from .._keras import functional_model, in_float32, is_input_quantizer, is_wrapped, keras, tf, to_float, unwrap
from ..data import check_images
from .architecture import unknown_layer
from .keras3 import activation_of, check_copies, check_plain, quantizable
from .native import use_native_kernels

__all__ = ["is_quantize_aware", "quantize_aware", "with_room_for_biases", "with_softmax", "without_softmax"]
__all__ += ["wrap_for_qat"]

CALIBRATION_BATCH = 128
ACTIVATIONS = ("", "linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh")  # that TFMOT quantizes
BIAS_BITS = 29  # a bias may take, of 31 and a sign: the products are added to it
# Layers without weights that TFMOT's own registry lacks: their outputs are quantized.
OUTPUT_ALONE = ("ELU", "Maximum", "Minimum", "Multiply", "Rescaling", "Subtract")
# Layers whose outputs lie within their inputs' range and have its scale in a .tflite. With a narrower range of their own, as by
# TFMOT's registry, the inputs would be cut off at it.
SAME_SCALE = ("AveragePooling2D", "UpSampling2D")


def quantize_aware(model: keras.Model, *, calibration: np.ndarray | None = None) -> keras.Model:
    """Copy a float model into one that trains and predicts as its 8-bit quantized self (QAT).

    As by TFMOT's `quantize_model`, weights are quantized per channel (depthwise kernels per tensor, TFMOT's only scheme for
    them) and activations per tensor. TFMOT's ranges start at -6..6 and take about a thousand steps to settle; here weight
    ranges start at the weights' own, the input's range is fixed to 0..1 (scale 1/255, zero point -128), and activation ranges
    start, with calibration images, at the mean of their batches' minima and maxima. Layers that TFMOT cannot quantize are
    replaced by others that compute the same, where there are such.

    Args:
        model: functional or sequential tf_keras model of plain layers that takes images in 0..1.
        calibration: training images, uint8 (n, height, width, channels).

    Raises:
        TypeError: a Keras 3 model, or calibration that is not uint8.
        ValueError: an unbuilt, subclassed or nested model, one already quantized or of another precision than float32, or a
            layer that TFMOT has no scheme for, or whose code or activation is the user's own (named).
    """
    functional_model(model, "quantize_aware")
    if is_quantize_aware(model):
        raise ValueError(f"the model {model.name!r} is quantization-aware already; give the float one")
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            raise ValueError(
                f"the layer {layer.name!r} is a model inside the model; TFMOT takes flat ones: build it as one functional model"
            )
    check_plain(model)
    check_copies(model)
    if calibration is not None:
        check_images(calibration, model.input_shape[1:], "calibration")
    quantized = wrap_for_qat(model)
    _initialise_ranges(quantized, calibration)
    return quantized


@in_float32()
def wrap_for_qat(model: keras.Model) -> keras.Model:
    """Copy a float model into TFMOT's quantization wrappers, for weights and ranges that are loaded next.

    Only the input's range is set (0..1, for good); `quantize_aware` is this with checks and with ranges to start from.

    Raises:
        ValueError: a layer TFMOT has no scheme for.
    """
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.quantization.keras.quantizers import FixedQuantizer

    model = quantizable(model)
    try:
        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        quantized = use_native_kernels(tfmot.quantization.keras.quantize_apply(annotated, scheme=_scheme()))
    except (ValueError, RuntimeError) as error:
        for layer in model.layers:
            if not type(layer).__module__.startswith("tf_keras."):
                raise unknown_layer(layer.name, type(layer).__name__, type(layer).__module__) from None
        text = str(error).strip().partition("\n")[0]
        where = [layer.name for layer in model.layers if activation_of(layer) not in ACTIVATIONS]
        text = f"the activations of {', '.join(where)} are none that it knows" if where else text
        raise ValueError(
            f"TFMOT cannot quantize {model.name!r}: {text}; use stock convolutions, dense layers, ReLU, Add and pooling, "
            "BatchNormalization of vectors only right after a dense layer"
        ) from None
    for layer in quantized.layers:
        if is_input_quantizer(layer):
            layer.quantizer = FixedQuantizer(num_bits=8, init_min=0.0, init_max=1.0, narrow_range=False)
            layer.quantizer_vars["min_var"].assign(0.0)
            layer.quantizer_vars["max_var"].assign(1.0)
    return quantized


def _scheme():
    """TFMOT's 8-bit scheme with the layers of OUTPUT_ALONE and SAME_SCALE in its registry."""
    from tensorflow_model_optimization.python.core.quantization.keras import default_8bit

    registry = default_8bit.default_8bit_quantize_registry

    class Registry(registry.Default8BitQuantizeRegistry):
        def __init__(self):
            super().__init__()
            for name in OUTPUT_ALONE:
                layer = getattr(keras.layers, name)
                self._layer_quantize_map[layer] = registry._QuantizeInfo(layer, [], [], True)
            for name in SAME_SCALE:
                layer = getattr(keras.layers, name)
                self._layer_quantize_map[layer] = registry._no_quantize(layer)

    class Scheme(default_8bit.default_8bit_quantize_scheme.Default8BitQuantizeScheme):
        def get_quantize_registry(self):
            return Registry()

    return Scheme()


def is_quantize_aware(model: keras.Model) -> bool:
    """Whether a model came out of TFMOT's `quantize_model`."""
    return any(is_input_quantizer(layer) or is_wrapped(layer) for layer in model.layers)


@contextlib.contextmanager
def with_room_for_biases(model: keras.Model) -> Iterator[None]:
    """Widen for a while, in a quantization-aware model, the scales of filters whose biases would not fit into 32 bits, or are 0.

    A .tflite stores a bias in steps of input scale times filter scale. A filter that weight decay has emptied has weights, and
    so a scale, of nearly 0: its bias would be cut off and the sum overflow. With a wider scale its weights become 0. Biases that
    are all equal, which the converter would store as one number in steps of the first filter, are made to differ in the last bits.
    """
    lows = {w.name: w for w in model.weights if w.name.endswith("_min:0") and "kernel" not in w.name}
    highs = {w.name: w for w in model.weights if w.name.endswith("_max:0")}
    ranges = [float(highs[name.replace("_min:0", "_max:0")].numpy()) - float(low.numpy()) for name, low in lows.items()]
    step = min((width for width in ranges if width > 0), default=1.0) / 255  # the smallest scale that an input may have
    changed = []
    for norm in map(unwrap, model.layers):
        if type(norm).__name__ == "BatchNormalization" and norm.scale and not np.all(gamma := norm.gamma.numpy()):
            changed.append((norm.gamma, gamma))
            norm.gamma.assign(np.where(gamma == 0, 1e-6, gamma))
    for layer in filter(is_wrapped, model.layers):
        for *_, variables in layer._weight_vars:
            gain, bias, shift = _folded(layer)
            if variables["max_var"].shape != gain.shape:
                continue  # of one scale for all filters
            if shift is not None and len(bias) > 1 and bias[0] and not np.ptp(bias):
                changed.append((shift, before := shift.numpy()))
                shift.assign(before + np.append(1e-5 * bias[0], 0 * bias[1:]))
            least = 127 * np.abs(bias) / (np.maximum(np.abs(gain), 1e-12) * step * 2.0**BIAS_BITS)
            limits = np.maximum(variables["max_var"].numpy(), least)
            if (limits > variables["max_var"].numpy()).any():
                changed += [(variable, variable.numpy()) for variable in variables.values()]
                variables["max_var"].assign(limits)
                variables["min_var"].assign(np.minimum(variables["min_var"].numpy(), -limits))
    try:
        yield
    finally:
        for variable, value in changed:
            variable.assign(value)


def _folded(layer) -> tuple[np.ndarray, np.ndarray, tf.Variable | None]:
    """Give the factor of the BatchNorm behind a wrapped layer, the bias of both, float (filters,) each, and what is added last."""
    bare = unwrap(layer)
    bias = bare.bias.numpy() if bare.use_bias else np.zeros(layer.output_shape[-1], np.float32)
    for node in layer.outbound_nodes:
        norm = unwrap(node.layer)
        if type(norm).__name__ == "BatchNormalization":
            gain = (norm.gamma.numpy() if norm.scale else 1) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            total = (bias - norm.moving_mean.numpy()) * gain + (norm.beta.numpy() if norm.center else 0)
            return gain, total, norm.beta if norm.center else None
    return np.ones_like(bias), bias, bare.bias if bare.use_bias else None


def without_softmax(model: keras.Model) -> keras.Model:
    """Cut off the softmax that a float model ends in, sharing the layers before it; without one, return the model itself."""
    last = model.outputs[0]._keras_history.layer
    kind, activation = type(last).__name__, activation_of(last)
    if kind == "Softmax" or (kind, activation) == ("Activation", "softmax"):
        return keras.Model(model.inputs, last.input, name=model.name)
    if activation != "softmax":
        return model
    head = type(last).from_config(last.get_config() | {"activation": "linear"})
    logits = keras.Model(model.inputs, head(last.input), name=model.name)
    head.set_weights(last.get_weights())
    return logits


@in_float32()
def with_softmax(model: keras.Model) -> keras.Model:
    """Put a softmax behind a model's logits, under a name that no layer of it has."""
    name = "softmax"
    while any(layer.name == name for layer in model.layers):
        name += "_"
    return keras.Model(model.inputs, keras.layers.Softmax(name=name)(model.outputs[0]), name=model.name)


def _initialise_ranges(quantized, calibration):
    """Set the weights' ranges to the weights' own and, with images, the activations' ranges to those over the images.

    TFMOT's wrappers take no new quantizers once they are built, so during the forward passes theirs are of other classes.
    """
    from tensorflow_model_optimization.python.core.quantization.keras import quantizers

    records = {}  # range variables, batch minima and maxima of each quantizer of activations

    def record(self, inputs, training, weights, **kwargs):
        _, lows, highs = records.setdefault(id(weights["min_var"]), (weights, [], []))
        lows.append(float(tf.reduce_min(inputs)))
        highs.append(float(tf.reduce_max(inputs)))
        return inputs

    def set_range(self, inputs, training, weights, **kwargs):
        return quantizers.LastValueQuantizer.__call__(self, inputs, True, weights, **kwargs)

    if calibration is None:
        shape = [1 if d is None else d for d in quantized.input_shape]
        batches = [tf.zeros(shape)]
    else:
        starts = range(0, len(calibration), CALIBRATION_BATCH)
        batches = (to_float(calibration[start : start + CALIBRATION_BATCH]) for start in starts)
    originals = {id(q): (q, type(q)) for q in _quantizers(quantized)}
    try:
        for quantizer, original in originals.values():
            if issubclass(original, quantizers.MovingAverageQuantizer):
                quantizer.__class__ = type("Recording", (original,), {"__call__": record})
            elif issubclass(original, quantizers.LastValueQuantizer):
                quantizer.__class__ = type("Ranging", (original,), {"__call__": set_range})
        for batch in batches:
            quantized(batch, training=False)
    finally:
        for quantizer, original in originals.values():
            quantizer.__class__ = original
    if calibration is not None:
        for variables, lows, highs in records.values():  # TFLite's ranges contain zero
            variables["min_var"].assign(min(0.0, sum(lows) / len(lows)))
            variables["max_var"].assign(max(0.0, sum(highs) / len(highs)))


def _quantizers(model):
    """Every quantizer object of a quantize-wrapped model."""
    for layer in model.layers:
        if is_input_quantizer(layer):
            yield layer.quantizer
        for activation in getattr(layer, "_quantize_activations", ()):
            yield activation.quantizer
        yield from getattr(layer, "_output_quantizers", None) or ()
        for _, quantizer, _ in getattr(layer, "_weight_vars", ()):
            yield quantizer
