"""Measure what quantization does to each layer of a net, and put several nets side by side."""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..console import Bar, Progress
from ..cost import count_macs, count_params
from ..data import Dataset, Split, check_images, load_dataset
from ..loading import Source, resolve
from ..models.convert import with_full_range_pixels
from ..spec import level_text
from .distributions import describe
from .graph import FusedGraph, by_channel, fuse
from .measure import BATCH, Outputs, activations, layer_errors, output_ranges, outputs
from .simulation import QAT, Quantization, Scheme, quantize_graph, scheme_named
from .tables import (
    EMPTY,
    SCHEME,
    TABLES,
    Analysis,
    block_and_depth,
    channel_table,
    concat,
    distribution_row,
    error_rows,
    find_anomalies,
    from_rows,
    histogram_table,
    output_row,
    tensor_names,
)

__all__ = ["AnalysisConfig", "analyze", "compare_levels"]

ALWAYS = (("per_channel", 8, 8), ("per_tensor", 8, 8), ("per_channel", 4, 8))  # besides the scheme asked for


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What is measured, and on how many images.

    Args:
        scheme: "per_channel" or "per_tensor" weights with activations from minimum to maximum, or either with
            "_percentile" behind it: from the 0.01st to the 99.99th percentile.
        weight_bits, activation_bits: 2 to 8.
        sensitivity: also quantize weights only, activations only, one layer only, all but one (minutes).
        calibration_images: number of training images, the first of the net's data, where none are given.
        evaluation_images: number of validation images, the first of the net's data; None: all.

    Raises:
        ValueError: an unknown scheme, or a number out of its range.
    """

    scheme: str = "per_channel"
    weight_bits: int = 8
    activation_bits: int = 8
    sensitivity: bool = False
    calibration_images: int = 1_024
    evaluation_images: int | None = None

    def __post_init__(self):
        scheme_named(self.scheme, self.weight_bits, self.activation_bits)
        for name in ("calibration_images", "evaluation_images"):
            number = getattr(self, name)
            if number is not None and not (isinstance(number, numbers.Integral) and number >= 1):
                raise ValueError(f"{name} is {number}; it must be an int of at least 1")

    @property
    def quantization(self) -> Scheme:
        """The scheme with its numbers of bits."""
        return scheme_named(self.scheme, self.weight_bits, self.activation_bits)


def analyze(
    model_or_name,
    *,
    calibration: np.ndarray | None = None,
    evaluation: Split | tuple[np.ndarray, np.ndarray] | None = None,
    dataset: Dataset | str | None = None,
    data_dir: str | os.PathLike | None = None,
    zoo_dir: str | os.PathLike | None = None,
    verbose: bool = False,
    **settings,
) -> Analysis:
    """Measure every layer's distributions, float and quantized, and what their quantization costs.

    Quantized PTQ nets are simulated as TFLite computes them: symmetric weights, affine activations, int32 biases; a
    quantization-aware model's with the ranges it learnt. Besides the scheme asked for, per-channel and per-tensor int8
    and 4-bit weights (W4A8) are always measured.

    Args:
        model_or_name: a float or quantization-aware tf_keras model; a name of the zoo (an -int8 one brings its -float
            sibling); a `Run` or its folder; else what `loading.resolve` takes, but no .tflite.
        calibration: training images, uint8 (n, height, width, channels); None: the first of the net's data.
        evaluation: images and labels that accuracies are measured on; None: the validation split of the net's data, or
            none where calibration is given and dataset is not.
        dataset: stands for the data that a name or a run was trained on; or what `load_dataset` takes.
        data_dir: where TFDS keeps its data.
        zoo_dir: where names are looked up, as for `zoo.load`.
        verbose: say how far it is.
        settings: fields of `AnalysisConfig`: scheme, weight_bits, activation_bits, sensitivity, calibration_images,
            evaluation_images.

    Raises:
        TypeError: images that are not uint8, a Keras 3 model, or an unknown setting.
        ValueError: no images, sizes or bits that do not fit, an unbuilt or nested model, layers that cannot be read.
        FileNotFoundError: no such name or file.
    """
    config, net = AnalysisConfig(**settings), resolve(model_or_name, zoo_dir=zoo_dir)
    data = _data([net], dataset, data_dir, calibration is None)
    return _analyze(net, _net_name(net), data[net], calibration, evaluation, config, verbose)


def compare_levels(
    subjects: Sequence,
    *,
    calibration: np.ndarray | None = None,
    evaluation: Split | tuple[np.ndarray, np.ndarray] | None = None,
    dataset: Dataset | str | None = None,
    data_dir: str | os.PathLike | None = None,
    zoo_dir: str | os.PathLike | None = None,
    verbose: bool = False,
    **settings,
) -> Analysis:
    """Put analyses of several nets into one, lined up by `block` and `depth`; data is loaded once for all.

    Args:
        subjects: analyses, or what `analyze` takes. Nets of one name, such as two runs of one spec, are told apart by
            their folders or files, else by a number.
        calibration, evaluation, dataset, data_dir, zoo_dir, verbose, settings: as for `analyze`, for the nets that are
            no analyses yet.

    Raises:
        ValueError: nothing to compare, or one thing twice; else as `analyze`.
    """
    config, given = AnalysisConfig(**settings), list(subjects)
    if not given:
        raise ValueError("nothing to compare; give analyses, names, run folders or models")
    subjects = [one if isinstance(one, Analysis) else resolve(one, zoo_dir=zoo_dir) for one in given]
    nets = [subject for subject in subjects if isinstance(subject, Source)]
    keys = [net.given for net in nets if net.memory is None] + [id(one) for one in given if isinstance(one, Analysis)]
    if twice := [str(key) for number, key in enumerate(keys) if key in keys[:number]]:
        raise ValueError(f"{', '.join(twice)} is given twice; give each net once")
    names, data = _distinct_names(nets), _data(nets, dataset, data_dir, calibration is None)
    analyses = []
    for subject in subjects:
        if isinstance(subject, Source):
            subject = _analyze(subject, names[subject], data[subject], calibration, evaluation, config, verbose)
        analyses.append(subject)
    return concat(analyses)


def _net_name(net: Source) -> str:
    """What tables call a net: a name as it was given, its version too, and a run by its spec, since it has two nets."""
    if net.kind == "name":
        return net.given
    return net.spec.name if net.kind == "run" and net.spec is not None else net.name


def _distinct_names(nets: Sequence[Source]) -> dict[Source, str]:
    """What tables call nets that are compared: those of one name by their folder or file, or by the whole path."""
    names = {net: _net_name(net) for net in nets}
    for other in (lambda net: net.path.resolve().name if net.path else net.given, lambda net: net.given):
        taken = [*names.values()]
        names = {net: other(net) if taken.count(name) > 1 else name for net, name in names.items()}
    return names


def _data(nets, dataset, data_dir, is_needed) -> dict[Source, Dataset | None]:
    """Each net's data: what the caller gave, or what the net was trained on where that is needed; loaded once for all."""
    if isinstance(dataset, Dataset) or (dataset is None and not is_needed):
        return dict.fromkeys(nets, dataset)
    if dataset is None:
        for net in nets:
            net.check_data_known()
    loaded, data = {}, {}
    for net in nets:
        name, shape = dataset or net.dataset_name, net.input_shape
        if (name, shape) not in loaded:
            loaded[name, shape] = load_dataset(name, input_shape=shape, data_dir=data_dir)
        data[net] = loaded[name, shape]
        if dataset is None:
            net.warn_if_other_data(data[net])
    return data


