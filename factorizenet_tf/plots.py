"""Every figure, drawn by Altair (extra `report`): a chart gives the PNG, the SVG and the view of an interactive page.

Importing this module raises ModuleNotFoundError, with the remedy, where Altair or vl-convert is not installed: import
it where a figure is drawn.
"""

import io
import itertools
import json
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .console import require_extra
from .files import atomic_write, write_bytes
from .macro import default_macro
from .requirement import frontier as frontier_of
from .spec import Architecture, ModelSpec

require_extra("altair", "vl_convert", extra="report", what="drawing figures")

import altair as alt  # noqa: E402
import pandas  # noqa: E402

__all__ = ["BIN_CHARS", "beside", "channel_map", "chart_spec", "confusion_figure", "factorization_map"]
__all__ += ["history_figure", "layer_figures", "lines", "save", "search_frontier", "write_figures", "zoo_frontier"]

COLORS = ["#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#9467bd", "#8c8c3a", "#7f7f7f"]
MARKS = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
SPATIAL = "kind in ('conv', 'grouped', 'depthwise')"
WEIGHTED = "kind in ('conv', 'grouped', 'depthwise', 'pointwise', 'dense')"
FOLDED = "tensor == 'folded'"
INT8 = "weight_bits == 8 and activation_bits == 8 and kind != 'input' and scheme =="
PRECISION = "average_channel_precision"
MATCH, SQNR, KL = "average channel precision", "SQNR of the outputs, dB", "KL divergence"
# Each panel of the layer figures: figure, axis, title, table, which rows, column.
PANELS = (
    ("channel_precision", MATCH, "3x3 kernels, folded", "weights", f"{FOLDED} and {SPATIAL}", PRECISION),
    ("channel_precision", MATCH, "outputs of these layers", "activations", SPATIAL, PRECISION),
    ("ranges", "range", "weights, BatchNorm folded in", "weights", FOLDED, "range"),
    ("ranges", "range", "outputs", "activations", WEIGHTED, "range"),
    ("sqnr", "SQNR of the weights, dB", "one scale a channel", "errors", f"{INT8} 'per_channel'", "weight_sqnr_db"),
    ("sqnr", "SQNR of the weights, dB", "one scale a tensor", "errors", f"{INT8} 'per_tensor'", "weight_sqnr_db"),
    ("accumulation", SQNR, "this layer alone quantized", "errors", f"{INT8} 'per_channel'", "sqnr_db"),
    ("accumulation", SQNR, "all before it, too", "errors", f"{INT8} 'per_channel'", "accumulated_sqnr_db"),
    ("sensitivity", KL, "this layer alone quantized", "sensitivity", "part == 'only'", "kl"),
    ("sensitivity", KL, "all but this layer quantized", "sensitivity", "part == 'all_but'", "kl"),
)
BIN_CHARS = "0123456789abcdefghijklmnopqrstuvwxyz"  # how full a histogram's bin is, empty to fullest
MAX_NAMES = 30  # points that are named before names hide points


