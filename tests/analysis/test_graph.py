import numpy as np
import pytest
import tf_keras as keras

from factorizenet_tf.analysis.graph import by_channel, fuse

layers = keras.layers


def test_operations_are_those_of_the_tflite(models):
    graph = fuse(models.float)
    assert graph.operations[0].kind == "input"
    assert len(graph.operations) - 1 == len(models.int8.operators)
    assert [op.kind for op in graph.kernels][:3] == ["conv", "grouped", "pointwise"]
    assert [op.groups for op in graph.kernels][:3] == [1, 2, 1]
    assert [op.name for op in graph.operations][-3:] == ["stage2_block2_pointwise", "pool", "logits"]


def test_channels_of_a_depthwise_kernel_are_its_inputs_times_the_multiplier():
    kernel = np.arange(2 * 2 * 3 * 2, dtype=np.float32).reshape(2, 2, 3, 2)
    rows = by_channel(kernel, "depthwise")
    assert rows.shape == (4, 6)
    np.testing.assert_array_equal(rows[:, 5], kernel[:, :, 2, 1].reshape(-1))
    assert by_channel(kernel, "conv").shape == (12, 2)


def test_what_a_batchnorm_alone_or_a_shared_layer_does_is_kept():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((2, 2, 1))
    x = layers.BatchNormalization(name="alone")(inputs)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dropout(0.5)(layers.LeakyReLU(name="leaky")(shared(x)))
    model = keras.Model(inputs, layers.Activation("tanh", name="end")(shared(x)))
    graph = fuse(model)
    names = [op.name for op in graph.operations]
    assert names.count("shared") == 1
    assert "shared@2" in names
    assert {op.name: op.kind for op in graph.operations}["alone"] == "other"
    assert not {op.name: op.is_quantized for op in graph.operations}["flat"]


def flat(*body):
    return keras.Sequential([keras.Input((8, 8, 1)), *body])


def two_outputs():
    inputs = keras.Input((4, 4, 1))
    return keras.Model(inputs, [layers.Flatten()(inputs), layers.ReLU()(inputs)])


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: flat(flat(layers.Conv2D(2, 3)), layers.Flatten()), ValueError, "is a model inside the model"),
        (lambda: flat(layers.SeparableConv2D(2, 3, name="split")), ValueError, "'split' is a SeparableConv2D"),
        (lambda: flat(layers.Conv2D(2, 1, data_format="channels_first")), ValueError, "is channels_first"),
        (lambda: keras.Sequential([layers.Dense(2)]), ValueError, "unbuilt"),
        (two_outputs, ValueError, "1 inputs and 2 outputs"),
        (lambda: "model.h5", TypeError, r"needs a tf_keras\.Model"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(model, error, message):
    with pytest.raises(error, match=message):
        fuse(model())
