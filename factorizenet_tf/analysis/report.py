"""An analysis as one HTML file to look at: Plotly inside, nothing loaded from anywhere (extra `report`)."""

from __future__ import annotations

import html
import json
import math
import os
from importlib import resources
from pathlib import Path

import numpy as np

from ..files import write_text
from .distributions import CHANNEL_BINS
from .summary import summary
from .tables import Analysis

__all__ = ["MOST_BYTES", "report_html", "write_report"]

MOST_BYTES = 7_000_000
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"  # the height of a bin on a logarithmic scale, one character each
CHANNELS = (4_096, 64, 32, 16, 8)  # drawn a layer: the first that keeps the file small enough
WEIGHT_COLUMNS = {
    "range": "range",
    "percentile_range": "percentile_range",
    "average_channel_precision": "precision",
    "kurtosis": "kurtosis",
}
ERROR_COLUMNS = ("weight_sqnr_db", "mse", "sqnr_db", "accumulated_mse", "accumulated_sqnr_db", "accumulation_db")


def write_report(analysis: Analysis, path: str | os.PathLike, *, title: str | None = None) -> int:
    """Write the report to a new file; gives its bytes.

    Raises:
        FileExistsError: the file is there.
        ModuleNotFoundError: Plotly is not installed.
        ValueError: so many nets that they do not fit into 7 MB.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    content = report_html(analysis, title=title)
    write_text(path, content)
    return len(content.encode())


def report_html(analysis: Analysis, *, title: str | None = None) -> str:
    """The report as text, at most 7 MB: where needed, fewer channels of each layer are drawn. Raises as `write_report`."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the report needs plotly: pip install 'factorizenet_tf[report]'") from None
    title = title or f"What quantization does to {', '.join(analysis.names)}"
    of_all, of_layers = ("\n".join(f"<li>{html.escape(s)}</li>" for s in part) for part in summary(analysis))
    page = resources.files(__package__).joinpath("report_page.html").read_text(encoding="utf-8")
    page = page.replace("__TITLE__", html.escape(title)).replace("__SUBTITLE__", html.escape(_subtitle(analysis)))
    page = (
        page.replace("__SUMMARY__", of_all)
        .replace("__LAYERS__", of_layers)
        .replace("__PLOTLY__", get_plotlyjs().replace("</script", "<\\/script"))
    )
    for channels in CHANNELS:
        # "<" in a name must not end the script
        text = json.dumps(_data(analysis, channels), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        content = page.replace("__DATA__", text)
        if len(content.encode()) <= MOST_BYTES:
            return content
    raise ValueError(
        f"{len(analysis.names)} nets make a report of {len(content.encode()):,} bytes, over {MOST_BYTES:,}; report fewer"
    )


def _subtitle(analysis):
    nets = analysis.nets
    datasets = sorted({name for name in nets["dataset"] if isinstance(name, str)})
    text = f"{', '.join(datasets) or 'data of the caller'}: {_span(nets['calibration_images'])} calibration images"
    if nets["evaluation_images"].max():
        text += f", accuracy on {_span(nets['evaluation_images'])} images"
    return text


def _span(numbers):
    low, high = int(min(numbers)), int(max(numbers))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _data(analysis, channels):
    return {
        "nets": _records(analysis.nets, ["net", "source", "level", "width", "macs", "params"]),
        "output": _records(
            analysis.output,
            [
                "net",
                "source",
                "precision",
                "scheme",
                "weight_bits",
                "activation_bits",
                "accuracy",
                "decrease_points",
                "decrease_percent",
                "top1_agreement",
                "qmse",
                "qce",
                "kl",
                "images",
            ],
        ),
        "layers": _layers(analysis),
        "sensitivity": _records(
            analysis.sensitivity,
            [
                "net",
                "source",
                "scheme",
                "weight_bits",
                "activation_bits",
                "part",
                "layer",
                "depth",
                "accuracy",
                "decrease_points",
                "top1_agreement",
                "kl",
            ],
        ),
        "histograms": _histograms(analysis, channels),
        "bins": CHANNEL_BINS,
    }


def _layers(analysis):
    """A dict for each net's weights and layer: distributions of its tensors, errors by scheme."""
    found = {}
    for table in (analysis.weights, analysis.activations):
        for row in table.to_dict("records"):
            key = row["net"], row["source"], row["layer"]
            layer = found.setdefault(
                key,
                {k: row[k] for k in ("net", "source", "layer", "block", "depth", "kind", "groups")} | {"errors": {}},
            )
            layer[row["tensor"]] = {short: _number(row[name]) for name, short in WEIGHT_COLUMNS.items()} | {
                "low": _number(row["minimum"]),
                "high": _number(row["maximum"]),
                "channels": int(row["channels"]),
            }
    for row in analysis.errors.to_dict("records"):
        title = f"{row['scheme']} W{row['weight_bits']}A{row['activation_bits']}"
        key = row["net"], row["source"], row["layer"]
        found[key]["errors"][title] = {name: _number(row[name]) for name in ERROR_COLUMNS}
    return sorted(found.values(), key=_order(analysis))


def _order(analysis):
    place = {net: number for number, net in enumerate(analysis.names)}
    return lambda layer: (place[layer["net"]], layer["source"], layer["depth"])


def _histograms(analysis, most):
    """Each layer's channels as strings of CHANNEL_BINS letters, keyed net|source|tensor|layer."""
    table = analysis.histograms[analysis.histograms["tensor"] != "raw"]
    ranges = analysis.channels[analysis.channels["tensor"] != "raw"]
    counted = {
        key: (int(rows["channel"].max()) + 1, rows["minimum"].to_numpy(), rows["maximum"].to_numpy())
        for key, rows in ranges.groupby(["net", "source", "tensor", "layer"], sort=False)
    }
    result = {}
    for key, rows in table.groupby(["net", "source", "tensor", "layer"], sort=False):
        number, lows, highs = counted[key]
        counts = np.zeros((number, CHANNEL_BINS))
        counts[rows["channel"].to_numpy(), rows["bin"].to_numpy()] = rows["count"].to_numpy()
        shown = np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int))
        heights = np.ceil(np.log1p(counts) / max(np.log1p(counts).max(), 1e-9) * (len(LETTERS) - 1)).astype(int)
        result["|".join(key)] = {
            "rows": ["".join(LETTERS[height] for height in heights[channel]) for channel in shown],
            "channels": shown.tolist() if len(shown) < number else None,
            "total": number,
            "ranges": [[_short(lows[channel]), _short(highs[channel])] for channel in shown],
        }
    return result


def _records(table, columns):
    present = [column for column in columns if column in table]
    return [{k: _plain(v) for k, v in row.items()} for row in table[present].to_dict("records")]


def _plain(value):
    if isinstance(value, (float, np.floating)):
        return _number(value)
    return int(value) if isinstance(value, np.integer) else value


def _number(value):
    """JSON has no NaN and no infinity."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _short(value):
    return float(f"{value:.4g}") if math.isfinite(value) else None
