"""Depth factorization of nets that are there already."""

from __future__ import annotations

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.models import factorize as factorizing
from factorizenet_tf.models.factorize import levels_of_layers
from factorizenet_tf.models.low_rank import Moments, NormalEquations, pointwise_first, regroup, spatial_first
from factorizenet_tf.models.native import use_native_kernels
from factorizenet_tf.tflite import latency
from factorizenet_tf.tflite.flatbuffer import operator_name, read_flatbuffer

layers = keras.layers


@pytest.fixture(scope="module")
def images():
    """Smooth images: neighbouring pixels are correlated, as in photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (96, 4, 4, 3))
    return np.repeat(np.repeat(coarse, 3, 1), 3, 2).astype(np.uint8)


@pytest.fixture(scope="module")
def net():
    """12x12 images through convolutions of every kind: bias, stride, dilation, both paddings, residual sum, activation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(inputs)
    y = layers.Conv2D(16, 3, padding="same", use_bias=False, name="plain")(x)
    y = layers.BatchNormalization(name="plain_bn")(y)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    x = layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="strided")(x)
    x = layers.Conv2D(8, (3, 1), padding="same", dilation_rate=(2, 1), name="dilated")(x)
    x = layers.ReLU(6.0, name="relu6")(x)
    x = layers.Conv2D(8, 3, padding="same", groups=2, name="grouped")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="theirs")
    random = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([w + 0.1 * random.random(w.shape) if w.ndim == 1 else w for w in layer.get_weights()])
    return use_native_kernels(model)


def logits(model, images):
    return model.predict(images.astype(np.float32) / 255, verbose=0)


def test_each_layer_has_the_levels_that_make_it_cheaper(net):
    # 32 -> 8, 3x1: level 5, by output: 1 * 32 * 8 pointwise and 3 * 8 depthwise. Grouped: 8 channels in 2 become 4 or 8.
    four = [0, 1, 2, 3, 4]
    assert levels_of_layers(net) == {"plain": four, "strided": four, "dilated": [*four, 5], "grouped": [0, 2, 3]}
    assert "stem" in levels_of_layers(net, stem=True)


