import numpy as np
import pytest
import tensorflow as tf

import factorizenet_tf as fnet
from factorizenet_tf.analysis.tflite_layers import layer_rows
from factorizenet_tf.loading import resolve
from factorizenet_tf.pixels import Pixels
from factorizenet_tf.tflite.flatbuffer import read_flatbuffer, write_flatbuffer
from factorizenet_tf.tflite.int8_model import TFLiteModel

KINDS = {"0..255": ("int8", 1.0, -128, 2), "-1..1": ("uint8", 2 / 255, 128, 3), "0..1": ("float32", 0.0, 0, 1)}


@pytest.mark.parametrize("pixels", KINDS)
def test_a_file_gets_its_pixels_by_its_own_type_scale_and_zero_point_at_its_own_batch_size(theirs, noise, pixels):
    (model, content), images = theirs[pixels], noise(5, (4, 4, 1))  # 5 fill no batch of 2 or 3
    net = TFLiteModel(content, pixels=Pixels("0..1") if pixels == "0..1" else None)
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
    said = "stands for -1 to 3, none of 0..1, 0..255, -1..1; its pixels are assumed to be in 0..1"
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


@pytest.mark.parametrize("kind", [tf.int8, tf.float32, tf.int16])
def test_a_float_input_takes_the_range_of_its_quantize_or_else_0_to_1_which_is_said(of_floats, kind, noise):
    model, content = of_floats(kind)
    if kind == tf.int8:
        net = TFLiteModel(content)
        expected = model(noise(5, (4, 4, 1)) / np.float32(255) * 2 - 1).numpy()
        assert np.abs(net.predict(noise(5, (4, 4, 1))) - expected).max() < 0.02 * np.ptp(expected)
    else:  # int16 has a zero point of 0, whatever the range
        with pytest.warns(RuntimeWarning, match=r"takes floats, of a range that .*: give those it was trained on by"):
            net = TFLiteModel(content)
    assert (net.input_type, net.pixels.range) == ("float32", "-1..1" if kind == tf.int8 else "0..1")


def test_an_open_size_channels_first_and_int16_are_refused_with_what_to_convert(of_floats, fails, tmp_path):
    def changed(field, shape):
        model = read_flatbuffer(of_floats(tf.float32)[1])
        setattr(model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]], field, shape)
        return write_flatbuffer(model)

    for content, message in (
        (changed("shapeSignature", [-1, -1, -1, 1]), "size open, [-1, -1, -1, 1]; convert it with a fixed height and"),
        (changed("shape", [1, 1, 4, 4]), "takes images of (1, 4, 4), which look like channels first; convert it with"),
        (of_floats(tf.int16, tf.int16)[1], "it must be int8, uint8, float32 in and out; convert it with tf.float32 as"),
    ):
        (tmp_path / "theirs.tflite").write_bytes(content)
        error = fails("evaluate", tmp_path / "theirs.tflite", "--dataset", "digits")
        assert f"error: {tmp_path / 'theirs.tflite'} " in error
        assert message in error
    assert "so --size would have no effect" in fails("evaluate", tmp_path / "theirs.tflite", "--size", 8)


def test_what_has_too_few_classes_or_no_int8_groups_is_said(around_0, fails, tmp_path):
    (tmp_path / "theirs.tflite").write_bytes(around_0[1])
    for command in ("evaluate", "analyze"):
        message = "labels up to 9; the model has 3 classes (num_classes); give data of its classes"
        assert message in fails(command, tmp_path / "theirs.tflite", "--dataset", "digits")
    error = fails("latencies", tmp_path / "theirs.tflite", "--out", tmp_path / "out.json")
    assert "theirs.tflite; float ones are not measured: quantize the net first; without sources" in error


# What it does with its bits


