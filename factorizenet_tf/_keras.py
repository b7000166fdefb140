"""Which Keras the package uses, decided once: tf_keras (Keras 2), the only one that TFMOT accepts.

`tf.keras` is Keras 2 or 3 depending on what was imported first, so nothing here touches it. What TFMOT puts around layers
is undone here, too.

Private names of libraries that the package touches, with the version they were read from:

* tf_keras 2.21: `Conv2D._jit_compiled_convolution_op` (models.native), `Model._nodes_by_depth` (here),
  `Model._is_graph_network` (here), the packages of `tf_keras.src.layers` (cost), and of `tf_keras.src.saving`
  `hdf5_format.save_weights_to_hdf5_group` (models.weights), its `load_weights_from_hdf5_group`,
  `serialization_lib.ObjectSharingScope` and what a SavedModel's keras_metadata.pb holds (models.tf_keras_file).
* Keras 3.15: a functional model's `_nodes_by_depth` (here) and a Sequential's `_functional` (models.keras3).
* TFMOT 0.8.1: the wrappers' `_weight_vars`, `_quantize_activations`, `_output_quantizers`, `_output_quantizer_vars` and
  `quantizer_vars`, an activation's `_pre_activation_vars` and `_post_activation_vars` (models.quantize, analysis.graph),
  `python.core.quantization.keras.quantizers`, `default_8bit`'s scheme, and its registry's `_layer_quantize_map` and
  `_QuantizeInfo` (models.quantize).
* TensorFlow 2.21: `TFLiteConverter._experimental_disable_per_channel` (models.convert).
* ai-edge-litert 2.3: `Interpreter._get_ops_details` (tflite.int8_model, analysis.tables).
"""

import contextlib
import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what fails is raised; its lines are of CUDA that is not there
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from .console import quiet_native_stderr

with quiet_native_stderr():  # the C++ side's start-up notices come before it reads any log level
    import tensorflow as tf
import tf_keras as keras

__all__ = ["flat_nodes", "functional_model", "in_float32", "is_input_quantizer", "is_wrapped", "keras", "nodes_of"]
__all__ += ["quiet_notices", "tf", "to_float", "unwrap"]


@contextlib.contextmanager
def quiet_notices() -> Iterator[None]:
    """Silence what TensorFlow's Python side logs below errors within the block: temporary files, how to trace functions."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Within the block, or the function that it decorates, new layers compute in float32, whatever policy Keras has."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def functional_model(model: object, what: str) -> keras.Model:
    """Return the model if it is a built functional or sequential tf_keras one, and raise otherwise.

    Args:
        model: what the caller passed.
        what: the caller's name in the message, e.g. "quantize_aware".

    Raises:
        TypeError: it is a Keras 3 model or no model at all.
        ValueError: it is not built, or not made of a graph of layers.
    """
    if not isinstance(model, keras.Model):
        if type(model).__module__.startswith("keras."):
            raise TypeError(
                f"{what} got a Keras 3 model ({type(model).__name__}); TFMOT needs a tf_keras one: "
                "factorizenet_tf.from_keras3(model) makes it"
            )
        raise TypeError(f"{what} got {type(model).__name__}; it needs a tf_keras.Model")
    if not (isinstance(model, keras.Sequential) or getattr(model, "_is_graph_network", False)):
        raise ValueError(f"{what} got the subclassed model {model.name!r}; it needs a functional or sequential one")
    if not model.built or not model.inputs:
        raise ValueError(f"{what} got the unbuilt model {model.name!r}; give its first layer an input shape")
    return model


def nodes_of(model) -> list:
    """List the nodes of a functional model of either Keras, inputs first."""
    return [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]


def flat_nodes(model: object, what: str) -> list:
    """List the nodes of a flat model of one input and one output, inputs first; arguments as for `functional_model`.

    Raises:
        TypeError, ValueError: as `functional_model`; several inputs or outputs, a model inside it, channels_first.
    """
    functional_model(model, what)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        has = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
        raise ValueError(f"the model {model.name!r} has {has}; {what} takes one of each")
    nodes = nodes_of(model)
    for layer in (unwrap(node.layer) for node in nodes):
        if isinstance(layer, keras.Model):
            raise ValueError(f"the layer {layer.name!r} is a model inside the model; build it as one functional model")
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(f"the layer {layer.name!r} is channels_first; build the model with channels_last")
    return nodes


def to_float(images):
    """Turn uint8 images of any shape into float32 in 0..1, what every net here takes."""
    return tf.cast(images, tf.float32) * (1 / 255)


def is_wrapped(layer: keras.layers.Layer) -> bool:
    """Whether TFMOT wrapped the layer to quantize its weights or its output."""
    return type(layer).__name__ in ("QuantizeWrapper", "QuantizeWrapperV2")


def is_input_quantizer(layer: keras.layers.Layer) -> bool:
    """Whether TFMOT put the layer behind a model's input to quantize it."""
    return type(layer).__name__ == "QuantizeLayer"


def unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Give the layer inside TFMOT's wrapper, or the layer itself."""
    return layer.layer if is_wrapped(layer) else layer
