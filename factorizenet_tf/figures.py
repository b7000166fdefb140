"""Figures of results, by matplotlib (extra `report`)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .files import written_aside

__all__ = ["accuracy_against_macs"]

STYLES = {
    "float": ("C0", "o-"),
    "ptq_per_tensor": ("C3", "v:"),
    "ptq_per_channel": ("C1", "^--"),
    "qat": ("C2", "s-"),
    "tflite": ("k", "x"),
}


def accuracy_against_macs(rows: Sequence[dict], path: str | os.PathLike, *, title: str) -> None:
    """Write a PNG: test accuracy over MACs, a line for each precision, the levels named.

    Args:
        rows: dicts with level, macs, and an accuracy (0..1) for each of float, ptq_per_tensor, ptq_per_channel, qat
            and tflite.
        path: of the PNG.
        title: says data and width.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ModuleNotFoundError:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'factorizenet_tf[report]'") from None

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    macs = [row["macs"] / 1e6 for row in rows]
    for precision, (color, line) in STYLES.items():
        axes.plot(
            macs,
            [100 * row[precision] for row in rows],
            line,
            color=color,
            label=precision.replace("_", " "),
            markersize=5,
        )
    for row, x in zip(rows, macs):
        lowest = min(row[precision] for precision in STYLES)
        axes.annotate(
            str(row["level"]), (x, 100 * lowest), textcoords="offset points", xytext=(0, -12), ha="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="M MACs (level of factorization below the points)", ylabel="test accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
