import io
import random
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from runtimes import on_litert

import factorizenet_tf as fnet
from factorizenet_tf.tflite.export import with_metadata
from factorizenet_tf.tflite.flatbuffer import associated_files, read_flatbuffer, with_associated_files, write_flatbuffer
from factorizenet_tf.tflite.latency import Convolution, int8_convolutions, one_convolution
from factorizenet_tf.tflite.micro import arena_bytes, micro_outputs
from factorizenet_tf.tflite.slim import slim

CARDS = {(card.name, card.version): card for card in fnet.zoo.list(precision="int8", all_versions=True)}
# Of these version 2 is version 1, slim; of others it was trained anew.
SLIM = [name for name, version in CARDS if version == 2 and CARDS[name, 1].accuracies == CARDS[name, 2].accuracies]
PUBLISHED = [f"{name}@1" for name in SLIM]  # what was published before files were slim
GOALS = {
    "fnet-l2-int8@1": 68_904,
    "fnet-l6-int8@1": 36_672,
    "fnet-l6-x1.5-int8@1": 64_184,
    "fnet-l5.6.5-x2.5-int8@1": 156_048,
    "baseline-resnet8-int8@1": 87_760,
}
QUICK = ("fnet-l6-int8@1", "baseline-resnet8-int8@1")  # depthwise; with residual sums
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
RUNTIMES = ("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF")
KERNEL = Convolution((8, 8, 16), 16, (3, 3), (1, 1), (1, 1), "SAME")


def outputs(content, runtime):
    """What a .tflite gives for noise, raw bytes or floats; for one input where kernels are slow."""
    (taken,) = Interpreter(model_content=content).get_input_details()
    shape = (1 if runtime == "BUILTIN_REF" else 6, *taken["shape"][1:])
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    is_byte = np.dtype(taken["dtype"]).itemsize == 1
    return on_litert(content, noise.view(taken["dtype"]) if is_byte else np.float32(noise / 255), runtime)


def meaning(content):
    """All that a .tflite says but for names of inner tensors, each buffer in the place of its number."""
    model = read_flatbuffer(content)
    data = [b"" if buffer.data is None else bytes(buffer.data) for buffer in model.buffers]
    for graph in model.subgraphs:
        for number, tensor in enumerate(graph.tensors):
            tensor.buffer = data[tensor.buffer]
            if number not in (*graph.inputs, *graph.outputs):
                tensor.name = None
    model.buffers = data
    return plain(model)


def plain(value):
    if hasattr(value, "__dict__"):
        return type(value).__name__, {key: plain(field) for key, field in vars(value).items()}
    return [plain(item) for item in value] if isinstance(value, (list, np.ndarray)) else value


def assert_the_same_in_fewer_bytes(before, *, runtimes=RUNTIMES):
    after = slim(before)
    assert len(after) < len(before)
    assert slim(after) == after
    assert meaning(after) == meaning(before)
    base = np.frombuffer(after, np.uint8).ctypes.data
    starts = [buffer.data.ctypes.data - base for buffer in read_flatbuffer(after).buffers if buffer.data is not None]
    assert {start % 16 for start in starts} == {0}
    for runtime in runtimes:
        np.testing.assert_array_equal(outputs(after, runtime), outputs(before, runtime), err_msg=runtime)
    return after


def test_files_are_as_small_as_the_goals():
    for name, goal in GOALS.items():
        assert len(slim(fnet.zoo.load(name, "path").read_bytes())) <= goal


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED])
def test_a_published_net_is_the_same_on_every_runtime_in_fewer_bytes(name):
    before = fnet.zoo.load(name, "path").read_bytes()
    after = assert_the_same_in_fewer_bytes(before)
    np.testing.assert_array_equal(micro_outputs(after, IMAGE), micro_outputs(before, IMAGE))
    assert arena_bytes(after) == arena_bytes(before) == fnet.zoo.card(name).ram_bytes
    assert fnet.Int8Model(after).labels == fnet.zoo.card(name).class_names


@pytest.fixture
def fat(monkeypatch):
    """`to_tflite` gives what the converter wrote."""
    monkeypatch.setattr("factorizenet_tf.models.convert.slim", lambda content, keep_names: content)


