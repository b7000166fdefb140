"""Show an analysis as one interactive HTML page that loads nothing: Vega figures, and tables (extra `report`)."""

import functools
import html
import json
import re
from collections.abc import Mapping
from importlib import resources

import numpy as np
import pandas

from .distributions import CHANNEL_BINS
from .summary import net_table, precision_title
from .tables import SCHEME, Analysis

__all__ = ["MAX_BYTES", "report_html"]

MAX_BYTES = 1_500_000
CHANNELS = (4_096, 64, 32, 16, 8, 4)  # drawn in each layer: the first of these that keeps the page small enough
TENSORS = {"folded": "weights, BatchNorm folded in", "activations": "activations"}
SECTIONS = {  # by figure: heading, and what it shows
    "accuracy": (
        "Accuracy",
        "A line for each precision, a point for each net. The standard error of the loss is computed from the images whose "
        "class differs from the float net's; a loss within two standard errors may be chance.",
    ),
    "channel_precision": (
        "Do the channels match their layer?",
        "Average channel precision: the mean of the channels' ranges over the range of the whole tensor, 0 to 1. Where it "
        "is low, one scale for the tensor serves few of its channels.",
    ),
    "ranges": ("Ranges", "Largest less smallest value of a tensor."),
    "sqnr": (
        "One scale a channel or one a tensor",
        "Signal-to-quantization-noise ratio (SQNR) of the weights, 10 log10(sum x² / sum (x - x_q)²) dB.",
    ),
    "accumulation": (
        "Where the error accumulates",
        "SQNR of each layer's output against the float net's. 6 dB are a factor of two in amplitude.",
    ),
    "sensitivity": (
        "Sensitivity",
        "KL divergence of the net's output from the float net's, with one layer quantized and with all but one.",
    ),
}
FACTORIZED = "Each layer alone, made grouped and pointwise in closed form without training: the error at the int8 net's logits, by level "
FACTORIZED += "and middle (the channels between the two parts, as a multiple of the layer's own)."
PRECISION_COLUMNS = ("net", "precision", "accuracy", "decrease_points", "standard_error_points", "top1_agreement", "kl")
LAYER_COLUMNS = ("layer", "kind", "range", "average_channel_precision", "kurtosis", "output_range", "precision")
LAYER_COLUMNS += ("weight_sqnr_db", "sqnr_db", "accumulated_sqnr_db", "decrease_points")


