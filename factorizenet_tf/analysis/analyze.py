"""Measure what quantization does to each layer of a net, and put several nets side by side."""

import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas

from ..console import Progress
from ..cost import count_macs, count_params
from ..data import Dataset, Split, check_images
from ..loading import Source, resolve
from ..models.convert import with_full_range_pixels
from ..spec import level_text
from . import measure
from .graph import fuse
from .simulation import QAT, Scheme, quantize_graph
from .tables import SCHEME, Analysis, concat, stacked

__all__ = ["AnalysisConfig", "analyze", "compare_levels"]

ALWAYS = (
    Scheme("per_channel"),
    Scheme("per_tensor"),
    Scheme("per_channel", 4, 8),
)  # measured besides the chosen scheme
# Operations of a .tflite that keep their input's scale: they have no row among the errors.
SAME_SCALE = frozenset(["PAD", "RESHAPE", "MAX_POOL_2D", "AVERAGE_POOL_2D"])


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """The settings of an analysis.

    Args:
        scheme: "per_channel" or "per_tensor" scales of the weights, with activations from minimum to maximum; with
            "_percentile" appended, activations from the 0.01st to the 99.99th percentile.
        weight_bits, activation_bits: 2 to 8.
        sensitivity: also quantize weights only, activations only, one layer only, all but one layer; takes minutes.
        calibration_images: how many of the net's training images to use, if none are given.
        evaluation_images: how many of the net's validation images to use, if none are given; None: all.

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
        Scheme(self.scheme, self.weight_bits, self.activation_bits)
        for name in ("calibration_images", "evaluation_images"):
            number = getattr(self, name)
            if number is not None and not (isinstance(number, numbers.Integral) and number >= 1):
                raise ValueError(f"{name} is {number}; it must be an int of at least 1")


def analyze(model_or_name, **options) -> Analysis:
    """Measure the distributions of every layer's weights and outputs, and the errors that quantization makes.

    Quantized nets are simulated as TFLite computes them, with symmetric weights, affine activations and int32 biases; a
    quantization-aware model with the ranges that it learnt. Besides the chosen scheme, per-channel and per-tensor int8 and
    4-bit weights (W4A8) are always measured.

    Args:
        model_or_name: a float or quantization-aware tf_keras model; a name of the zoo (an -int8 one together with its -float
            sibling); a `Run` or its folder; or anything else that `loading.resolve` takes, except a .tflite.
        options: of `compare_levels`.

    Raises:
        TypeError: images that are not uint8, a Keras 3 model, or an unknown option.
        ValueError: no images, sizes or bits that do not fit, an unbuilt or nested model, layers that cannot be read.
        FileNotFoundError: no such name or file.
    """
    return compare_levels([model_or_name], **options)


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
    """Analyze several nets, or merge their analyses, lined up by `block` and `depth`; data are loaded once for all.

    Args:
        subjects: analyses, or nets as for `analyze`. Nets of equal names, such as two runs of one spec, are told apart by
            their folders or files, else by a number.
        calibration: training images, uint8 (n, height, width, channels); None: the first of the net's data.
        evaluation: images and labels to measure accuracies on; None: the validation split of the net's data, or none if
            `calibration` is given and `dataset` is not.
        dataset: used instead of the data that the nets were trained on; a `Dataset`, or a name that `load_dataset` takes.
        data_dir: where TFDS keeps its data.
        zoo_dir: where names are looked up, as for `zoo.load`.
        verbose: print progress on stderr.
        settings: fields of `AnalysisConfig`.

    Raises:
        ValueError: nothing to compare, or a net given twice; else as `analyze`.
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
    how = calibration, evaluation, config, verbose
    made = {net: _analyze(net, names[net], data[net], *how) for net in dict.fromkeys(nets)}
    return concat([made.get(subject, subject) for subject in subjects])


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
    """Give each net's data: the caller's or, if they are needed, those that it was trained on; each set is loaded once."""
    if isinstance(dataset, Dataset) or (dataset is None and not is_needed):
        return dict.fromkeys(nets, dataset)
    if dataset is None:
        for net in nets:
            net.check_data_known()
    loaded, data = {}, {}
    for net in nets:
        name, shape = dataset or net.dataset_name, net.input_shape
        key = name, shape, str(net.reading_of(name))
        if key not in loaded:
            loaded[key] = net.load_data(dataset, input_shape=shape, data_dir=data_dir)
        data[net] = loaded[key]
        if dataset is None:
            net.warn_if_other_data(data[net])
    return data


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
    images = {"calibration_images": len(calibration), "evaluation_images": 0 if split is None else len(split)}
    nets = pandas.DataFrame([_net_row(net, name, models, data, images, config)])
    calibration = with_full_range_pixels(calibration)  # as the converter sees them
    reference = graphs.get("float") or graphs["qat"]
    tflite = net.int8_model() if net.tflite_file is not None else None
    found = []
    with Progress(verbose) as progress:
        for source, graph in graphs.items():
            title = f"{name} ({source})"
            progress.say(f"{title}: {len(graph.operations)} operations, {len(calibration):,} images")
            tensors = _tensor_names(tflite, graph)
            tables = _measure(graph, reference, tensors, calibration, split, config, progress, title)
            for table in tables.values():
                table.insert(0, "net", name)
                table.insert(1, "source", source)
            found.append(tables)
    return Analysis(nets=nets, **{table: stacked([tables[table] for tables in found]) for table in found[0]})


