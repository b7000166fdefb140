import itertools
import json

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.macro import MACROS, Macro, Stage
from factorizenet_tf.spec import groups_at, last_level, level_from_text, level_text, spec_from_json

METHOD_STAGES = ((1, 1), (3, 2), (4, 2))


def test_groups_double_with_each_level_until_each_channel_is_its_own():
    assert [groups_at(level, 16) for level in (1, 2, 3, 4, 5)] == [2, 4, 8, 16, 16]
    assert [groups_at(level, 24) for level in (1, 2, 3, 4, 5)] == [2, 4, 8, 24, 24]  # 16 does not divide 24
    assert (last_level(8), last_level(16), last_level(24), last_level(64)) == (3, 4, 4, 6)


@pytest.mark.parametrize(
    ("width", "stages"), [(16, METHOD_STAGES), (24, ((2, 2), (2, 2))), (40, ((1, 2), (2, 2), (1, 1)))]
)
def test_each_level_refines_the_one_before_or_leaves_a_block_as_it_is(width, stages):
    last = fnet.max_level(fnet.ModelSpec(0, width=width, stages=stages))
    family = [fnet.ModelSpec(level, width=width, stages=stages) for level in range(1, last + 1)]
    for coarse, fine in itertools.pairwise(family):
        for a, b in zip(coarse.plan(), fine.plan()):
            assert b.groups % a.groups == 0
            assert (a.name, a.output_shape) == (b.name, b.output_shape)
    assert all(layer.kind in ("conv", "depthwise", "pointwise", "dense") for layer in family[-1].plan())


def test_specs_that_build_the_same_net_are_equal_and_have_one_name():
    uniform = fnet.ModelSpec(6, stages=METHOD_STAGES)
    assert uniform.levels == (4, 5, 6)  # clipped to each stage's own last
    for same in ((4, 5, 6), (6, 6, 6), (4, 6, 6)):
        spec = fnet.ModelSpec(same, stages=METHOD_STAGES)
        assert spec == uniform
        assert hash(spec) == hash(uniform)
        assert spec.name == "fnet-1x1.3x2.4x2-l6"
    assert fnet.ModelSpec((1, 1, 1), stages=METHOD_STAGES).level == 1
    assert fnet.ModelSpec((1, 2, 4), stages=METHOD_STAGES) != uniform


@pytest.mark.parametrize(
    ("width", "stages"), [(8, ((1, 2), (2, 2))), (24, ((2, 1), (1, 2))), (8, ((1, 1), (1, 1), (2, 2)))]
)
def test_specs_are_equal_where_their_plans_are_and_nowhere_else(width, stages):
    last = fnet.max_level(fnet.ModelSpec(0, width=width, stages=stages))
    levels = [*range(last + 1), *itertools.product(range(last + 1), repeat=len(stages))]
    specs = [fnet.ModelSpec(level, width=width, stages=stages) for level in levels]
    for a, b in itertools.combinations(specs, 2):
        assert (a == b) == (a.plan() == b.plan()) == (hash(a) == hash(b))
        assert (a.name == b.name) == (a == b)


def test_the_last_level_is_that_of_the_widest_convolution_that_is_factorized():
    def last(width, *stages):
        return fnet.max_level(fnet.ModelSpec(0, width=width, stages=stages))

    assert last(16, (1, 1)) == 4  # 2**4 groups of 16 channels
    assert last(16, (1, 2)) == 4  # the block's 3x3 still sees 16 channels
    assert last(16, (2, 2)) == 5
    assert last(24, (1, 1)) == 4  # 2, 4, 8, then 24
    assert last(16, *METHOD_STAGES) == 6


def test_the_name_has_macro_architecture_level_and_width():
    assert fnet.ModelSpec(2).name == "fnet-l2"
    assert fnet.ModelSpec((1, 2, 4), width=32, stages=METHOD_STAGES).name == "fnet-1x1.3x2.4x2-l1.2.4-x2"
    assert fnet.ModelSpec(0, width=24).name == "fnet-l0-x1.5"
    assert fnet.ModelSpec(2, input_shape=(96, 96, 3), width=8).name == "fnet-early-l2-x0.5"
    parts = {"stages": ((2, 2, 48, True), (1, 1)), "stem_stride": 2, "last_channels": 64}
    assert fnet.ModelSpec(0, **parts).name == "fnet-s2.2x2c48r.1x1.p64-l0"