def zoo_frontier(cards: Sequence, path: str | os.PathLike) -> None:
    """Draw int8 test accuracy of published models over MACs and bytes, as SVG or PNG; the same cards give the same bytes.

    A line joins a width's uniform levels; a ring marks a model that no other beats at less cost, by validation
    accuracy. If later versions were published, a grey line joins the best of the first versions. The cards are of one
    zoo; those of the data set with the most models are drawn. Nothing is written if no int8 model has a test accuracy.
    """
    cards = [card for card in cards if card.precision == "int8" and card.accuracy is not None]
    if not cards:
        return
    last = {card.name: max(other.version for other in cards if other.name == card.name) for card in cards}
    datasets = [card.dataset for card in cards if card.version == last[card.name]]
    dataset = max(sorted(set(datasets)), key=datasets.count)
    cards = [card for card in cards if card.dataset == dataset]
    newest = [card for card in cards if card.version == last[card.name]]
    renewed = min((card.published for card in cards if card.version > 1), default="")
    first = [_point(card) for card in cards if card.version == 1 and card.published <= renewed]
    epochs = [card.recipe["epochs"] for card in newest]
    usual = max(sorted(set(epochs)), key=epochs.count)
    rows = [
        _point(card, "" if card.recipe["epochs"] == usual else f"{card.recipe['epochs']} epochs") for card in newest
    ]
    order, panels = sorted({row["series"] for row in rows}), []
    for cost, what in (("macs", "M MACs"), ("kilobytes", "kB of file")):
        x = _costs([row[cost] for row in [*rows, *first]], cost, what)
        y, layers = _percent("test accuracy of the int8 .tflite, %"), []
        if first:
            before = alt.Chart(pandas.DataFrame(frontier_of(first, cost, "validation")))
            layers.append(
                before.mark_line(color="#999", strokeDash=[4, 3], point={"color": "#999", "size": 20}).encode(x, y)
            )
        for is_uniform in (True, False):
            some = [row for row in rows if row["series"].startswith("width") == is_uniform]
            options = {"stroke": 1.6 if is_uniform else 0, "panel": None, "order": order}
            layers += [lines(some, x, y, "series", **options)] if some else []
        rings = alt.Chart(pandas.DataFrame(frontier_of(rows, cost, "validation")))
        rings = rings.mark_point(size=260, color="#333", strokeWidth=1).encode(x, y)
        panels.append(alt.layer(*layers, rings, _names(rows, x, y, "level")))
    subtitle = [f"{usual} epochs where nothing else is said; ringed: not beaten at less cost, by validation accuracy"]
    subtitle += ["grey: the same of the first generation, the nets as first published"] * bool(first)
    save(beside(panels).properties(title={"text": f"{dataset}, int8", "subtitle": subtitle}), path)


def _point(card, longer=""):
    label, series = f"l{card.level_text}" if card.level_text else "", _series(card)
    label = card.name.removesuffix("-int8") if "macro" in series else label
    named = {"net": card.name, "level": ", ".join(filter(None, (label, longer))), "series": series}
    costs = {"macs": card.macs / 1e6, "kilobytes": card.size_bytes / 1e3}
    return named | costs | {"percent": 100 * card.accuracy, "validation": card.validation_accuracy}


def search_frontier(rows: Sequence[dict], objective: str, path: str | os.PathLike, *, title: str) -> None:
    """Draw a search as PNG or SVG: each trained net's objective over MACs, by width, and the frontier as a line.

    Args:
        rows: those of results.csv; if no net was trained, nothing is written.
        objective: the column to draw, 0..1.
        path: of the file.
        title: data and requirement.
    """
    trained = [row for row in rows if row["status"] == "trained"]
    if not trained:
        return
    is_model = "middle" in trained[0]  # of a model's layers
    is_one_macro = is_model or len({row["macro"] for row in trained}) == 1
    group = "middle" if is_model else "width"
    drawn = []
    for row in sorted(trained, key=lambda row: row[group]):
        level = str(row["level"]) if is_one_macro else row["name"].removeprefix("fnet-")
        numbers = {"macs": row["macs"] / 1e6, "percent": 100 * row[objective], "level": level}
        drawn.append({"net": row["name"], group: f"{group} {row[group]}"} | numbers)
    x, y = _costs([row["macs"] for row in drawn]), _percent(f"{objective.replace('_', ' ')}, %")
    best = frontier_of(drawn, "macs", "percent")
    line = alt.Chart(pandas.DataFrame(best)).mark_line(color="#333", strokeWidth=1).encode(x, y)
    points = lines(drawn, x, y, group, stroke=0)
    named = _names(drawn if len(drawn) <= MAX_NAMES else best, x, y, "level")
    named_by = "the levels" if is_one_macro else "macro-architecture and levels"
    subtitle = f"line: not beaten with fewer MACs; at the points: {named_by}"
    save(alt.layer(line, points, named, title={"text": textwrap.wrap(title, 72), "subtitle": subtitle}), path)


