import pytest

import factorizenet_tf as fnet
from factorizenet_tf.requirement import Requirement
from factorizenet_tf.tuner.budget import check_budget, least_costs, what_would_fit
from factorizenet_tf.tuner.space import Space, macs

SPEC = fnet.ModelSpec(0, width=16)
SPACE = Space(SPEC, (16,))


def macs_of(width=16, shape=(32, 32, 3), macro="base"):
    return Space(fnet.ModelSpec(0, width=width, input_shape=shape, macro=macro), (width,)).smallest()


def test_a_budget_that_nothing_fits_is_refused_with_each_change_that_would_and_its_number():
    small = macs(macs_of(width=8))
    check_budget(SPACE, Requirement(max_macs=macs(SPACE.smallest())))
    with pytest.raises(ValueError, match=rf"what would help: --width 8: {small:,} MACs; --size 16: ") as refusal:
        check_budget(SPACE, Requirement(max_macs=small))
    assert f"--macro early: {macs(macs_of(macro='early')):,} MACs" in str(refusal.value)
    assert "--channels 1" not in str(refusal.value)  # a stem of one channel saves less than that


def test_numbers_of_bytes_by_the_spec_alone_are_said_to_be_bounds_and_measured_ones_are_not():
    # The stem of width 16 holds 32x32x3 bytes and 32x32x16; grey 32x32x1 and 32x32x16.
    assert least_costs(SPEC)["ram_bytes"] == 32 * 32 * 19
    grey = Requirement(max_ram_bytes=32 * 32 * 17)
    assert "--channels 1 (grey): at least 17,408 bytes of RAM" in what_would_fit(SPACE, grey, least_costs, "at least ")
    slow = what_would_fit(
        SPACE, Requirement(max_latency_ms=1), lambda net: {"latency_ms": 0.5 if net.width == 8 else 2}
    )
    assert slow == "what would help: --width 8: 0.5 ms"


def test_where_no_change_alone_or_together_fits_it_is_said_with_the_least_number():
    text = what_would_fit(SPACE, Requirement(max_macs=1_000), least_costs)
    least = macs(macs_of(width=8, shape=(16, 16, 1)))
    assert text.startswith("no smaller width, image or other macro-architecture fits, either (")
    assert text.endswith(f"{least:,} MACs)")


def test_of_several_macro_architectures_the_one_with_the_fewest_weights_decides_on_bytes_and_is_offered():
    # "early" has fewer MACs and more weights than "base".
    few, many = (least_costs(macs_of(macro=macro))["size_bytes"] for macro in ("base", "early"))
    assert few < many
    check_budget(Space(SPEC, (16,), macros=("early", "base")), Requirement(max_size_bytes=few))
    with pytest.raises(ValueError, match=f"alone have {few:,}"):
        check_budget(Space(SPEC, (16,), macros=("early", "base")), Requirement(max_size_bytes=few - 1))
    with pytest.raises(ValueError, match=f"--macro base: at least {few:,} bytes of file"):
        check_budget(Space(SPEC, (16,), macros=("early",)), Requirement(max_size_bytes=few))