def _measure(graph, reference, tensors, calibration, split, config, progress, title) -> dict[str, pandas.DataFrame]:
    """Measure one net's weights; outputs are compared with the reference's, whose own precision is float."""
    progress.bar(f"{title} activations and errors", 3 * measure.batch_count(calibration))
    distributions = measure.activations(graph, calibration, progress.step)
    asked = Scheme(config.scheme, config.weight_bits, config.activation_bits)
    schemes = [QAT] if graph.is_quantize_aware else dict.fromkeys((asked, *ALWAYS))
    quantizations = [
        quantize_graph(graph, scheme, measure.output_ranges(distributions, scheme.percentile)) for scheme in schemes
    ]
    errors = pandas.concat(measure.error_tables(graph, calibration, quantizations, tensors, progress.step))
    images = calibration if split is None else split.images
    before, is_softmax = measure.outputs(reference, images), reference.ends_in_softmax
    rows = []
    if graph is reference:
        precision = {"precision": "float"} | dict(zip(SCHEME, ("float", 32, 32)))
        rows.append(precision | measure.output_row(before, before, split, is_softmax=is_softmax))
    for quantization in quantizations:
        precision = {"precision": quantization.scheme.title} | quantization.scheme.key
        after = measure.outputs(graph, images, quantization)
        rows.append(precision | measure.output_row(before, after, split, is_softmax=is_softmax))
    sensitivity = pandas.DataFrame(columns=measure.SENSITIVITY)
    if config.sensitivity:
        progress.bar(f"{title} sensitivity", (3 + 2 * len(graph.kernels)) * measure.batch_count(images))
        sensitivity = measure.sensitivity_table(graph, images, quantizations[0], before, split, progress.step)
    found = {"errors": errors, "output": pandas.DataFrame(rows), "sensitivity": sensitivity}
    return measure.distribution_tables(graph, distributions) | found | {"notes": measure.notes(graph, distributions)}


def _evaluation(data, evaluation, config):
    if evaluation is None:
        split = None if data is None else data.validation
        if split is None or config.evaluation_images is None:
            return split
        return Split(split.images[: config.evaluation_images], split.labels[: config.evaluation_images])
    if not isinstance(evaluation, Split):
        evaluation = Split(np.asarray(evaluation[0]), np.asarray(evaluation[1]))
    if evaluation.labels.shape != (len(evaluation.images),):
        found = f"{len(evaluation.images)} images and labels of shape {evaluation.labels.shape}"
        raise ValueError(f"evaluation has {found}; give one label an image")
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


def _tensor_names(tflite, graph) -> dict[str, str]:
    """Give the output tensors of the net's .tflite by layer; none without a file, or if its operations are others."""
    layers = [op.name for op in graph.quantized if op.kind != "input"]
    outputs = () if tflite is None else enumerate(tflite.operator_outputs)
    outs = [name or str(number) for number, (op, name) in outputs if op not in SAME_SCALE]
    return dict(zip(layers, outs)) if len(outs) == len(layers) else {}
