"""Estimate what each choice does to accuracy, from the nets trained so far: an additive Gaussian process.

Accuracy is modelled as the sum of a constant, an effect of each choice (the level in each stage, the width, the
macro-architecture, the blocks and the channels in each stage), an effect of the MACs, and a small effect of the combination;
if there are more choices than level and width, also of effects of any two choices together. If a space's nets were measured
before any training, as the layers of a trained model are, that measurement is the prior mean, with a learned weight. The
effects of neighbouring levels are correlated; those of the regular convolution (level 0) less so with the factorized ones,
which have two convolutions in its place.

Source: additive Gaussian processes, Duvenaud et al., arXiv 1112.4394; the constants are our choice, by replays of searches.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from .space import NetSpace

__all__ = ["AdditiveGP"]

LEVEL_CORRELATION = 0.75  # between the effects of neighbouring levels
LEVEL0_CORRELATION = 0.3  # a further factor between level 0 and any factorized level
INTERACTION_VARIANCE = 0.3  # of the combination's effect, relative to a variance of 1 of each single effect
RATIO_LENGTH = 3  # doublings of blocks, channels or width until an effect's correlation is 1 / e; of width alone 1
MACRO_CORRELATION = 0.5  # between the effects of any two macro-architectures
PAIRS_VARIANCE = 1.0  # of all effects of two choices together, where there are more choices than level and width
CONSTANT_VARIANCE = 4.0
TREND, TREND_DEVIATION = 12.0, 10.0  # points lost for each unit of the measurement before training: mean and deviation
NOISE = 0.7  # standard deviation of a training's accuracy over seeds in points, where each effect has 1 point


class AdditiveGP:
    """Estimate the accuracies of all candidates from those of a few nets.

    Args:
        space: of the nets.
        rows: the candidates, int (n, columns), in the space's form; None: all of the space, in the order of `nets`.
        center: logarithm to base 2 of the MACs whose effect is 0; None: the candidates' mean.

    Attributes:
        macs: of the candidates, int64 (n,).
    """

    def __init__(self, space: NetSpace, rows: np.ndarray | None = None, center: float | None = None):
        self.space = space
        self.rows = rows = space.rows() if rows is None else rows
        self.macs = space.count_macs(rows)
        length = RATIO_LENGTH if space.has_more_than_levels else 1
        self._parts = [_correlated(kind, own, length) for kind, own in space.axes(rows)]
        size = np.log2(self.macs)
        self._size = size - (size.mean() if center is None else center)
        self._pairs = PAIRS_VARIANCE * space.has_more_than_levels
        trend = space.trend(rows)
        self._trend = np.zeros(len(rows)) if trend is None else trend
        self._variance = (
            CONSTANT_VARIANCE + np.square(self._size) + len(self._parts) + INTERACTION_VARIANCE + self._pairs
        ) + np.square(TREND_DEVIATION * self._trend)
        self._columns: dict[int, np.ndarray] = {}
        self._places: dict[object, int] = {}
        self._explained: dict[object, np.ndarray] = {}  # by each more than by those before it, a root of variance

    def index(self, net) -> int:
        """Give the index of a candidate. Raises IndexError for another net."""
        if net not in self._places:
            self._places[net] = int(np.flatnonzero((self.rows == self.space.row_of(net)).all(1))[0])
        return self._places[net]

    def covariance_with(self, index: int) -> np.ndarray:
        """Compute the prior covariance of every candidate with one, float (n,)."""
        if index not in self._columns:
            parts = [correlation[own[index]][own] for own, correlation in self._parts]
            total = CONSTANT_VARIANCE + self._size * self._size[index] + sum(parts)
            total += TREND_DEVIATION**2 * self._trend * self._trend[index]
            total += INTERACTION_VARIANCE * np.prod(parts, axis=0)
            if self._pairs:  # the sum of all products of two
                twice = np.square(sum(parts)) - sum(map(np.square, parts))
                total += self._pairs * twice / (len(parts) * (len(parts) - 1))
            self._columns[index] = total
        return self._columns[index]

    def mean(self, values: Mapping, *, with_trend: bool = True) -> np.ndarray:
        """Compute the posterior mean of every candidate, float (n,), given the values of a few.

        Args:
            values: by net, in percent, or any figure that is nearly a sum of effects.
            with_trend: whether the space's measurement before training is the prior mean.
        """
        trend = -TREND * with_trend * self._trend
        if not values:
            return trend
        indices, numbers = [*map(self.index, values)], np.array([*values.values()])
        known = np.stack([self.covariance_with(index) for index in indices])
        numbers = numbers - trend[indices]
        weights = np.linalg.solve(known[:, indices] + NOISE**2 * np.eye(len(indices)), numbers - numbers.mean())
        return numbers.mean() + trend + known.T @ weights

    def deviation(self, nets: Iterable) -> np.ndarray:
        """Compute the posterior standard deviation of every candidate, in percent, float (n,), given the values of some nets.

        It is computed net by net, and the first nets' shares are kept for the next call.
        """
        nets = [*nets]
        while [*self._explained] != nets[: len(self._explained)]:
            self._explained.popitem()
        for net in nets[len(self._explained) :]:
            index = self.index(net)
            column = self.covariance_with(index).copy()
            for earlier in self._explained.values():
                column -= earlier * earlier[index]
            self._explained[net] = column / np.sqrt(column[index] + NOISE**2)
        return np.sqrt(np.maximum(self._variance - sum(map(np.square, self._explained.values())), 1e-9))


def _correlated(kind: str, numbers: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Number the choices of one kind; give each net's number, int (n,), and the correlation of any two choices' effects."""
    if kind == "level":
        number = np.arange(numbers.max() + 1)
        correlation = LEVEL_CORRELATION ** np.abs(number[:, None] - number)
        correlation[0, 1:] *= LEVEL0_CORRELATION
        correlation[1:, 0] *= LEVEL0_CORRELATION
        return numbers, correlation
    if kind == "name":
        return numbers, np.where(np.eye(numbers.max() + 1), 1, MACRO_CORRELATION)
    values, places = np.unique(np.log2(numbers), return_inverse=True)
    return places, np.exp(-np.abs(values[:, None] - values) / length)
