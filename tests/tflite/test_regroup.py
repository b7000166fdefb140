import copy
import json
import time

import numpy as np
import pytest
from runtimes import on_litert, on_micro

import factorizenet_tf as fnet
from factorizenet_tf.tflite import latency
from factorizenet_tf.tflite.flatbuffer import read_flatbuffer, write_flatbuffer
from factorizenet_tf.tflite.latency import Convolution, LatencyTable, int8_convolutions, one_convolution, read_table
from factorizenet_tf.tflite.micro import arena_bytes
from factorizenet_tf.tflite.regroup import on_copies, regroup_fastest, regrouped, with_groups
from factorizenet_tf.tflite.slim import slim

SHAPES = [
    Convolution((8, 8, 16), 16, (3, 3), (1, 1), (1, 1), "SAME"),
    Convolution((9, 7, 12), 24, (3, 3), (2, 2), (1, 1), "SAME"),
    Convolution((9, 9, 8), 8, (3, 3), (1, 1), (2, 2), "VALID"),
    Convolution((5, 6, 12), 12, (1, 1), (1, 1), (1, 1), "VALID"),
]


def integers(shape):
    return np.random.default_rng(1).integers(-128, 128, (5, *shape.input_shape), np.int8)


def table(milliseconds):
    return LatencyTable(milliseconds, "a board", "a runtime", 1)


def groups_of(content):
    return [groups for _, _, groups in int8_convolutions(content)]


def test_two_groups_become_one_with_zeros_between_the_blocks_and_one_becomes_two():
    kernel = np.arange(1, 9, dtype=np.int8).reshape(4, 1, 1, 2)  # 4 filters of 2 channels: 2 groups of 4 channels
    dense = [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 5, 6], [0, 0, 7, 8]]
    np.testing.assert_array_equal(regrouped(kernel, 2, 1)[:, 0, 0], dense)
    np.testing.assert_array_equal(regrouped(regrouped(kernel, 2, 1), 1, 2), kernel)
    np.testing.assert_array_equal(regrouped(kernel, 2, 4)[:, 0, 0], [[1], [4], [5], [8]])
    np.testing.assert_array_equal(regrouped(kernel, 2, 2), kernel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_divisor_of_the_groups_gives_the_same_bits_on_each_runtime(shape):
    plain, images = one_convolution(shape, 4), integers(shape)
    expected, reference = on_litert(plain, images), on_litert(plain, images, "BUILTIN_REF")
    assert expected.shape[1:] == shape.output_shape
    assert len(np.unique(expected)) > 50
    for groups in (1, 2):
        content = with_groups(plain, [groups])
        assert int8_convolutions(content) == [("sums", shape, groups)]
        np.testing.assert_array_equal(on_litert(content, images), expected)
        np.testing.assert_array_equal(on_litert(content, images, "BUILTIN_REF"), reference)
        np.testing.assert_array_equal(on_micro(content, images), on_micro(plain, images))


def test_a_kernel_that_several_convolutions_share_is_changed_for_one_of_them_alone():
    model = read_flatbuffer(one_convolution(SHAPES[0], 8))
    (graph,) = model.subgraphs
    graph.tensors.append(copy.copy(graph.tensors[3]))
    operator = copy.copy(graph.operators[0])
    operator.inputs, operator.outputs, graph.outputs = [3, 1, 2], [4], [4]
    graph.operators.append(operator)
    twice, images = write_flatbuffer(model), integers(SHAPES[0])
    for groups in ([2, 8], [8, 2], [1, 2]):
        content = with_groups(twice, groups)
        assert groups_of(content) == groups
        np.testing.assert_array_equal(on_litert(content, images), on_litert(twice, images))


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({1: 3.0, 2: 1.0, 4: 2.0, 8: 4.0}, 2),
        ({1: 3.0, 2: 2.0, 4: 2.0, 8: 1.0}, 8),
        ({1: 0.98, 2: 2.0, 4: 2.0, 8: 1.0}, 8),
        ({4: 0.5, 8: 1.0, 16: 0.1, 3: 0.1}, 4),
    ],
)
def test_the_fastest_of_the_table_is_chosen_where_it_is_faster_by_more_than_noise(times, chosen):
    plain = one_convolution(SHAPES[0], 8)
    regrouped = regroup_fastest(plain, table({SHAPES[0]: times}))
    row = {"name": "sums", "groups": 8, "chosen": chosen, "plain_ms": times[8], "chosen_ms": times[chosen]}
    assert regrouped.layers == [row]
    assert groups_of(regrouped.content) == [chosen]
    assert (regrouped.content == plain) == (chosen == 8)