def test_of_weights_the_bits_of_the_poorest_channel_and_the_mean_share_of_the_range_are_shown(theirs, noise):
    model = read_flatbuffer(theirs["0..255"][1])
    graph = model.subgraphs[0]
    (dense,) = (operator for operator in graph.operators if len(operator.inputs) == 3)
    kernel = graph.tensors[dense.inputs[1]]
    values = np.zeros(kernel.shape, np.int8)  # (10, 16)
    values[:, 0], values[0, :2] = 1, (127, -127)
    model.buffers[kernel.buffer].data = values.reshape(-1).view(np.uint8)
    kernel.quantization.scale, kernel.quantization.zeroPoint = np.full(1, 0.5, np.float32), np.zeros(1, np.int64)
    rows = layer_rows(TFLiteModel(write_flatbuffer(model)), noise(3, (4, 4, 1)))  # 3 do not fill a batch of 2
    (row,) = (row for row in rows if row["weights"])
    assert (row["operator"], row["weights"], row["scales"]) == ("FULLY_CONNECTED", "int8", 1)
    assert row["weight_range"] == 127
    assert row["average_channel_precision"] == pytest.approx((127 + 9 * 0.5) / 10 / 127)
    assert row["weight_bits"] == 1


@pytest.mark.parametrize("pixels", ["-1..1", "0..1"])
def test_of_outputs_what_the_images_use_and_what_is_clipped_is_shown_and_none_of_floats(theirs, pixels, noise):
    images = noise(4, (4, 4, 1))
    net = TFLiteModel(theirs[pixels][1], pixels=Pixels(pixels))
    last, outputs = layer_rows(net, images)[-1], net.predict(images)
    step = net.output_quantization[0]
    assert (last["low"], last["high"]) == pytest.approx((outputs.min(), outputs.max()), abs=1.01 * step)
    assert last["output"] == net.output_type
    if pixels == "0..1":
        assert (last["used"], last["clipped"]) == (None, None)
    else:
        assert last["used"] == pytest.approx(np.ptp(outputs) / step / 255, abs=2.1 / 255)
    black = layer_rows(net, np.zeros((3, 4, 4, 1), np.uint8))[-1]
    assert black["constant_channels"] == 10


def test_values_at_the_end_of_a_type_are_clipped_unless_the_end_stands_for_0(theirs, noise):
    _, content = theirs["0..255"]
    model = read_flatbuffer(content)
    graph, shares = model.subgraphs[0], []
    output = graph.tensors[graph.outputs[0]].quantization
    for zero_point in (-128, 127):  # a scale so fine that every other value is above or below what there is
        output.scale, output.zeroPoint = np.full(1, 1e-9, np.float32), np.full(1, zero_point, np.int64)
        net = TFLiteModel(write_flatbuffer(model))
        row, found = layer_rows(net, noise(4, (4, 4, 1)))[-1], net.predict_quantized(noise(4, (4, 4, 1)))
        shares.append((row["clipped"], float(np.mean(found == (127 if zero_point == -128 else -128)))))
    assert all(clipped == share for clipped, share in shares)
    assert sum(share for _, share in shares) == pytest.approx(1, abs=0.1)


def test_a_file_is_analyzed_by_its_own_input_alone(theirs, tmp_path, monkeypatch, prints_json, succeeds, fails):
    path = tmp_path / "theirs.tflite"
    path.write_bytes(theirs["-1..1"][1])
    command = ["analyze", path, "--dataset", "digits", "--calibration-images", 32]
    found = prints_json(*command, "--evaluation-images", 50)
    (row,) = prints_json("evaluate", path, "--dataset", "digits", "--split", "validation")
    assert found["images"] == 50
    assert prints_json(*command)["accuracy"] == pytest.approx(row["accuracy"], abs=0.02)  # kernels round ties otherwise
    assert [layer["output"] for layer in found["operators"]][-1] == "uint8"
    assert "uint8, pixels -1..1" in succeeds(*command)
    assert "no float net to compare it with, so --scheme would have no effect" in fails(
        *command, "--scheme", "per_tensor"
    )
    assert "is analyzed alone" in fails(*command, path)
    assert "give --dataset" in fails("analyze", path)
