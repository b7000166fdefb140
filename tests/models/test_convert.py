import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet

DARK = np.full((8, 16, 16, 1), 20, np.uint8)


@pytest.fixture(scope="module")
def ptq(models, digits):
    calibration = digits.calibration(128)
    return {
        per_channel: fnet.Int8Model(fnet.to_tflite(models.float, calibration=calibration, per_channel=per_channel))
        for per_channel in (True, False)
    }


def pinned(model):
    scale, zero_point = model.input_quantization
    return scale == pytest.approx(1 / 255, rel=1e-6) and zero_point == -128


def test_the_inputs_quantization_is_pinned_whatever_the_data(models, spec, ptq):
    assert pinned(models.int8)
    assert pinned(ptq[True])
    assert pinned(ptq[False])
    assert pinned(fnet.Int8Model(fnet.to_tflite(models.float, calibration=DARK)))
    assert pinned(fnet.Int8Model(fnet.to_tflite(fnet.quantize_aware(models.float, calibration=DARK))))
    assert (DARK == 20).all()  # the caller's images stay theirs


def test_all_tensors_are_integers(models, ptq):
    for model in (models.int8, *ptq.values()):
        assert model.tensor_types == {"int8", "int32"}


def test_per_channel_has_a_scale_a_filter_and_per_tensor_one(ptq):
    def scales(model):
        tensors = model._plain().get_tensor_details()
        return max(len(t["quantization_parameters"]["scales"]) for t in tensors)

    assert scales(ptq[True]) == 32
    assert scales(ptq[False]) == 1


def test_after_training_quantization_is_about_as_accurate(models, ptq, digits):
    base = fnet.accuracy(models.float, digits.test)
    assert base > 0.9
    for model in ptq.values():
        assert abs(fnet.accuracy(model, digits.test) - base) < 0.03


def test_groups_become_one_convolution_and_depthwise_its_own_operator(models):
    assert models.int8.operators.count("CONV_2D") == 7
    spec = fnet.ModelSpec(3, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    depthwise = fnet.Int8Model(fnet.to_tflite(fnet.build(spec), calibration=DARK))
    assert depthwise.operators.count("DEPTHWISE_CONV_2D") == 1


def test_the_same_model_gives_the_same_bytes(models):
    assert fnet.to_tflite(models.qat, labels="0123456789") == fnet.to_tflite(models.qat, labels="0123456789")


def test_the_cost_table_has_the_bytes_of_the_file(models, spec):
    plain = models.int8._plain()
    sizes = {t["index"]: np.dtype(t["dtype"]).itemsize * int(np.prod(t["shape"])) for t in plain.get_tensor_details()}
    operators = [op for op in plain._get_ops_details() if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
    table = fnet.cost_table(spec)
    assert [sizes[op["inputs"][1]] + sizes[op["inputs"][2]] for op in operators] == table.weight_bytes.tolist()
    assert [sizes[op["outputs"][0]] for op in operators] == table.activation_bytes.tolist()


def test_a_users_own_model_converts_too(digits):
    layers = keras.layers
    own = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(10)]
    )
    model = fnet.Int8Model(fnet.to_tflite(own, calibration=digits.calibration(32)))
    assert pinned(model)
    assert model.predict(digits.test.images[:3]).shape == (3, 10)


def test_arguments_that_do_not_go_together_are_refused(models, digits):
    calibration = digits.calibration(8)
    with pytest.raises(ValueError, match="a float model needs calibration"):
        fnet.to_tflite(models.float)
    with pytest.raises(ValueError, match="leave calibration out"):
        fnet.to_tflite(models.qat, calibration=calibration)
    with pytest.raises(ValueError, match="per_channel=False is for PTQ"):
        fnet.to_tflite(models.qat, per_channel=False)
    with pytest.raises(ValueError, match="3 labels for 10 classes"):
        fnet.to_tflite(models.qat, labels=["a", "b", "c"])
    with pytest.raises(TypeError, match="dtype float64"):
        fnet.to_tflite(models.float, calibration=calibration / 255)
    with pytest.raises(TypeError, match="needs a tf_keras"):
        fnet.to_tflite(b"")
