import json
import subprocess
import sys
import time

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.tflite import flatbuffer as flatfile
from factorizenet_tf.tflite import latency
from factorizenet_tf.tflite.latency import (
    Convolution,
    LatencyTable,
    int8_convolutions,
    measure_convolutions,
    one_convolution,
    time_in_turns,
)
from factorizenet_tf.tflite.micro import arena_bytes
from factorizenet_tf.tflite.regroup import block_dense, check_regroup, regroup_fastest, with_groups

SHAPES = [
    Convolution((8, 8, 16), 16, (3, 3), (1, 1), (1, 1), "SAME"),
    Convolution((9, 7, 12), 24, (3, 3), (2, 2), (1, 1), "SAME"),
    Convolution((9, 9, 8), 8, (3, 3), (1, 1), (2, 2), "VALID"),
    Convolution((5, 6, 12), 12, (1, 1), (1, 1), (1, 1), "VALID"),
]


def outputs(content, images, **options):
    interpreter = Interpreter(model_content=content, **options)
    interpreter.allocate_tensors()
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for image in images:
        interpreter.set_tensor(input_["index"], image[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"]))
    return np.concatenate(results)


def micro_outputs(content, images):
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=2**20)
    results = []
    for image in images:
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        results.append(interpreter.get_output(0))
    return np.concatenate(results)


def integers(shape, count=5):
    return np.random.default_rng(1).integers(-128, 128, (count, *shape), np.int8)


def table(milliseconds):
    return LatencyTable(milliseconds, "a board", "a runtime", 1)


def test_two_groups_become_one_with_zeros_between_the_blocks():
    kernel = np.arange(1, 9, dtype=np.int8).reshape(4, 1, 1, 2)  # 4 filters of 2 channels: 2 groups of 4 channels
    expected = [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 5, 6], [0, 0, 7, 8]]
    np.testing.assert_array_equal(block_dense(kernel, 2, 1)[:, 0, 0], expected)
    np.testing.assert_array_equal(block_dense(kernel, 2, 2), kernel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_divisor_of_the_groups_gives_the_same_bits_on_each_runtime(shape):
    plain = one_convolution(shape, 4)
    images = integers(shape.input_shape)
    reference = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}
    expected = outputs(plain, images)
    assert len(np.unique(expected)) > 50
    for groups in (1, 2):
        content = with_groups(plain, [groups])
        assert int8_convolutions(content) == [("sums", shape, groups)]
        np.testing.assert_array_equal(outputs(content, images), expected)
        np.testing.assert_array_equal(outputs(content, images, **reference), outputs(plain, images, **reference))
        np.testing.assert_array_equal(micro_outputs(content, images), micro_outputs(plain, images))


def test_a_kernel_that_several_convolutions_share_is_changed_for_one_of_them_alone():
    plain = one_convolution(SHAPES[0], 8)
    model = flatfile.read_flatbuffer(plain)
    (graph,) = model.subgraphs
    graph.tensors.append(flatfile.read_flatbuffer(plain).subgraphs[0].tensors[3])
    operator = flatfile.read_flatbuffer(plain).subgraphs[0].operators[0]
    operator.inputs, operator.outputs = [3, 1, 2], [4]
    graph.operators.append(operator)
    graph.outputs = [4]
    twice = flatfile.write_flatbuffer(model)
    images = integers(SHAPES[0].input_shape)
    expected = outputs(twice, images)
    for groups in ([2, 8], [8, 2], [1, 2]):
        content = with_groups(twice, groups)
        assert [found for _, _, found in int8_convolutions(content)] == groups
        np.testing.assert_array_equal(outputs(content, images), expected)


def test_the_fastest_of_the_table_is_chosen_where_it_is_faster_by_more_than_noise():
    shape = SHAPES[0]
    plain = one_convolution(shape, 8)
    for times, chosen in (
        ({1: 3.0, 2: 1.0, 4: 2.0, 8: 4.0}, 2),
        ({1: 3.0, 2: 2.0, 4: 2.0, 8: 1.0}, 8),
        ({1: 0.98, 2: 2.0, 4: 2.0, 8: 1.0}, 8),
        ({4: 0.5, 8: 1.0, 16: 0.1, 3: 0.1}, 4),
    ):
        regrouped = regroup_fastest(plain, table({shape: times}))
        assert [(layer.groups, layer.chosen, layer.chosen_ms) for layer in regrouped.layers] == [
            (8, chosen, times[chosen])
        ]
        assert int8_convolutions(regrouped.content) == [("sums", shape, chosen)]
        assert (regrouped.content == plain) == (chosen == 8)


