"""The numbers, tables and figures of zoo/FINDINGS.md: what each level of depth factorization does under quantization.

    python tuner/findings.py fnet-l0-int8 fnet-l1-int8 ... fnet-l6-int8 --sensitivity --out runs/findings --publish zoo

Takes names of the zoo or runs' folders, coarse to fine, and analyses them on the data they were trained on (one to three
minutes a net on 2 cores, as much again with `--sensitivity`). Writes findings.csv, findings.md (the tables of the page),
tables/ (as `Analysis.save`), figures/ and report.html; killed, the same command goes on with the nets that are missing.
`--publish` copies figures and tables (.csv, without the channels) to FOLDER/findings/ and replaces each table in
FOLDER/FINDINGS.md that stands behind its mark, e.g. <!-- accuracy -->; the sentences between them are written by hand,
and are to be read again then. Expected: one line a net on stdout, then the path.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.analysis.summary import accumulated
from factorizenet_tf.files import write_csv, write_text
from factorizenet_tf.requirement import COSTS, frontier

SPATIAL = ("conv", "grouped", "depthwise")
PRECISIONS = {
    "float": "float",
    "per_tensor W8A8": "per_tensor",
    "per_channel W8A8": "per_channel",
    "per_channel W4A8": "w4a8",
    "qat W8A8": "qat",
}
TABLES = {  # by table: column -> title
    "accuracy": {
        "macs": "MACs",
        "float": "float",
        "per_tensor": "PTQ per tensor",
        "per_channel": "PTQ per channel",
        "w4a8": "W4A8",
        "qat": "QAT",
    },
    "channel_precision": {
        "spatial_precision": "3x3 kernels",
        "normal_precision": "normal numbers of their shape",
        "pointwise_precision": "pointwise kernels",
        "activation_precision": "3x3 outputs",
    },
    "accumulation": {
        "first_db": "behind the first layer, dB",
        "lowest_db": "lowest, dB",
        "lowest_layer": "where",
        "logits_channel_db": "logits, dB",
        "step_db": "largest step down, dB",
        "step_layer": "at",
    },
    "scales": {
        "spatial_tensor_db": "3x3 weights per tensor, dB",
        "spatial_channel_db": "3x3 weights per channel, dB",
        "logits_tensor_db": "logits per tensor, dB",
        "logits_channel_db": "logits per channel, dB",
    },
}
UNITS = {"macs": "MACs", "size_bytes": "bytes of the .tflite", "ram_bytes": "bytes of RAM", "latency_ms": "ms (LiteRT)"}


def finding_rows(analysis: fnet.Analysis) -> list[dict]:
    """A dict a net, in order: MACs, accuracies (0..1), channel precisions and SQNR (dB) of kinds of layers, error at the end.

    Means are over layers. `spatial` are the 3x3 kernels of blocks, whatever their groups; `sums` the convolutions whose
    output a residual sum reads.
    """
    return [_row(analysis, net) for net in analysis.names]


def finding_tables(rows: Sequence[dict], costs: Mapping[str, Mapping]) -> dict[str, str]:
    """Markdown tables by name: those of TABLES, and "budgets": the best net under each limit of a cost.

    Args:
        rows: of `finding_rows`.
        costs: by net: "macs", "size_bytes", "ram_bytes", "latency_ms" (None where unknown) and "accuracy" (0..1, int8 on
            validation).
    """
    tables = {name: _table(rows, columns) for name, columns in TABLES.items()}
    lines = ["| limit | best net | int8 accuracy on validation |", "|---|---|---|"]
    for cost in COSTS:
        best = frontier([{"net": net} | dict(row) for net, row in costs.items()], cost)
        for row, dearer in itertools.zip_longest(best, best[1:]):
            span = f"from {row[cost]:,} {UNITS[cost]}" + ("" if dearer is None else f" to below {dearer[cost]:,}")
            lines.append(f"| {span} | {row['net']} | {100 * row['accuracy']:.2f} % |")
    return tables | {"budgets": "\n".join(lines)}


def _row(analysis, net):
    output = analysis.output[analysis.output["net"] == net].set_index("precision")
    row = {"net": net, "macs": int(analysis.nets.loc[analysis.nets["net"] == net, "macs"].iloc[0])}
    key = "accuracy" if output["accuracy"].notna().any() else "top1_agreement"
    for precision, name in PRECISIONS.items():
        for column, source in ((name, key), (f"{name}_agreement", "top1_agreement")):
            row[column] = float(output.loc[precision, source]) if precision in output.index else np.nan
    weights = analysis.weights[(analysis.weights["net"] == net) & (analysis.weights["tensor"] == "folded")]
    weights = weights[weights["source"] == weights["source"].iloc[0]]
    acts = analysis.activations[analysis.activations["net"] == net]
    acts = acts[acts["source"] == acts["source"].iloc[0]]
    is_spatial = (weights["block"] != weights["layer"]) & weights["kind"].isin(SPATIAL)
    row["spatial_precision"] = weights.loc[is_spatial, "average_channel_precision"].mean()
    row["normal_precision"] = _normal_precision(weights[is_spatial])
    row["range_step"] = float(np.abs(np.diff(np.log2(weights.sort_values("depth")["range"]))).mean())
    row["pointwise_precision"] = weights.loc[weights["kind"] == "pointwise", "average_channel_precision"].mean()
    spatial = set(weights.loc[is_spatial, "layer"])
    row["activation_precision"] = acts.loc[acts["layer"].isin(spatial), "average_channel_precision"].mean()
    errors = analysis.errors[(analysis.errors["net"] == net) & (analysis.errors["weight_bits"] == 8)]
    for scheme, short in (("per_tensor", "tensor"), ("per_channel", "channel"), ("qat", "qat")):
        chosen = errors[(errors["scheme"] == scheme) & (errors["activation_bits"] == 8)].replace(np.inf, np.nan)
        row[f"spatial_{short}_db"] = chosen.loc[chosen["layer"].isin(spatial), "weight_sqnr_db"].mean()
        row[f"logits_{short}_db"] = chosen["accumulated_sqnr_db"].iloc[-1] if len(chosen) else np.nan
        layers = chosen["layer"].tolist()
        before_sums = [before for before, layer in itertools.pairwise(layers) if layer.endswith("_add")]
        sums = chosen["layer"].isin(before_sums)
        row[f"sums_{short}_db"] = chosen.loc[sums, "sqnr_db"].mean()
        row[f"others_{short}_db"] = chosen.loc[~sums & chosen["weight_mse"].notna(), "sqnr_db"].mean()
    return row | accumulated(errors[(errors["scheme"] == "per_channel") & (errors["activation_bits"] == 8)])


def _normal_precision(kernels):
    """Average channel precision of normal random numbers in kernels of these shapes: what the shape alone makes."""
    random, found = np.random.default_rng(0), []
    for numbers, channels in zip(kernels["numbers"], kernels["channels"]):
        values = random.standard_normal((64, int(numbers // channels), int(channels)))
        found.append(float(np.mean(np.ptp(values, axis=1) / np.ptp(values, axis=(1, 2))[:, None])))
    return float(np.mean(found)) if found else np.nan


def _table(rows, columns):
    columns = {key: title for key, title in columns.items() if any(_cell(key, row[key]) for row in rows)}
    lines = [f"| net | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        lines.append(f"| {row['net']} | {' | '.join(_cell(key, row[key]) for key in columns)} |")
    return "\n".join(lines)


def _cell(key, value):
    if isinstance(value, str):
        return value
    if np.isnan(value):
        return ""
    if key == "macs":
        return f"{int(value):,}"
    if key in PRECISIONS.values():
        return f"{100 * value:.2f} %"
    return f"{value:.1f}" if key.endswith("_db") else f"{value:.2f}"


def main() -> None:
    """Parse, analyse, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="+", help="names of the zoo or runs' folders, coarse to fine")
    parser.add_argument("--zoo", help="zoo folder or address (default: the package's own)")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data")
    parser.add_argument("--evaluation-images", type=int, help="validation images (default: all)")
    parser.add_argument("--sensitivity", action="store_true", help="measure it, too")
    parser.add_argument(
        "--publish", type=Path, help="zoo folder whose FINDINGS.md and findings/ are brought up to date"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    from factorizenet_tf.analysis.report import report_html
    from factorizenet_tf.plots import write_figures  # before the work: the extra `report` is needed

    analyses, options = [], {"data_dir": arguments.data_dir, "evaluation_images": arguments.evaluation_images}
    for net in arguments.nets:
        folder = arguments.out / "nets" / Path(net).name
        if not (folder / "analysis.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            options |= {"sensitivity": arguments.sensitivity, "zoo_dir": arguments.zoo, "verbose": True}
            fnet.analyze(net, **options).save(folder)
        analyses.append(fnet.load_analysis(folder))
        print(f"{net}: {folder}")
    analysis = fnet.compare_levels(analyses)
    shutil.rmtree(arguments.out / "tables", ignore_errors=True)
    analysis.save(arguments.out / "tables")
    rows = finding_rows(analysis)
    tables = finding_tables(
        rows, {name: _costs(net, arguments.zoo) for name, net in zip(analysis.names, arguments.nets)}
    )
    write_csv(arguments.out / "findings.csv", rows)
    page = "\n\n".join(f"<!-- {name} -->\n{table}" for name, table in tables.items())
    write_text(arguments.out / "findings.md", page + "\n")
    write_figures(analysis, arguments.out / "figures")
    write_text(arguments.out / "report.html", report_html(analysis))
    if arguments.publish is not None:
        _publish(arguments.out, arguments.publish, tables)
    print(arguments.out / "findings.md")


def _costs(net: str, zoo: str | None) -> dict:
    """What a net costs and its int8 validation accuracy, from its card or its run."""
    if (Path(net) / "metrics.json").is_file():
        metrics = fnet.load_run(net).metrics
        costs = {cost: metrics.get(cost) for cost in ("macs", "size_bytes")}
        return costs | {"accuracy": metrics["accuracy"]["validation"]["tflite"]}
    card = fnet.zoo.card(net, zoo_dir=zoo)
    return {cost: getattr(card, cost) for cost in COSTS} | {"accuracy": card.validation_accuracy}


def _publish(out: Path, zoo: Path, tables: Mapping[str, str]) -> None:
    """Bring a zoo's figures, tables and the tables in its FINDINGS.md up to date."""
    folder = zoo / "findings"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saved = [path for path in (out / "tables").glob("*.csv") if path.stem != "channels"]
    for path in (out / "findings.csv", *saved, *(out / "figures").glob("*.png")):
        shutil.copy(path, folder / path.name)
    page = zoo / "FINDINGS.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else (out / "findings.md").read_text(encoding="utf-8")
    for name, table in tables.items():
        text = re.sub(rf"(<!-- {name} -->\n)(\|.*\n)+", lambda found, table=table: f"{found[1]}{table}\n", text)
    write_text(page, text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
