import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tuner.space import Space
from factorizenet_tf.tuner.surrogate import NOISE, AdditiveGP, CandidateSet

SPACE = Space(fnet.ModelSpec(0, width=8), (8, 16))
MACROS = Space(fnet.ModelSpec(0, width=8, stages=((1, 2), (1, 2))), (8,), (), (1, 2, 3), (1, 2))


def model_and_truth(space):
    """The model of a space, and percent of each net, a sum of effects: regular convolutions and three blocks are better."""
    model = AdditiveGP(CandidateSet(space))
    blocks, _, levels, _ = space.values(model.candidates.rows)
    deepest = space.last_levels(model.candidates.rows)
    effect = 4.0 * (levels == 0) + 1.5 * (levels == deepest) - 0.2 * levels + (0 if space is SPACE else 2 * blocks)
    return model, 60 + effect @ np.linspace(1, 0.3, effect.shape[1])


@pytest.mark.parametrize("space", [SPACE, MACROS], ids=["levels", "macros"])
def test_what_was_trained_is_expected_again_and_told_of_its_like(space):
    model, truth = model_and_truth(space)
    trained = np.random.default_rng(0).choice(len(truth), 40, replace=False)
    estimate = model.estimate({model.candidates.net(place): truth[place] for place in trained})
    others = np.setdiff1d(np.arange(len(truth)), trained)
    errors = np.abs(estimate.mean - truth)
    assert errors[trained].mean() < 0.3
    assert errors[others].mean() < 0.3 * np.abs(truth - truth.mean())[others].mean()
    assert estimate.deviation[trained].max() < NOISE < estimate.deviation[others].max()
    assert np.mean(errors[others] < 2 * estimate.deviation[others]) > 0.9


def test_one_result_lifts_nets_of_its_level_more_than_others():
    model, _ = model_and_truth(SPACE)
    accuracies = {SPACE.net((4, 4, 4)): 60.0, SPACE.net((0, 4, 4)): 64.0}
    estimate = model.estimate(accuracies)
    np.testing.assert_array_equal(estimate.mean, model.mean(accuracies))
    alike, other = (model.candidates.index(SPACE.net(levels)) for levels in ((0, 1, 2), (4, 1, 2)))
    assert estimate.mean[alike] > estimate.mean[other] + 1


@pytest.mark.parametrize("space", [SPACE, MACROS], ids=["levels", "macros"])
def test_a_net_believed_is_as_certain_as_if_it_had_been_trained_with_its_mean(space):
    model, truth = model_and_truth(space)
    net = model.candidates.net
    trained = {net(place): truth[place] for place in (0, 50, 200)}
    estimate = model.estimate(trained)
    mean, before = estimate.mean.copy(), estimate.deviation
    believed = {}
    for place in (120, 121, 126):  # neighbours: what one says is no news of the next
        estimate.believe(place)
        believed[net(place)] = mean[place]
        np.testing.assert_allclose(estimate.deviation, model.estimate(trained | believed).deviation, rtol=1e-6)
    assert (estimate.deviation <= before + 1e-12).all()
    np.testing.assert_array_equal(estimate.mean, mean)
