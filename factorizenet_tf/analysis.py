"""Tables of a layer-wise analysis of one net or several: kept, saved, loaded, joined."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from .files import write_text, written_aside
from .machine import versions

__all__ = ["TABLES", "Analysis", "analysis_of", "join", "load_analysis"]

TABLES = ("nets", "weights", "activations", "channels", "histograms", "errors", "output", "sensitivity", "notes")


@dataclass(frozen=True, eq=False)
class Analysis:
    """Tables of one net or several, all with the columns net and source ("float" or "qat" weights).

    Args:
        nets: a row a net: level, width, MACs, parameters, data, images, scheme.
        weights: a row for each kernel, raw and BatchNorm-folded (`tensor`): ranges, average channel precision, kurtosis.
        activations: the same of each operation's float output over the calibration images.
        channels: the range and precision of each channel of these tensors.
        histograms: a row for each bin that holds values, by channel.
        errors: a row for each quantized output and scheme: MSE and SQNR of the kernel, of the output with this layer
            alone quantized, and accumulated.
        output: a row a precision: QMSE, QCE, KL, top-1 agreement, accuracy (0..1) and what it lost.
        sensitivity: accuracy with weights only, activations only, one layer only or all but one quantized; empty where
            it was not asked for.
        notes: what is odd: NaN, constants, channels without range.
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

    def save(self, folder: str | os.PathLike) -> None:
        """Write each table as .parquet and .csv, analysis.json, and a Model Explorer overlay a net to a new folder.

        The histograms, some 40,000 rows a net, are .parquet only. analysis.json comes last: a folder with it is whole.

        Raises:
            FileExistsError: the folder is there and not empty.
            OSError: it cannot be written.
        """
        from .overlay import node_data

        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already; choose another name or remove it")
        for name in TABLES:
            table = getattr(self, name)
            with written_aside(folder / f"{name}.parquet") as aside:
                table.to_parquet(aside)
            if name != "histograms":
                write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        for net in self.names:
            write_text(folder / f"overlay-{net}.json", json.dumps(node_data(self, net), indent=2) + "\n")
        facts = {"format": 1, "nets": json.loads(self.nets.to_json(orient="records")), "versions": versions()}
        write_text(folder / "analysis.json", json.dumps(facts, indent=2) + "\n")

    def __repr__(self) -> str:
        return (
            f"<Analysis of {', '.join(self.names)}: {', '.join(f'{n} {len(getattr(self, n))}' for n in TABLES)} rows>"
        )


def load_analysis(folder: str | os.PathLike) -> Analysis:
    """What `Analysis.save` wrote.

    Raises:
        FileNotFoundError: there is none, or it was not written whole.
        ValueError: a table is damaged.
    """
    folder = Path(folder)
    if not (folder / "analysis.json").is_file():
        raise FileNotFoundError(f"no analysis in {folder}: it has no analysis.json; Analysis.save writes it last")
    try:
        return Analysis(**{name: pandas.read_parquet(folder / f"{name}.parquet") for name in TABLES})
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise ValueError(
            f"the analysis in {folder} is damaged ({error}); remove the folder and analyze again"
        ) from None


def analysis_of(tables: dict[str, list]) -> Analysis:
    """From rows or frames by table's name."""
    from .sensitivity import COLUMNS

    empty = {"notes": ["net", "source", "layer", "tensor", "note"], "sensitivity": COLUMNS}
    made = {}
    for name, rows in tables.items():
        if rows and isinstance(rows[0], pandas.DataFrame):
            made[name] = _joined(rows)
        else:
            made[name] = pandas.DataFrame(rows, columns=empty.get(name) if not rows else None)
    return Analysis(**made)


def join(analyses: Sequence[Analysis]) -> Analysis:
    """Several analyses as one."""
    return Analysis(**{name: _joined([getattr(analysis, name) for analysis in analyses]) for name in TABLES})


def _joined(tables) -> pandas.DataFrame:
    filled = [table for table in tables if len(table)] or tables[:1]
    return pandas.concat(filled, ignore_index=True)