@pytest.mark.parametrize("name", MACROS)
@pytest.mark.parametrize("width", [8, 16, 40])
def test_a_macro_architecture_is_found_by_its_parts(name, width):
    macro = MACROS[name].at(width)
    spec = fnet.ModelSpec(1, width=width, macro=name)
    assert spec.macro == name
    parts = {"stages": macro.stages, "stem_stride": macro.stem_stride, "last_channels": macro.last_channels}
    assert fnet.ModelSpec(1, width=width, **parts) == spec


@pytest.mark.parametrize("text", ["3x2.1x1", "s2,1x1c24,4x2r", "2x2c40r.p64", "base", "early"])
def test_a_macro_architecture_is_read_from_its_text(text):
    spec = fnet.ModelSpec(1, macro=text)
    assert spec.macro == text.replace(",", ".")
    assert fnet.ModelSpec(1, macro=spec.macro) == spec
    assert fnet.ModelSpec(1, width=32, macro=text) != spec


def test_a_row_of_macro_architectures_scales_with_the_width_and_a_text_does_not():
    row = Macro((Stage(1, 2, 24), Stage(1, 1)), last_channels=40)
    assert row.at(32) == Macro((Stage(1, 2, 48), Stage(1, 1)), last_channels=80)
    assert row.at(8).stages[0].channels == 16  # 12, to a multiple of 8
    assert fnet.ModelSpec(0, width=32, macro="1x2c24").stages == (Stage(1, 2, 24),)


def test_channels_that_are_what_none_gives_are_no_other_net():
    assert fnet.ModelSpec(1, stages=((2, 2, 32), (2, 2, 64), (2, 1, 64))) == fnet.ModelSpec(1, macro="2x2,2x2,2x1")
    assert fnet.ModelSpec(1, stages=((2, 2, 48), (2, 2))).plan()[-1].input_shape == (1, 1, 64)  # width x strides


def test_residual_sums_are_where_shapes_agree():
    spec = fnet.ModelSpec((0, 5), stages=((1, 1, None, True), (3, 2, None, True)))
    assert {layer.name: layer.shortcut for layer in spec.plan() if layer.shortcut} == {
        "stage1_block1_spatial": "stem",
        "stage2_block2_pointwise": "stage2_block1_pointwise",
        "stage2_block3_pointwise": "stage2_block2_pointwise",
    }


def test_the_plan_of_a_small_net_is_as_drawn_by_hand():
    plan = fnet.ModelSpec(1, width=8, input_shape=(8, 8, 1), stages=((2, 2),)).plan()
    assert [(p.name, p.kind, p.groups, p.stride, p.output_shape) for p in plan] == [
        ("stem", "conv", 1, 1, (8, 8, 8)),
        ("stage1_block1_spatial", "grouped", 2, 2, (4, 4, 8)),
        ("stage1_block1_pointwise", "pointwise", 1, 1, (4, 4, 16)),
        ("stage1_block2_spatial", "grouped", 2, 1, (4, 4, 16)),
        ("stage1_block2_pointwise", "pointwise", 1, 1, (4, 4, 16)),
        ("logits", "dense", 1, 1, (1, 1, 10)),
    ]


def test_a_spec_survives_json():
    for spec in (
        fnet.ModelSpec((0, 1), width=24, input_shape=(96, 96, 1), num_classes=3, stages=((1, 2), (1, 2))),
        fnet.ModelSpec(2),
        fnet.ModelSpec(1, stages=((2, 2, 48, True), (1, 1)), stem_stride=2, last_channels=64),
        fnet.baselines.ResNet8(num_classes=4),
    ):
        assert spec_from_json(spec.to_json()) == spec


def test_json_says_no_more_of_the_nets_of_before_than_it_did():
    fields = json.loads(fnet.ModelSpec(2).to_json())
    assert fields.keys() == {"family", "level", "width", "input_shape", "num_classes", "stages"}
    assert fields["stages"] == [[3, 2], [2, 2], [2, 1]]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"family": "other"}', '{"family": "factorizenet", "level": 1}'])
