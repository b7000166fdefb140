import itertools
import subprocess
import sys

import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.cost import cost_rows
from factorizenet_tf.tflite.micro import arena_bytes

METHOD_STAGES = ((1, 1), (3, 2), (4, 2))
FAMILIES = [
    (16, (32, 32, 3), METHOD_STAGES),
    (8, (96, 96, 1), ((1, 2), (1, 2), (2, 2))),
    (24, (30, 17, 3), ((2, 2), (1, 2))),
    (16, (33, 32, 3), ((1, 1, 16, True), (3, 2, 40, True), (1, 1, 24))),
]


def test_a_small_net_costs_what_a_pencil_says():
    spec = fnet.ModelSpec(1, width=8, input_shape=(8, 8, 1), stages=((1, 2),))
    stem = 9 * 1 * 8 * 64
    spatial = 9 * (8 // 2) * 8 * 16
    pointwise = 8 * 16 * 16
    dense = 16 * 10
    assert fnet.count_macs(spec) == stem + spatial + pointwise + dense
    kernels = 9 * 8 + 9 * 4 * 8 + 8 * 16 + 160
    assert fnet.count_params(spec) == kernels + 4 * (8 + 8 + 16) + 10


def test_resnet8_is_the_one_of_mlperf_tiny():
    model = fnet.build(fnet.baselines.ResNet8())
    assert fnet.count_macs(model) == 12_501_632
    assert fnet.count_params(model) == model.count_params() == 78_666


@pytest.mark.parametrize(("width", "shape", "stages"), FAMILIES[:3])
def test_macs_fall_strictly_with_every_level(width, shape, stages):
    options = {"width": width, "input_shape": shape, "stages": stages}
    last = fnet.max_level(fnet.ModelSpec(0, **options))
    costs = [fnet.count_macs(fnet.ModelSpec(level, **options)) for level in range(last + 1)]
    assert all(a > b for a, b in itertools.pairwise(costs))


@pytest.mark.parametrize(("width", "shape", "stages"), FAMILIES)
def test_the_closed_form_equals_the_count_on_the_built_model_row_by_row(width, shape, stages):
    options = {"width": width, "input_shape": shape, "stages": stages, "num_classes": 5}
    for level in range(fnet.max_level(fnet.ModelSpec(0, **options)) + 1):
        spec = fnet.ModelSpec(level, **options)
        model = fnet.build(spec)
        assert cost_rows(model) == cost_rows(spec)
        assert fnet.count_params(spec) == model.count_params()


@pytest.mark.parametrize("level", [0, 2, (0, 4)])
def test_quantization_wrappers_change_no_cost(level):
    spec = fnet.ModelSpec(level, width=8, input_shape=(9, 8, 3), stages=((1, 2), (2, 2)), num_classes=3)
    assert cost_rows(fnet.quantize_aware(fnet.build(spec))) == cost_rows(spec)


def test_the_table_has_a_row_a_layer_and_sums_to_the_counts():
    spec = fnet.ModelSpec(2)
    table = fnet.cost_table(spec)
    columns = ["layer", "kind", "groups", "output_shape", "macs", "params", "weight_bytes", "activation_bytes"]
    assert list(table.columns) == columns
    assert len(table) == len(spec.plan())
    assert (table.macs.sum(), table.params.sum()) == (fnet.count_macs(spec), fnet.count_params(spec))
    stem = table.iloc[0]
    assert (stem.weight_bytes, stem.activation_bytes) == (9 * 3 * 16 + 4 * 16, 32 * 32 * 16)


def one_layer(layer, shape=(8, 8, 4)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (keras.layers.Conv2D(6, 3, groups=2), (8, 8, 4), 9 * 2 * 6 * 36),
        (keras.layers.Conv2D(6, (1, 5), strides=2, padding="same"), (8, 8, 4), 5 * 4 * 6 * 16),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), (8, 8, 4), 9 * 8 * 64),
        (keras.layers.SeparableConv2D(5, 3, padding="same"), (8, 8, 4), (9 * 4 + 4 * 5) * 64),
        (keras.layers.Conv2DTranspose(3, 2, strides=2), (8, 8, 4), 4 * 4 * 3 * 64),
        (keras.layers.Dense(7), (8, 8, 4), 4 * 7 * 64),
        (keras.layers.Conv2D(6, 3, padding="same", data_format="channels_first"), (8, 8, 4), 9 * 8 * 6 * 8 * 4),
        (keras.layers.Conv1D(6, 3, padding="same"), (10, 4), 3 * 4 * 6 * 10),
        (keras.layers.DepthwiseConv1D(3, padding="same"), (10, 4), 3 * 4 * 10),
        (keras.layers.Conv3D(2, 3), (5, 5, 5, 4), 27 * 4 * 2 * 27),
    ],
)
def test_other_peoples_layers_are_counted(layer, shape, expected):
    model = one_layer(layer, shape)
    assert fnet.count_macs(model) == expected
    assert fnet.count_params(model) == model.count_params()


