import warnings

import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.models.quantize import with_softmax, without_softmax
from factorizenet_tf.training import quantize as quantize_module
from factorizenet_tf.training.quantize import quantize_own


@pytest.fixture(scope="module")
def once():
    """A recipe of one QAT epoch."""
    return fnet.recipe_for("digits", epochs=1, qat_epochs=1, calibration_images=64)


def test_qat_killed_after_an_epoch_goes_on_learns_and_its_tflite_is_what_was_measured(own_net, digits, tmp_path):
    recipe = fnet.recipe_for("digits", qat_epochs=2, qat_learning_rate=0.1, calibration_images=64)
    keras.utils.set_random_seed(0)
    model = own_net(keras.layers.Flatten())
    before = model.get_weights()

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    options = {"out": tmp_path / "out", "recipe": recipe, "verbose": False}
    with pytest.raises(KeyboardInterrupt):
        quantize_own(model, digits, callbacks=[Kill()], **options)
    first = (tmp_path / "out" / "history.csv").read_text()
    metrics = quantize_own(model, digits, **options)
    history = (tmp_path / "out" / "history.csv").read_text()
    assert (first.count("\n"), history.count("\n"), history.startswith(first)) == (2, 3, True)
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)
    test = metrics["accuracy"]["test"]
    assert test["tflite"] > test["float"] + 0.1  # the float model is untrained
    int8 = fnet.Int8Model(tmp_path / "out" / "model.tflite")
    assert fnet.accuracy(int8, digits.test) == test["tflite"]
    assert int8.labels == digits.class_names
    assert (int8.input_quantization[0], int8.input_quantization[1]) == (pytest.approx(1 / 255), -128)
    assert metrics["macs"] == 9 * 8 * 49 + 8 * 49 * 10  # 3x3 from 1 to 8 channels at 7x7, then a dense layer
    assert metrics["params"] == fnet.count_params(model)
    assert metrics["operators"] == sorted(set(int8.operators))
    assert int8.tensor_types <= {"int8", "int32"}


def test_ptq_keeps_the_models_accuracy_and_per_tensor_has_one_scale_a_tensor(models, digits, once, tmp_path):
    sizes = []
    for method in ("ptq", "ptq-per-tensor"):
        metrics = quantize_own(models.float, digits, out=tmp_path / method, method=method, recipe=once, verbose=False)
        accuracy = metrics["accuracy"]["test"]
        assert accuracy["tflite"] == pytest.approx(accuracy["float"], abs=0.03)
        sizes.append(metrics["size_bytes"])
    assert sizes[1] < sizes[0]  # fewer scales


def test_a_softmax_is_cut_for_qat_and_put_back(own_net, digits, once, tmp_path):
    float_model = own_net()
    for number, end in enumerate((keras.layers.Softmax(), keras.layers.Activation("softmax"))):
        model = keras.Model(float_model.inputs, end(float_model.outputs[0]))
        assert without_softmax(model).outputs[0] is float_model.outputs[0], number
    assert without_softmax(float_model) is float_model
    inner = own_net(keras.layers.Softmax(name="softmax"), keras.layers.Flatten())
    assert with_softmax(inner).layers[-1].name == "softmax_"  # Keras's automatic name is one of the net's
    model = own_net(activation="softmax")
    metrics = quantize_own(model, digits, out=tmp_path / "out", recipe=once, verbose=False)
    assert metrics["operators"][-1] == "SOFTMAX"
    assert set(metrics["tensor_types"]) == {"int8", "int32"}
    assert set(metrics["accuracy"]["test"]) == {"float", "qat", "tflite"}
    assert metrics["agreement"]["top1"] > 0.97
    sums = fnet.Int8Model(tmp_path / "out" / "model.tflite").predict(digits.test.images[:20]).sum(1)
    np.testing.assert_allclose(sums, 1, atol=0.03)


def test_a_folder_of_other_work_is_left_and_a_new_one_is_free_again_where_nothing_came_of_it(
    own_net, digits, once, tmp_path, monkeypatch
):
    def quantize(model, method="ptq"):
        quantize_own(model, digits, out=tmp_path / "out", method=method, recipe=once, verbose=False)

    ends_in_softmax, float_model = own_net(activation="softmax"), own_net()
    float_model.set_weights([values + 0.01 for values in float_model.get_weights()])
    with monkeypatch.context() as patch:
        patch.setattr(quantize_module, "to_tflite", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantize(float_model)
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        with pytest.raises(ZeroDivisionError):
            quantize(float_model)
    assert list((tmp_path / "out").iterdir()) == []  # it was there, and is
    quantize(ends_in_softmax)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"spec\.weights: the folder has \w+"):
        quantize(float_model)
    with pytest.raises(ValueError, match=r"spec\.method: the folder has ptq, you gave ptq-per-tensor"):
        quantize(ends_in_softmax, "ptq-per-tensor")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_tflite_that_differs_and_an_accuracy_that_falls_are_said_with_the_remedy(own_net):
    model = own_net()
    kernel, bias = model.layers[0].get_weights()
    kernel[..., 2:] = 0
    model.layers[0].set_weights([kernel, bias])

    def said(*changes):
        metrics = {"method": "qat", "accuracy": {"validation": {"float": 0.9, "tflite": 0.89}}}
        metrics["agreement"] = {"top1": 0.99, "within_1_lsb": 0.9, "largest_lsb": 3}
        for place, values in changes:
            metrics[place] |= values
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quantize_module._warn(metrics, model)
        return " ".join(str(warning.message) for warning in caught)

    assert said() == ""
    assert said(("agreement", {"top1": 0.97, "within_1_lsb": 0.99})) == ""  # of many classes one step decides
    assert "on 97.0 % of the images" in said(("agreement", {"top1": 0.97}))
    differs = said(("agreement", {"largest_lsb": 148}))
    assert f"148 steps apart; filters of zeros in {model.layers[0].name} leave no scale for their biases" in differs
    falls = said(("accuracy", {"validation": {"float": 0.9, "tflite": 0.88}}))
    assert "fell from 90.0 % in float to 88.0 % in int8; try a lower qat_learning_rate" in falls


def test_arguments_that_do_not_fit_are_refused_with_what_would(models, digits, once, noise, tmp_path):
    larger = fnet.load_dataset((noise(20, (20, 20, 1)), np.arange(20) % 10))
    for model, data, method, message in (
        (models.float, digits, "int4", "method is 'int4'; it must be one of qat, ptq, ptq-per-tensor"),
        (models.qat, digits, "qat", "quantization-aware already; give the float one"),
        (models.int8, digits, "qat", "got Int8Model"),
        (models.float, larger, "qat", r"the images are \(20, 20, 1\), the net takes \(16, 16, 1\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            quantize_own(model, data, out=tmp_path / "out", method=method, recipe=once, verbose=False)
    assert not (tmp_path / "out").exists()
