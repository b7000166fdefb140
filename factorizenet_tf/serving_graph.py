"""The TensorFlow graph that a server runs: preprocessing, net, probabilities, class."""

from __future__ import annotations

from collections.abc import Sequence

from ._keras import keras, tf
from .augmentation import to_float
from .grouped import use_native_kernels

__all__ = ["serving_module"]


def serving_module(model: keras.Model, labels: Sequence[str]) -> tuple[tf.Module, dict]:
    """A module and its signatures for `tf.saved_model.save`.

    `serving_default`: `image` uint8 (batch, height, width, channels). `serving_bytes`: `image_bytes`, strings (batch,)
    that are PNG or JPEG files of any size, decoded and resized (bilinear, antialiased). Both give `logits` and
    `probabilities` float32 (batch, classes), `class_id` int64 (batch,) and `class_name`, strings (batch,).

    Args:
        model: tf_keras model, images in 0..1 in, logits out. Grouped convolutions run TensorFlow's kernels, not XLA's.
        labels: class names by number.
    """
    use_native_kernels(model)
    height, width, channels = model.input_shape[1:]
    module = tf.Module()
    module.variables_used = model.variables

    def classify(image):
        logits = tf.cast(model(to_float(image), training=False), tf.float32)
        chosen = tf.argmax(logits, axis=-1)
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "class_id": chosen,
            "class_name": tf.gather(tf.constant(list(labels)), chosen),
        }

    def decode(content):
        image = tf.io.decode_image(content, channels=channels, expand_animations=False)
        resized = tf.image.resize(image, (height, width), antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)

    def classify_bytes(image_bytes):
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec((height, width, channels), tf.uint8))
        return classify(images)

    image = tf.TensorSpec((None, height, width, channels), tf.uint8, name="image")
    module.classify = tf.function(classify, input_signature=[image])
    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    module.classify_bytes = tf.function(classify_bytes, input_signature=[strings])
    return module, {"serving_default": module.classify, "serving_bytes": module.classify_bytes}
