import warnings

import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.models.evaluate import agreement
from factorizenet_tf.models.quantize import is_quantize_aware


def logits(model, images):
    return model.predict(images / np.float32(255), verbose=0)


def input_range(model):
    variables = next(layer for layer in model.layers if type(layer).__name__ == "QuantizeLayer").quantizer_vars
    return float(variables["min_var"].numpy()), float(variables["max_var"].numpy())


def range_of(model, name):
    return next(float(v.numpy()) for v in model.variables if v.name.startswith(name))


@pytest.fixture(scope="module")
def fresh(models, digits):
    """The float model quantized, its ranges from 256 images."""
    before = models.float.get_weights()
    quantized = fnet.quantize_aware(models.float, calibration=digits.calibration(256))
    assert not is_quantize_aware(models.float)
    for a, b in zip(before, models.float.get_weights()):
        np.testing.assert_array_equal(a, b)
    return quantized


def test_with_calibration_a_fresh_quantized_model_predicts_as_the_float_one(models, fresh, digits):
    expected, found = logits(models.float, digits.test.images), logits(fresh, digits.test.images)
    assert np.mean(expected.argmax(1) == found.argmax(1)) > 0.97
    assert np.abs(expected - found).mean() < 0.05 * np.abs(expected).max()


def test_ranges_come_from_the_data_and_the_inputs_is_fixed(models, fresh, digits):
    assert input_range(fresh) == input_range(models.qat) == (0, 1)
    kinds = {"stem_relu6": "output", "stage2_block2_pointwise_relu6": "output", "logits": "post_activation"}
    for name, kind in kinds.items():
        inner = keras.Model(models.float.input, models.float.get_layer(name).output)
        batches = np.split(logits(inner, digits.calibration(256)), 2)  # 128 images each
        low, high = np.mean([batch.min() for batch in batches]), np.mean([batch.max() for batch in batches])
        found = [range_of(fresh, f"quant_{name}/{kind}_{end}") for end in ("min", "max")]
        np.testing.assert_allclose(found, [min(0, low), high], atol=0.05 * (high - low))  # weights were rounded
    kernel = models.float.get_layer("stem").get_weights()[0]
    found = next(v.numpy() for v in fresh.variables if v.name.startswith("quant_stem/kernel_max"))
    np.testing.assert_allclose(found, np.abs(kernel).max((0, 1, 2)), rtol=1e-5)


def test_models_and_calibration_that_cannot_be_quantized_are_refused_with_the_remedy(models, noise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras 3's own, of no concern here
        import keras as keras3

        of_keras_3 = keras3.Sequential([keras3.Input((4, 4, 1)), keras3.layers.Flatten(), keras3.layers.Dense(2)])

    def flat(*layers):
        ends = [keras.layers.Flatten(), keras.layers.Dense(2)]
        return keras.Sequential([keras.Input((8, 8, 1)), *layers, *ends], name="flat")

    inner = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    own = type("Own", (keras.Model,), {"call": lambda self, x: x})
    for model, options, message in (
        (of_keras_3, {}, r"Keras 3 model .*from_keras3\(model\) makes it"),
        (flat(inner), {}, "is a model inside the model"),
        (own(), {}, "subclassed model"),
        (keras.Sequential([keras.layers.Dense(2)]), {}, "unbuilt model"),
        (
            flat(keras.layers.Flatten(), keras.layers.BatchNormalization()),
            {},
            "TFMOT cannot quantize .*only right after",
        ),
        (
            flat(keras.layers.Lambda(lambda x: 2 * x, name="code")),
            {},
            "the layer 'code' is a Lambda, whose code is not",
        ),
        ("model.h5", {}, "got str; it needs"),
        (models.qat, {}, "quantization-aware already"),
        (models.float, {"calibration": noise(2).astype(np.float32)}, "calibration has dtype float32"),
        (models.float, {"calibration": noise(2, (8, 8, 1))}, "the model takes"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fnet.quantize_aware(model, **options)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_filter_that_training_emptied_answers_in_int8_as_it_does_in_keras(sign, digits):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )
    kernel, gamma, beta, *statistics = model.layers[0].get_weights() + model.layers[1].get_weights()
    kernel[..., 0], kernel[..., 1], beta[:2] = 1e-9, -3e-8, sign  # biases of 10**11 steps
    model.layers[0].set_weights([kernel])
    model.layers[1].set_weights([gamma, beta, *statistics])
    images = digits.train.images[:64]
    aware = fnet.quantize_aware(model, calibration=images)
    before = aware.get_weights()
    found = agreement(aware, fnet.Int8Model(fnet.to_tflite(aware)), images)
    assert found.largest_lsb <= 2
    assert all((a == b).all() for a, b in zip(before, aware.get_weights()))
