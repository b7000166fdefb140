import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.loading import resolve
from factorizenet_tf.pixels import Pixels
from factorizenet_tf.tflite.flatbuffer import read_flatbuffer, write_flatbuffer
from factorizenet_tf.tflite.int8_model import TFLiteModel

KINDS = {"0..255": ("int8", 1.0, -128, 2), "-1..1": ("uint8", 2 / 255, 128, 3), "0..1": ("float32", 0.0, 0, 1)}


@pytest.mark.parametrize("pixels", KINDS)
def test_a_file_gets_its_pixels_by_its_own_type_scale_and_zero_point_at_its_own_batch_size(theirs, noise, pixels):
    (model, content), images = theirs[pixels], noise(5, (4, 4, 1))  # 5 fill no batch of 2 or 3
    net = TFLiteModel(content)
    kind, scale, zero_point, batch = KINDS[pixels]
    assert (net.input_type, net.output_type, net.batch_size, net.kernels) == (kind, kind, batch, "XNNPACK")
    assert net.input_quantization == (pytest.approx(scale, rel=1e-3), pytest.approx(zero_point, abs=1))
    assert net.pixels == Pixels(pixels)
    scale, offset = net.pixels.affine(1)
    expected = model((images / 255 * scale + offset).astype(np.float32)).numpy()
    assert np.abs(net.predict(images) - expected).max() < 0.02 * np.ptp(expected)
    assert net.latency_ms(runs=2, warm_up=0).median_ms > 0


def test_what_the_file_does_not_say_the_user_does(theirs, noise):
    (model, content), images = theirs["0..1"], noise(3, (4, 4, 1))
    net = TFLiteModel(content, pixels=Pixels("0..255", mean=(100.0,), deviation=(50.0,)))
    np.testing.assert_allclose(net.predict(images), model((images - 100.0) / 50.0), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"takes float32 and gives float32; it must be int8 in and out"):
        fnet.Int8Model(content)


def test_where_xnnpack_refuses_a_file_litert_runs_it_and_it_is_said(theirs, noise, monkeypatch, prints_json, tmp_path):
    (_, content), make = theirs["-1..1"], TFLiteModel._new_interpreter
    expected = TFLiteModel(content).predict_quantized(noise(4, (4, 4, 1)))

    def refuses(model, kernels="AUTO"):
        if kernels == "AUTO":
            raise ValueError("XNNPACK refuses it")
        return make(model, kernels)

    monkeypatch.setattr(TFLiteModel, "_new_interpreter", refuses)
    assert np.abs(TFLiteModel(content).predict_quantized(noise(4, (4, 4, 1))).astype(int) - expected).max() <= 1
    (tmp_path / "theirs.tflite").write_bytes(content)
    (row,) = prints_json("evaluate", tmp_path / "theirs.tflite", "--dataset", "digits")
    said = ("uint8, pixels -1..1", 3, "LiteRT's own")
    assert (row["input"], row["batch_size"], row["kernels"]) == said
    assert 0 <= row["accuracy"] < 0.5


def test_an_input_of_another_range_or_without_a_scale_is_said(foreign, tmp_path):
    _, content = foreign
    said = "stands for -1 to 3, none of 0..1, 0..255, -1..1; its pixels are taken to lie in 0..1"
    with pytest.warns(RuntimeWarning, match=said):
        TFLiteModel(content)
    assert TFLiteModel(content, pixels=Pixels("-1..1")).pixels.range == "-1..1"
    (tmp_path / "theirs.tflite").write_bytes(content)
    assert resolve(tmp_path / "theirs.tflite").resize == "stretch"  # which its pixels have no part in
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].quantization = None
    with pytest.raises(ValueError, match="the int8 input of the given bytes has no scale"):
        TFLiteModel(write_flatbuffer(model))
