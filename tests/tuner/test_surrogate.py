import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tuner.space import Space, macs
from factorizenet_tf.tuner.surrogate import NOISE, AdditiveGP, CandidateSet

WIDTHS = (8, 16)
SPACE = Space(fnet.ModelSpec(0, width=8), WIDTHS)


@pytest.fixture(scope="module")
def nets():
    return CandidateSet(SPACE)


@pytest.fixture(scope="module")
def effects(nets):
    return AdditiveGP(nets, WIDTHS)


@pytest.fixture(scope="module")
def accuracies(nets):
    """Percent of every candidate, a sum of effects: regular convolutions are better, depthwise ones than those before."""
    deepest = np.array([nets.levels[nets.width == width].max(0) for width in range(2)])[nets.width]
    effect = 4.0 * (nets.levels == 0) + 1.5 * (nets.levels == deepest) - 0.2 * nets.levels
    return 60 + effect @ [1.0, 0.7, 0.3] + 3.0 * nets.width


def test_candidates_are_the_spaces_nets_with_their_macs(nets):
    found = list(SPACE.nets())
    assert len(nets) == len(found) == 180 + 294
    assert [nets.net(place) for place in range(len(nets))] == found
    assert [nets.index(net) for net in found] == list(range(len(nets)))
    assert nets.macs.tolist() == [macs(net) for net in found]


def test_what_was_trained_is_expected_again_and_told_of_its_like(nets, effects, accuracies):
    trained = np.random.default_rng(0).choice(len(nets), 40, replace=False)
    estimate = effects.estimate({int(place): accuracies[place] for place in trained})
    assert np.abs(estimate.mean - accuracies)[trained].mean() < 0.3
    others = np.setdiff1d(np.arange(len(nets)), trained)
    errors = np.abs(estimate.mean - accuracies)[others]
    assert errors.mean() < 0.3 * np.abs(accuracies - accuracies.mean())[others].mean()
    assert estimate.deviation[trained].max() < NOISE < estimate.deviation[others].max()
    assert np.mean(errors < 2 * estimate.deviation[others]) > 0.9


def test_one_result_lifts_nets_of_its_level_more_than_others(nets, effects):
    low, high = (nets.index(SPACE.net(levels, 8)) for levels in ((4, 4, 4), (0, 4, 4)))
    estimate = effects.estimate({low: 60.0, high: 64.0})
    np.testing.assert_array_equal(estimate.mean, effects.mean({low: 60.0, high: 64.0}))
    alike, other = (nets.index(SPACE.net(levels, 8)) for levels in ((0, 1, 2), (4, 1, 2)))
    assert estimate.mean[alike] > estimate.mean[other] + 1


def test_a_net_believed_is_as_certain_as_if_it_had_been_trained_with_its_mean(nets, effects, accuracies):
    trained = {place: accuracies[place] for place in (0, 50, 300)}
    estimate = effects.estimate(trained)
    mean, before = estimate.mean.copy(), estimate.deviation
    believed = {}
    for place in (120, 121, 126):  # neighbours: what one says is no news of the next
        estimate.believe(place)
        believed[place] = mean[place]
        again = effects.estimate(trained | believed)
        np.testing.assert_allclose(estimate.deviation, again.deviation, rtol=1e-6)
    assert (estimate.deviation <= before + 1e-12).all()
    assert estimate.deviation[120] < before[120] / 2
    np.testing.assert_array_equal(estimate.mean, mean)
