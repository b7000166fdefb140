"""The commands that deploy a net: `export`, `latencies`, `serve`, `predict`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from ..console import print_json, require_extra, show
from ..files import check_new
from . import options

__all__ = ["export", "latencies", "predict", "serve"]


def export(
    context: Context,
    source: Annotated[str, options.net("A name of the zoo, a run's folder, weights (.h5) or a Keras model.")],
    tflite: Annotated[Path | None, Option(help="Write the int8 .tflite here.")] = None,
    io: Annotated[str, Option(help="Type of the .tflite's input and output: int8 or uint8.")] = "int8",
    regroup: Annotated[
        str,
        Option(
            "--regroup",
            "--lower",
            help="fastest: rewrite grouped convolutions in the number of groups that runs fastest.",
        ),
    ] = "none",
    latencies: Annotated[
        Path | None, Option(help="With --regroup: the target's table, from `latencies`.", show_default="measured here")
    ] = None,
    keep_names: options.KeepNames = False,
    saved_model: Annotated[Path | None, Option(help="Write a SavedModel to this new folder.")] = None,
    micro: Annotated[Path | None, Option(help="Write C++ sources for TensorFlow Lite Micro to this folder.")] = None,
    kernels: Annotated[
        str, Option(help="With --micro: size the arena for reference, cmsis-nn (Cortex-M) or esp-nn (ESP32-S3).")
    ] = "reference",
    serving: Annotated[Path | None, Option(help="Write a version for TensorFlow Serving below this folder.")] = None,
    version: Annotated[
        int | None, Option(help="With --serving: a number above the newest.", show_default="the next")
    ] = None,
    name: Annotated[
        str | None, Option(help="With --serving: the name for clients.", show_default="the source's")
    ] = None,
    precision: Annotated[str | None, Option(help="With --serving: int8 or float.", show_default="int8")] = None,
    pixel_range: options.PixelRange = None,
    pixel_mean: options.PixelMean = None,
    pixel_deviation: options.PixelDeviation = None,
    size: options.OpenSize = None,
    zoo_: options.ZooOption = None,
    as_json: options.Json = False,
):
    """Write a trained net for the place where it will run.

    As a .tflite, a SavedModel, C++ sources for TensorFlow Lite Micro, or a version for TensorFlow Serving. The SavedModel of a
    run is its float net; that of qat.h5 or an -int8 name is the fake-quantized one.
    """
    from ..loading import resolve
    from ..tflite.io_types import check_io
    from ..tflite.latency import read_table
    from ..tflite.micro_kernels import check_kernels

    if tflite is None and saved_model is None and micro is None and serving is None:
        remedy = "give --tflite FILE, --saved-model FOLDER, --micro FOLDER or --serving FOLDER, or several"
        raise ValueError(f"nothing to export; {remedy}")
    if tflite is None:
        options.refuse_unused(
            context, "without --tflite FILE no .tflite is written", "io", "regroup", "latencies", "keep_names"
        )
    if serving is None:
        options.refuse_unused(context, "without --serving FOLDER no version is written", "version", "name", "precision")
    if micro is None:
        options.refuse_unused(context, "without --micro FOLDER no sources are written", "kernels")
    else:
        require_extra("tflite_micro", extra="micro", what="export --micro")
    if regroup not in ("none", "fastest"):
        raise ValueError(f"--regroup is {regroup!r}; it must be none or fastest")
    if regroup == "none":
        options.refuse_unused(context, "without --regroup fastest nothing is chosen by a table", "latencies")
    check_io(io)
    check_kernels(kernels)
    check_new(tflite, saved_model, micro)
    table = None if latencies is None else read_table(latencies)
    net = resolve(source, zoo_dir=zoo_, **options.own_model(context))
    if serving is not None:
        from ..serving.models_config import next_version

        served = net.with_precision(precision)
        next_version(serving, served.name if name is None else name, version)
    written = []
    if tflite is not None:
        from ..tflite.export import export_tflite
        from ..tflite.int8_model import Int8Model
        from ..tflite.regroup import compare, regroup_fastest
        from ..tflite.slim import slim

        content = slim(net.tflite(keep_names=keep_names), keep_names=keep_names)
        row = {"file": str(tflite)}
        if regroup == "none":
            row["bytes"] = export_tflite(content, tflite, name=net.name, io=io)
            row["latency_ms"] = round(Int8Model(content).latency_ms().median_ms, 4)
        else:
            regrouped = regroup_fastest(content, table)
            row["bytes"] = export_tflite(regrouped.content, tflite, name=net.name, io=io)
            row |= compare(content, regrouped.content)
            if regrouped.layers and not as_json:
                show(regrouped.layers, False, f"Groups, by latencies of {regrouped.table.machine}")
        written.append(row)
    if saved_model is not None:
        from ..models.convert import write_saved_model

        model = net.float_model() if net.kind == "run" else net.model()
        written.append({"file": str(saved_model), "bytes": write_saved_model(model, saved_model)})
    if micro is not None:
        from ..tflite.micro_export import export_micro

        row = export_micro(net.tflite(), micro, name=net.name, kernels=kernels)
        if not as_json:
            print(row["arena"])
        del row["arena"]
        row["arenas"] = ", ".join(f"{processor} {size}" for processor, size in row["arenas"].items())
        written.append({"folder": str(micro)} | row | {"operators": ", ".join(row["operators"])})
    if serving is not None:
        from ..serving.saved_model import export as export_serving

        written.append(export_serving(served, serving, name=name, version=version).row())
    if as_json:
        print_json(written)
    else:
        for row in written:
            where = "; milliseconds: on this machine, one thread" * any(key.endswith("_ms") for key in row)
            row = {key.replace("lsb_to", "steps_from"): row[key] for key in row if row[key] not in (None, "")}
            show([row], False, f"Written{where}")


def latencies(
    context: Context,
    out: Annotated[Path, Option(help="The table, for `export --regroup fastest --latencies`.")],
    sources: Annotated[
        list[str] | None, options.net("int8 nets to measure: names of the zoo, runs' folders, .tflite files.")
    ] = None,
    width: Annotated[int, Option(help="Without sources: every level of this width's family.")] = 16,
    size: Annotated[int, Option(help="Its images' height and width in pixels.")] = 32,
    threads: Annotated[int, Option(help="Of one inference.")] = 1,
    zoo_: options.ZooOption = None,
    as_json: options.Json = False,
):
    """Time grouped convolutions on this machine.

    Each in its own number of groups and in fewer. Run it on the board where the net will run; it needs no TensorFlow.
    """
    from ..files import write_text
    from ..loading import resolve
    from ..tflite.latency import int8_convolutions, measure_convolutions, planned_convolutions

    check_new(out)
    if sources:
        options.refuse_unused(context, "the sources' own layers are measured", "width", "size")
        nets = [resolve(source, zoo_dir=zoo_) for source in sources]  # a file as it is, whatever its input
        contents = [net.path.read_bytes() if net.kind == "tflite" else net.tflite() for net in nets]
        convolutions = [row[1:] for content in contents for row in int8_convolutions(content)]
        if not any(groups > 1 for _, groups in convolutions):
            raise ValueError(
                f"no grouped int8 convolution in {', '.join(sources)}; float ones are not measured: quantize the net first; "
                "without sources the package's own are measured"
            )
    else:
        options.refuse_unused(context, "without sources no net is looked up", "zoo_")
        convolutions = planned_convolutions(width, (size, size, 3))
    table = measure_convolutions(convolutions, threads=threads)
    write_text(out, table.to_json())
    show(table.rows(), as_json, f"{table.machine}, {table.runtime}, threads: {table.threads}")


def serve(
    sources: Annotated[
        list[str], options.net("Names of the zoo, runs' folders or .tflite files; NAME=SOURCE renames.")
    ],
    host: Annotated[str, Option(help="0.0.0.0 listens on every interface.")] = "127.0.0.1",
    port: Annotated[int, Option(help="0 takes a free one.")] = 8501,
    threads: Annotated[int, Option(help="Of one inference.")] = 1,
    zoo: options.ZooOption = None,
    max_bytes: Annotated[int, Option(help="Of one request.")] = 16 * 2**20,
):
    """Serve int8 nets over HTTP by TensorFlow Serving's REST API."""
    from ..serving.server import serve as serve_nets

    def print_addresses(classifiers, url):
        for name, classifier in classifiers.items():
            print(f"{url}/v1/models/{name}: int8 LiteRT, {len(classifier.labels)} classes", flush=True)

    where = {"host": host, "port": port, "threads": threads, "zoo_dir": zoo, "max_bytes": max_bytes}
    serve_nets(sources, **where, started=print_addresses)


def predict(
    images: Annotated[list[Path], Argument(help="PNG, JPEG, BMP, WebP or PPM files.")],
    model: Annotated[
        str,
        Option(help="The int8 net: a name of the zoo, a run's folder or a .tflite.", autocompletion=options.net_names),
    ],
    top: Annotated[int, Option(help="How many classes of each image, the most probable first.")] = 3,
    zoo: options.ZooOption = None,
    as_json: options.Json = False,
):
    """Classify image files by an int8 net, without TensorFlow."""
    from ..data import read_image
    from ..serving.classifier import load_classifier

    if top < 1:
        raise ValueError(f"--top is {top}; it must be at least 1")
    for path in images:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; give its image files one by one, e.g. {path / '*.png'}")
    classifier = load_classifier(model, zoo_dir=zoo)
    rows = []
    for path in images:
        image = read_image(path, classifier.model.input_shape, classifier.model.resize)
        (probabilities,) = classifier.classify(image[None])["probabilities"]
        for number in (-probabilities).argsort(kind="stable")[:top].tolist():
            found = {"class": classifier.labels[number], "class_id": number}
            rows.append({"file": str(path)} | found | {"probability": round(float(probabilities[number]), 4)})
    show(rows, as_json, classifier.name)