def test_what_scales_the_pixels_in_front_of_the_stem_makes_it_no_other_layer():
    inputs = keras.Input((12, 12, 3))
    x = layers.DepthwiseConv2D(1, name="pixels")(inputs)
    for name in ("stem", "next"):
        x = layers.Conv2D(8, 3, padding="same", name=name)(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    assert levels_of_layers(model).keys() == {"next"}


def test_a_level_of_numpys_is_one_of_all_layers(net):
    again, plain = (fnet.factorize(net, level) for level in (np.int64(1), 1))
    assert [layer.name for layer in again.layers] == [layer.name for layer in plain.layers]


def test_level_0_changes_nothing(net, images):
    same = fnet.factorize(net, 0, calibration=images)
    np.testing.assert_array_equal(logits(same, images), logits(net, images))
    assert [layer.name for layer in same.layers] == [layer.name for layer in net.layers]


def test_more_channels_between_lose_less_and_with_as_many_as_the_kernel_has_numbers_nothing(net, images):
    deepest, wanted = {"strided": 4}, logits(net, images)
    options = {"calibration": images}
    narrow, wide = (logits(fnet.factorize(net, deepest, middle={"strided": m}, **options), images) for m in (1, 5))
    assert np.abs(wide - wanted).mean() < 0.7 * np.abs(narrow - wanted).mean()
    kernel = net.get_layer("strided").get_weights()[0]
    *_, together = spatial_first(NormalEquations.of(kernel, np.zeros(32), None), 16, 9)
    np.testing.assert_allclose(together, kernel.reshape(-1, 32), atol=1e-6)


def test_a_depthwise_separable_kernel_is_found_exactly():
    random = np.random.default_rng(0)
    spatial, pointwise = random.normal(size=(3, 3, 8)), random.normal(size=(8, 5))
    kernel = np.einsum("hwc,cf->hwcf", spatial, pointwise)
    *_, together = spatial_first(NormalEquations.of(kernel, np.zeros(5), None), 8, 1)
    np.testing.assert_allclose(together, kernel.reshape(-1, 5), atol=1e-6)
    assert NormalEquations.of(kernel, np.ones(5), None).bias(together).tolist() == [1] * 5


def test_a_kernel_behind_a_pointwise_one_is_found_exactly():
    random = np.random.default_rng(0)
    pointwise, spatial = random.normal(size=(8, 4)), random.normal(size=(3, 3, 4))
    kernel = np.einsum("cf,hwf->hwcf", pointwise, spatial)
    *_, together = pointwise_first(NormalEquations.of(kernel, np.zeros(4), None), 4, 1)
    np.testing.assert_allclose(together, kernel.reshape(-1, 4), atol=1e-6)


def test_more_groups_keep_a_kernel_that_has_them_already():
    random = np.random.default_rng(0)
    kernel = np.zeros((3, 3, 4, 4))
    kernel[:, :, :2, :2], kernel[:, :, 2:, 2:] = random.normal(size=(2, 3, 3, 2, 2))
    grouped, together = regroup(NormalEquations.of(kernel, np.zeros(4), None), 2)
    np.testing.assert_allclose(together, kernel.reshape(-1, 4), atol=1e-6)
    np.testing.assert_allclose(grouped[..., 2:], kernel[:, :, 2:, 2:], atol=1e-6)


def test_the_fit_on_patches_errs_less_there_than_the_kernel_alone():
    random = np.random.default_rng(0)
    kernel, mixing = random.normal(size=(3, 3, 4, 6)), random.normal(size=(36, 36))
    patches = random.normal(size=(4000, 36)) @ mixing + 1
    moments = Moments(36, 6)
    moments.add(patches, patches @ kernel.reshape(36, 6) + 2)
    errors = []
    for given in (None, moments):
        normal = NormalEquations.of(kernel, np.full(6, 2.0), given)
        *_, together = spatial_first(normal, 2, 2)
        found = patches @ together + normal.bias(together)
        errors.append(np.mean(np.square(found - patches @ kernel.reshape(36, 6) - 2)))
    assert errors[1] < 0.7 * errors[0]


def test_images_make_a_factorized_net_meet_the_original_better(net, images):
    wanted = logits(net, images)
    alone, fitted = (logits(fnet.factorize(net, 3, calibration=given), images) for given in (None, images))
    assert np.abs(fitted - wanted).mean() < 0.5 * np.abs(alone - wanted).mean()


def test_the_parts_have_the_layers_options_and_the_nets_shape(net, images):
    model = fnet.factorize(net, 9, calibration=images)
    assert model.output_shape == net.output_shape
    assert (model.name, model.get_layer("strided_spatial").strides) == (net.name, (2, 2))
    assert model.get_layer("strided_pointwise").activation.__name__ == "relu"
    names = [layer.name for layer in model.layers]
    assert names.index("dilated_pointwise") < names.index("dilated_spatial")  # 32 channels, 8 filters
    assert model.get_layer("dilated_spatial").dilation_rate == (2, 1)
    assert type(model.get_layer("grouped")).__name__ == "DepthwiseConv2D"
    assert fnet.count_macs(model) < fnet.count_macs(net)


def test_a_factorized_net_becomes_int8(net, images):
    model = fnet.factorize(net, {"plain": 2, "strided": 4}, middle=2, calibration=images)
    int8 = fnet.Int8Model(fnet.to_tflite(model, calibration=images))
    assert int8.tensor_types <= {"int8", "int32"}
    assert np.mean(int8.predict(images).argmax(1) == logits(model, images).argmax(1)) > 0.9


def test_the_table_has_pencil_costs_and_falling_errors(net, images):
    table = fnet.factorization_table(net, images, middle=(1, 2)).set_index(["layer", "level", "middle"])
    plain = table.loc[("plain", 1, 1)]
    kernels = 9 * 8 * 16 + 16 * 16
    assert (plain.groups, plain.macs) == (2, 144 * kernels)
    assert (plain.params, plain.weight_bytes) == (kernels + 16, kernels + 4 * 32)
    kept = table.xs(0, level="level")
    assert (kept[["energy_lost", "output_error", "logits_error"]] == 0).all().all()
    assert (kept.output_error_int8 > 0).all()
    assert table.loc[("plain", 4, 2)].output_error < table.loc[("plain", 4, 1)].output_error
    assert table.loc[("plain", 4, 1)].energy_lost > table.loc[("plain", 1, 1)].energy_lost > 0


def test_levels_are_chosen_within_a_budget(net, images):
    table = fnet.factorization_table(net, images, middle=(1, 2))
    whole = fnet.count_macs(net)
    for share in (1, 0.7, 0.5):
        levels, middle = fnet.choose_levels(net, table, share * whole)
        assert fnet.count_macs(fnet.factorize(net, levels, middle=middle)) <= share * whole
    assert fnet.choose_levels(net, table, whole) == ({}, {})
    with pytest.raises(ValueError, match=r"max_macs is 1,000; with the cheapest choice in each layer the net has \d"):
        fnet.choose_levels(net, table, 1000)


def test_milliseconds_are_a_second_budget(net, images, monkeypatch):
    monkeypatch.setattr(factorizing, "inference", lambda content: content)
    monkeypatch.setattr(factorizing, "time_in_turns", lambda files: np.array([[len(file) for file in files]]))
    monkeypatch.setattr(latency, "time_in_turns", lambda calls: np.ones((1, len(calls))))
    steps = []
    table = fnet.factorization_table(net, images, middle=(1, 2))
    table = fnet.with_latencies(net, table, advance=lambda: steps.append(1))
    assert len(steps) == 4
    before, macs = table.ms[table.level == 0].sum(), 0.8 * fnet.count_macs(net)
    rows = table.set_index(["layer", "level", "middle"])

    def chosen(max_ms):
        levels, middle = fnet.choose_levels(net, table, macs, max_ms=max_ms)
        assert fnet.count_macs(fnet.factorize(net, levels, middle=middle)) <= macs
        kept = [rows.loc[(name, levels.get(name, 0), middle.get(name, 1))] for name in table.layer.unique()]
        return sum(row.ms for row in kept), sum(row.logits_error_int8**2 for row in kept)

    free, error = chosen(2 * before)
    assert fnet.choose_levels(net, table, macs, max_ms=2 * before) == fnet.choose_levels(net, table, macs)
    less, more_error = chosen(0.98 * free)
    assert less <= 0.98 * free
    assert more_error > error
    with pytest.raises(ValueError, match=r"max_ms is 1 for the layers of .* the fewest that were found are \d"):
        fnet.choose_levels(net, table, macs, max_ms=1)
    with pytest.raises(ValueError, match=r"give it one by with_latencies"):
        fnet.choose_levels(net, table.drop(columns="ms"), macs, max_ms=1)


def test_what_a_layer_becomes_is_timed_as_the_operators_that_the_converter_makes_of_it(net, images):
    kinds = {"plain": (2, 1), "strided": (4, 2), "dilated": (5, 1), "grouped": (2, 1)}
    for name, (level, middle) in kinds.items():
        layer = net.get_layer(name)
        parts = factorizing._split(layer, level, middle)
        alone = keras.Sequential([keras.Input(layer.input_shape[1:]), *parts.parts(None)])
        values = np.random.default_rng(0).integers(0, 256, (8, *layer.input_shape[1:]), np.uint8)
        files = fnet.to_tflite(alone, calibration=values), latency.convolution_chain(parts.convolutions)
        made, timed = (
            [
                (kind, *latency.convolution_of(graph, operator))
                for model in [read_flatbuffer(file)]
                for graph in model.subgraphs
                for operator in graph.operators
                if (kind := operator_name(model, operator)).endswith("CONV_2D")
            ]
            for file in files
        )
        assert timed == made
        latency.inference(files[1])()


def broken(net):
    copy = keras.models.clone_model(net)
    kernel, bias = copy.get_layer("strided").get_weights()
    copy.get_layer("strided").set_weights([kernel * np.nan, bias])
    return copy


def twice(net):
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inputs = keras.Input((12, 12, 3))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(shared(shared(inputs)))))


