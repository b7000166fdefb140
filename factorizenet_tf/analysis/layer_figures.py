"""Figures of an analysis as PNG, by matplotlib (extra `report`): what the HTML report draws, to print and to commit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..files import written_aside
from ..plots import figure_class, macs_axis
from .tables import Analysis

__all__ = ["write_figures"]

MARKS = "os^DvPX*h"
SPATIAL = ("conv", "grouped", "depthwise")


def write_figures(analysis: Analysis, folder: str | os.PathLike) -> tuple[Path, ...]:
    """Write the figures and give their paths.

    accuracy.png, channel_precision.png, ranges.png, sqnr.png, accumulation.png and, where it was measured,
    sensitivity.png. The same analysis gives the same bytes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    Figure = figure_class()  # noqa: N806 (a class)
    drawings = {
        "accuracy": _accuracy,
        "channel_precision": _channel_precision,
        "ranges": _ranges,
        "sqnr": _sqnr,
        "accumulation": _accumulation,
    }
    if len(analysis.sensitivity):
        drawings["sensitivity"] = _sensitivity
    paths = []
    for name, draw in drawings.items():
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        draw(analysis, figure)
        path = Path(folder) / f"{name}.png"
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", dpi=130, metadata={"Software": None})
        paths.append(path)
    return tuple(paths)


def _accuracy(analysis, figure):
    """All precisions, and beside them those of 8 bits and more, which fewer bits press together."""
    output = analysis.output
    key, label = "accuracy", "accuracy, %"
    if output["accuracy"].isna().all():
        key, label = "top1_agreement", "images of the float net's class, %"
    wide = output[output["weight_bits"] >= 8]
    panels = figure.subplots(1, 2) if len(wide) < len(output) else [figure.subplots()]
    numbers = {precision: number for number, precision in enumerate(output["precision"].unique())}
    for axes, rows, title in zip(panels, (output, wide), ("all precisions", "8 bits and float")):
        _accuracy_lines(axes, analysis, rows, key, numbers)
        macs_axis(axes, analysis.nets["macs"])
        if len(panels) > 1:
            axes.set_title(title, fontsize=10)
        _finish(axes, "M MACs", label if axes is panels[0] else "")


def _accuracy_lines(axes, analysis, output, key, numbers):
    macs = dict(zip(analysis.nets["net"], analysis.nets["macs"] / 1e6))
    for precision, rows in output.groupby("precision", sort=False):
        rows = rows.assign(macs=rows["net"].map(macs)).sort_values("macs")
        style = {"color": f"C{numbers[precision]}", "label": _title(precision)}
        axes.plot(rows["macs"], 100 * rows[key], f"{MARKS[numbers[precision] % 9]}-", markersize=5, **style)
    for net, place in macs.items():
        top = 100 * output.loc[output["net"] == net, key].max()
        axes.annotate(_short(net), (place, top), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.margins(y=0.12)


def _channel_precision(analysis, figure):
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, tensor, title in ((left, "folded", "3x3 kernels, folded"), (right, "activations", "their outputs")):
        table = analysis.weights if tensor == "folded" else analysis.activations
        rows = _float(table[(table["tensor"] == tensor) & table["kind"].isin(SPATIAL)])
        _lines(axes, analysis, rows, "average_channel_precision")
        _depth_axis(axes, rows)
        axes.set_title(title, fontsize=10)
        _finish(axes, "", "average channel precision" if axes is left else "")


def _ranges(analysis, figure):
    left, right = figure.subplots(1, 2)
    for axes, tensor, title in ((left, "folded", "folded weights"), (right, "activations", "outputs")):
        table = analysis.weights if tensor == "folded" else analysis.activations
        rows = _float(table[(table["tensor"] == tensor) & table["kind"].isin((*SPATIAL, "pointwise", "dense"))])
        _lines(axes, analysis, rows, "range")
        _depth_axis(axes, rows)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        _finish(axes, "", "range" if axes is left else "")


def _sqnr(analysis, figure):
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, scheme in ((left, "per_channel"), (right, "per_tensor")):
        errors = analysis.errors
        rows = errors[(errors["scheme"] == scheme) & (errors["weight_bits"] == 8) & (errors["activation_bits"] == 8)]
        rows = rows[rows["weight_mse"].notna()]
        _lines(axes, analysis, rows, "weight_sqnr_db")
        _depth_axis(axes, rows)
        axes.set_title(f"weights, {scheme.replace('_', ' ')} int8", fontsize=10)
        _finish(axes, "", "SQNR, dB" if axes is left else "")


def _accumulation(analysis, figure):
    left, right = figure.subplots(1, 2, sharey=True)
    errors = analysis.errors
    errors = errors[errors["kind"] != "input"]
    wide = errors[(errors["weight_bits"] == 8) & (errors["activation_bits"] == 8) & (errors["scheme"] == "per_channel")]
    for axes, column, title in ((left, "sqnr_db", "this layer alone"), (right, "accumulated_sqnr_db", "accumulated")):
        _lines(axes, analysis, wide, column)
        _depth_axis(axes, wide)
        axes.set_title(f"outputs, per channel int8, {title}", fontsize=10)
        _finish(axes, "", "SQNR, dB" if axes is left else "")


def _sensitivity(analysis, figure):
    left, right = figure.subplots(1, 2)
    rows = analysis.sensitivity[analysis.sensitivity["layer"].notna()]
    rows = _float(rows)
    for axes, part, title in ((left, "only", "this layer only"), (right, "all_but", "all but this layer")):
        chosen = rows[rows["part"] == part]
        _lines(axes, analysis, chosen, "kl")
        _depth_axis(axes, chosen)
        axes.set_title(f"quantized: {title}", fontsize=10)
        axes.set_ylim(bottom=0)
        _finish(axes, "", "KL divergence" if axes is left else "")


def _lines(axes, analysis, rows, column):
    for number, net in enumerate(analysis.names):
        found = rows[rows["net"] == net].sort_values("depth")
        values = found[column].replace([np.inf, -np.inf], np.nan)
        style = {"color": f"C{number % 10}", "marker": MARKS[number % 9], "markersize": 4, "linewidth": 1.2}
        axes.plot(found["depth"], values, label=_short(net), **style)


def _float(rows):
    """The float net's rows where it was measured, else the quantization-aware one's."""
    first = rows.groupby("net", sort=False)["source"].transform("first")
    return rows[rows["source"] == first]


def _depth_axis(axes, rows):
    blocks = {int(depth): block for depth, block in zip(rows["depth"], rows["block"])}
    places = sorted(blocks)
    names = [blocks[place].replace("stage", "").replace("_block", ".") for place in places]
    axes.set_xticks(places, names, fontsize=8, rotation=45)


def _finish(axes, x, y):
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _title(precision):
    return precision.replace("_", " ").replace("W8A8", "int8")


def _short(net):
    return net.removeprefix("fnet-").removesuffix("-int8")