def test_a_table_that_lacks_a_layer_is_refused_naming_it():
    plain = one_convolution(SHAPES[0], 8)
    for milliseconds in ({}, {SHAPES[1]: {8: 1.0}}, {SHAPES[0]: {1: 1.0, 2: 1.0}}):
        with pytest.raises(ValueError, match=r"table of a board has no latency of a 3x3 convolution of 8x8x16 to 16"):
            regroup_fastest(plain, table(milliseconds))


def test_groups_that_do_not_divide_are_refused():
    plain = one_convolution(SHAPES[0], 4)
    for groups in (3, 8, 0, -1):
        with pytest.raises(ValueError, match="has 4 groups; they cannot become"):
            with_groups(plain, [groups])
    with pytest.raises(ValueError, match="2 numbers of groups for 1 int8"):
        with_groups(plain, [1, 1])


@pytest.fixture(scope="module")
def net():
    """A published net with 8 groups, labelled."""
    return fnet.zoo.load("fnet-l3-int8", "path").read_bytes()


@pytest.fixture
def pictures(noise):
    return noise(50, (32, 32, 3))


def test_a_whole_net_gives_the_same_bits_and_keeps_its_labels(net, pictures):
    convolutions = int8_convolutions(net)
    assert sorted({groups for _, _, groups in convolutions}) == [1, 8]
    regrouped = with_groups(net, [1] * len(convolutions))
    plain, dense = fnet.Int8Model(net), fnet.Int8Model(regrouped)
    np.testing.assert_array_equal(plain.predict_quantized(pictures), dense.predict_quantized(pictures))
    assert dense.labels == plain.labels == fnet.zoo.card("fnet-l3-int8").class_names
    assert dense.input_quantization == plain.input_quantization
    before = sum(shape.filters * shape.input_shape[2] * 9 // 8 for _, shape, groups in convolutions if groups > 1)
    assert len(regrouped) - len(net) == pytest.approx(7 * before, abs=600)  # the old kernels are not left in the file


def test_measured_here_every_layer_is_in_the_table_and_the_net_is_the_same(net, pictures):
    regrouped = regroup_fastest(net)
    measured = regrouped.table.milliseconds
    assert {(shape, groups) for _, shape, groups in int8_convolutions(net) if groups > 1} == {
        (shape, max(times)) for shape, times in measured.items()
    }
    assert all(0 < ms < 100 for times in measured.values() for ms in times.values())
    assert [layer.groups for layer in regrouped.layers] == [n for _, _, n in int8_convolutions(net) if n > 1]
    for layer in regrouped.layers:
        assert layer.chosen_ms <= layer.plain_ms
    expected = fnet.Int8Model(net).predict_quantized(pictures)
    np.testing.assert_array_equal(fnet.Int8Model(regrouped.content).predict_quantized(pictures), expected)
    assert all(row["name"].startswith("quant_stage") for row in regrouped.rows())


def test_a_net_without_groups_comes_back_byte_by_byte(net):
    groups = [found for _, _, found in int8_convolutions(net)]
    assert with_groups(net, groups) == net
    dense = with_groups(net, [1] * len(groups))
    assert regroup_fastest(dense).content == dense
    assert regroup_fastest(dense).layers == ()


def test_written_buffers_lie_where_the_schema_wants_them(net):
    from ai_edge_litert import schema_py_generated as schema

    content = flatfile.write_flatbuffer(flatfile.read_flatbuffer(net))
    model = schema.Model.GetRootAsModel(content, 0)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    places = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(places) > 10
    assert all(place % 16 == 0 for place in places)
    np.testing.assert_array_equal(
        [b.DataAsNumpy().sum() for b in buffers if b.DataLength()],
        [np.asarray(b.data).sum() for b in flatfile.read_flatbuffer(net).buffers if b.data is not None and len(b.data)],
    )


def test_no_tflite_and_a_cut_one_are_refused(net):
    for content in (b"", b"x" * 100, net[:2000]):
        with pytest.raises(ValueError, match="convert it again"):
            regroup_fastest(content)


def test_a_table_reads_back_and_others_are_refused(tmp_path):
    measured = measure_convolutions({SHAPES[1]: 4})
    assert list(measured.milliseconds[SHAPES[1]]) == [1, 2, 4]
    text = measured.to_json()
    assert latency.table_from_json(text) == measured
    (tmp_path / "table.json").write_text(text)
    assert latency.read_table(tmp_path / "table.json") == measured
    newer = json.dumps(json.loads(text) | {"format": 2})
    for damaged in ("", "{}", "[]", text[:-30], newer, text.replace("filters", "filter")):
        with pytest.raises(ValueError, match="the table is no table of latencies"):
            latency.table_from_json(damaged)
    with pytest.raises(FileNotFoundError, match="no table of latencies at"):
        latency.read_table(tmp_path / "none.json")


def test_another_choice_and_a_table_without_one_are_refused():
    with pytest.raises(ValueError, match="regroup is 'fast'; it must be one of none, fastest"):
        check_regroup("fast", None)
    with pytest.raises(ValueError, match="latencies are for regroup="):
        check_regroup("none", table({}))


def test_functions_are_timed_in_turns():
    calls = []
    times = time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3, seconds=0, runs=2)
    assert times.shape == (3, 2)
    assert "".join(calls) == "ab" + 3 * "aabb"
    (slow, fast), *_ = time_in_turns([lambda: time.sleep(0.004), lambda: None], rounds=1, seconds=0, runs=3)
    assert slow > 4 > fast