def with_layer(make):
    def change(net):
        return keras.Model(net.inputs, make(net.output))

    return change


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (with_layer(layers.Lambda(lambda x: x, name="code")), {"level": 1}, "the layer 'code' is a Lambda, whose code"),
        (with_layer(lambda x: x * 2.0 + 1.0), {"level": 1}, r"'tf.math.multiply\S*' is a TFOpLambda, .*such as Rescaling"),
        (None, {"level": {"striped": 1}}, "level names the layer 'striped', .*did you mean 'strided'"),
        (None, {"level": 1, "middle": {"pool": 2}}, "middle names the layer 'pool'"),
        (None, {"level": -1}, "the level of plain is -1"),
        (None, {"level": 1.5}, "the level of plain is 1.5"),
        (None, {"level": 1, "middle": 0}, "middle of plain is 0; it must be above 0 and at most 9"),
        (None, {"level": {"plain": 1}, "middle": {"plain": 9}}, "makes the layer plain no cheaper"),
        (None, {"level": {"grouped": 2}, "middle": {"grouped": 2}}, "grouped has groups already"),
        (broken, {"level": 1}, "the layer 'strided' has weights that are not finite"),
        (twice, {"level": 1}, "the layer 'shared' is used 2 times"),
        (lambda net: keras.Model(net.inputs, net.get_layer("stem").output), {"level": 1}, "become cheaper, but .* image .stem.; for these give stem=True"),
        (fnet.quantize_aware, {"level": 1}, "is quantization-aware already"),
    ],
)  # fmt: skip
def test_what_cannot_be_factorized_is_named(net, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        fnet.factorize(change(net) if change else net, **arguments)
