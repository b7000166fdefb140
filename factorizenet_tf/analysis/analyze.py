"""What quantization does to each layer of a net, measured; several nets side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..console import Progress
from ..cost import count_macs, count_params
from ..data import Dataset, Split, check_images, load_dataset
from ..loading import Source, resolve
from ..models.convert import with_full_range_pixels
from .distributions import describe
from .graph import Graph, by_channel, graph_of
from .measure import BATCH, activations, layer_errors, output_ranges, outputs
from .simulation import Quantization, Scheme, quantization_of, scheme_of
from .tables import (
    TABLES,
    Analysis,
    analysis_of,
    channel_table,
    distribution_row,
    error_rows,
    histogram_table,
    join,
    notes_of,
    output_row,
    places,
    tensor_names,
)

__all__ = ["CALIBRATION_IMAGES", "analyze", "analyze_all", "compare_levels"]

CALIBRATION_IMAGES = 1_024
COMPARED = (("per_channel", 8, 8), ("per_tensor", 8, 8), ("per_channel", 4, 8))
QAT = Scheme("qat", True, is_learned=True)


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
    zoo_dir: str | os.PathLike | None = None,
    verbose: bool = False,
) -> Analysis:
    """Measure every layer's distributions, float and quantized, and what their quantization costs.

    Quantized PTQ nets are simulated as TFLite computes them: symmetric weights, affine activations, int32 biases; a
    quantization-aware model's with the ranges it learnt. Besides the scheme asked for, per-channel and per-tensor int8
    and 4-bit weights (W4A8) are always measured.

    Args:
        model_or_name: a float or quantization-aware tf_keras model; a name of the zoo (an -int8 one brings its -float
            sibling); a `Run` or its folder; else what `loading.resolve` takes, but no .tflite.
        calibration: training images, uint8 (n, height, width, channels); None: the first 1,024 of the data that a name
            or a run was trained on.
        evaluation: images and labels that accuracies are measured on; None: that data's validation split, or none.
        scheme: "per_channel" or "per_tensor" weights with activations from minimum to maximum, or either with
            "_percentile" behind it: from the 0.01st to the 99.99th percentile.
        weight_bits, activation_bits: 2 to 8.
        sensitivity: also quantize weights only, activations only, one layer only, all but one (minutes).
        dataset: stands for the data of a name or a run, to load it once for several.
        zoo_dir: where names are looked up, as for `zoo.load`.
        verbose: say how far it is.

    Raises:
        TypeError: images that are not uint8, or a Keras 3 model.
        ValueError: no images, sizes or bits that do not fit, an unbuilt or nested model, layers that cannot be read.
        FileNotFoundError: no such name or file.
    """
    asked = scheme_of(scheme, weight_bits, activation_bits)
    net = resolve(model_or_name, zoo_dir=zoo_dir)
    if dataset is None and calibration is None:
        dataset = net.load_data()
    return _analyze(net, _net_name(net), dataset, calibration, evaluation, asked, sensitivity, verbose)


def _net_name(net: Source) -> str:
    """What tables call a net: a name as it was given, its version too, and a run by its spec, since it has two nets."""
    if net.kind == "name":
        return net.given
    return net.spec.name if net.kind == "run" and net.spec is not None else net.name


def _analyze(net, name, dataset, calibration, evaluation, asked, sensitivity, verbose) -> Analysis:
    calibration = dataset.calibration(CALIBRATION_IMAGES) if calibration is None else calibration
    split = _evaluation(dataset, evaluation)
    models = net.models()
    graphs = {source: graph_of(model) for source, model in models.items()}
    tflite = net.int8_model() if net.tflite_file is not None else None
    for graph in graphs.values():
        check_images(calibration, graph.input_shape, "calibration")
        if split is not None:
            check_images(split.images, graph.input_shape, "evaluation")
    calibration = with_full_range_pixels(calibration)  # as the converter sees them
    tables = {name: [] for name in TABLES}
    reference = graphs.get("float") or graphs["qat"]
    tables["nets"].append(_net_row(net, name, models, dataset, calibration, split, asked))
    with Progress(verbose) as progress:
        for source, graph in graphs.items():
            keys = {"net": name, "source": source}
            made = _tensors(tflite, graph)
            _measure(graph, reference, keys, made, calibration, split, asked, sensitivity, tables, progress)
    return analysis_of(tables)


def compare_levels(
    subjects: Sequence,
    *,
    calibration: np.ndarray | None = None,
    evaluation: Split | tuple[np.ndarray, np.ndarray] | None = None,
    scheme: str = "per_channel",
    weight_bits: int = 8,
    activation_bits: int = 8,
    sensitivity: bool = False,
    dataset: Dataset | None = None,
    zoo_dir: str | os.PathLike | None = None,
    verbose: bool = False,
) -> Analysis:
    """Analyses of several nets in one, lined up by `block` and `depth`.

    Args:
        subjects: analyses, or what `analyze` takes; the other arguments are its own, for those that are none yet.

    Raises:
        ValueError: nothing to compare, or two nets of one name; else as `analyze`.
    """
    asked = scheme_of(scheme, weight_bits, activation_bits)
    subjects = [s if isinstance(s, Analysis) else resolve(s, zoo_dir=zoo_dir) for s in subjects]
    if not subjects:
        raise ValueError("nothing to compare; give analyses, names, run folders or models")
    names = _distinct_names([subject for subject in subjects if not isinstance(subject, Analysis)])
    found = []
    for subject in subjects:
        if not isinstance(subject, Analysis):
            data = subject.load_data() if dataset is None and calibration is None else dataset
            subject = _analyze(subject, names[subject], data, calibration, evaluation, asked, sensitivity, verbose)
        found.append(subject)
    return _joined(found)


def _distinct_names(nets: Sequence[Source]) -> dict[Source, str]:
    """What tables call nets that are compared: those of one name by their folder or file, or by the whole path."""
    names = {net: _net_name(net) for net in nets}
    for other in (lambda net: net.path.resolve().name if net.path else net.given, lambda net: net.given):
        taken = [*names.values()]
        names = {net: other(net) if taken.count(name) > 1 else name for net, name in names.items()}
    return names


def _joined(found: Sequence[Analysis]) -> Analysis:
    names = [name for analysis in found for name in analysis.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two nets are named {', '.join(twice)}; give models of different names")
    return join(found)


def analyze_all(
    names: Sequence[str],
    *,
    dataset: str | None = None,
    data_dir: str | os.PathLike | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    evaluation_images: int | None = None,
    scheme: str = "per_channel",
    weight_bits: int = 8,
    activation_bits: int = 8,
    sensitivity: bool = False,
    zoo_dir: str | os.PathLike | None = None,
    verbose: bool = False,
) -> Analysis:
    """Nets by name, each with its own data, which is loaded once where it is the same.

    Args:
        names: of the zoo, runs' folders or files.
        dataset: what `load_dataset` takes, for files and in the place of the nets' own.
        data_dir: where TFDS keeps its data.
        calibration_images: the first so many training images.
        evaluation_images: the first so many validation images; None: all.
        scheme, weight_bits, activation_bits, sensitivity, zoo_dir, verbose: as for `analyze`.

    Raises:
        ValueError: a number of images below 1, a file without data; else as `analyze`.
    """
    for what, number in (("calibration_images", calibration_images), ("evaluation_images", evaluation_images)):
        if number is not None and number < 1:
            raise ValueError(f"{what} is {number}; it must be at least 1")
    asked = scheme_of(scheme, weight_bits, activation_bits)
    nets = [resolve(name, zoo_dir=zoo_dir) for name in names]
    if dataset is None:
        for net in nets:
            net.check_data_known()
    loaded, found, called = {}, [], _distinct_names(nets)
    for net in nets:
        source, shape = dataset or net.dataset_name, net.input_shape
        if (source, shape) not in loaded:
            loaded[source, shape] = load_dataset(source, input_shape=shape, data_dir=data_dir)
        data = loaded[source, shape]
        if dataset is None:
            net.warn_if_other_data(data)
        split = data.validation
        if evaluation_images is not None:
            split = Split(split.images[:evaluation_images], split.labels[:evaluation_images])
        found.append(
            _analyze(net, called[net], data, data.calibration(calibration_images), split, asked, sensitivity, verbose)
        )
    return _joined(found)


def _evaluation(dataset, evaluation):
    if evaluation is None:
        return None if dataset is None else dataset.validation
    if not isinstance(evaluation, Split):
        evaluation = Split(np.asarray(evaluation[0]), np.asarray(evaluation[1]))
    check_images(evaluation.images, None, "evaluation")
    if evaluation.labels.shape != (len(evaluation.images),):
        raise ValueError(
            f"evaluation has {len(evaluation.images)} images and labels of shape {evaluation.labels.shape}; give one "
            "label an image"
        )
    return evaluation


def _net_row(net, name, models, dataset, calibration, split, scheme):
    model = next(iter(models.values()))
    spec = net.spec
    level = getattr(spec, "level", None)
    return {
        "net": name,
        "source": "+".join(models),
        "level": ".".join(map(str, level)) if isinstance(level, tuple) else None if level is None else str(level),
        "width": getattr(spec, "width", None),
        "macs": count_macs(model),
        "params": count_params(model),
        "dataset": dataset.title if dataset is not None else None,
        "calibration_images": len(calibration),
        "evaluation_images": 0 if split is None else len(split),
        "scheme": scheme.name,
        "weight_bits": scheme.weight_bits,
        "activation_bits": scheme.activation_bits,
    }


def _schemes(graph: Graph, asked: Scheme) -> list[Scheme]:
    if graph.is_quantize_aware:
        return [QAT]
    compared = [scheme_of(*row) for row in COMPARED]
    return [asked, *(scheme for scheme in compared if scheme != asked)]


def _tensors(tflite, graph) -> dict[str, str]:
    """Output tensors of the net's .tflite by layer; none where there is no file, or its operations are others."""
    if tflite is None:
        return {}
    try:
        return tensor_names(tflite, [op.name for op in graph.quantized if op.kind != "input"])
    except ValueError:
        return {}


def _measure(graph, reference, keys, made, calibration, split, asked, sensitivity, tables, progress):
    """Add one net's rows to the tables; `made` are the output tensors of its .tflite by layer."""
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
        tables["errors"] += error_rows(graph, quantization, errors, keys, made)
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
