"""The tables of an analysis, as an `Analysis` that can be saved, loaded and merged."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from ..console import require_extra
from ..files import atomic_folder, write_text
from ..machine import versions

__all__ = ["SCHEME", "TABLES", "Analysis", "concat", "load_analysis", "node_data", "stacked"]

TABLES = ("nets", "weights", "activations", "channels", "histograms", "errors", "output", "sensitivity", "notes")
SCHEME = ["scheme", "weight_bits", "activation_bits"]
RED, YELLOW, GREEN = "#c62828", "#fff59d", "#2e7d32"


@dataclass(frozen=True, eq=False)
class Analysis:
    """Tables of one net or several, all with the columns net and source ("float" or "qat" weights).

    Args:
        nets: a row a net: level, width, MACs, parameters, data, images, scheme.
        weights: a row for each kernel, raw and BatchNorm-folded (`tensor`): ranges, average channel precision, kurtosis.
        activations: the same for each operation's float output over the calibration images.
        channels: the range and precision of each channel of these tensors.
        histograms: a row for each bin that holds values, by channel.
        errors: a row for each quantized output, scheme and numbers of bits: MSE and SQNR of the kernel, of the output
            with this layer alone quantized, and accumulated.
        output: a row for each precision: QMSE, QCE, KL, top-1 agreement, accuracy (0..1) and its decrease.
        sensitivity: accuracy with weights only, activations only, one layer only or all but one quantized; empty if it was
            not measured.
        notes: anomalies: NaN, constants, channels without range.
    """

    nets: pandas.DataFrame
    weights: pandas.DataFrame
    activations: pandas.DataFrame
    channels: pandas.DataFrame
    histograms: pandas.DataFrame
    errors: pandas.DataFrame
    output: pandas.DataFrame
    sensitivity: pandas.DataFrame
    notes: pandas.DataFrame

    @property
    def names(self) -> tuple[str, ...]:
        """The nets, in order."""
        return tuple(self.nets["net"])

    def renamed(self, names: Mapping[str, str]) -> Analysis:
        """Rename nets, new name by old name; others keep theirs."""
        tables = {name: getattr(self, name) for name in TABLES}
        new = dict(zip(self.names, self.names)) | names
        return Analysis(**{name: table.assign(net=table["net"].map(new)) for name, table in tables.items()})

    def accumulation(self, net: str) -> pandas.DataFrame:
        """Give a net's errors with quantization-aware weights if there are any, else under the scheme chosen for the analysis.

        Raises:
            ValueError: no such net.
        """
        errors = self.errors[self.errors["net"] == net]
        if errors.empty:
            raise ValueError(f"no net {net!r} in the analysis; there are {', '.join(self.names)}")
        first = errors.iloc[-1] if (errors["source"] == "qat").any() else errors.iloc[0]
        return errors[(errors[SCHEME] == first[SCHEME]).all(axis=1)]

    def save(self, folder: str | os.PathLike) -> None:
        """Write each table as .parquet and .csv, analysis.json, and an overlay for Model Explorer for each net to a new folder.

        The histograms, some 40,000 rows a net, are .parquet only. The folder is whole or absent.

        Raises:
            FileExistsError: the folder is there and not empty.
            ModuleNotFoundError: pyarrow is not installed (extra `report`).
            OSError: it cannot be written.
        """
        require_extra("pyarrow", extra="report", what="writing .parquet")
        with atomic_folder(folder) as aside:
            for name in TABLES:
                table = getattr(self, name)
                table.to_parquet(aside / f"{name}.parquet")
                if name != "histograms":
                    table.to_csv(aside / f"{name}.csv", index=False, lineterminator="\n")
            for net in self.names:
                file = aside / f"overlay-{re.sub(r'[^A-Za-z0-9._@-]+', '_', net)}.json"
                write_text(file, json.dumps(node_data(self, net), indent=2) + "\n")
            facts = {"format": 1, "nets": json.loads(self.nets.to_json(orient="records")), "versions": versions()}
            write_text(aside / "analysis.json", json.dumps(facts, indent=2) + "\n")

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {len(getattr(self, name))}" for name in TABLES)
        return f"<Analysis of {', '.join(self.names)}: {rows} rows>"


def load_analysis(folder: str | os.PathLike) -> Analysis:
    """Load what `Analysis.save` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a table is damaged.
    """
    folder = Path(folder)
    if not (folder / "analysis.json").is_file():
        raise FileNotFoundError(f"no analysis in {folder}: it has no analysis.json; give one that Analysis.save wrote")
    try:
        return Analysis(**{name: pandas.read_parquet(folder / f"{name}.parquet") for name in TABLES})
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        remedy = "remove the folder and analyze again"
        raise ValueError(f"the analysis in {folder} is damaged ({error}); {remedy}") from None


def concat(analyses: Sequence[Analysis]) -> Analysis:
    """Merge analyses into one; of nets with equal names the later ones are numbered: "fnet-l2 (2)"."""
    taken, distinct = set(), []
    for analysis in analyses:
        names = {}
        for name in analysis.names:
            numbered = (name if number == 1 else f"{name} ({number})" for number in itertools.count(1))
            names[name] = next(new for new in numbered if new not in taken)
            taken.add(names[name])
        distinct.append(analysis.renamed(names))
    return Analysis(**{name: stacked([getattr(analysis, name) for analysis in distinct]) for name in TABLES})


def stacked(tables: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    """Stack tables of the same columns, ignoring empty ones, whose columns have no types."""
    return pandas.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def node_data(analysis: Analysis, net: str) -> dict:
    """Make the data that colour a net's graph in Model Explorer, green where a layer keeps its signal, red where it loses it.

    The values are the SQNR in dB of `Analysis.accumulation`, which raises for an unknown net. The keys, which Model Explorer
    matches with the .tflite open in it, are the file's output tensors, or operator numbers if it is slim; for a net without a
    file they are layer names, which match no node.
    """
    chosen = analysis.accumulation(net).query("kind != 'input'")
    names = chosen["tensor"].where(chosen["tensor"].notna(), chosen["layer"])
    values = zip(names, chosen["accumulated_sqnr_db"])
    results = {name: {"value": round(float(db), 4)} for name, db in values if np.isfinite(db)}
    colors = [{"stop": stop, "bgColor": color} for stop, color in ((0, RED), (0.5, YELLOW), (1, GREEN))]
    return {"results": results, "gradient": colors}
