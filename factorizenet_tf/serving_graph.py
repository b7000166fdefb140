"""The TensorFlow graph that a server runs: preprocessing, net, probabilities, class."""

from __future__ import annotations

from collections.abc import Sequence

from ._keras import keras, tf
from .augmentation import to_float
from .grouped import in_fewer_groups, inference_kernels

__all__ = ["serving_module"]


def serving_module(model: keras.Model, labels: Sequence[str]) -> tuple[tf.Module, dict]:
    """A module and its signatures for `tf.saved_model.save`.

    `serving_default`: `image` uint8 (batch, height, width, channels). `serving_bytes`: `image_bytes`, strings (batch,)
    that are PNG or JPEG files of any size, decoded and resized (bilinear, antialiased). Both give `logits` and
    `probabilities` float32 (batch, classes), `class_id` int64 (batch,) and `class_name`, strings (batch,).

    Args:
        model: tf_keras model, images in 0..1 in, logits out. Its weights become constants, so that TensorFlow fuses
            convolution, BatchNorm and activation; grouped convolutions run TensorFlow's kernels, not XLA's.
        labels: class names by number.
    """
    height, width, channels = model.input_shape[1:]
    image = tf.TensorSpec((None, height, width, channels), tf.uint8, name="image")
    module = tf.Module()
    net = _with_constants(in_fewer_groups(model), image)

    def classify(image):
        image = tf.ensure_shape(image, (None, height, width, channels))  # a C++ session takes any shape
        (logits,) = net(image)
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

    module.classify = tf.function(classify, input_signature=[image])
    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    module.classify_bytes = tf.function(classify_bytes, input_signature=[strings])
    return module, {"serving_default": module.classify, "serving_bytes": module.classify_bytes}


def _with_constants(model, image):
    """A function of a batch of uint8 images that gives [logits], the model's weights constants in its graph."""
    # No public name has it; TensorFlow's own converter takes it from there.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    def logits(image):
        return tf.cast(model(to_float(image), training=False), tf.float32)

    with inference_kernels(model):
        function = tf.function(logits, input_signature=[image]).get_concrete_function()
    return convert_variables_to_constants_v2(function)
