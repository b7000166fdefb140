import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tflite.micro import arena_bytes
from factorizenet_tf.tuner import costs as measured_costs
from factorizenet_tf.tuner.costs import measure
from factorizenet_tf.tuner.space import Space, at_level, macs, uniform

SPEC = fnet.ModelSpec(0, width=8)
SPACES = {
    "levels": Space(SPEC, (8,)),
    "widths": Space(SPEC, (8, 16)),
    "blocks": Space(fnet.ModelSpec(0, stages=((2, 2), (2, 2))), (8,), (), (1, 2, 3)),
    "channels": Space(fnet.ModelSpec(0, stages=((1, 2), (2, 2))), (8,), (), (1, 2), (1, 2)),
    "macros": Space(SPEC, (8, 16), ("base", "s2.2x2.2x2r.1x1r", "2x2c24.2x1r.p64")),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_has_every_net_once_with_its_macs_and_its_own_name(name):
    space = SPACES[name]
    nets, rows = list(space.nets()), space.rows()
    assert len(nets) == len(set(nets)) == len({net.name for net in nets}) == space.count() > 100
    assert space.smallest() == min(nets, key=macs)
    assert space.count_macs(rows).tolist() == list(map(macs, nets))
    assert [space.row_of(net) for net in nets] == list(map(tuple, rows.tolist()))


def test_counts_are_those_of_the_choices():
    assert SPACES["levels"].count() == 5 * 6 * 6
    assert SPACES["widths"].count() == 5 * 6 * 6 + 6 * 7 * 7
    # Stage 1 of 1 block has levels 0 to 3 by its 8 channels in, of 2 or 3 0 to 4; stage 2 0 to 4 and 0 to 5.
    assert SPACES["blocks"].count() == (4 + 5 + 5) * (5 + 6 + 6)
    assert [net.level for net in uniform(SPEC)] == [0, 1, 2, 3, 4, 5]


def test_nets_near_others_are_of_the_space_and_differ_in_one_choice():
    space = Space(SPEC, (8, 16), ("base", "early"), (1, 2, 3), (0.5, 1, 2))
    random = np.random.default_rng(0)
    drawn = space.sample(200, random)
    assert all(space.row_of(space.net_of(row)) == tuple(row) for row in drawn)
    (origin,) = drawn[:1]
    near = space.neighbours(drawn[:1])
    own_family = near[near[:, 0] == origin[0]]
    places = slice(1, 1 + 2 * space.num_stages)  # levels may have to follow the channels
    assert ((own_family != origin)[:, places].sum(1) <= 1).all()
    assert len(near) > 20
    assert (space.altered(drawn, 2, random)[:, 0] < 4).all()


def test_other_choices_of_a_stage_are_nets_that_differ_in_it_alone():
    space, net = SPACES["channels"], SPACES["channels"].net((1, 2))
    found = space.alternatives(net)
    assert {respect: list(nets) for respect, nets in found.items()} == {
        "stage 1, level": [0, 1, 2, 3],
        "stage 1, blocks": [1, 2],
        "stage 1, channels": [16, 32],
        "stage 2, level": [0, 1, 2, 3, 4, 5],
        "stage 2, blocks": [1, 2],
        "stage 2, channels": [32, 64],
    }
    assert found["stage 2, level"][0] == at_level(net, (1, 0))
    wide = found["stage 1, channels"][32]
    assert (wide.levels, [stage.channels for stage in wide.stages]) == ((1, 2), [32, None])


def test_a_stage_that_can_have_no_residual_sum_has_none():
    space = Space(SPEC, (8,), ("2x2r.2x1r",), (1, 2))
    assert {tuple(stage.residual for stage in net.stages) for net in space.nets()} == {(False, True), (True, True)}


def test_an_untrained_net_takes_the_bytes_and_the_ram_of_the_trained_one(run, digits):
    costs = measure(run.spec, ("size_bytes", "ram_bytes"), digits.class_names)
    content = (run.folder / "model.tflite").read_bytes()
    assert costs["size_bytes"] == pytest.approx(len(content), abs=64)  # a kB and more where biases are stored once
    assert costs["ram_bytes"] == arena_bytes(content)


def test_levels_and_describe_measure_a_net_once_and_show_bytes_arena_and_milliseconds(
    prints_json, monkeypatch, tmp_path
):
    measured = []
    costs = {"size_bytes": 5, "ram_bytes": 7, "latency_ms": 0.5}
    monkeypatch.setattr(measured_costs, "measure", lambda spec, wanted, labels=None: [measured.append(spec), costs][1])
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path))
    rows = prints_json("levels", "--measure")
    assert [row["ram_bytes"] for row in rows] == [7] * 7
    assert prints_json("describe", "--level", 2, "--measure").items() >= costs.items()
    assert len(measured) == 7
    assert "ram_bytes" not in prints_json("levels")[0]
    prints_json("describe", "--level", 2, "--classes", 4, "--measure")  # another net of that name
    assert len(measured) == 8