def report_html(
    analysis: Analysis, *, title: str | None = None, factorization: Mapping[str, pandas.DataFrame] | None = None
) -> str:
    """Make the page, at most 1.5 MB: if needed, it draws fewer channels of each layer.

    Args:
        analysis: what is shown.
        title: None: the names of the nets.
        factorization: tables of `factorization_table`, by title, for nets of the analysis.

    Raises:
        ModuleNotFoundError: Altair or vl-convert is not installed.
        ValueError: the nets do not fit into 1.5 MB, or a factorization table is of another net.
    """
    from ..plots import channel_map, chart_spec, factorization_map, layer_figures

    for name, table in (factorization or {}).items():
        _check_factorization(name, table, analysis)

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    title = title or f"What quantization does to {', '.join(analysis.names)}"
    about = "SQNR is the signal-to-quantization-noise ratio, accumulated: all layers before are quantized, too. Of the layers "
    about += "with weights are shown: the first, the lowest, the largest step down, and the one that alone costs most KL divergence."
    by_net = net_table(analysis)
    summed = _table(by_net, by_net.columns, "Each net in one row") + _notes(analysis)
    charts, sections = {}, [_section("summary", "Net by net", about, [], summed)]
    for name, panels in layer_figures(analysis).items():
        charts |= {f"{name}-{number}": panel for number, panel in enumerate(panels)}
        table = _accuracy_table(analysis) if name == "accuracy" else ""
        sections.append(_section(name, *SECTIONS[name], [f"{name}-{n}" for n in range(len(panels))], table))
    for number, (name, table) in enumerate((factorization or {}).items()):
        charts[f"factorization-{number}"] = factorization_map(table)
        heading = f"Each layer factorized alone: {html.escape(name)}"
        sections.append(_section(f"factorized-{number}", heading, FACTORIZED, [f"factorization-{number}"]))
    about = "How often each value occurs in each channel, on a logarithmic scale from dark to bright, a row for each channel."
    sections.append(_section("channels", "One layer, channel by channel", about, ["channels-0"]))
    sections.append(_section("layers", "All layers", "A click on a heading sorts.", [], _layer_tables(analysis)))
    parts = {"title": html.escape(title), "subtitle": html.escape(_subtitle(analysis)), "vega": _vega()}
    parts["sections"] = "\n".join(sections)
    specs = {name: chart_spec(chart.properties(width="container")) for name, chart in charts.items()}
    if tensors := _tensors(analysis):
        specs["channels-0"] = chart_spec(channel_map(tensors).properties(width="container"))
    for most in CHANNELS:
        if tensors:
            specs["channels-0"]["datasets"] = {"tensors": [_thinned(tensor, most) for tensor in tensors]}
        # "<" in a name must not end the script
        parts["charts"] = json.dumps(specs, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        page = re.sub(r"@(\w+)@", lambda found: parts[found[1]], template)
        size = len(page.encode())
        if size <= MAX_BYTES:
            return page
    raise ValueError(f"{len(analysis.names)} nets make a report of {size:,} bytes, over {MAX_BYTES:,}; report fewer")


def _check_factorization(name, table, analysis) -> None:
    if missing := {"layer", "level", "middle", "macs_share", "logits_error_int8"} - {*table.columns}:
        raise ValueError(f"{name} has no column {min(missing)!r}; give what `factorizenet factorize --table` wrote")
    layers, nets = {*table["layer"]}, analysis.weights.groupby("net")["layer"].agg(set)
    strange = min((layers - own for own in nets), key=len)
    if strange:
        raise ValueError(
            f"{name} is of another net than {', '.join(nets.index)}: no layer {min(strange)!r}; give theirs"
        )


def _section(name, heading, about, charts, more=""):
    drawn = "".join(f'<div class="chart" id="{chart}"></div>' for chart in charts)
    return f'<section id="{name}"><h2>{heading}</h2><p>{about}</p><div class="charts">{drawn}</div>{more}</section>'


def _subtitle(analysis):
    nets = analysis.nets
    datasets = sorted({name for name in nets["dataset"] if isinstance(name, str)})
    text = f"{', '.join(datasets) or 'data of the caller'}: {_span(nets['calibration_images'])} calibration images"
    if nets["evaluation_images"].max():
        text += f", accuracy on {_span(nets['evaluation_images'])} images"
    return text + ". Quantized nets are simulated as TensorFlow Lite computes them."


def _span(numbers):
    low, high = int(min(numbers)), int(max(numbers))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _notes(analysis):
    texts = [f"{n.net} ({n.source}), {n.layer}, {n.tensor}: {n.note}." for n in analysis.notes.itertuples()]
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def _accuracy_table(analysis):
    output = analysis.output.assign(precision=analysis.output.apply(precision_title, axis=1))
    error = 100 * np.sqrt((1 - output["top1_agreement"]) / output["images"])
    output = output.assign(standard_error_points=error.where(output["accuracy"].notna()))
    return _table(output, PRECISION_COLUMNS, "Accuracy in each precision")


def _layer_tables(analysis):
    """A table for each net's weights, folded away but the first; a row for each layer and precision."""
    keys = ["net", "source", "layer"]
    rows = analysis.errors.assign(precision=analysis.errors.apply(precision_title, axis=1))
    weights = analysis.weights[analysis.weights["tensor"] == "folded"]
    rows = rows.merge(weights[[*keys, "range", "average_channel_precision", "kurtosis"]], "left", keys)
    ranges = analysis.activations[[*keys, "range"]].rename(columns={"range": "output_range"})
    rows = rows.merge(ranges, "left", keys)
    only = analysis.sensitivity.query("part == 'only'")[[*keys, *SCHEME, "decrease_points"]]
    rows = rows.merge(only, "left", [*keys, *SCHEME]) if len(only) else rows
    tables = []
    for (net, source), chosen in rows.groupby(["net", "source"], sort=False):
        name = f"{net}, {'quantization-aware' if source == 'qat' else 'float'} weights"
        opened = "" if tables else " open"
        table = _table(chosen, LAYER_COLUMNS, name)
        tables.append(f"<details{opened}><summary>{html.escape(name)}</summary>{table}</details>")
    return "".join(tables)


def _table(table, columns, caption):
    """Those of the columns that have a value, as a box that scrolls."""
    table = table[[column for column in columns if column in table]].replace([np.inf, -np.inf, ""], np.nan)
    table = table.dropna(axis=1, how="all")
    table.columns = [column.removesuffix("_db").replace("_", " ") + ", dB" * column.endswith("_db") for column in table]
    text = table.to_html(index=False, border=0, na_rep="-", float_format=lambda x: f"{x:.4g}", justify="unset")
    text, label = re.sub(r">\s+<", "><", text), html.escape(caption, quote=True)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{text}</div>'


def _tensors(analysis):
    """What `plots.channel_map` draws: the histograms of each tensor."""
    from ..plots import BIN_CHARS

    keys = ["net", "source", "tensor", "layer"]
    numbers = {}
    for table in (analysis.weights, analysis.activations):
        numbers |= {tuple(row[key] for key in keys): row for row in table.to_dict("records")}
    tensors = []
    for key, rows in analysis.histograms.groupby(keys, sort=False):
        facts, (net, source, tensor, layer) = numbers[key], key
        if tensor not in TENSORS or not facts["range"] > 0:
            continue
        counts = np.zeros((facts["channels"], CHANNEL_BINS))
        counts[rows["channel"].to_numpy(), rows["bin"].to_numpy()] = rows["count"].to_numpy()
        filled = np.ceil(np.log1p(counts) / np.log1p(counts).max() * (len(BIN_CHARS) - 1)).astype(int)
        chars = np.array(list(BIN_CHARS))[filled]
        groups = f", {facts['groups']} groups" if facts["groups"] > 1 else ""
        text = f"{facts['kind']}{groups}, {len(counts)} channels\naverage channel precision "
        text += f"{facts['average_channel_precision']:.3g}, kurtosis {facts['kurtosis']:.3g}"
        tensors.append(
            {
                "net": f"{net}, {'quantization-aware' if source == 'qat' else 'float'}",
                "layer": layer,
                "tensor": TENSORS[tensor],
                "facts": text,
                "low": float(f"{facts['minimum']:.4g}"),
                "high": float(f"{facts['maximum']:.4g}"),
                "channels": list(range(len(counts))),
                "rows": ["".join(row) for row in chars],
            }
        )
    return sorted(tensors, key=lambda tensor: tensor["tensor"] == TENSORS["activations"])  # weights first


def _thinned(tensor, most):
    """The tensor with at most so many of its channels, the first and the last among them."""
    total = len(tensor["channels"])
    if total <= most:
        return tensor
    drawn = np.unique(np.linspace(0, total - 1, most).round().astype(int)).tolist()
    facts = tensor["facts"].replace("channels", f"channels, {len(drawn)} of them drawn", 1)
    return tensor | {"facts": facts, "channels": drawn, "rows": [tensor["rows"][channel] for channel in drawn]}


@functools.cache
def _vega():
    """Vega, Vega-Lite and Vega-Embed as one script, which makes `vegaEmbed` known to the page."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
