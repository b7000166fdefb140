import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tuner.space import Space
from factorizenet_tf.tuner.surrogate import NOISE, AdditiveGP

SPACE = Space(fnet.ModelSpec(0, width=8), (8, 16))
MACROS = Space(fnet.ModelSpec(0, width=8, stages=((1, 2), (1, 2))), (8,), (), (1, 2, 3), (1, 2))


@pytest.mark.parametrize("space", [SPACE, MACROS], ids=["levels", "macros"])
def test_what_was_trained_is_expected_again_and_told_of_its_like(space):
    model = AdditiveGP(space)
    blocks, _, levels, _ = space.values(model.rows)
    deepest = space.last_levels(model.rows)
    # A sum of effects: regular convolutions and three blocks are better.
    effect = 4.0 * (levels == 0) + 1.5 * (levels == deepest) - 0.2 * levels + (0 if space is SPACE else 2 * blocks)
    truth = 60 + effect @ np.linspace(1, 0.3, effect.shape[1])
    trained = np.random.default_rng(0).choice(len(truth), 40, replace=False)
    results = {space.net_of(model.rows[place]): truth[place] for place in trained}
    mean, deviation = model.mean(results), model.deviation(results)
    others = np.setdiff1d(np.arange(len(truth)), trained)
    errors = np.abs(mean - truth)
    assert errors[trained].mean() < 0.3
    assert errors[others].mean() < 0.3 * np.abs(truth - truth.mean())[others].mean()
    assert deviation[trained].max() < NOISE < deviation[others].max()
    assert np.mean(errors[others] < 2 * deviation[others]) > 0.9
    first = [*results][:20]
    assert (model.deviation(first) >= deviation).all()
    again = model.deviation([*first, *reversed([*results][20:])])  # the first ones are not computed again
    np.testing.assert_allclose(again, AdditiveGP(space).deviation(results), rtol=1e-9)


def test_one_result_lifts_nets_of_its_level_more_than_others():
    model = AdditiveGP(SPACE)
    mean = model.mean({SPACE.net((4, 4, 4)): 60.0, SPACE.net((0, 4, 4)): 64.0})
    alike, other = (model.index(SPACE.net(levels)) for levels in ((0, 1, 2), (4, 1, 2)))
    assert mean[alike] > mean[other] + 1
