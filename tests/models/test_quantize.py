import warnings

import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.models.quantize import is_quantize_aware
from factorizenet_tf.models.weights import load_model, save_weights


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
    for name, kind in (
        ("stem_relu6", "output"),
        ("stage2_block2_pointwise_relu6", "output"),
        ("logits", "post_activation"),
    ):
        inner = keras.Model(models.float.input, models.float.get_layer(name).output)
        batches = np.split(logits(inner, digits.calibration(256)), 2)  # 128 images each
        low, high = np.mean([batch.min() for batch in batches]), np.mean([batch.max() for batch in batches])
        found = [range_of(fresh, f"quant_{name}/{kind}_{end}") for end in ("min", "max")]
        np.testing.assert_allclose(found, [min(0, low), high], atol=0.05 * (high - low))  # weights were rounded
    kernel = models.float.get_layer("stem").get_weights()[0]
    found = next(v.numpy() for v in fresh.variables if v.name.startswith("quant_stem/kernel_max"))
    np.testing.assert_allclose(found, np.abs(kernel).max((0, 1, 2)), rtol=1e-5)


def test_quantized_weights_survive_a_file_exactly(models, spec, tmp_path):
    save_weights(models.qat, tmp_path / "qat.h5", spec=spec, precision="int8")
    again = load_model(tmp_path / "qat.h5")
    assert is_quantize_aware(again)
    for a, b in zip(models.qat.variables, again.variables):  # ranges included
        np.testing.assert_array_equal(a, b)


def test_a_keras_3_model_is_refused_with_the_remedy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras 3's own, of no concern here
        import keras as keras3

        model = keras3.Sequential([keras3.Input((4, 4, 1)), keras3.layers.Flatten(), keras3.layers.Dense(2)])
    with pytest.raises(TypeError, match=r"Keras 3 model .*import tf_keras"):
        fnet.quantize_aware(model)


def flat(*layers):
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


def test_nested_subclassed_unbuilt_and_unsupported_models_are_refused():
    inner = flat(keras.layers.Conv2D(2, 3))
    with pytest.raises(ValueError, match="is a model inside the model"):
        fnet.quantize_aware(flat(inner, keras.layers.Flatten(), keras.layers.Dense(2)))

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="subclassed model"):
        fnet.quantize_aware(Own())
    with pytest.raises(ValueError, match="unbuilt model"):
        fnet.quantize_aware(keras.Sequential([keras.layers.Dense(2)]))
    alone = flat(keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"TFMOT cannot quantize .*BatchNormalization only right after"):
        fnet.quantize_aware(alone)
    doubling = flat(keras.layers.Lambda(lambda x: 2 * x), keras.layers.Flatten(), keras.layers.Dense(2))
    with pytest.raises(ValueError, match="Lambda"):
        fnet.quantize_aware(doubling)
    with pytest.raises(TypeError, match="got str; it needs"):
        fnet.quantize_aware("model.h5")


def test_a_quantized_model_or_calibration_that_does_not_fit_is_refused(models, noise):
    with pytest.raises(ValueError, match="quantization-aware already"):
        fnet.quantize_aware(models.qat)
    with pytest.raises(TypeError, match="calibration has dtype float32"):
        fnet.quantize_aware(models.float, calibration=noise(2).astype(np.float32))
    with pytest.raises(ValueError, match="the model takes"):
        fnet.quantize_aware(models.float, calibration=noise(2, (8, 8, 1)))