@dataclass(frozen=True, eq=False)
class _Job:
    """One net's weights to measure: what is added to the tables, on which images."""

    graph: FusedGraph
    reference: FusedGraph  # its outputs are what is compared with
    keys: dict  # net and source
    tensors: dict[str, str]  # output tensors of the net's .tflite by layer
    calibration: np.ndarray
    split: Split | None
    config: AnalysisConfig
    tables: dict[str, list]
    progress: Progress

    @property
    def images(self) -> np.ndarray:
        """What outputs are compared on."""
        return self.calibration if self.split is None else self.split.images

    def bar(self, text: str, passes: int, images: np.ndarray) -> Bar:
        """A bar of so many passes over images."""
        return self.progress.bar(f"{self.keys['net']} {self.keys['source']} {text}", passes * -(-len(images) // BATCH))


def _analyze(net: Source, name, data, calibration, evaluation, config, verbose) -> Analysis:
    if calibration is None:
        calibration = data.calibration(config.calibration_images)
    split = _evaluation(data, evaluation, config)
    models = net.models()
    graphs = {source: fuse(model) for source, model in models.items()}
    for graph in graphs.values():
        check_images(calibration, graph.input_shape, "calibration")
        if split is not None:
            check_images(split.images, graph.input_shape, "evaluation")
    tables = {table: [] for table in TABLES}
    images = {"calibration_images": len(calibration), "evaluation_images": 0 if split is None else len(split)}
    tables["nets"].append(_net_row(net, name, models, data, images, config))
    calibration = with_full_range_pixels(calibration)  # as the converter sees them
    reference = graphs.get("float") or graphs["qat"]
    tflite = net.int8_model() if net.tflite_file is not None else None
    with Progress(verbose) as progress:
        for source, graph in graphs.items():
            keys, tensors = {"net": name, "source": source}, _tensors(tflite, graph)
            progress.say(f"{name} ({source}): {len(graph.operations)} operations, {len(calibration):,} images")
            _measure(_Job(graph, reference, keys, tensors, calibration, split, config, tables, progress))
    return from_rows(tables)


def _evaluation(data, evaluation, config):
    if evaluation is None:
        split = None if data is None else data.validation
        if split is None or config.evaluation_images is None:
            return split
        return Split(split.images[: config.evaluation_images], split.labels[: config.evaluation_images])
    if not isinstance(evaluation, Split):
        evaluation = Split(np.asarray(evaluation[0]), np.asarray(evaluation[1]))
    check_images(evaluation.images, None, "evaluation")
    if evaluation.labels.shape != (len(evaluation.images),):
        raise ValueError(
            f"evaluation has {len(evaluation.images)} images and labels of shape {evaluation.labels.shape}; give one "
            "label an image"
        )
    return evaluation


def _net_row(net, name, models, data, images, config):
    model, level = next(iter(models.values())), getattr(net.spec, "level", None)
    return {
        "net": name,
        "source": "+".join(models),
        "level": None if level is None else level_text(level),
        "width": getattr(net.spec, "width", None),
        "macs": count_macs(model),
        "params": count_params(model),
        "dataset": None if data is None else data.title,
        **images,
        "scheme": config.scheme,
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
    }


def _tensors(tflite, graph) -> dict[str, str]:
    """Output tensors of the net's .tflite by layer; none where there is no file, or its operations are others."""
    try:
        layers = [op.name for op in graph.quantized if op.kind != "input"]
        return {} if tflite is None else tensor_names(tflite, layers)
    except ValueError:
        return {}


def _measure(job: _Job) -> None:
    """Add the rows of one net's weights to the tables."""
    graph, keys, tables = job.graph, job.keys, job.tables
    bar = job.bar("activations and errors", 3, job.calibration)
    distributions = activations(graph, job.calibration, bar.advance)
    _add_distributions(job, distributions)
    tables["notes"] += find_anomalies(graph, distributions, keys)
    schemes = [QAT] if graph.is_quantize_aware else [job.config.quantization, *(scheme_named(*row) for row in ALWAYS)]
    quantizations = [
        quantize_graph(graph, scheme, output_ranges(distributions, scheme.percentile))
        for scheme in dict.fromkeys(schemes)
    ]
    for quantization, errors in zip(quantizations, layer_errors(graph, job.calibration, quantizations, bar.advance)):
        tables["errors"] += error_rows(graph, quantization, errors, keys, job.tensors)
    before = outputs(job.reference, job.images)
    if graph is job.reference:
        precision = {"precision": "float"} | dict(zip(SCHEME, ("float", 32, 32)))
        tables["output"].append(keys | precision | output_row(before, before, job.split))
    for quantization in quantizations:
        after, precision = outputs(graph, job.images, quantization), {"precision": quantization.scheme.title}
        tables["output"].append(
            keys | precision | dict(zip(SCHEME, quantization.scheme.key)) | output_row(before, after, job.split)
        )
    if job.config.sensitivity:
        tables["sensitivity"] += _sensitivity_rows(job, quantizations[0], before)


def _add_distributions(job: _Job, distributions) -> None:
    place = block_and_depth(job.graph)
    for op in job.graph.operations:
        at = job.keys | {"layer": op.name, **place[op.name], "kind": op.kind, "groups": op.groups}
        tensors = {"activations": distributions[op.name]}
        if op.kernel is not None:
            tensors |= {"raw": describe(by_channel(op.kernel, op.kind))}
            tensors |= {"folded": describe(by_channel(op.folded, op.kind))}
        for tensor, distribution in tensors.items():
            where = "activations" if tensor == "activations" else "weights"
            job.tables[where].append(at | {"tensor": tensor} | distribution_row(distribution))
            named = job.keys | {"tensor": tensor, "layer": op.name}
            job.tables["channels"].append(channel_table(distribution, named))
            job.tables["histograms"].append(histogram_table(distribution, named))


def _sensitivity_rows(job: _Job, quantization: Quantization, reference: Outputs) -> list[dict]:
    """Give a row for each part: "all", "weights", "activations", and "only" and "all_but" each layer with weights.

    A layer is its kernel, its bias and its output; "only" leaves the input image and all other layers in float,
    "all_but" leaves this one in float, the sum behind it quantized.
    """
    graph, place = job.graph, block_and_depth(job.graph)
    kernels, outs = {op.name for op in graph.kernels}, {op.name for op in graph.quantized}
    parts = [("all", None, kernels, outs), ("weights", None, kernels, set()), ("activations", None, set(), outs)]
    for op in graph.kernels:
        parts.append(("only", op.name, {op.name}, {op.name}))
        parts.append(("all_but", op.name, kernels - {op.name}, outs - {op.name}))
    bar, rows = job.bar("sensitivity", len(parts), job.images), []
    for part, layer, weights, acts in parts:
        after = outputs(graph, job.images, quantization, weights, acts, bar.advance)
        row = job.keys | dict(zip(SCHEME, quantization.scheme.key)) | {"part": part, "layer": layer}
        row |= place[layer] if layer else {"block": None, "depth": np.nan}
        row |= output_row(reference, after, job.split)
        rows.append({column: row[column] for column in EMPTY["sensitivity"]})
    return rows
