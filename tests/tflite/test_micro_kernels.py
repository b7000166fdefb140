"""What microcontrollers' kernel libraries need, by pencil and against what TensorFlow Lite Micro itself plans."""

import re
import sys

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tflite.latency import Convolution
from factorizenet_tf.tflite.micro import arena_bytes
from factorizenet_tf.tflite.micro_kernels import SCRATCH, estimate_arenas, operator_shapes, planned_bytes


def published(name):
    return fnet.zoo.load(name, "path").read_bytes()


def convolution(size, channels, filters, kernel, *, stride=1, groups=1, name="CONV_2D"):
    shape = Convolution((size, size, channels), filters, (kernel, kernel), (stride, stride), (1, 1), "SAME")
    return name, shape, groups


def depthwise(size, channels, kernel=3, multiplier=1):
    return convolution(size, channels, channels * multiplier, kernel, name="DEPTHWISE_CONV_2D")


def other(name, channels, filters):
    return convolution(1, channels, filters, 1, name=name)


CMSIS_NN = {  # shape: scalar, dsp, mve
    # two columns of 3 * 3 * 3 numbers, up to a multiple of 4, of 2 bytes; with MVE four of one byte, up to 16
    convolution(32, 3, 16, 3): (2 * 28 * 2, 2 * 28 * 2, 4 * 32),
    convolution(32, 16, 16, 3): (2 * 144 * 2, 2 * 144 * 2, 4 * 144),
    convolution(32, 16, 16, 3, groups=4): (2 * 144 * 2, 2 * 144 * 2, 4 * 144),  # of all channels
    convolution(16, 16, 32, 1): (0, 2 * 16 * 2, 0),
    convolution(16, 16, 32, 1, stride=2): (0, 0, 0),
    convolution(16, 16, 32, 1, groups=2): (2 * 16 * 2, 2 * 16 * 2, 4 * 16),  # a grouped one is no pointwise one to it
    depthwise(16, 64): (0, 0, 4 * 124 * 9),  # four blocks of 124 channels, whatever there are
    depthwise(16, 64, kernel=5): (0, 2 * 64 * 25, 4 * 124 * 25),
    depthwise(16, 1, multiplier=8): (0, 0, 4 * 16 + 8 * 9),  # as a regular one
    other("FULLY_CONNECTED", 64, 10): (0, 0, 4 * 10),
    other("AVERAGE_POOL_2D", 64, 64): (0, 4 * 64, 0),
    other("ADD", 64, 64): (0, 0, 0),
}
ESP_NN = {
    convolution(16, 16, 32, 1): 16 * 32 + 16 * 16 + 64,  # weights, 8 pixels turned twice, margin
    convolution(2, 12, 32, 1): 2 * 2 * 16 + 16 * 32 + 64,  # 12 channels become 16; too few pixels to turn
    convolution(32, 3, 16, 3): 4 * 16 + 16 + 16 * 32 + 16 + 32 + 64,  # im2col: 27 numbers become 32
    # the image with its border for two reasons, the weights twice, the sums
    convolution(32, 16, 16, 3): 2 * 34 * 34 * 16 + 2 * 9 * 16 * 16 + 4 * 16 + 64,
    depthwise(16, 16): 9 * 16 + 18 * 18 * 16 + 16,
    depthwise(64, 16): 9 * 16 + 3 * 66 * 16 + 16,  # above 40 kB a strip of three rows
    depthwise(16, 24): 32 * (9 + 20 * 20 + 16 * 16) + 64,  # 24 channels become 32
    depthwise(16, 8): 2 * (9 * 8 + 16 * 16 * 8) + 32,  # as 16-bit numbers
    depthwise(16, 16, kernel=5): 2 * (25 * 16 + 16 * 16 * 16) + 32,
    depthwise(64, 16, kernel=5): 2 * (25 * 16 + 64 * 5 * 16) + 32,
    depthwise(4, 4): 144 + 256 + 128 + 3 * 4 * 8 + 16,  # 4 channels become 8, each part up to a multiple of 16
    depthwise(16, 4, multiplier=4): 2 * (9 * 16 + 16 * 16 * 4) + 32,
    other("SOFTMAX", 10, 10): 40,
}


@pytest.mark.parametrize(("library", "table"), [("cmsis-nn", CMSIS_NN), ("esp-nn", ESP_NN)])
def test_scratch_buffers_are_what_each_librarys_formulas_say(library, table):
    for (name, *shape), expected in table.items():
        found = tuple(formulas.get(name, lambda *_: 0)(*shape) for formulas in SCRATCH[library].values())
        assert found == (expected if library == "cmsis-nn" else (expected,)), (name, *map(str, shape))


def test_shapes_are_read_from_the_file(models, content):
    operators = operator_shapes(content)
    (_, stem, _), (_, first, groups) = operators[:2]
    assert (stem.input_shape, stem.output_shape, stem.kernel) == ((16, 16, 1), (16, 16, 8), (3, 3))
    assert stem.margins == (1, 1)
    assert (first.stride, first.margins, groups) == ((2, 2), (0, 0), 2)  # 1 pixel too many at the other end
    assert [name for name, *_ in operators] == list(models.int8.operators)
    assert operators[-1][1].filters == 10


@pytest.mark.parametrize("name", ["fnet-l0-int8", "fnet-l2-int8", "fnet-l6-x2.5-int8", "baseline-resnet8-int8"])
def test_the_plan_is_the_one_that_tflite_micro_records(name, capfd):
    from tflite_micro.python.tflite_micro import runtime

    runtime.Interpreter.from_bytes(published(name)).print_allocations()
    recorded = re.search(r"Arena allocation head (\d+) bytes", capfd.readouterr().err)
    assert planned_bytes(published(name)) == int(recorded[1])


def test_scratch_buffers_raise_the_plan_where_they_do_not_fit_beside_what_is_alive(models, content):
    sizes = [0] * len(models.int8.operators)
    plain = planned_bytes(content)
    assert planned_bytes(content, sizes) == plain
    sizes[-1] = 100  # where the activations have shrunk to a few bytes
    assert planned_bytes(content, sizes) == plain
    sizes[1] = 4464  # beside the stem's output, 16 x 16 x 8, and its own, 8 x 8 x 16
    assert plain < planned_bytes(content, sizes) <= 2048 + 1024 + 4464


@pytest.mark.parametrize(
    ("name", "recorded", "kernels", "expected"),
    [
        ("fnet-l6-int8", 30_688, "cmsis-nn", {"scalar": 30_784, "dsp": 31_008, "mve": 30_688 + 4_464 + 64 + 9 * 32}),
        ("fnet-l0-int8", 30_640, "esp-nn", {"esp32s3": 101_424}),
        ("fnet-l0-int8", 30_640, "reference", {}),
    ],
)
def test_the_arena_grows_by_the_scratch_buffers(name, recorded, kernels, expected):
    assert estimate_arenas(published(name), kernels) == expected
    assert arena_bytes(published(name)) == recorded


def test_what_is_no_model_and_a_missing_extra_are_named(monkeypatch, capfd):
    with pytest.raises(ValueError, match="cannot run the model"):
        arena_bytes(b"no model at all, but long enough")
    assert capfd.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(ModuleNotFoundError, match=r"factorizenet_tf\[micro\]"):
        arena_bytes(b"")
