import numpy as np
import pytest

import factorizenet_tf as fnet

DARK = np.full((8, 16, 16, 1), 20, np.uint8)


@pytest.fixture(scope="module")
def ptq(models, digits):
    calibration = digits.calibration(128)
    return {
        per_channel: fnet.Int8Model(fnet.to_tflite(models.float, calibration=calibration, per_channel=per_channel))
        for per_channel in (True, False)
    }


def test_the_inputs_quantization_is_pinned_all_tensors_are_integers_and_the_bytes_repeat(models, ptq):
    spec = fnet.ModelSpec(3, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    float_model = fnet.build(spec)
    content = fnet.to_tflite(float_model, calibration=DARK)
    assert fnet.to_tflite(float_model, calibration=DARK) == content
    dark = fnet.Int8Model(content)
    assert (DARK == 20).all()  # the caller's images stay theirs
    for model in (models.int8, *ptq.values(), dark):
        scale, zero_point = model.input_quantization
        assert (scale, zero_point) == (pytest.approx(1 / 255, rel=1e-6), -128)
        assert model.tensor_types == {"int8", "int32"}
    assert dark.operators.count("DEPTHWISE_CONV_2D") == 1
    assert models.int8.operators.count("CONV_2D") == 7  # one each, however many groups


def test_after_training_quantization_is_about_as_accurate(models, ptq, digits):
    base = fnet.accuracy(models.float, digits.test)
    assert base > 0.9
    for model in ptq.values():
        assert abs(fnet.accuracy(model, digits.test) - base) < 0.03


def test_per_channel_has_a_scale_a_filter_and_per_tensor_one(ptq):
    def scales(model):
        tensors = model._plain().get_tensor_details()
        return max(len(t["quantization_parameters"]["scales"]) for t in tensors)

    assert scales(ptq[True]) == 32
    assert scales(ptq[False]) == 1


def test_the_cost_table_has_the_bytes_of_the_file(models, spec):
    plain = models.int8._plain()
    sizes = {t["index"]: np.dtype(t["dtype"]).itemsize * int(np.prod(t["shape"])) for t in plain.get_tensor_details()}
    operators = [op for op in plain._get_ops_details() if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
    table = fnet.cost_table(spec)
    assert [sizes[op["inputs"][1]] + sizes[op["inputs"][2]] for op in operators] == table.weight_bytes.tolist()
    assert [sizes[op["outputs"][0]] for op in operators] == table.activation_bytes.tolist()


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
