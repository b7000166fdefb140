"""What quantization does to each layer of a net, and of several nets side by side, as DataFrames."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from .cost import count_macs, count_params
from .data import Dataset, Split, check_images
from .distributions import describe
from .files import write_text, written_aside
from .folding import Graph, by_channel, graph_of
from .layer_tables import channel_table, distribution_row, error_rows, histogram_table, notes_of, output_row, places
from .machine import versions
from .measuring import BATCH, activations, layer_errors, output_ranges, outputs
from .progress import Progress
from .simulation import Quantization, Scheme, quantization_of, scheme_of
from .subjects import Subject, subject_of
from .tflite import pinned

__all__ = ["Analysis", "analyze", "compare_levels", "load_analysis"]

TABLES = ("nets", "weights", "activations", "channels", "histograms", "errors", "output", "sensitivity", "notes")
CALIBRATION_IMAGES = 1_024
COMPARED = (("per_channel", 8, 8), ("per_tensor", 8, 8), ("per_channel", 4, 8))
QAT = Scheme("qat", True, is_learned=True)


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


def analyze(
    model_or_name,
    *,
    calibration: np.ndarray | None = None,
    evaluation: Split | tuple[np.ndarray, np.ndarray] | None = None,
    scheme: str = "per_channel",
    weight_bits: int = 8,
    activation_bits: int = 8,
    sensitivity: bool = False,
    dataset: Dataset | None = None,
    zoo: str | os.PathLike | None = None,
    verbose: bool = False,
) -> Analysis:
    """Measure every layer's distributions, float and quantized, and what their quantization costs.

    Quantized PTQ nets are simulated as TFLite computes them: symmetric weights, affine activations, int32 biases; a
    quantization-aware model's with the ranges it learnt. Besides the scheme asked for, per-channel and per-tensor int8
    and 4-bit weights (W4A8) are always measured.

    Args:
        model_or_name: a float or quantization-aware tf_keras model; a name of the zoo (an -int8 one brings its -float
            sibling); a `Run` or its folder; a file that `load_any` takes.
        calibration: training images, uint8 (n, height, width, channels); None: the first 1,024 of the data that a name
            or a run was trained on.
        evaluation: images and labels that accuracies are measured on; None: that data's validation split, or none.
        scheme: "per_channel" or "per_tensor" weights with activations from minimum to maximum, or either with
            "_percentile" behind it: from the 0.01st to the 99.99th percentile.
        weight_bits, activation_bits: 2 to 8.
        sensitivity: also quantize weights only, activations only, one layer only, all but one (minutes).
        dataset: stands for the data of a name or a run, to load it once for several.
        zoo: where names are looked up, as for `zoo.load`.
        verbose: say how far it is.

    Raises:
        TypeError: images that are not uint8, or a Keras 3 model.
        ValueError: no images, sizes or bits that do not fit, an unbuilt or nested model, layers that cannot be read.
        FileNotFoundError: no such name or file.
    """
    asked = scheme_of(scheme, weight_bits, activation_bits)
    subject = subject_of(model_or_name, dataset=dataset, zoo=zoo, needs_data=calibration is None)
    calibration = _calibration(subject, calibration)
    split = _evaluation(subject, evaluation)
    graphs = {source: graph_of(model) for source, model in subject.models.items()}
    for graph in graphs.values():
        check_images(calibration, graph.input_shape, "calibration")
        if split is not None:
            check_images(split.images, graph.input_shape, "evaluation")
    calibration = pinned(calibration)  # as the converter sees them
    tables = {name: [] for name in TABLES}
    reference = graphs.get("float") or graphs["qat"]
    tables["nets"].append(_net_row(subject, calibration, split, asked))
    with Progress(verbose) as progress:
        for source, graph in graphs.items():
            keys = {"net": subject.name, "source": source}
            _measure(graph, reference, keys, calibration, split, asked, sensitivity, tables, progress)
    return _analysis(tables)


def compare_levels(subjects: Sequence, **options) -> Analysis:
    """Analyses of several nets in one, lined up by `block` and `depth`.

    Args:
        subjects: analyses, or what `analyze` takes.
        options: `analyze`'s keyword arguments, for those that are no analysis yet.

    Raises:
        ValueError: nothing to compare, or two nets of one name; else as `analyze`.
    """
    subjects = list(subjects)
    if not subjects:
        raise ValueError("nothing to compare; give analyses, names, run folders or models")
    found = [s if isinstance(s, Analysis) else analyze(s, **options) for s in subjects]
    names = [name for analysis in found for name in analysis.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two nets are named {', '.join(twice)}; give models of different names")
    return Analysis(**{name: _joined([getattr(analysis, name) for analysis in found]) for name in TABLES})


def _calibration(subject: Subject, calibration):
    if calibration is not None:
        return calibration
    if subject.dataset is None:
        raise ValueError(f"{subject.name} is not known to go with any data; give calibration: uint8 training images")
    return subject.dataset.calibration(CALIBRATION_IMAGES)


def _evaluation(subject: Subject, evaluation):
    if evaluation is None:
        return None if subject.dataset is None else subject.dataset.validation
    if not isinstance(evaluation, Split):
        evaluation = Split(np.asarray(evaluation[0]), np.asarray(evaluation[1]))
    check_images(evaluation.images, None, "evaluation")
    if evaluation.labels.shape != (len(evaluation.images),):
        raise ValueError(
            f"evaluation has {len(evaluation.images)} images and labels of shape {evaluation.labels.shape}; give one "
            "label an image"
        )
    return evaluation


def _net_row(subject, calibration, split, scheme):
    model = next(iter(subject.models.values()))
    spec = subject.spec
    level = getattr(spec, "level", None)
    return {
        "net": subject.name,
        "source": "+".join(subject.models),
        "level": ".".join(map(str, level)) if isinstance(level, tuple) else None if level is None else str(level),
        "width": getattr(spec, "width", None),
        "macs": count_macs(model),
        "params": count_params(model),
        "dataset": subject.dataset.title if subject.dataset is not None else None,
        "calibration_images": len(calibration),
        "evaluation_images": 0 if split is None else len(split),
        "evaluated_on": subject.evaluated_on if split is not None else None,
        "scheme": scheme.name,
        "weight_bits": scheme.weight_bits,
        "activation_bits": scheme.activation_bits,
    }


def _schemes(graph: Graph, asked: Scheme) -> list[Scheme]:
    if graph.is_quantize_aware:
        return [QAT]
    compared = [scheme_of(*row) for row in COMPARED]
    return [asked, *(scheme for scheme in compared if scheme != asked)]


def _measure(graph, reference, keys, calibration, split, asked, sensitivity, tables, progress):
    """Add one net's rows to the tables."""
    place = places(graph)
    progress.say(f"{keys['net']} ({keys['source']}): {len(graph.operations)} operations, {len(calibration)} images")
    batches = -(-len(calibration) // BATCH)
    bar = progress.bar(f"{keys['net']} {keys['source']} activations and errors", 3 * batches)
    found = activations(graph, calibration, bar.advance)
    for op in graph.operations:
        at = keys | {"layer": op.name, **place[op.name], "kind": op.kind, "groups": op.groups}
        tensors = {"activations": found[op.name]}
        if op.kernel is not None:
            tensors |= {"raw": describe(by_channel(op.kernel, op.kind))}
            tensors |= {"folded": describe(by_channel(op.folded, op.kind))}
        for tensor, distribution in tensors.items():
            where = "activations" if tensor == "activations" else "weights"
            tables[where].append(at | {"tensor": tensor} | distribution_row(distribution))
            named = keys | {"tensor": tensor, "layer": op.name}
            tables["channels"].append(channel_table(distribution, named))
            tables["histograms"].append(histogram_table(distribution, named))
    tables["notes"] += notes_of(graph, found, keys)
    quantizations = [
        quantization_of(graph, scheme, output_ranges(found, scheme.percentile)) for scheme in _schemes(graph, asked)
    ]
    for quantization, errors in zip(quantizations, layer_errors(graph, calibration, quantizations, bar.advance)):
        tables["errors"] += error_rows(graph, quantization, errors, keys)
    images = calibration if split is None else split.images
    before = outputs(reference, images)
    if graph is reference:
        precision = {"precision": "float", "scheme": "float", "weight_bits": 32, "activation_bits": 32}
        tables["output"].append(keys | precision | output_row(before, before, split))
    for quantization in quantizations:
        after = outputs(graph, images, quantization)
        tables["output"].append(keys | _precision(quantization) | output_row(before, after, split))
    if sensitivity:
        from .sensitivity import sensitivity_rows

        tables["sensitivity"] += sensitivity_rows(graph, quantizations[0], images, split, before, keys, progress)


def _precision(quantization: Quantization) -> dict:
    scheme = quantization.scheme
    bits = {"weight_bits": scheme.weight_bits, "activation_bits": scheme.activation_bits}
    return {"precision": scheme.title, "scheme": scheme.name} | bits


def _analysis(tables) -> Analysis:
    from .sensitivity import COLUMNS

    empty = {"notes": ["net", "source", "layer", "tensor", "note"], "sensitivity": COLUMNS}
    made = {}
    for name, rows in tables.items():
        if rows and isinstance(rows[0], pandas.DataFrame):
            made[name] = _joined(rows)
        else:
            made[name] = pandas.DataFrame(rows, columns=empty.get(name) if not rows else None)
    return Analysis(**made)


def _joined(tables) -> pandas.DataFrame:
    filled = [table for table in tables if len(table)] or tables[:1]
    return pandas.concat(filled, ignore_index=True)
