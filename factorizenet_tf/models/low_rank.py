"""Low-rank fits of a convolution's kernel by least squares, in NumPy alone.

A convolution is a linear map from patches (K * K * C numbers, in the order height, width, channel) to outputs. The fits
reproduce the old layer's outputs as well as possible on the patches summed up in `Moments`; without patches they are closest
to the kernel itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Moments", "NormalEquations", "pointwise_first", "regroup", "spatial_first"]

DAMPING = 1e-3  # pulls the fit to the old kernel, times the mean eigenvalue of the patches' covariance
SWEEPS = 4  # over the groups, each fitted anew to what the others leave


class Moments:
    """Sums over output positions of a layer: of its patches x (K * K * C,) and the outputs y (filters,) to reproduce."""

    def __init__(self, numbers: int, filters: int):
        self.count = 0
        self.x, self.y = np.zeros(numbers), np.zeros(filters)
        self.xx, self.xy = np.zeros((numbers, numbers)), np.zeros((numbers, filters))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in patches float (n, K * K * C) and outputs (n, filters)."""
        self.count += len(x)
        self.x += x.sum(0, dtype=np.float64)
        self.y += y.sum(0, dtype=np.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """The normal equations of a linear map from patches to outputs, damped towards the old kernel.

    Args:
        kernel: the old one, (height, width, channels, filters).
        xx: covariance of the patches plus the damping, (n, n); n = height * width * channels.
        xy: of patches and outputs, (n, filters).
        mean_x, mean_y: means.
    """

    kernel: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray

    @classmethod
    def of(cls, kernel: np.ndarray, bias: np.ndarray, moments: Moments | None) -> NormalEquations:
        """Set them up for an old kernel (height, width, channels, filters) and its bias (filters,)."""
        flat = kernel.reshape(-1, kernel.shape[3])
        if moments is None:  # as if all numbers of a patch were independent and alike
            return cls(kernel, np.eye(len(flat)), flat, np.zeros(len(flat)), bias)
        x, y = moments.x / moments.count, moments.y / moments.count
        xx = moments.xx / moments.count - np.outer(x, x)
        damping = max(DAMPING * np.trace(xx) / len(xx), 1e-12)
        xy = moments.xy / moments.count - np.outer(x, y) + damping * flat
        return cls(kernel, xx + damping * np.eye(len(xx)), xy, x, y)

    def bias(self, flat: np.ndarray) -> np.ndarray:
        """Give the bias (filters,) with which a map (n, filters) reproduces the outputs' means."""
        return self.mean_y - self.mean_x @ flat


def spatial_first(normal: NormalEquations, groups: int, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a kernel in groups with `rank` filters each, and a pointwise one behind it.

    Each group in turn is fitted to the residual of the others by reduced-rank regression: the least squares map, cut by
    singular values in the metric of the group's patches. At last the pointwise kernel is fitted to all groups.

    Returns:
        The two kernels (height, width, channels / groups, groups * rank) and (1, 1, groups * rank, filters), and the map from
        patches to outputs that they make, (height * width * channels, filters).
    """
    height, width, channels, filters = normal.kernel.shape
    inside = channels // groups
    members = np.arange(height * width * channels).reshape(-1, groups, inside).swapaxes(0, 1).reshape(groups, -1)
    roots = [_root(normal.xx[np.ix_(own, own)]) for own in members]
    now = normal.kernel.reshape(-1, filters).copy()
    left = np.zeros((len(now), groups * rank))
    for _ in range(SWEEPS):
        for group, (own, (root, inverse)) in enumerate(zip(members, roots)):
            rest = normal.xy[own] - normal.xx[own] @ now + root @ (root @ now[own])
            u, values, right = np.linalg.svd(inverse @ rest, full_matrices=False)
            size = min(rank, len(values))
            first = inverse @ (u[:, :size] * np.sqrt(values[:size]))
            left[own, group * rank : group * rank + size] = first
            now[own] = first @ (np.sqrt(values[:size])[:, None] * right[:size])
    # All channels between the two equally large: in int8 they share a scale.
    deviation = np.sqrt(np.maximum(np.einsum("nc,nm,mc->c", left, normal.xx, left, optimize=True), 0))
    left /= np.where(deviation > 0, deviation, 1)
    pointwise = _solved(left.T @ normal.xx @ left, left.T @ normal.xy)
    spatial = np.stack([left[own, group * rank : (group + 1) * rank] for group, own in enumerate(members)])
    spatial = spatial.reshape(groups, height, width, inside, rank).transpose(1, 2, 3, 0, 4)
    return spatial.reshape(height, width, inside, -1), pointwise[None, None], left @ pointwise


def pointwise_first(normal: NormalEquations, groups: int, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a pointwise kernel, and behind it one in groups that read `rank` channels each.

    The first is fitted by singular values in the metric of the channels' covariance, the second by least squares.

    Returns:
        The two kernels (1, 1, channels, groups * rank) and (height, width, rank, filters), and the map that they make, as
        for `spatial_first`.
    """
    height, width, channels, filters = normal.kernel.shape
    area, size = height * width, filters // groups
    taps = normal.xx.reshape(area, channels, area, channels)
    root, inverse = _root(np.einsum("acad->cd", taps) / area)
    by_channel = normal.kernel.transpose(2, 0, 1, 3)
    pointwise = np.zeros((channels, groups * rank))
    spatial, flat = np.zeros((height, width, rank, filters)), np.zeros((area * channels, filters))
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        u = np.linalg.svd(root @ by_channel[..., own].reshape(channels, -1), full_matrices=False)[0][:, :rank]
        first = inverse @ u
        pointwise[:, group * rank : group * rank + first.shape[1]] = first
        left = np.kron(np.eye(area), pointwise[:, group * rank : (group + 1) * rank])
        found = _solved(left.T @ normal.xx @ left, left.T @ normal.xy[:, own])
        spatial[..., own] = found.reshape(height, width, rank, size)
        flat[:, own] = left @ found
    return pointwise[None, None], spatial, flat


def regroup(normal: NormalEquations, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a kernel (height, width, channels / groups, filters) in more groups; give it and its map, as for `spatial_first`."""
    height, width, channels, filters = normal.kernel.shape
    inside, size = channels // groups, filters // groups
    members = np.arange(height * width * channels).reshape(-1, groups, inside).swapaxes(0, 1).reshape(groups, -1)
    kernel, flat = np.zeros((height, width, inside, filters)), np.zeros((height * width * channels, filters))
    for group, own in enumerate(members):
        columns = slice(group * size, (group + 1) * size)
        found = _solved(normal.xx[np.ix_(own, own)], normal.xy[own, columns])
        flat[own, columns] = found
        kernel[..., columns] = found.reshape(height, width, inside, size)
    return kernel, flat


def _root(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the square root of a symmetric positive matrix, and its inverse."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.sqrt(np.maximum(values, 1e-12 * max(values[-1], 1e-30)))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a symmetric system, which may have directions without any weight."""
    ridge = max(1e-10 * np.trace(matrix) / len(matrix), 1e-30)
    return np.linalg.solve(matrix + ridge * np.eye(len(matrix)), right)
