"""What several tests of .tflite files need."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras


@pytest.fixture(scope="session")
def content(run):
    """The bytes of the run's int8 .tflite."""
    return (run.folder / "model.tflite").read_bytes()


@pytest.fixture(scope="session")
def foreign():
    """A dense layer converted by TensorFlow alone, its input's range -1..3."""
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    function = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((1, 4, 4, 1)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=(16, 3)) / 4, np.zeros(3)])
    samples = [np.linspace(-1, 3, 16).reshape(1, 4, 4, 1), *random.random((50, 1, 4, 4, 1))]
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: [[sample.astype(np.float32)] for sample in samples]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return model, converter.convert()