def factorization_map(table: pandas.DataFrame) -> alt.LayerChart:
    """Draw a `factorization_table`: how much each layer alone can be factorized, and at what error.

    A row is a layer, a column a level and middle; a cell's colour is the error at the logits, its number the percentage of
    the layer's MACs that is left.
    """
    cells = table[table["level"] > 0].sort_values(["level", "middle"], kind="stable")
    columns = [f"{level}, {middle:g}" for level, middle in zip(cells["level"], cells["middle"])]
    cells = cells.assign(column=columns, percent=100 * cells["macs_share"], error=cells["logits_error_int8"].round(4))
    x = alt.X("column:N", sort=list(dict.fromkeys(columns)), title="level, middle", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(cells[["layer", "column", "percent", "error"]])
    base = base.encode(x, alt.Y("layer:N", sort=list(dict.fromkeys(table["layer"])), title=None))
    scale = alt.Scale(scheme="yelloworangered", type="sqrt")
    legend = alt.Legend(title=["error of the logits, int8,", "of their deviation"])
    filled = base.mark_rect().encode(alt.Color("error:Q", scale=scale, legend=legend))
    numbers = base.mark_text(fontSize=10).encode(text=alt.Text("percent:Q", format=".0f"))
    subtitle = "in the cells: percent of the layer's MACs that are left"
    title = {"text": "Each layer factorized alone", "subtitle": subtitle}
    return alt.layer(filled, numbers, title=title).properties(height=alt.Step(22))


def confusion_figure(matrices: dict[str, np.ndarray], class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Draw `classes.confusion` matrices, by title, side by side as SVG or PNG, each row coloured by its shares."""
    names, panels = [str(name) for name in class_names], []
    options = {"sort": names, "scale": alt.Scale(domain=names, padding=0)}
    x = alt.X("taken_for:N", title="taken for", axis=alt.Axis(labelOverlap=True, labelAngle=-60), **options)
    y = alt.Y("class:N", axis=alt.Axis(labelOverlap=True), **options)
    color = alt.Color("share:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1]))
    for title, matrix in matrices.items():
        places = np.argwhere(matrix)
        cells = {"class": places[:, 0], "taken_for": places[:, 1], "images": matrix[tuple(places.T)]}
        rows = pandas.DataFrame({"share": matrix[tuple(places.T)] / matrix.sum(1)[places[:, 0]]} | cells)
        rows[["class", "taken_for"]] = rows[["class", "taken_for"]].map(names.__getitem__)
        panel = alt.Chart(rows, title=title).mark_rect().encode(x, y, color)
        if len(names) <= MAX_NAMES:
            ink = alt.when("datum.share > 0.5").then(alt.value("white")).otherwise(alt.value("black"))
            panel = alt.layer(panel, panel.mark_text(fontSize=9).encode(x, y, color=ink, text="images:Q"))
        panels.append(panel)
    save(beside(panels), path)


def history_figure(history: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draw a run's history.csv as SVG or PNG: loss, and training and validation accuracy, by epoch."""
    rows = pandas.read_csv(history)
    rows["number"] = range(1, len(rows) + 1)
    x, panels = alt.X("number:Q", title="epoch", axis=alt.Axis(tickMinStep=1)), []
    for title, columns in (("loss", ["loss"]), ("accuracy", ["accuracy", "val_accuracy"])):
        drawn = rows.melt(["number", "phase"], columns, "kind", "value")
        kinds = drawn["kind"].replace({"accuracy": "training", "val_accuracy": "validation"})
        drawn["kind"] = drawn["phase"] + ", " + kinds
        y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
        panels.append(lines(drawn[["number", "kind", "value"]], x, y, "kind", panel=title))
    save(beside(panels).resolve_scale(color="independent", shape="independent"), path)


def layer_figures(analysis) -> dict[str, list[alt.Chart]]:
    """Draw an analysis: the panels of each figure, by the figure's name; a panel is a chart of its own.

    The figures are "accuracy" and those of `PANELS` that have rows. A line is a net; nets are lined up by their blocks. Rows
    are the float net's if it was measured, else the quantization-aware one's.
    """
    short = _short(analysis)
    figures = {"accuracy": _accuracies(analysis)}
    for (name, y_title), panels in itertools.groupby(PANELS, key=lambda panel: panel[:2]):
        rows = {}
        for *_, title, table, which, column in panels:
            chosen = _depth_rows(getattr(analysis, table).query(which), column, short)
            rows |= {title: chosen} if len(chosen) else {}
        figures[name] = _depth_panels(rows, y_title, [*short.values()])
    return {name: panels for name, panels in figures.items() if panels}


def write_figures(analysis, folder: str | os.PathLike) -> tuple[Path, ...]:
    """Write each of `layer_figures` as a PNG and give the paths; the same analysis gives the same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = []
    for name, panels in layer_figures(analysis).items():
        paths.append(Path(folder) / f"{name}.png")
        save(beside(panels), paths[-1])
    return tuple(paths)


def channel_map(tensors: Sequence[dict]) -> alt.LayerChart:
    """Draw how often each value occurs in each channel, a row a channel, of the one tensor that select boxes choose.

    The chart refers to its data by the name "tensors" and does not hold them: the page adds them to its spec's `datasets`.

    Args:
        tensors: dicts with net, layer, tensor, facts (text), low and high (the range of all channels), channels (their
            numbers) and rows (for each a string of `BIN_CHARS`, a character a bin of equal width).
    """
    keys = {"net": "Net", "layer": "Layer", "tensor": "Tensor"}
    values = {key: list(dict.fromkeys(tensor[key] for tensor in tensors)) for key in keys}
    first = next((tensor for tensor in tensors if tensor["layer"].endswith("_spatial")), tensors[0])
    selects = {key: alt.binding_select(options=values[key], name=title) for key, title in keys.items()}
    params = [alt.param(name=key, value=first[key], bind=select) for key, select in selects.items()]
    is_chosen = " && ".join(f"datum.{key} === {key}" for key in keys)
    chosen = alt.Chart(alt.NamedData("tensors")).transform_filter(is_chosen)
    bins = len(tensors[0]["rows"][0]) if tensors[0]["rows"] else 1
    cells = (
        chosen.transform_flatten(["channels", "rows"], as_=["channel", "row"])
        .transform_calculate(full="split(datum.row, '')", place=f"sequence({bins})")
        .transform_flatten(["full", "place"])
        .transform_calculate(
            count=f"indexof('{BIN_CHARS}', datum.full)",
            start=f"datum.low + datum.place * (datum.high - datum.low) / {bins}",
            end=f"datum.low + (datum.place + 1) * (datum.high - datum.low) / {bins}",
        )
        .transform_filter("datum.count > 0")
        .mark_rect()
        .encode(
            alt.X("start:Q", title="value", scale=alt.Scale(zero=False, nice=False)),
            alt.X2("end:Q"),
            alt.Y("channel:O", title="channel", axis=alt.Axis(labelOverlap=True)),
            alt.Color("count:Q", legend=None, scale=alt.Scale(scheme="viridis", domain=[0, len(BIN_CHARS) - 1])),
            tooltip=[alt.Tooltip("channel:N"), *(alt.Tooltip(f"{end}:Q", format=".3g") for end in ("start", "end"))],
        )
    )
    facts = chosen.mark_text(align="left", baseline="bottom", lineBreak="\n", clip=False)
    facts = facts.encode(x=alt.value(0), y=alt.value(-20), text="facts:N")
    absent = alt.Chart(alt.NamedData("tensors")).transform_calculate(is_chosen=f"({is_chosen}) ? 1 : 0")
    absent = absent.transform_aggregate(found="max(is_chosen)").transform_filter("datum.found === 0")
    text = alt.value("This net has no such layer, or it has no range to draw.")
    absent = absent.mark_text(align="left", fontSize=13).encode(x=alt.value(10), y=alt.value(20), text=text)
    return alt.layer(cells, facts, absent, height=420).add_params(*params)


def _accuracies(analysis):
    """Draw all precisions and, beside them, those of 8 bits and more on a scale of their own."""
    output, macs = analysis.output, dict(zip(analysis.nets["net"], analysis.nets["macs"] / 1e6))
    is_measured = output["accuracy"].notna().any()
    title = "accuracy, %" if is_measured else "images of the float net's class, %"
    percent = (100 * output["accuracy" if is_measured else "top1_agreement"]).round(4)
    rows = output.assign(macs=output["net"].map(macs), percent=percent, net=output["net"].map(_short(analysis)))
    for code, text in (("_", " "), ("W8A8", "int8"), ("qat", "QAT")):
        rows["precision"] = rows["precision"].str.replace(code, text)
    rows = rows.dropna(subset="percent")[["net", "precision", "macs", "percent", "weight_bits"]]
    wide, order = rows[rows["weight_bits"] >= 8], list(rows["precision"].unique())
    if not len(wide) or len(wide) == len(rows):
        return [_accuracy_lines(rows, title)] if len(rows) else []
    both = ("all precisions", rows), ("8 bits and float", wide)
    return [_accuracy_lines(some, title, name, order) for name, some in both]


def _accuracy_lines(rows, y_title, title="", order=None):
    """A line for each precision, the nets named at their highest points."""
    x, y = _costs(rows["macs"]), _percent(y_title)
    tops = rows.loc[rows.groupby("net", sort=False)["percent"].idxmax()]
    return alt.layer(lines(rows, x, y, "precision", panel=title, order=order), _names(tops, x, y, "net"), title=title)


def _depth_panels(rows, y_title, nets):
    """Draw a panel for each title, all on one scale of y except for KL divergence, which differs by magnitudes."""
    if not rows:
        return []
    values = pandas.concat([some["value"] for some in rows.values()])
    margin, low = 0.05 * float(np.ptp(values)) or 1, float(values.min())
    domain = [max(low - margin, min(low, 0.0)), float(values.max()) + margin]
    scale = alt.Scale() if y_title == KL else alt.Scale(domain=domain, nice=False)
    y = alt.Y("value:Q", title=y_title, scale=scale)
    return [lines(some, _depth(some), y, "net", title=title, order=nets) for title, some in rows.items()]


def _depth_rows(table, column, short):
    """Of the float net's weights where they were measured, else of the quantization-aware one's."""
    table = table[table["source"] == table.groupby("net", sort=False)["source"].transform("first")]
    table = table.rename(columns={column: "value"})[["net", "layer", "block", "depth", "value"]]
    table = table.replace([np.inf, -np.inf], np.nan).dropna().sort_values("depth", kind="stable")
    rounded = {name: [float(f"{number:.5g}") for number in table[name]] for name in ("depth", "value")}
    return table.assign(net=table["net"].map(short), **rounded)


def _depth(rows):
    """The axis along the depth, a label a block: "1.2" is the second block of stage 1."""
    blocks = {int(depth): block for depth, block in zip(rows["depth"], rows["block"])}
    blocks = {place: block.replace("stage", "").replace("_block", ".") for place, block in blocks.items()}
    labels = [blocks.get(place, "") for place in range(max(blocks) + 1)]
    axis = alt.Axis(values=sorted(blocks), labelExpr=f"{json.dumps(labels)}[datum.value]", labelAngle=-45)
    return alt.X("depth:Q", title=None, axis=axis, scale=alt.Scale(zero=False, nice=False, padding=12))


def _costs(values, field="macs", title="M MACs"):
    """An axis of a cost, millions of MACs if nothing else is said: logarithmic with numbers on it, linear where all lie within a factor of 5."""
    if not len(values) or max(values) < 5 * min(values):
        return alt.X(f"{field}:Q", title=title, scale=alt.Scale(zero=False, padding=24))
    ticks = [m * 10.0**power for power in range(-6, 7) for m in (1, 2, 3, 5, 7)]
    ticks = [float(f"{tick:g}") for tick in ticks if min(values) / 1.2 <= tick <= max(values) * 1.2]
    scale = alt.Scale(type="log", nice=False, padding=24)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format="~g"))


def _percent(title):
    return alt.Y("percent:Q", title=title, scale=alt.Scale(zero=False, padding=18))


def lines(rows, x, y, series, *, title="", panel="", order=None, stroke=1.6, interpolate="linear"):
    """Lines with points, each series in its colour and with its mark; a click in the legend brings one out, but where panel is None."""
    rows = pandas.DataFrame(rows)
    order = order or list(rows[series].unique())
    columns = max(1, 48 // (max(map(len, order)) + 4))  # that fit into a narrow panel
    legend = alt.Legend(title=None, orient="bottom", columns=columns, symbolOpacity=1)
    colors = [COLORS[number % len(COLORS)] for number in range(len(order))]
    marks = [MARKS[number % len(MARKS)] for number in range(len(order))]
    name = re.sub(r"\W+", "_", f"picked_{panel or title}")  # panels side by side have one each
    picked = alt.selection_point(name=name, fields=[series], bind="legend")
    shown = dict.fromkeys(key for key in ("net", "layer", series, "macs") if key in rows)
    number = [alt.Tooltip(f"{y.shorthand}", format=".4g")]
    point = alt.OverlayMarkDef(size=45, filled=True, opacity=1)
    chart = alt.Chart(rows, title=title).mark_line(strokeWidth=stroke, interpolate=interpolate, point=point)
    color = alt.Color(f"{series}:N", scale=alt.Scale(domain=order, range=colors), legend=legend)
    shape = alt.Shape(f"{series}:N", scale=alt.Scale(domain=order, range=marks), legend=legend)
    if panel is None:  # of a layer among panels, whose selections Vega-Lite would have twice
        return chart.encode(x, y, color, shape)
    opacity = alt.when(picked).then(alt.value(1)).otherwise(alt.value(0.15))
    tooltip = [alt.Tooltip(f"{key}:N") for key in shown] + number
    return chart.encode(x, y, color, shape, opacity=opacity, tooltip=tooltip).add_params(picked)


def _names(rows, x, y, field):
    text = alt.Chart(pandas.DataFrame(rows)).mark_text(dy=-14, fontSize=10)
    return text.encode(x, y, text=f"{field}:N")


def beside(panels: Sequence[alt.Chart]) -> alt.HConcatChart:
    """Put panels side by side."""
    return alt.hconcat(*(panel.properties(width=400) for panel in panels))


def chart_spec(chart) -> dict:
    """Give a chart's Vega-Lite spec, whatever its number of rows."""
    with alt.data_transformers.disable_max_rows():
        return chart.to_dict()


def save(chart, path: str | os.PathLike) -> None:
    """Write a chart as .png or .svg, by the path's suffix. Raises OSError where it cannot be written."""
    import vl_convert
    from PIL import Image

    if not isinstance(chart, alt.HConcatChart):
        chart = chart.properties(width=620)
    chart = chart.configure(font="DejaVu Sans", background="white").configure_view(continuousHeight=340)
    spec = chart_spec(chart)
    if str(path).endswith(".svg"):
        return write_bytes(path, vl_convert.vegalite_to_svg(spec).encode())
    drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, scale=1.5)))
    with atomic_write(path) as aside:
        drawn.convert("RGB").save(aside, format="png", optimize=True)  # a third of the bytes
    return None


def _series(card):
    if isinstance(card.spec, Architecture):
        return "other nets, factorized"
    if isinstance(card.spec, ModelSpec) and card.spec.macro != default_macro(card.spec.input_shape):
        return "other macro-architectures"
    if isinstance(card.level, int):
        return f"width {card.width}"
    return "per-stage levels" if card.level else "ResNet-8"


def _short(analysis):
    """Short names of nets, "l2" for fnet-l2-int8, where that tells them apart."""
    short = {net: net.removeprefix("fnet-").removesuffix("-int8") for net in analysis.names}
    return short if len(set(short.values())) == len(short) else {net: net for net in short}