@pytest.mark.slow
def test_mobilenet_v2_of_keras_applications_is_the_same(fat, noise):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=10)
    for layer in model.layers:  # else activations shrink from sum to sum, until the kernels' checks abort the process
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(noise(8, (32, 32, 3)) / np.float32(255), training=True)
    before = fnet.to_tflite(model, calibration=noise(8, (32, 32, 3)))
    after = assert_the_same_in_fewer_bytes(before)
    assert len(after) < 0.83 * len(before)
    np.testing.assert_array_equal(micro_outputs(after, IMAGE), micro_outputs(before, IMAGE))
    assert arena_bytes(after) == arena_bytes(before)


def test_a_file_of_tensorflow_alone_is_the_same(foreign):
    assert_the_same_in_fewer_bytes(foreign[1])


@pytest.fixture(scope="module")
def loop():
    """A float .tflite of three subgraphs: a loop, its condition and its body."""
    kernel = tf.constant(np.random.default_rng(0).random((8, 8)), tf.float32)  # of no sign: sums grow

    def count_up(x):
        return tf.while_loop(lambda x: tf.reduce_sum(x) < 99.0, lambda x: (tf.nn.relu(x @ kernel) + 1.0,), [x])[0]

    function = tf.function(count_up).get_concrete_function(tf.TensorSpec((1, 8)))
    return tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module()).convert()


def test_a_float_file_of_several_subgraphs_is_the_same(loop):
    assert len(read_flatbuffer(loop).subgraphs) == 3
    assert_the_same_in_fewer_bytes(loop)


def test_labels_metadata_signatures_and_other_files_survive(run):
    content = with_metadata((run.folder / "model.tflite").read_bytes(), name="mine")
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    ends = (("x", graph.inputs[0]), ("y", graph.outputs[0]))
    mapped = [[schema.TensorMapT(name=name, tensorIndex=number)] for name, number in ends]
    model.signatureDefs = [schema.SignatureDefT(*mapped, signatureKey="serve", subgraphIndex=0)]
    for tensor in graph.tensors:
        tensor.name = tensor.name or b"a name"
    files = associated_files(content) | {"words.txt": b"word " * 1000}
    packed = io.BytesIO()
    packed.write(write_flatbuffer(model))
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    after = assert_the_same_in_fewer_bytes(packed.getvalue(), runtimes=["AUTO"])
    assert associated_files(after) == files
    assert len(after) < 1000 + len(run.folder.joinpath("model.tflite").read_bytes())  # the words stay packed
    assert Interpreter(model_content=after).get_signature_list() == {"serve": {"inputs": ["x"], "outputs": ["y"]}}
    assert [entry.name for entry in read_flatbuffer(after).metadata][-1] == b"TFLITE_METADATA"


def test_equal_kernels_and_options_are_written_once_and_what_is_alike_by_chance_is_not():
    model = read_flatbuffer(one_convolution(KERNEL, 4))
    one = len(write_flatbuffer(model))
    (graph,) = model.subgraphs
    for _ in range(2):  # two more of the same convolution, kernels and biases copied
        first = len(model.buffers)
        model.buffers += [schema.BufferT(bytearray(model.buffers[n].data)) for n in (1, 2)]
        new = read_flatbuffer(one_convolution(KERNEL, 4)).subgraphs[0]
        new.tensors[1].buffer, new.tensors[2].buffer = first, first + 1
        last = int(graph.outputs[0])
        graph.operators += new.operators
        graph.operators[-1].inputs = [last, len(graph.tensors), len(graph.tensors) + 1]
        graph.operators[-1].outputs = graph.outputs = [len(graph.tensors) + 2]
        graph.tensors += new.tensors[1:]
    # The same bytes or values in other fields: int 1, float 1.0, float -0.0 against 0.0 where neither is the default.
    others = (schema.SoftmaxOptionsT(beta=1.0), schema.GatherOptionsT(axis=1), schema.GeluOptionsT(approximate=True))
    for options in others:
        graph.operators.append(schema.OperatorT(inputs=[0], outputs=[0], builtinOptions=options))
        kind = type(options).__name__.removesuffix("T")
        graph.operators[-1].builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    content = write_flatbuffer(model)
    kernel, bias = (len(model.buffers[n].data) for n in (1, 2))
    assert len(content) < one + kernel + bias
    options = [operator.builtinOptions for operator in read_flatbuffer(content).subgraphs[0].operators]
    assert [plain(one) for one in options[:3]] == 3 * [plain(options[0])]
    assert (options[3].beta, options[4].axis, options[5].approximate) == (1.0, 1, True)


