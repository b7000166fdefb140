"""Measure how a tensor's values are distributed: ranges by channel, average channel precision, kurtosis, histograms.

Source: the metrics are our choice; the channel precision r_i / R is Nagel et al., arXiv 1906.04721, and a low average of
it is the mismatch that Yun & Wong, arXiv 2104.11849, find in depthwise-separable nets.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CHANNEL_BINS", "Distribution", "describe"]

BINS = 2_048  # of a whole tensor: percentiles are read from them
CHANNEL_BINS = 32


class Distribution:
    """A tensor of K channels, batch by batch in two passes; NaN and infinite values are left out and counted.

    `widen` takes in every batch, then `add` every batch again. What has no value, such as the range of a channel
    without finite numbers, is NaN.

    Attributes:
        finite: int64 (K,), how many numbers of each channel are finite.
        not_finite: how many are NaN or infinite.
        counts: int64 (K, CHANNEL_BINS) over [minimum, maximum] in equal bins.
        fine_counts: int64 (BINS,), the same of the whole tensor.
    """

    def __init__(self, channels: int):
        self.finite, self.not_finite = np.zeros(channels, np.int64), 0
        self._low, self._high, self._total = np.full(channels, np.inf), np.full(channels, -np.inf), np.zeros(channels)
        self.counts, self.fine_counts = np.zeros((channels, CHANNEL_BINS), np.int64), np.zeros(BINS, np.int64)
        self._second = self._fourth = 0.0

    def widen(self, rows: np.ndarray) -> None:
        """Take in the ranges and sums of values (numbers, channels): the first pass."""
        finite = np.isfinite(rows)
        self.finite += finite.sum(0)
        self.not_finite += int(finite.size - finite.sum())
        self._low = np.minimum(self._low, np.where(finite, rows, np.inf).min(0))
        self._high = np.maximum(self._high, np.where(finite, rows, -np.inf).max(0))
        self._total += np.where(finite, rows, 0).sum(0, dtype=np.float64)

    def add(self, rows: np.ndarray) -> None:
        """Take in the histograms and moments of values (numbers, channels) that the first pass saw."""
        if not self.finite.any():
            return
        place = np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32) * CHANNEL_BINS, rows.shape)
        if self.not_finite:
            keep = np.isfinite(rows)
            rows, place = rows[keep], place[keep]
        scaled = (rows - np.float32(self.minimum)) * np.float32(BINS / self.range if self.range else 0)
        bins = np.clip(scaled.astype(np.int32), 0, BINS - 1)
        self.fine_counts += np.bincount(bins.reshape(-1), minlength=BINS)
        coarse = bins // (BINS // CHANNEL_BINS) + place
        self.counts += np.bincount(coarse.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)
        squares = np.square(rows - np.float32(self.mean), dtype=np.float32)
        self._second += float(squares.sum(dtype=np.float64))
        self._fourth += float(np.square(squares).sum(dtype=np.float64))

    @property
    def count(self) -> int:
        """How many numbers there are, the non-finite ones included."""
        return int(self.finite.sum()) + self.not_finite

    @property
    def channel_minimum(self) -> np.ndarray:
        """float64 (K,)."""
        return np.where(self.finite > 0, self._low, np.nan)

    @property
    def channel_maximum(self) -> np.ndarray:
        """float64 (K,)."""
        return np.where(self.finite > 0, self._high, np.nan)

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return float(self._low.min()) if self.finite.any() else float("nan")

    @property
    def maximum(self) -> float:
        """The largest value."""
        return float(self._high.max()) if self.finite.any() else float("nan")

    @property
    def range(self) -> float:
        """R = maximum - minimum."""
        return self.maximum - self.minimum

    @property
    def channel_ranges(self) -> np.ndarray:
        """r_i, (K,)."""
        return self.channel_maximum - self.channel_minimum

    @property
    def channel_precisions(self) -> np.ndarray:
        """r_i / R, (K,), each in 0..1; NaN where R is 0."""
        return self.channel_ranges / (self.range or np.nan)

    @property
    def average_channel_precision(self) -> float:
        """P = (1/K) sum of r_i / R, in (0, 1]; NaN where R is 0."""
        return float(np.mean(self.channel_precisions))

    @property
    def mean(self) -> float:
        """Of all values."""
        return float(self._total.sum() / self.finite.sum()) if self.finite.any() else float("nan")

    @property
    def std(self) -> float:
        """Of all values."""
        if not self.range:
            return 0.0
        return float(np.sqrt(self._second / self.finite.sum())) if self.finite.any() else float("nan")

    @property
    def kurtosis(self) -> float:
        """Fourth central moment over the squared variance, 3 for a normal distribution; NaN where constant."""
        if not self.range > 0 or not self._second:
            return float("nan")
        variance = self._second / self.finite.sum()
        return float(self._fourth / self.finite.sum() / variance**2)

    def percentile(self, percent: float) -> float:
        """The value below which `percent` of the values lie, to within range / 2048."""
        if not self.finite.any():
            return float("nan")
        shares = np.concatenate([[0], np.cumsum(self.fine_counts)]) / self.fine_counts.sum()
        return float(np.interp(percent / 100, shares, np.linspace(self.minimum, self.maximum, BINS + 1)))


def describe(rows: np.ndarray) -> Distribution:
    """Measure the distribution of values (numbers, channels) that are in memory."""
    found = Distribution(rows.shape[1])
    found.widen(rows)
    found.add(rows)
    return found
