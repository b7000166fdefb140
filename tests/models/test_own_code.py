"""Models that TFMOT and the factorization cannot copy or compute in float32, as objects."""

import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf._keras import tf
from factorizenet_tf.loading import resolve

layers = keras.layers


def net(*middle):
    convolutions = [layers.Conv2D(4, 3, padding="same"), layers.Conv2D(8, 3, padding="same", activation="relu")]
    return keras.Sequential([keras.Input((8, 8, 1)), *convolutions, *middle, layers.Flatten(), layers.Dense(3)])


def operations():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3)(layers.Conv2D(4, 3)(image)) * 2.0 + 1.0
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))


class Mine(layers.Layer):
    """A layer of one's own, which Keras can copy where its argument is a number."""

    def __init__(self, times, **options):
        super().__init__(**options)
        self.times = times

    def call(self, x):
        return x * self.times


def doubled(x):
    return tf.nn.relu(2 * x)


@pytest.mark.parametrize("use", [fnet.quantize_aware, lambda model: fnet.factorize(model, 1)])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (operations, r"the layer 'tf\.math\.multiply\S*' is a TFOpLambda, .*replace it by a stock layer, such as Resc"),
        (lambda: net(layers.Lambda(lambda x: x, name="code")), "the layer 'code' is a Lambda, whose code is not run"),
        (
            lambda: net(layers.Activation(tf.math.sin, name="wave")),
            "the layer 'wave' has the activation 'sin', .*; use a",
        ),
        (lambda: net(layers.Conv2D(4, 3, activation=doubled, name="c")), "the layer 'c' has the activation 'doubled'"),
        (lambda: net(layers.Conv2D(4, 3, activation=lambda x: x, name="c")), "'c' has the activation '<lambda>'"),
        (
            lambda: net(Mine(np.ones(8), name="own")),
            "the layer 'own' is a Mine, which cannot be copied .*; use a stock one",
        ),
    ],
)
def test_what_is_of_the_users_own_code_is_refused_in_a_line_by_its_layers_name(use, make, message):
    with pytest.raises(ValueError, match=message) as found:
        use(make())
    assert "\n" not in str(found.value)


def test_a_layer_of_ones_own_that_keras_can_copy_is_factorized_around_and_named_by_qat():
    model = net(Mine(2, name="own"))
    assert "conv2d" in fnet.factorize(model, 1).layers[1].name
    with pytest.raises(ValueError, match="the layer 'own' is a Mine of test_own_code, which cannot be rebuilt"):
        fnet.quantize_aware(model)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16", "float64"])
def policy(request):
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


def test_another_precision_becomes_float32_where_a_model_is_taken_in_and_is_else_refused(policy, tmp_path):
    model = net()  # and the policy stays, as in a process that trained it
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    for use in (
        fnet.quantize_aware,
        lambda model: fnet.to_tflite(model, calibration=images),
        lambda model: fnet.factorize(model, 1),
    ):
        with pytest.raises(
            ValueError, match=r"the layer 'conv2d\S*' of .* computes in b?float.*from_keras3\(model\) makes"
        ):
            use(model)
    for name in ("own.keras", "own.h5", "own"):
        model.save(tmp_path / name)
        taken = resolve(tmp_path / name).model()
        assert {layer.compute_dtype for layer in taken.layers} == {"float32"}
        np.testing.assert_array_equal(taken.get_weights()[0], np.float32(model.get_weights()[0]))
    taken = resolve(model).model()
    factorized = fnet.factorize(taken, 1, calibration=images)
    quantized = fnet.quantize_aware(factorized, calibration=images)
    assert {layer.compute_dtype for layer in (*factorized.layers, *quantized.layers)} == {"float32"}
    assert fnet.Int8Model(fnet.to_tflite(quantized)).predict(images).shape == (16, 3)
    assert fnet.Int8Model(fnet.to_tflite(taken, calibration=images)).predict(images).shape == (16, 3)
    assert fnet.build(fnet.ModelSpec(1, width=8)).compute_dtype == "float32"
    assert keras.mixed_precision.global_policy().name == policy