def test_a_table_that_lacks_a_layer_and_groups_that_do_not_divide_are_refused():
    plain = one_convolution(SHAPES[0], 4)
    for milliseconds in ({}, {SHAPES[1]: {4: 1.0}}, {SHAPES[0]: {1: 1.0, 2: 1.0}}):
        with pytest.raises(ValueError, match=r"table of a board has no latency of a 3x3 convolution of 8x8x16 to 16"):
            regroup_fastest(plain, table(milliseconds))
    for groups in (3, 8, 0, -1):
        with pytest.raises(ValueError, match="has 4 groups; they cannot become"):
            with_groups(plain, [groups])
    with pytest.raises(ValueError, match="2 numbers of groups for 1 int8"):
        with_groups(plain, [1, 1])


@pytest.fixture(scope="module")
def net():
    """A published net with 8 groups, labelled."""
    return slim(fnet.zoo.load("fnet-l3-int8@1", "path").read_bytes(), keep_names=True)


def test_a_whole_net_gives_the_same_bits_and_keeps_its_labels(net, noise):
    convolutions, pictures = int8_convolutions(net), noise(50, (32, 32, 3))
    assert {groups for _, _, groups in convolutions} == {1, 8}
    regrouped = with_groups(net, [1] * len(convolutions))
    plain, dense = fnet.Int8Model(net), fnet.Int8Model(regrouped)
    np.testing.assert_array_equal(plain.predict_quantized(pictures), dense.predict_quantized(pictures))
    assert dense.labels == plain.labels == fnet.zoo.card("fnet-l3-int8").class_names
    before = sum(shape.filters * shape.input_shape[2] * 9 // 8 for _, shape, groups in convolutions if groups > 1)
    assert len(regrouped) - len(net) == pytest.approx(7 * before, abs=600)  # the old kernels are not left in the file
    assert with_groups(net, groups_of(net)) == net
    assert regroup_fastest(regrouped).content == regrouped
    assert regroup_fastest(regrouped).layers == []


def test_a_table_reads_back_and_others_are_refused(tmp_path):
    path = tmp_path / "table.json"
    measured = latency.measure_convolutions([(SHAPES[1], 4), (SHAPES[0], 1)])
    assert [list(times) for times in measured.milliseconds.values()] == [[1, 2, 4]]
    assert all(0 < ms < 100 for ms in measured.milliseconds[SHAPES[1]].values())
    text = measured.to_json()
    path.write_text(text)
    assert read_table(path) == measured
    newer = json.dumps(json.loads(text) | {"format": 2})
    for damaged in ("", "{}", "[]", text[:-30], newer, text.replace("filters", "filter")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"table\.json is no table of latencies"):
            read_table(path)
    with pytest.raises(FileNotFoundError, match="no table of latencies at"):
        read_table(tmp_path / "none.json")


def test_functions_are_timed_in_turns():
    calls = []
    times = latency.time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3, seconds=0, runs=2)
    assert times.shape == (3, 2)
    assert "".join(calls) == "ab" + 3 * "aabb"
    (slow, fast), *_ = latency.time_in_turns([lambda: time.sleep(0.004), lambda: None], rounds=1, seconds=0, runs=3)
    assert slow > 4 > fast


