import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.cost import cost_rows
from factorizenet_tf.tflite import inspect
from factorizenet_tf.tflite.flatbuffer import read_flatbuffer, write_flatbuffer
from factorizenet_tf.tflite.inspect import inspect_tflite
from factorizenet_tf.tflite.latency import Convolution, one_convolution
from factorizenet_tf.tflite.slim import slim

GROUPED = one_convolution(Convolution((8, 10, 16), 24, (3, 5), (1, 2), (1, 1), "SAME"), 4)


def converted(function, shape, **options):
    """A .tflite of a float function of one tensor."""
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec(shape))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    for name, value in options.items():
        setattr(converter, name, value)
    return converter.convert()


@pytest.fixture(scope="module")
def kernel():
    return tf.constant(np.random.default_rng(0).normal(size=(64, 64)), tf.float32)


def test_a_grouped_convolution_by_pencil():
    found = inspect_tflite(GROUPED)
    (row,) = found["operators"]
    assert (row["operator"], row["kernel"], row["stride"], row["groups"]) == ("CONV_2D", [3, 5], [1, 2], 4)
    assert row["output_shape"] == [1, 8, 5, 24]
    assert found["macs"] == row["macs"] == 8 * 5 * 24 * 3 * 5 * 4
    assert found["params"] == 24 * 3 * 5 * 4 + 24
    assert row["constant_bytes"] == 24 * 3 * 5 * 4 + 4 * 24
    assert [tensor["role"] for tensor in found["tensors"]] == ["input", "weights", "bias", "output"]
    weights = found["tensors"][1]
    assert (weights["type"], weights["shape"]) == ("INT8", [24, 3, 5, 4])
    assert weights["quantization"]["scales"] == pytest.approx([0.01] * 24)
    assert weights["quantization"]["zero_points"] == [0] * 24
    assert (found["bytes"]["weights"], found["bytes"]["bias"]) == (24 * 3 * 5 * 4, 4 * 24)
    assert found["bytes"]["scales"] == 4 * (1 + 24 + 24 + 1)
    assert found["bytes"]["zero points"] == 8 * (1 + 24)  # those of 24 zeros, and of one -128, are in the file once
    assert sum(found["bytes"].values()) == found["size_bytes"] == len(GROUPED)
    assert found["not_int8"] == []
    assert [(row["runtime"], row["operators"]) for row in found["refused"]] == [("ESP-NN", [(0, 0)])]
    assert [row["file"] for row in found["files"]] == ["as it is", "slim", "regrouped"]


@pytest.mark.parametrize("name", [card.name for card in fnet.zoo.list(precision="int8")])
def test_macs_and_parameters_are_the_nets_own(name):
    card, model = fnet.zoo.card(name), read_flatbuffer(fnet.zoo.load(name, "path").read_bytes())
    assert sum(row["macs"] for row in inspect.operator_rows(model)) == card.macs
    if not isinstance(card.spec, fnet.ModelSpec):  # the bytes of its layers are known of a model alone
        return
    weight_bytes = sum(row.weight_bytes for row in cost_rows(card.spec))
    tensors = [row for row in inspect._tensors(model) if row["params"]]
    assert sum(row["params"] * (4 if row["role"] == "bias" else 1) for row in tensors) == weight_bytes


def test_what_it_measures_is_what_slim_and_the_card_say():
    card = fnet.zoo.card("fnet-l6-int8@1")
    content = fnet.zoo.load(card.reference, "path").read_bytes()
    found = inspect_tflite(content)
    plain, small = found["files"]
    assert (plain["size_bytes"], small["size_bytes"]) == (len(content), len(slim(content)))
    assert plain["ram_bytes"] == small["ram_bytes"] == card.ram_bytes
    assert 0 < plain["latency_ms"] < 50
    assert found["associated_files"] == ["labels.txt"]
    assert found["bytes"]["zero points"] > 8_000  # what makes it worth the while
    assert found["refused"] == []
    assert json.loads(json.dumps(found))["operators"][0]["place"] == [0, 0]


def test_float_dynamic_range_and_float16_are_told_apart(kernel):
    small, half = {"optimizations": [tf.lite.Optimize.DEFAULT]}, tf.lite.TargetSpec(supported_types=[tf.float16])
    plain = inspect_tflite(converted(lambda x: tf.nn.gelu(x @ kernel), (1, 64)))
    assert [(row["type"], row["operators"]) for row in plain["not_int8"]] == [("FLOAT32", [(0, 0), (0, 1)])]
    (refused,) = [row for row in plain["refused"] if row["runtime"] == "TensorFlow Lite Micro"]
    assert "GELU" in refused["reason"]
    assert [row["ram_bytes"] for row in plain["files"]] == [None, None]
    (hybrid,) = inspect_tflite(converted(lambda x: x @ kernel, (1, 64), **small))["not_int8"]
    assert (hybrid["type"], hybrid["operators"]) == ("INT8 weights of FLOAT32", [(0, 0)])
    found = inspect_tflite(converted(lambda x: x @ kernel, (1, 64), target_spec=half, **small))
    assert {row["type"] for row in found["not_int8"]} == {"FLOAT16", "FLOAT32"}
    assert (found["macs"], found["bytes"]["weights"]) == (64 * 64, 64 * 64 * 2)  # through the DEQUANTIZE


