"""Measure how a tensor's values are distributed: ranges by channel, average channel precision, kurtosis, histograms.

Source: the metrics are our choice; the channel precision r_i / R is Nagel et al., arXiv 1906.04721, and a low average of
it is the mismatch that Yun & Wong, arXiv 2104.11849, find in depthwise-separable nets.
"""

import numpy as np

__all__ = ["CHANNEL_BINS", "Distribution", "describe"]

BINS = 2_048  # of a whole tensor: percentiles are read from them
CHANNEL_BINS = 32
PERCENT = 99.0  # percentile ranges lie between the 1st and the 99th percentile


class Distribution:
    """The distribution of a tensor of K channels, measured batch by batch in two passes.

    The first pass calls `widen` with every batch, the second `add`. NaN and infinite numbers are counted and otherwise
    ignored. Undefined values, such as the range of a channel without finite numbers, are NaN.

    Attributes:
        finite: int64 (K,), count of finite numbers in each channel.
        not_finite: count of NaN and infinite numbers.
        channel_minimum, channel_maximum: float64 (K,).
        counts: int64 (K, CHANNEL_BINS) over [minimum, maximum] in equal bins.
        fine_counts: int64 (BINS,), the same of the whole tensor.
    """

    def __init__(self, channels: int):
        self.finite, self.not_finite = np.zeros(channels, np.int64), 0
        self.channel_minimum, self.channel_maximum = np.full((2, channels), np.nan)
        self.counts, self.fine_counts = np.zeros((channels, CHANNEL_BINS), np.int64), np.zeros(BINS, np.int64)
        self._total, self._second, self._fourth = np.zeros(channels), 0.0, 0.0

    def widen(self, rows: np.ndarray) -> None:
        """Take in the ranges and sums of values (numbers, channels): the first pass."""
        finite = np.isfinite(rows)
        self.finite += finite.sum(0)
        self.not_finite += int(finite.size - finite.sum())
        known = np.where(finite, rows, np.nan)
        self.channel_minimum = np.fmin(self.channel_minimum, np.fmin.reduce(known))
        self.channel_maximum = np.fmax(self.channel_maximum, np.fmax.reduce(known))
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
        squares = np.square(rows - np.float32(self._mean), dtype=np.float32)
        self._second += float(squares.sum(dtype=np.float64))
        self._fourth += float(np.square(squares).sum(dtype=np.float64))

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return float(np.fmin.reduce(self.channel_minimum))

    @property
    def maximum(self) -> float:
        """The largest value."""
        return float(np.fmax.reduce(self.channel_maximum))

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
    def _mean(self) -> float:
        return float(self._total.sum() / self.finite.sum()) if self.finite.any() else np.nan

    def row(self) -> dict[str, float]:
        """Summarize the tensor as a row of the tables.

        Kurtosis is the fourth central moment over the squared variance, 3 for a normal distribution; NaN where constant.
        """
        ranges, finite = self.channel_ranges, int(self.finite.sum())
        known = ranges[~np.isnan(ranges)]
        low, middle, high = np.quantile(known, (0, 0.5, 1)) if len(known) else (np.nan,) * 3
        variance = self._second / finite if self.range > 0 else self.range  # 0 of a constant, NaN of nothing
        return {
            "channels": len(ranges),
            "numbers": finite + self.not_finite,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "range": self.range,
            "percentile_range": self.percentile(PERCENT) - self.percentile(100 - PERCENT),
            "channel_range_min": low,
            "channel_range_median": middle,
            "channel_range_max": high,
            "average_channel_precision": float(np.mean(self.channel_precisions)),
            "mean": self._mean,
            "std": float(np.sqrt(variance)),
            "kurtosis": self._fourth / finite / variance**2 if variance > 0 else np.nan,
            "zero_range_channels": int((known == 0).sum()),
            "not_finite": self.not_finite,
        }

    def percentile(self, percent: float) -> float:
        """Compute the value below which `percent` % of the values lie, to within range / 2048."""
        if not self.finite.any():
            return np.nan
        shares = np.concatenate([[0], np.cumsum(self.fine_counts)]) / self.fine_counts.sum()
        return float(np.interp(percent / 100, shares, np.linspace(self.minimum, self.maximum, BINS + 1)))


def describe(rows: np.ndarray) -> Distribution:
    """Measure the distribution of values (numbers, channels) that are in memory."""
    found = Distribution(rows.shape[1])
    found.widen(rows)
    found.add(rows)
    return found
