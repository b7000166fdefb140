"""Which Keras the package uses, decided once: tf_keras (Keras 2), the only one that TFMOT accepts.

`tf.keras` is Keras 2 or 3 depending on what was imported first, so nothing here touches it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf
import tf_keras as keras

__all__ = ["functional_model", "keras", "tf", "to_float"]


def functional_model(model: object, what: str) -> keras.Model:
    """`model` where it is a built functional or sequential tf_keras model.

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
                f"{what} got a Keras 3 model ({type(model).__name__}); TFMOT needs a tf_keras one: build it with "
                "`import tf_keras`, or set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported"
            )
        raise TypeError(f"{what} got {type(model).__name__}; it needs a tf_keras.Model")
    if not (isinstance(model, keras.Sequential) or getattr(model, "_is_graph_network", False)):
        raise ValueError(f"{what} got the subclassed model {model.name!r}; it needs a functional or sequential one")
    if not model.built or not model.inputs:
        raise ValueError(f"{what} got the unbuilt model {model.name!r}; give its first layer an input shape")
    return model


def to_float(images):
    """uint8 images of any shape to float32 in 0..1, what every net here takes."""
    return tf.cast(images, tf.float32) * (1 / 255)