def test_conversion_is_slim_and_names_are_kept_on_demand(models):
    named, small = fnet.to_tflite(models.qat, labels=models.int8.labels, keep_names=True), models.int8.content
    assert slim(small) == small
    assert len(slim(named)) == pytest.approx(len(small), abs=32)  # loaded from qat.h5, whose biases may round otherwise
    assert len(small) < 0.8 * len(named)
    given = [name for _, name in fnet.Int8Model(named).operator_outputs]
    assert all("quant_" in name for name in given[:-1])
    assert [name for _, name in fnet.Int8Model(small).operator_outputs] == ["" for _ in given[:-1]] + given[-1:]
    assert [name for name, *_ in int8_convolutions(small)] == [f"CONV_2D {number}" for number in range(7)]


def test_the_commands_write_slim_files_keep_names_on_demand_and_overwrite_none(run, tmp_path, prints_json, fails):
    for options, is_named in (([], False), (["--keep-names"], True)):
        out = tmp_path / f"{len(options)}.tflite"
        prints_json("export", run.folder, "--tflite", out, *options)
        names = [name for _, name in fnet.Int8Model(out).operator_outputs]
        assert all(names) == is_named
    named = out.read_bytes()
    (row,) = prints_json("slim", out, tmp_path / "slim.tflite")
    written = (tmp_path / "slim.tflite").read_bytes()
    assert (row["bytes"], row["before"]) == (len(written), len(named))
    assert written == slim(named)
    assert "is there already; choose another name or remove it" in fails("slim", out, out)
    assert "is a file, so --zoo would have no effect" in fails("slim", out, tmp_path / "new", "--zoo", tmp_path)
    assert out.read_bytes() == named


def truncated_labels(content):
    return with_associated_files(content, {"labels.txt": b"a\nb\n"})[:-10]


def another_schema(content):
    model = read_flatbuffer(content)
    model.subgraphs[0].operators[0].builtinOptions = None
    return write_flatbuffer(model)


def weights_elsewhere(content):
    model = read_flatbuffer(content)
    model.buffers[1] = schema.BufferT(offset=5000, size=16)
    return write_flatbuffer(model)


def no_such_tensor(content):
    model = read_flatbuffer(content)
    model.subgraphs[0].operators[0].inputs = [0, 99, 2]
    return write_flatbuffer(model)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "no .tflite: its bytes 4 to 8"),
        (lambda content: content[: len(content) // 2], "the .tflite is damaged"),
        (lambda content: content[:30] + b"\xff" * 40 + content[70:], "the .tflite is damaged"),
        (no_such_tensor, "the .tflite is damaged"),
        (truncated_labels, "associated files: the archive's end is missing"),
        (another_schema, "operators that ai-edge-litert does not know"),
        (weights_elsewhere, "weights outside of its flatbuffer"),
    ],
)
@pytest.mark.parametrize("command", ["slim", "inspect"])
def test_what_is_damaged_is_refused_in_one_line_and_nothing_is_written(command, damage, reason, tmp_path, fails):
    (tmp_path / "in.tflite").write_bytes(damage(one_convolution(KERNEL, 4)))
    out = [tmp_path / "out.tflite"] if command == "slim" else []
    assert reason in fails(command, tmp_path / "in.tflite", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["in.tflite"]


def test_bytes_changed_anywhere_are_written_whole_or_refused():
    content = fnet.zoo.load("fnet-l6-int8@1", "path").read_bytes()
    dice, refused = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(dice.choice([1, 4, 40])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            after = slim(bytes(damaged))
        except ValueError:
            refused += 1
        else:
            assert meaning(after) == meaning(bytes(damaged))
    assert 10 < refused < 60
