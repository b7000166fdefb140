"""Figures of results, by matplotlib (extra `report`)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from .files import written_aside
from .requirement import pareto_front

__all__ = ["accuracy_against_macs", "figure_class", "frontier", "macs_axis", "replay_costs", "search_frontier"]

MAX_NAMES = 30  # points that are named before names hide points
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
    Figure = figure_class()  # noqa: N806 (a class)
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
    macs_axis(axes, macs)
    axes.set(xlabel="M MACs (level of factorization below the points)", ylabel="test accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def frontier(cards: Sequence, path: str | os.PathLike) -> None:
    """Write an SVG: int8 test accuracy of published models over MACs, a line a width, baselines as crosses.

    A ring marks a model that no other beats with fewer MACs, by validation accuracy.

    Args:
        cards: of one zoo; those of the data set with the most models are drawn.
        path: of the SVG. The same cards give the same bytes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    Figure = figure_class()  # noqa: N806 (a class)
    import matplotlib

    cards = [card for card in cards if card.precision == "int8"]
    if not cards:
        return
    datasets = [card.dataset for card in cards]
    dataset = max(sorted(set(datasets)), key=datasets.count)
    cards = sorted((card for card in cards if card.dataset == dataset), key=lambda card: card.macs)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines = {}
    for card in cards:
        is_uniform = isinstance(card.level, int)
        label = f"width {card.width}" if is_uniform else "per-stage levels" if card.level else "ResNet-8"
        lines.setdefault(label, []).append(card)
    for number, (label, line) in enumerate(sorted(lines.items())):
        style = "o-" if label.startswith("width") else "D" if label == "per-stage levels" else "X"
        axes.plot(
            [card.macs / 1e6 for card in line],
            [100 * card.accuracy for card in line],
            style,
            color=f"C{number}",
            label=label,
            markersize=6,
        )
        for card in line:
            level = ".".join(map(str, card.level)) if isinstance(card.level, tuple) else card.level
            axes.annotate(
                "" if level is None else f"l{level}",
                (card.macs / 1e6, 100 * card.accuracy),
                textcoords="offset points",
                xytext=(0, 7),
                ha="center",
                fontsize=8,
            )
    front = pareto_front(cards, lambda card: card.macs, lambda card: card.validation_accuracy)
    axes.plot(
        [card.macs / 1e6 for card in front],
        [100 * card.accuracy for card in front],
        "o",
        color="none",
        markeredgecolor="k",
        markersize=13,
        label="not beaten with fewer MACs, by validation accuracy",
    )
    macs_axis(axes, [card.macs / 1e6 for card in cards])
    axes.set(xlabel="M MACs", ylabel="test accuracy of the int8 .tflite, %", title=f"{dataset}, int8")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as aside, matplotlib.rc_context({"svg.hashsalt": "factorizenet", "svg.fonttype": "none"}):
        figure.savefig(aside, format="svg", metadata={"Date": None})


def search_frontier(
    rows: Sequence[dict], objective: str, names: Sequence[str], path: str | os.PathLike, *, title: str
) -> None:
    """Write a PNG of a search: each trained net's objective over MACs, coloured by width, and the frontier as a line.

    Args:
        rows: of results.csv.
        objective: the column to draw, 0..1.
        names: of the nets on the frontier.
        path: of the PNG.
        title: says data and requirement.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    Figure = figure_class()  # noqa: N806 (a class)
    trained = [row for row in rows if row["status"] == "trained"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    front = sorted((row for row in trained if row["name"] in names), key=lambda row: row["macs"])
    axes.plot(
        [row["macs"] / 1e6 for row in front],
        [100 * row[objective] for row in front],
        "k-",
        linewidth=1,
        label="not beaten with fewer MACs",
    )
    for width in sorted({row["width"] for row in trained}):
        of_width = [row for row in trained if row["width"] == width]
        axes.plot(
            [row["macs"] / 1e6 for row in of_width],
            [100 * row[objective] for row in of_width],
            "o",
            markersize=5,
            label=f"width {width}",
        )
    for row in trained if len(trained) <= MAX_NAMES else front:
        on_front = row in front
        axes.annotate(
            row["level"],
            (row["macs"] / 1e6, 100 * row[objective]),
            textcoords="offset points",
            xytext=(0, 7 if on_front else -11),
            ha="center",
            fontsize=8,
            color="k" if on_front else "0.45",
        )
    axes.margins(0.08)
    macs_axis(axes, [row["macs"] / 1e6 for row in trained])
    axes.set(
        xlabel="M MACs (levels of the stages at the points)",
        ylabel=f"{objective.replace('_', ' ')}, %",
        title=textwrap.fill(title, 72),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def replay_costs(replays: dict, epochs: int, path: str | os.PathLike) -> None:
    """Write a PNG: for each budget the share of replayed searches that have a good enough net, over what they spent.

    Args:
        replays: (budget of MACs, strategy) -> its `Replay`s, one a seed.
        epochs: of one whole training, the unit of the axis.
        path: of the PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    Figure = figure_class()  # noqa: N806 (a class)
    budgets = sorted({budget for budget, _ in replays})
    figure = Figure(figsize=(4.5 * len(budgets), 4.4), layout="constrained")
    styles = ["-", "--", *["-"] * len(replays)]  # the walk's two lines may be the same
    for axes, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets):
        for number, (strategy, found) in enumerate((s, f) for (b, s), f in replays.items() if b == budget):
            reached = sorted(one.reached / epochs for one in found if one.reached is not None)
            shares = [100 * (i + 1) / len(found) for i in range(len(reached))]
            axes.step(
                [0, *reached], [0, *shares], where="post", label=strategy, color=f"C{number}", linestyle=styles[number]
            )
        axes.set(
            title=f"{budget / 1e6:.2f} M MACs",
            xlabel=f"spent, in whole trainings of {epochs} epochs",
            ylabel="searches within 0.3 points of the best, %",
            ylim=(0, 103),
        )
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def macs_axis(axes, macs: Sequence[float]) -> None:
    """A logarithmic axis with numbers on it, a linear one where all points are within a factor of 5."""
    if len(macs) and max(macs) < 5 * min(macs):
        return
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def figure_class():
    """Matplotlib's Figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'factorizenet_tf[report]'") from None
    return Figure
