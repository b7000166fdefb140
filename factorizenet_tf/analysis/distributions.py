"""Measure how a tensor's values are distributed: ranges by channel, average channel precision, kurtosis, histograms.

Source: the metrics are our choice; the channel precision r_i / R is Nagel et al., arXiv 1906.04721, and a low average of
it is the mismatch that Yun & Wong, arXiv 2104.11849, find in depthwise-separable nets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["CHANNEL_BINS", "Distribution", "Histogram", "Ranges", "describe"]

BINS = 2_048  # of a whole tensor: percentiles are read from them
CHANNEL_BINS = 32


@dataclass(frozen=True, eq=False)
class Distribution:
    """A tensor of K channels; NaN and infinite values are left out and counted.

    Args:
        count: numbers, the non-finite ones included.
        not_finite: how many are NaN or infinite.
        channel_minimum, channel_maximum: float64 (K,), NaN for a channel without a finite value.
        mean, std: of all values.
        kurtosis: fourth central moment over the squared variance, 3 for a normal distribution; NaN where constant.
        counts: int64 (K, CHANNEL_BINS) over [minimum, maximum] in equal bins.
        fine_counts: int64 (BINS,), the same of the whole tensor.
    """

    count: int
    not_finite: int
    channel_minimum: np.ndarray
    channel_maximum: np.ndarray
    mean: float
    std: float
    kurtosis: float
    counts: np.ndarray
    fine_counts: np.ndarray

    @property
    def minimum(self) -> float:
        """The smallest value; NaN where there is no finite one."""
        return _extreme(np.nanmin, self.channel_minimum)

    @property
    def maximum(self) -> float:
        """The largest value; NaN where there is no finite one."""
        return _extreme(np.nanmax, self.channel_maximum)

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
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.channel_ranges / self.range if self.range else np.full(len(self.channel_minimum), np.nan)

    @property
    def average_channel_precision(self) -> float:
        """P = (1/K) sum of r_i / R, in (0, 1]; NaN where R is 0."""
        return float(np.mean(self.channel_precisions))

    def percentile(self, percent: float) -> float:
        """The value below which `percent` of the values lie, to within range / 2048."""
        if not self.fine_counts.sum():
            return float("nan")
        edges = np.linspace(self.minimum, self.maximum, BINS + 1)
        shares = np.concatenate([[0], np.cumsum(self.fine_counts)]) / self.fine_counts.sum()
        if percent <= 0 or percent >= 100:
            return self.minimum if percent <= 0 else self.maximum
        place = int(np.searchsorted(shares, percent / 100, side="left"))
        low, high = shares[place - 1], shares[place]
        return float(edges[place - 1] + (edges[place] - edges[place - 1]) * (percent / 100 - low) / (high - low))


class Ranges:
    """Running minimum, maximum and mean by channel, batch by batch; the first of two passes."""

    def __init__(self):
        self.count, self.not_finite = 0, 0
        self.minimum = self.maximum = self.total = self.finite = None

    def add(self, rows: np.ndarray) -> None:
        """Take in more values, (numbers, channels)."""
        self.count += rows.size
        finite = np.isfinite(rows)
        every = bool(finite.all())
        low = rows.min(0) if every else np.where(finite, rows, np.inf).min(0)
        high = rows.max(0) if every else np.where(finite, rows, -np.inf).max(0)
        total = rows.sum(0, dtype=np.float64) if every else np.where(finite, rows, 0).sum(0, dtype=np.float64)
        number = np.full(rows.shape[1], len(rows)) if every else finite.sum(0)
        self.not_finite += 0 if every else int(rows.size - finite.sum())
        if self.minimum is None:
            self.minimum, self.maximum, self.total, self.finite = low.astype(float), high.astype(float), total, number
            return
        self.minimum, self.maximum = np.minimum(self.minimum, low), np.maximum(self.maximum, high)
        self.total, self.finite = self.total + total, self.finite + number


class Histogram:
    """Running histograms and central moments within the ranges of a first pass; the second of two passes."""

    def __init__(self, ranges: Ranges):
        self.ranges = ranges
        empty = ranges.finite == 0
        self.low = np.where(empty, np.nan, ranges.minimum)
        self.high = np.where(empty, np.nan, ranges.maximum)
        finite = int(ranges.finite.sum())
        self.mean = float(ranges.total.sum() / finite) if finite else float("nan")
        channels = len(self.low)
        self.counts = np.zeros(channels * CHANNEL_BINS, np.int64)
        self.fine = np.zeros(BINS, np.int64)
        self.second = self.fourth = 0.0

    def add(self, rows: np.ndarray) -> None:
        """Take in values (numbers, channels) that the first pass saw."""
        if not self.ranges.finite.sum():
            return
        channels = rows.shape[1]
        low, high = np.nanmin(self.low), np.nanmax(self.high)
        place = np.broadcast_to(np.arange(channels, dtype=np.int32) * CHANNEL_BINS, rows.shape)
        if self.ranges.not_finite:
            keep = np.isfinite(rows)
            rows, place = rows[keep], place[keep]
        scaled = (rows - np.float32(low)) * np.float32(BINS / (high - low) if high > low else 0)
        bins = np.minimum(scaled.astype(np.int32), BINS - 1)
        np.maximum(bins, 0, out=bins)
        self.fine += np.bincount(bins.reshape(-1), minlength=BINS)
        coarse = bins // (BINS // CHANNEL_BINS) + place
        self.counts += np.bincount(coarse.reshape(-1), minlength=len(self.counts))
        squares = np.square(rows - np.float32(self.mean), dtype=np.float32)
        self.second += float(squares.sum(dtype=np.float64))
        self.fourth += float(np.square(squares).sum(dtype=np.float64))

    def result(self) -> Distribution:
        """Give what both passes found."""
        finite = int(self.ranges.finite.sum())
        is_constant = finite and np.nanmax(self.high) == np.nanmin(self.low)
        variance = self.second / finite if finite else float("nan")
        known = finite and not is_constant and variance > 0
        return Distribution(
            count=self.ranges.count,
            not_finite=self.ranges.not_finite,
            channel_minimum=self.low,
            channel_maximum=self.high,
            mean=self.mean,
            std=0.0 if is_constant else float(np.sqrt(variance)),
            kurtosis=self.fourth / finite / variance**2 if known else float("nan"),
            counts=self.counts.reshape(-1, CHANNEL_BINS),
            fine_counts=self.fine,
        )


def describe(rows: np.ndarray) -> Distribution:
    """Measure the distribution of values (numbers, channels) that are in memory."""
    ranges = Ranges()
    ranges.add(rows)
    histogram = Histogram(ranges)
    histogram.add(rows)
    return histogram.result()


def _extreme(function, values):
    return float("nan") if np.isnan(values).all() else float(function(values))