def test_json_that_is_no_spec_is_refused(text):
    with pytest.raises(ValueError, match="not a spec"):
        spec_from_json(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": -1}, "level is -1; .* from 0 "),
        ({"level": 9}, "level is 9; .* from 0 .* to 6"),
        ({"level": (1, 2)}, "level 1.2 has 2 entries; there are 3 stages"),
        ({"level": (1, 2, 9)}, "level is 9"),
        ({"level": (1, -1, 2)}, "level is -1"),
        ({"width": 12}, "width is 12; .* multiple of 8"),
        ({"width": 0}, "width is 0"),
        ({"input_shape": (2, 32, 3)}, "2x32 is smaller than the strides' product 4"),
        ({"input_shape": (32, 32, 2)}, "channels is 2; images have 1 or 3"),
        ({"input_shape": (32, 32)}, "input_shape is"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"stages": ()}, "stages is empty"),
        ({"stages": ((0, 1), (3, 2), (4, 2))}, "stage 1 has 0 blocks"),
        ({"stages": ((1, 3), (3, 2), (4, 2))}, "stage 1 has stride 3"),
        ({"stages": ((1, 2, 20),)}, "channels of stage 1 is 20; .* multiple of 8, e.g. 16"),
        ({"stages": ((1, 2, None, True),)}, "stage 1 .* residual sums, .* stride 2 and 16 channels in, 32 out; give"),
        ({"stages": ((1, 1, 24, True),)}, "stage 1 .* residual sums, .* stride 1 and 16 channels in, 24 out"),
        ({"stem_stride": 3}, "stem_stride is 3; it must be 1 or 2"),
        ({"stem_stride": 2, "stages": None}, "stem_stride and last_channels go with stages"),
        ({"last_channels": 20}, "last_channels is 20; .* multiple of 8"),
        ({"macro": "base"}, "macro is 'base' and stages are given"),
        ({"macro": "bsae", "stages": None}, r"'bsae'; it must be a name \(base, .*; did you mean 'base'"),
        ({"macro": "", "stages": None}, "macro-architecture is ''; it must be"),
        ({"macro": "2x2.s2", "stages": None}, "macro-architecture is '2x2.s2'; it must be"),
        ({"macro": "2x2c", "stages": None}, "macro-architecture is '2x2c'; it must be"),
    ],
)
def test_an_argument_out_of_range_is_named_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        fnet.ModelSpec(**({"stages": METHOD_STAGES} | arguments))


OTHER_TYPES = [{"level": level} for level in (1.5, True, np.True_, "2")] + [{"width": 16.0}]
OTHER_TYPES += [{"stages": stages} for stages in ((3, 4), ((1, True),), ((2, 2, 32, 1),), ((2, 2, 32.0),))]


@pytest.mark.parametrize("arguments", OTHER_TYPES)
def test_an_argument_of_another_type_is_a_type_error(arguments):
    with pytest.raises(TypeError, match="must be"):
        fnet.ModelSpec(**arguments)


def test_numbers_of_numpy_are_taken_and_written():
    numbers = {"width": np.int32(8), "num_classes": np.uint8(4), "stages": ((np.int64(1), np.int64(2)), (1, 1))}
    spec = fnet.ModelSpec((np.int64(1), np.int8(0)), **numbers)
    assert spec == fnet.ModelSpec((1, 0), width=8, num_classes=4, stages=((1, 2), (1, 1)))
    assert spec_from_json(spec.to_json()) == spec


def test_a_level_is_written_with_dots_and_read_back():
    for level, text in ((2, "2"), ((1, 2, 4), "1.2.4"), ((0,), "0")):
        assert level_text(level) == text
    assert (level_from_text("2"), level_from_text("1.2.4")) == (2, (1, 2, 4))
    for text in ("", "two", "1.", "1,2"):
        with pytest.raises(ValueError, match=r"level is .*; it must be a number, or one a stage joined by dots"):
            level_from_text(text)