def test_a_table_measured_by_the_command_regroups_an_export(net, pictures, tmp_path, capsys):
    (tmp_path / "net.tflite").write_bytes(net)
    source, out, made = (str(tmp_path / name) for name in ("net.tflite", "table.json", "regrouped.tflite"))
    assert main(["latencies", source, "--out", out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["groups"] for row in rows} == {1, 2, 4, 8}
    fields = json.loads((tmp_path / "table.json").read_text())
    for row in fields["convolutions"]:
        row["milliseconds"] = {groups: 1.0 + (groups != "2") for groups in row["milliseconds"]}
    (tmp_path / "table.json").write_text(json.dumps(fields))
    for spelling in ("--lower", "--regroup"):
        (tmp_path / "regrouped.tflite").unlink(missing_ok=True)
        arguments = ["export", source, "--tflite", made, spelling, "fastest", "--latencies", out]
        assert main([*arguments, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
    assert {groups for _, _, groups in int8_convolutions((tmp_path / "regrouped.tflite").read_bytes())} == {1, 2}
    assert row["bytes"] == (tmp_path / "regrouped.tflite").stat().st_size
    assert row["regrouped_bytes"] > row["plain_bytes"] == len(net)
    assert row["plain_ram_bytes"] == row["regrouped_ram_bytes"] == arena_bytes(net)
    assert min(row["plain_ms"], row["regrouped_ms"], row["speedup"]) > 0
    expected = fnet.Int8Model(net).predict_quantized(pictures)
    np.testing.assert_array_equal(fnet.Int8Model(made).predict_quantized(pictures), expected)
    assert main(["latencies", source, "--out", out]) == 2
    assert "is there already" in capsys.readouterr().err


def test_without_a_source_the_command_measures_the_family_and_imports_no_tensorflow(tmp_path):
    code = f"""
import sys
from factorizenet_tf.cli import main
from factorizenet_tf.tflite import latency
asked = {{}}
def measured(groups, *, threads):
    asked.update(groups)
    return latency.LatencyTable({{shape: {{1: 1.0}} for shape in groups}}, "a board", "a runtime", threads)
latency.measure_convolutions = measured
assert main(["latencies", "--out", {str(tmp_path / "table.json")!r}, "--width", "24"]) == 0
assert not {{"tensorflow", "tf_keras"}} & set(sys.modules)
print(sorted((shape.input_shape, shape.stride[0], shape.input_shape[2] % groups) for shape, groups in asked.items()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    grouped = {
        (layer.input_shape, layer.stride, 0)
        for level in range(1, fnet.max_level(fnet.ModelSpec(0, width=24)) + 1)
        for layer in fnet.ModelSpec(level, width=24).plan()
        if layer.kind == "grouped"
    }
    assert result.stdout.splitlines()[-1] == str(sorted(grouped))
