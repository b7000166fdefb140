"""Estimate what the level of each stage does to accuracy, from the nets trained so far: an additive Gaussian process.

Accuracy is modelled as a constant, plus an effect of the level in each stage, an effect of the width, one of the MACs, and
a small effect of the combination. Neighbouring levels are correlated; the regular convolution (level 0) is correlated less
with the factorized ones, which have two convolutions in its place.

Source: additive Gaussian processes, Duvenaud et al., arXiv 1112.4394; the constants are our choice, by replays of searches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..spec import ModelSpec
from .space import Space, macs

__all__ = ["AdditiveGP", "CandidateSet", "Posterior"]

LEVEL_CORRELATION = 0.75  # between the effects of neighbouring levels
LEVEL0_CORRELATION = 0.3  # a further factor between level 0 and any factorized level
INTERACTION_VARIANCE = 0.3  # of what is no sum of effects, where each effect has variance 1
CONSTANT_VARIANCE = 4.0
NOISE = 0.7  # standard deviation of a training's accuracy over seeds in points, where each effect has 1 point


class CandidateSet:
    """Hold every net of a space as arrays, in the order of `Space.nets`.

    Args:
        space: the `Space`.

    Attributes:
        levels: int (n, stages).
        width: int (n,): index into the space's widths.
        macs: int64 (n,). MACs are a sum over stages, so few nets are counted.
    """

    def __init__(self, space: Space):
        self._space = space
        self._shapes = [tuple(k + 1 for k in space.uniform(width)[-1].levels) for width in space.widths]
        counts = [int(np.prod(shape)) for shape in self._shapes]
        self._first = np.cumsum([0, *counts])
        levels, costs = [], []
        for width, shape in zip(space.widths, self._shapes):
            of_width = np.indices(shape).reshape(len(shape), -1).T
            regular = space.net(0, width)
            cost = np.full(len(of_width), macs(regular))
            for stage, number in enumerate(shape):
                alone = [macs(space.changed(regular, stage, level)) for level in range(number)]
                cost += (np.array(alone) - macs(regular))[of_width[:, stage]]
            levels.append(of_width)
            costs.append(cost)
        self.levels, self.macs = np.concatenate(levels), np.concatenate(costs)
        self.width = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self.macs)

    def net(self, index: int) -> ModelSpec:
        """Give the net at an index."""
        width = self._space.widths[self.width[index]]
        return self._space.net(tuple(int(level) for level in self.levels[index]), width)

    def index(self, net: ModelSpec) -> int:
        """Give the index of a net."""
        width = self._space.widths.index(net.width)
        return int(self._first[width] + np.ravel_multi_index(net.levels, self._shapes[width]))


@dataclass
class Posterior:
    """The accuracy expected of every candidate.

    Args:
        mean, deviation: of the accuracy in percent, float (n,).
    """

    mean: np.ndarray
    deviation: np.ndarray
    _process: AdditiveGP
    _known: np.ndarray
    _inverse: np.ndarray
    _believed: list[np.ndarray] = field(default_factory=list)

    def believe(self, index: int) -> None:
        """Treat a candidate as trained with its mean (kriging believer): deviations near it shrink, no mean changes."""
        covariance = self._process.covariance_with(index) - self._known.T @ (self._inverse @ self._known[:, index])
        for share in self._believed:
            covariance -= share * share[index]
        variance = np.square(self.deviation)
        share = covariance / np.sqrt(variance[index] + NOISE**2)
        self._believed.append(share)
        self.deviation = _root(variance - np.square(share))


class AdditiveGP:
    """Estimate the accuracy of all candidates from that of a few.

    Args:
        candidates: the nets.
        widths: of the stem, in the order of the candidates' indices.
    """

    def __init__(self, candidates: CandidateSet, widths: Sequence[int]):
        self._candidates = candidates
        number = np.arange(candidates.levels.max() + 1)
        self._correlation = LEVEL_CORRELATION ** np.abs(number[:, None] - number)
        self._correlation[0, 1:] *= LEVEL0_CORRELATION
        self._correlation[1:, 0] *= LEVEL0_CORRELATION
        self._widths = np.log2(widths)
        size = np.log2(candidates.macs)
        self._size = size - size.mean()
        parts = candidates.levels.shape[1] + (len(widths) > 1)
        self._variance = CONSTANT_VARIANCE + np.square(self._size) + parts + INTERACTION_VARIANCE
        self._columns: dict[int, np.ndarray] = {}

    def covariance_with(self, index: int) -> np.ndarray:
        """Give the prior covariance of every candidate with one: float (n,)."""
        if index not in self._columns:
            candidates = self._candidates
            parts = [self._correlation[levels[index]][levels] for levels in candidates.levels.T]  # one a stage
            if len(self._widths) > 1:
                distance = np.abs(self._widths - self._widths[candidates.width[index]])
                parts.append(np.exp(-distance)[candidates.width])
            total = CONSTANT_VARIANCE + self._size * self._size[index] + sum(parts)
            self._columns[index] = total + INTERACTION_VARIANCE * np.prod(parts, axis=0)
        return self._columns[index]

    def estimate(self, accuracies: Mapping[int, float]) -> Posterior:
        """Estimate mean and deviation of every candidate.

        Args:
            accuracies: percent, by index; at least one.
        """
        mean, known, inverse = self._solved(accuracies)
        explained = np.einsum("ij,ij->j", known, inverse @ known)
        return Posterior(mean, _root(self._variance - explained), self, known, inverse)

    def mean(self, values: Mapping[int, float]) -> np.ndarray:
        """Estimate the mean alone, which is much faster, of any figure that is nearly a sum of effects, as costs are."""
        return self._solved(values)[0]

    def _solved(self, by_index):
        indices, values = list(by_index), np.array(list(by_index.values()))
        known = np.stack([self.covariance_with(index) for index in indices])
        inverse = np.linalg.inv(known[:, indices] + NOISE**2 * np.eye(len(indices)))
        return values.mean() + known.T @ (inverse @ (values - values.mean())), known, inverse


def _root(variance):
    return np.sqrt(np.maximum(variance, 1e-9))