def test_a_table_made_by_the_command_regroups_an_export(net, noise, tmp_path, monkeypatch, prints_json, fails):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "time_in_turns", lambda calls: np.array([[2.0, 1.0, 2.0, 2.0][: len(calls)]]))
    (tmp_path / "net.tflite").write_bytes(net)
    rows = prints_json("latencies", "net.tflite", "--out", "table.json")
    assert {(row["groups"], row["ms"]) for row in rows} == {(1, 2), (2, 1), (4, 2), (8, 2)}
    export = ["export", "net.tflite", "--tflite"]
    for spelling in ("--lower", "--regroup"):
        (row,) = prints_json(*export, f"{spelling}.tflite", spelling, "fastest", "--latencies", "table.json")
        made = (tmp_path / f"{spelling}.tflite").read_bytes()
        assert set(groups_of(made)) == {1, 2}
    assert row["bytes"] == len(made)
    assert row["regrouped_bytes"] > row["plain_bytes"] == len(slim(net))
    assert row["plain_ram_bytes"] == row["regrouped_ram_bytes"] == arena_bytes(net)
    assert min(row["plain_ms"], row["regrouped_ms"], row["speedup"]) > 0
    labels = [row["name"] for row in regroup_fastest(net, read_table("table.json")).layers]
    assert all(name.startswith("quant_stage") for name in labels)
    pictures = noise(20, (32, 32, 3))
    expected = fnet.Int8Model(net).predict_quantized(pictures)
    np.testing.assert_array_equal(fnet.Int8Model(made).predict_quantized(pictures), expected)
    for command, message in (
        (["latencies", "net.tflite", "--out", "table.json"], "table.json is there already"),
        ([*export, "new", "--regroup", "fast"], "--regroup is 'fast'; it must be none or fastest"),
        ([*export, "new", "--latencies", "table.json"], "so --latencies would have no effect"),
    ):
        assert message in fails(*command)


def test_without_a_source_the_command_measures_the_family(tmp_path, monkeypatch, succeeds):
    measured = set()
    monkeypatch.setattr(latency, "one_convolution", lambda *shape_and_groups: shape_and_groups)
    monkeypatch.setattr(latency, "inference", lambda convolution, threads: measured.add(convolution))
    monkeypatch.setattr(latency, "time_in_turns", lambda calls: np.ones((1, len(calls))))
    succeeds("latencies", "--out", tmp_path / "table.json", "--width", 24)
    planned = {
        (layer.input_shape, layer.stride, layer.groups)
        for level in range(1, fnet.max_level(fnet.ModelSpec(0, width=24)) + 1)
        for layer in fnet.ModelSpec(level, width=24).plan()
        if layer.kind == "grouped"
    }
    assert planned <= {(shape.input_shape, shape.stride[0], groups) for shape, groups in measured}


def test_depthwise_convolutions_of_several_filters_a_channel_run_on_copies_with_the_same_bits(own_net):
    from tf_keras import layers

    random = np.random.default_rng(0)
    spatial = [layers.DepthwiseConv2D(3, s, "same", depth_multiplier=3, use_bias=b) for s, b in ((1, False), (2, True))]
    middle = [spatial[0], layers.Conv2D(8, 1), layers.ReLU(), spatial[1], layers.Conv2D(12, 1)]
    model = own_net(*middle, layers.GlobalAveragePooling2D())
    model.set_weights([random.normal(size=weights.shape) ** 2 for weights in model.get_weights()])
    images = random.integers(0, 256, (8, 16, 16, 1), np.uint8)
    content = fnet.to_tflite(model, calibration=images)
    joined, inputs = on_copies(content), random.integers(-128, 128, (8, 16, 16, 1), np.int8)
    assert fnet.Int8Model(joined).operators.count("CONCATENATION") == 2
    for run in (on_litert, on_micro):
        np.testing.assert_array_equal(run(joined, inputs), run(content, inputs))
    assert len(np.unique(on_litert(content, inputs))) > 20
    assert on_copies(joined) is joined
    fast = regroup_fastest(content).content
    np.testing.assert_array_equal(on_litert(fast, inputs), on_litert(content, inputs))
