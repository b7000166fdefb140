"""Estimate what each choice does to accuracy, from the nets trained so far: an additive Gaussian process.

Accuracy is modelled as a constant, plus an effect of the level in each stage, of the width, of the macro-architecture, of
the blocks and the channels in each stage where those are choices (then also of any two choices together), one of the MACs,
and a small effect of the combination.
Neighbouring levels are correlated; the regular convolution (level 0) is correlated less with the factorized ones, which
have two convolutions in its place.

Source: additive Gaussian processes, Duvenaud et al., arXiv 1112.4394; the constants are our choice, by replays of searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..spec import ModelSpec
from .space import Space

__all__ = ["AdditiveGP", "CandidateSet", "Posterior"]

LEVEL_CORRELATION = 0.75  # between the effects of neighbouring levels
LEVEL0_CORRELATION = 0.3  # a further factor between level 0 and any factorized level
INTERACTION_VARIANCE = 0.3  # of what is no sum of effects, where each effect has variance 1
MACRO_CORRELATION = 0.5  # between the effects of any two macro-architectures
PAIRS_VARIANCE = 1.0  # of all effects of two choices together, where there are more choices than level and width
CONSTANT_VARIANCE = 4.0
NOISE = 0.7  # standard deviation of a training's accuracy over seeds in points, where each effect has 1 point


class CandidateSet:
    """Hold nets as arrays.

    Args:
        space: that they are of.
        rows: int (n, 1 + 3 stages), as `Space` has them; None: all of the space, in the order of `Space.nets`.

    Attributes:
        macs: int64 (n,).
    """

    def __init__(self, space: Space, rows: np.ndarray | None = None):
        self.space = space
        self.rows = space.rows() if rows is None else rows
        self.macs = space.count_macs(self.rows)
        self._places: dict[ModelSpec, int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def net(self, index: int) -> ModelSpec:
        """Give the net at an index."""
        return self.space.net_of(self.rows[index])

    def index(self, net: ModelSpec) -> int:
        """Give the index of a net. Raises IndexError where it is none of these."""
        if net not in self._places:
            self._places[net] = int(np.flatnonzero((self.rows == self.space.row_of(net)).all(1))[0])
        return self._places[net]


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
        center: logarithm to base 2 of the MACs that have no effect; None: the candidates' mean.
    """

    def __init__(self, candidates: CandidateSet, center: float | None = None):
        self.candidates = candidates
        space, rows = candidates.space, candidates.rows
        blocks, channels, levels, _ = space.values(rows)
        number = np.arange(levels.max() + 1)
        correlation = LEVEL_CORRELATION ** np.abs(number[:, None] - number)
        correlation[0, 1:] *= LEVEL0_CORRELATION
        correlation[1:, 0] *= LEVEL0_CORRELATION
        self._parts = [(own, correlation) for own in levels.T]  # the choice of each net, the correlation of any two
        widths = np.array([family.base.width for family in space.families])[rows[:, 0]]
        if len(space.widths) > 1:
            self._parts.append(_smooth(widths))
        if len(space.macros) > 1:
            names = np.array([space.macros.index(family.macro) for family in space.families])[rows[:, 0]]
            self._parts.append((names, np.where(np.eye(len(space.macros)), 1, MACRO_CORRELATION)))
        if space.has_macros:
            self._parts += map(_smooth, (*np.maximum(blocks, 0.5).T, *(np.maximum(channels, 4) / widths[:, None]).T))
        size = np.log2(candidates.macs)
        self._size = size - (size.mean() if center is None else center)
        self._pairs = PAIRS_VARIANCE * space.has_macros
        self._variance = (
            CONSTANT_VARIANCE + np.square(self._size) + len(self._parts) + INTERACTION_VARIANCE + self._pairs
        )
        self._columns: dict[int, np.ndarray] = {}

    def covariance_with(self, index: int) -> np.ndarray:
        """Give the prior covariance of every candidate with one: float (n,)."""
        if index not in self._columns:
            parts = [correlation[own[index]][own] for own, correlation in self._parts]
            total = CONSTANT_VARIANCE + self._size * self._size[index] + sum(parts)
            total += INTERACTION_VARIANCE * np.prod(parts, axis=0)
            if self._pairs:  # the sum of all products of two
                twice = np.square(sum(parts)) - sum(map(np.square, parts))
                total += self._pairs * twice / (len(parts) * (len(parts) - 1))
            self._columns[index] = total
        return self._columns[index]

    def estimate(self, accuracies: Mapping[ModelSpec, float]) -> Posterior:
        """Estimate mean and deviation of every candidate.

        Args:
            accuracies: percent, by net; at least one.
        """
        mean, known, inverse = self._solved(accuracies)
        explained = np.einsum("ij,ij->j", known, inverse @ known)
        return Posterior(mean, _root(self._variance - explained), self, known, inverse)

    def mean(self, values: Mapping[ModelSpec, float]) -> np.ndarray:
        """Estimate the mean alone, which is much faster, of any figure that is nearly a sum of effects, as costs are."""
        return self._solved(values)[0]

    def _solved(self, by_net):
        indices, values = [*map(self.candidates.index, by_net)], np.array([*by_net.values()])
        known = np.stack([self.covariance_with(index) for index in indices])
        inverse = np.linalg.inv(known[:, indices] + NOISE**2 * np.eye(len(indices)))
        return values.mean() + known.T @ (inverse @ (values - values.mean())), known, inverse


def _smooth(numbers):
    """Number the values, and correlate them by their ratios."""
    values, places = np.unique(np.log2(numbers), return_inverse=True)
    return places, np.exp(-np.abs(values[:, None] - values))


def _root(variance):
    return np.sqrt(np.maximum(variance, 1e-9))
