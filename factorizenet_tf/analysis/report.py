"""Write an analysis as one interactive HTML page that loads nothing: figures by Vega, tables, sentences (extra `report`)."""

from __future__ import annotations

import functools
import html
import json
import os
import re
from importlib import resources
from pathlib import Path

import numpy as np

from ..files import write_text
from .distributions import CHANNEL_BINS
from .summary import precision_title, summary
from .tables import Analysis

__all__ = ["MAX_BYTES", "report_html", "write_report"]

MAX_BYTES = 1_500_000
CHANNELS = (4_096, 64, 32, 16, 8, 4)  # drawn a layer: the first number that keeps the page small enough
TENSORS = {"folded": "weights, BatchNorm folded in", "activations": "activations"}
SECTIONS = {  # by figure: heading, and what it shows
    "accuracy": ("Accuracy", "A line for each precision, a point for each net; the numbers are below."),
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
LAYER_COLUMNS = {
    "layer": "layer",
    "kind": "kind",
    "range": "range",
    "average_channel_precision": "channel precision",
    "kurtosis": "kurtosis",
    "activation_range": "output range",
    "precision": "quantized",
    "weight_sqnr_db": "weights, dB",
    "sqnr_db": "alone, dB",
    "accumulated_sqnr_db": "accumulated, dB",
    "decrease_points": "lost alone, points",
}


def write_report(analysis: Analysis, path: str | os.PathLike, *, title: str | None = None) -> int:
    """Write the report to a new file and give its bytes.

    Raises:
        FileExistsError: the file is there.
        ModuleNotFoundError: Altair or vl-convert is not installed.
        ValueError: so many nets that they do not fit into 1.5 MB.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    content = report_html(analysis, title=title)
    write_text(path, content)
    return len(content.encode())


def report_html(analysis: Analysis, *, title: str | None = None) -> str:
    """Make the page, at most 1.5 MB: where needed, fewer channels of each layer are drawn. Raises as `write_report`."""
    from ..plots import channel_map, layer_figures

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    title = title or f"What quantization does to {', '.join(analysis.names)}"
    charts, sections = {}, []
    for name, panels in layer_figures(analysis).items():
        charts |= {f"{name}-{number}": panel for number, panel in enumerate(panels)}
        table = _accuracy_table(analysis) if name == "accuracy" else ""
        sections.append(_section(name, *SECTIONS[name], [f"{name}-{n}" for n in range(len(panels))], table))
    about = "How often each value occurs in each channel, on a logarithmic scale from dark to bright, a row for each channel."
    sections.append(_section("channels", "One layer, channel by channel", about, ["channels-0"]))
    sections.append(_section("layers", "All layers", "A click on a heading sorts.", [], _layer_tables(analysis)))
    of_all, of_layers = ("".join(f"<li>{html.escape(s)}</li>\n" for s in part) for part in summary(analysis))
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(_subtitle(analysis)),
        "summary": of_all,
        "by_layer": of_layers + _notes(analysis),
        "sections": "\n".join(sections),
        "vega": _vega(),
    }
    specs = {name: chart.properties(width="container").to_dict() for name, chart in charts.items()}
    if tensors := _tensors(analysis):
        specs["channels-0"] = channel_map(tensors).properties(width="container").to_dict()
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
    notes = analysis.notes.to_dict("records")
    return "".join(
        f"<li>{html.escape(f'''{n['net']} ({n['source']}), {n['layer']}, {n['tensor']}: {n['note']}.''')}</li>\n"
        for n in notes
    )


def _accuracy_table(analysis):
    output = analysis.output.assign(precision=analysis.output.apply(precision_title, axis=1))
    percents = {"accuracy": "accuracy, %", "top1_agreement": "same class as float, %"}
    output = output.assign(**{column: 100 * output[column] for column in percents})
    titles = {
        "net": "net",
        "precision": "precision",
        "decrease_points": "lost, points",
        "kl": "KL divergence",
    } | percents
    columns = ["net", "precision", "accuracy", "decrease_points", "top1_agreement", "kl"]
    table = output[columns].dropna(axis=1, how="all").rename(columns=titles)
    return _table(table, "Accuracy in each precision")


def _layer_tables(analysis):
    """A table for each net's weights, folded away but the first; a row for each layer and precision."""
    keys = ["net", "source", "layer"]
    rows = analysis.errors.assign(precision=analysis.errors.apply(precision_title, axis=1))
    weights = analysis.weights[analysis.weights["tensor"] == "folded"]
    rows = rows.merge(weights[[*keys, "range", "average_channel_precision", "kurtosis"]], "left", keys)
    ranges = analysis.activations[[*keys, "range"]].rename(columns={"range": "activation_range"})
    rows = rows.merge(ranges, "left", keys)
    if len(analysis.sensitivity):
        only = analysis.sensitivity[analysis.sensitivity["part"] == "only"]
        by = [*keys, "scheme", "weight_bits", "activation_bits"]
        rows = rows.merge(only[[*by, "decrease_points"]], "left", by)
    columns = {column: title for column, title in LAYER_COLUMNS.items() if column in rows}
    tables = []
    for (net, source), chosen in rows.groupby(["net", "source"], sort=False):
        name = f"{net}, {'quantization-aware' if source == 'qat' else 'float'} weights"
        table = _table(chosen[list(columns)].dropna(axis=1, how="all").rename(columns=columns), name)
        opened = "" if tables else " open"
        tables.append(f"<details{opened}><summary>{html.escape(name)}</summary>{table}</details>")
    return "".join(tables)


def _table(table, caption):
    table = table.replace([np.inf, -np.inf], np.nan)
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