def test_a_layer_used_twice_costs_twice_and_weighs_once():
    inputs = keras.Input((8, 8, 4))
    shared = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
    model = keras.Model(inputs, shared(shared(inputs)))
    assert fnet.count_macs(model) == 2 * 9 * 16 * 64
    assert fnet.count_params(model) == 9 * 16


def test_a_model_inside_a_model_is_counted():
    inner = one_layer(keras.layers.Conv2D(4, 3, padding="same"))
    inputs = keras.Input((8, 8, 4))
    outer = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inner(inputs))))
    assert fnet.count_macs(outer) == 9 * 16 * 64 + 256 * 2
    assert fnet.count_params(outer) == outer.count_params()


def test_layers_whose_multiplications_do_not_count_have_no_row():
    body = [keras.layers.Rescaling(2.0), keras.layers.PReLU(), keras.layers.SpatialDropout2D(0.5)]
    body += [keras.layers.ZeroPadding2D(), keras.layers.AveragePooling2D(), keras.layers.Softmax()]
    assert cost_rows(keras.Sequential([keras.Input((8, 8, 4)), *body])) == []
    one, other = keras.Input((4, 4)), keras.Input((4, 4))
    assert cost_rows(keras.Model([one, other], keras.layers.Add()([one, other]))) == []
    with pytest.raises(ValueError, match="a Dot, whose MACs are not known"):
        cost_rows(keras.Model([one, other], keras.layers.Dot(1)([one, other])))


def test_batchnorm_behind_no_convolution_has_a_row_of_its_own():
    model = one_layer(keras.layers.BatchNormalization())
    (row,) = cost_rows(model)
    assert (row.kind, row.macs, row.params) == ("batchnorm", 0, model.count_params())


class ReLU(keras.layers.Layer):
    """No stock layer, though it is called like one."""


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: one_layer(keras.layers.Lambda(lambda x: x * 2)), ValueError, "a Lambda, whose MACs are not known"),
        (lambda: one_layer(keras.layers.LSTM(3), (5, 4)), ValueError, "a LSTM, whose MACs are not known"),
        (lambda: one_layer(ReLU()), ValueError, "a ReLU, whose MACs are not known"),
        (lambda: one_layer(keras.layers.Conv2D(2, 3), (None, None, 3)), ValueError, "fixed size"),
        (lambda: "fnet-l2", TypeError, r"needs a tf_keras\.Model"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_never_0(model, error, message):
    with pytest.raises(error, match=message):
        fnet.count_macs(model())


def test_the_closed_form_loads_no_tensorflow():
    code = "import sys, factorizenet_tf as f; f.count_macs(f.ModelSpec(2)); assert not {'tensorflow', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_early_strides_keep_the_family_at_96_pixels_small_and_mobilenetv1_is_keras_own():
    nets = [fnet.ModelSpec(level, input_shape=(96, 96, 3)) for level in range(2, 8)]
    assert {net.macro for net in nets} == {"early"}
    assert max(map(fnet.count_macs, nets)) == fnet.count_macs(nets[0]) == 9_255_424  # below 10 M
    theirs = keras.applications.MobileNet((96, 96, 3), alpha=0.25, include_top=False, weights=None, pooling="avg")
    own = fnet.ModelSpec(8, width=8, input_shape=(96, 96, 3), macro="mobilenetv1")
    head = 256 * own.num_classes
    assert fnet.count_macs(own) - head == fnet.count_macs(theirs) == 7_489_152
    assert fnet.count_params(own) - head - own.num_classes == fnet.count_params(theirs)


@pytest.mark.slow
def test_early_strides_keep_the_arena_at_96_pixels_below_100_kb(noise):
    for level in (2, 7):
        model = fnet.build(fnet.ModelSpec(level, input_shape=(96, 96, 3)))
        assert arena_bytes(fnet.to_tflite(model, calibration=noise(8, (96, 96, 3)))) <= 100_000
