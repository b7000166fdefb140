"""Describe the pixels that a user's own model takes; every net of this package takes 0..1."""

from dataclasses import dataclass

import numpy as np

__all__ = ["RANGES", "Pixels"]

RANGES = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0)}  # scale and offset from 0..1


@dataclass(frozen=True)
class Pixels:
    """The pixels that a model takes: in `range`, `mean` subtracted, then divided by `deviation`.

    Args:
        range: "0..1", "0..255" or "-1..1"; None: 0..255 if the model's own Rescaling or Normalization makes its input
            over ten times smaller, else 0..1.
        mean, deviation: a number for each channel, or one for all, in the range's unit; empty: 0 and 1.

    Raises:
        ValueError: the range is another, a number is not finite, or a deviation is not above 0.
    """

    range: str | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self):
        if self.range is not None and self.range not in RANGES:
            raise ValueError(f"pixel_range is {self.range!r}; it must be {', '.join(RANGES)}")
        if self.range is None and (self.mean or self.deviation):
            raise ValueError("mean and deviation need pixel_range, whose unit they have; give it, e.g. 0..1")
        for name in ("mean", "deviation"):
            values = tuple(float(value) for value in np.atleast_1d(getattr(self, name)))
            if not np.isfinite(values).all() or (name == "deviation" and min(values, default=1) <= 0):
                raise ValueError(f"pixel_{name} is {values}; it must be finite numbers, a deviation above 0")
            object.__setattr__(self, name, values)

    def affine(self, channels: int, range: str = "0..1") -> tuple[np.ndarray, np.ndarray]:
        """Give scale and offset, float (channels,) each, that turn pixels in 0..1 into these; `range` stands for a range of None.

        Raises:
            ValueError: mean or deviation has another number of channels.
        """
        scale, offset = RANGES[self.range or range]
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) not in (0, 1, channels):
                raise ValueError(f"pixel_{name} is {getattr(self, name)}; the model's images have {channels} channels")
        mean, deviation = np.array(self.mean or (0.0,)), np.array(self.deviation or (1.0,))
        return np.broadcast_to(scale / deviation, channels), np.broadcast_to((offset - mean) / deviation, channels)
