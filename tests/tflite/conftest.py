"""What several tests of .tflite files need."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras


@pytest.fixture(scope="session")
def content(run):
    """The bytes of the run's int8 .tflite."""
    return (run.folder / "model.tflite").read_bytes()


def dense_file(low, high, kind=tf.int8, batch=1, classes=3, largest=1, io=None):
    """A dense layer converted by TensorFlow alone, its input's range low..high and its type `kind`, or `io` outside."""
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)])
    function = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((batch, 4, 4, 1)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=(16, classes)) / 4, np.zeros(classes)])
    samples = [np.linspace(low, high, 16).reshape(1, 4, 4, 1), *(largest * random.random((50, 1, 4, 4, 1)))]
    if kind != tf.float32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: [[np.repeat(s, batch, 0).astype(np.float32)] for s in samples]
        kinds = tf.lite.OpsSet
        is_16 = kind == tf.int16
        converter.target_spec.supported_ops = [
            kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8 if is_16 else kinds.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = io or kind
    return model, converter.convert()


@pytest.fixture(scope="session")
def around_0():
    """An int8 file whose pixels lie in -1..1, and its model."""
    return dense_file(-1, 1)


@pytest.fixture(scope="session")
def foreign():
    return dense_file(-1, 3)


@pytest.fixture(scope="session")
def theirs():
    """Files of others by what their pixels are: (model, content), each of another type and batch size."""
    return {
        "0..255": dense_file(0, 255, tf.int8, batch=2, classes=10, largest=255),
        "-1..1": dense_file(-1, 1, tf.uint8, batch=3, classes=10),
        "0..1": dense_file(0, 1, tf.float32, batch=1, classes=10),
    }


@pytest.fixture(scope="session")
def of_floats():
    """Makes a file of inner type `kind` for pixels in -1..1 that takes and gives floats, or `io`, and its model."""
    return lambda kind, io=tf.float32: dense_file(-1, 1, kind, io=io)