def test_indices_are_no_kernels_and_float_ends_of_an_int8_file_are_told(noise):
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, dilation_rate=2), layers.Flatten()])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: [[image[None] / np.float32(255)] for image in noise(8, (8, 8, 1))]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    found = inspect_tflite(converter.convert())
    assert "SPACE_TO_BATCH_ND" in {row["operator"] for row in found["operators"]}
    assert found["macs"] == 16 * 9 * 4
    (ends,) = found["not_int8"]
    assert (ends["type"], len(ends["operators"])) == ("FLOAT32 at the ends", 2)
    mirrored = inspect_tflite(converted(lambda x: tf.pad(x, [[0, 0], [1, 1]], "REFLECT"), (1, 4)))
    assert mirrored["macs"] == 0


def test_a_branch_behind_the_first_subgraph_is_refused_where_micro_would_end_the_process(tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 4))])
        def first(self, x):
            return {"y": 2 * x}

        @tf.function(input_signature=[tf.TensorSpec((1, 4))])
        def second(self, x):
            return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x + 1, lambda: x - 1)}

    two = Two()
    tf.saved_model.save(two, str(tmp_path), {"first": two.first, "second": two.second})
    found = inspect_tflite(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert())
    assert found["subgraphs"] >= 2
    assert found["runtime"].endswith("the first subgraph")
    (refused,) = [row for row in found["refused"] if row["runtime"] == "TensorFlow Lite Micro"]
    assert "IF in a subgraph behind the first one" in refused["reason"]


def test_a_file_without_a_subgraph_is_damaged_and_a_scale_that_is_no_number_is_none():
    model = read_flatbuffer(GROUPED)
    model.subgraphs[0].tensors[0].quantization.scale = np.array([np.nan], np.float32)
    found = inspect_tflite(write_flatbuffer(model))
    assert found["tensors"][0]["quantization"]["scales"] == [None]
    model.subgraphs = []
    with pytest.raises(ValueError, match=r"damaged \(it has no subgraph\)"):
        inspect_tflite(write_flatbuffer(model))


def test_operators_that_xnnpack_leaves_and_those_that_nobody_can_count(noise):
    layers = keras.layers
    pooled = [keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.AveragePooling2D(2)]
    model = keras.Sequential([*pooled, layers.Flatten(), layers.Dense(3)])
    found = inspect_tflite(fnet.to_tflite(model, calibration=noise(8, (8, 8, 1))))
    names = [row["operator"] for row in found["operators"]]
    (refused,) = [row for row in found["refused"] if row["runtime"] == "XNNPACK"]
    assert [names[number] for _, number in refused["operators"]] == ["AVERAGE_POOL_2D"]
    assert found["macs"] == 36 * 9 * 4 + 36 * 3
    unknown = inspect_tflite(converted(lambda x: tf.raw_ops.Betainc(a=x, b=x, x=x), (1, 4), allow_custom_ops=True))
    assert unknown["macs"] is None
    assert [row["runtime"] for row in unknown["refused"]] == ["LiteRT"]
    assert "Betainc" in unknown["refused"][0]["reason"]
    assert [row["latency_ms"] for row in unknown["files"]] == [None, None]


def test_of_an_open_batch_each_step_of_a_dense_layer_counts():
    # The converter reads (batch, 30, 4) as (batch * 30, 4); the file says of the first size that it is open, and 1.
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((30, 4)), layers.Dense(5), layers.Dense(2), layers.Flatten(), layers.Dense(3)]
    )
    found = inspect_tflite(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    rows = [row for row in found["operators"] if row["operator"] == "FULLY_CONNECTED"]
    assert [row["macs"] for row in rows] == [30 * 4 * 5, 30 * 5 * 2, 60 * 3]


def test_without_tflite_micro_there_is_no_arena(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    found = inspect_tflite(GROUPED)
    assert {row["ram_bytes"] for row in found["files"]} == {None}
    assert {row["runtime"] for row in found["refused"]} == {"ESP-NN"}


def test_the_tables_fit_80_columns_and_the_json_has_all(tmp_path, capsys, monkeypatch):
    (tmp_path / "net.tflite").write_bytes(GROUPED)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no colours
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["inspect", str(tmp_path / "net.tflite")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    shown = "3x5/1x2 g4", "1x8x5x24", "57,600", "24: 0.01 to 0.01", "as it is", "ESP-NN refuses", "1 operators"
    assert all(expected in text for expected in shown), text
    assert "…" not in text
    assert main(["inspect", str(tmp_path / "net.tflite"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operators"][0]["groups"] == 4
