"""The commands that put a net where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import print_json, show
from .options import (
    Json,
    ZooOption,
    find_net,
    import_tensorflow,
)

__all__ = ["export", "label", "latencies", "predict", "serve"]

FILES_AT_ONCE = 64  # what `serve` and an exported version's batching take in one request


def export(
    source: Annotated[
        str, typer.Argument(help="A name of the zoo, a run's folder, a weights file (.h5) or a tf_keras model.")
    ],
    tflite: Annotated[Path | None, typer.Option(help="Write the int8 .tflite here.")] = None,
    io: Annotated[str, typer.Option(help="Type of the .tflite's input and output: int8 or uint8.")] = "int8",
    regroup: Annotated[
        str,
        typer.Option(
            "--regroup", "--lower", help="fastest: write grouped convolutions with the groups that run fastest."
        ),
    ] = "none",
    latencies: Annotated[
        Path | None,
        typer.Option(help="With --regroup: the target's table, from `latencies`.", show_default="measured here"),
    ] = None,
    saved_model: Annotated[Path | None, typer.Option(help="Write a SavedModel to this new folder.")] = None,
    micro: Annotated[
        Path | None, typer.Option(help="Write C and C++ sources for TensorFlow Lite Micro to this new folder.")
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(
            help="With --micro: reference, cmsis-nn (Arm Cortex-M) or esp-nn (ESP32-S3), for the size of the arena.",
            show_default="reference",
        ),
    ] = None,
    serving: Annotated[
        Path | None, typer.Option(help="Write the next version for TensorFlow Serving below this folder.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="With --serving: above the newest.", show_default="the next")
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --serving: for clients.", show_default="the source's")] = None,
    precision: Annotated[
        str | None, typer.Option(help="With --serving, of a run: int8 or float.", show_default="int8")
    ] = None,
    zoo_: ZooOption = None,
    as_json: Json = False,
):
    """Write a trained net where it is used: as .tflite, SavedModel, C++ sources, or for TensorFlow Serving.

    The SavedModel is the float net, or the fake-quantized one where the source is qat.h5.
    """
    from ..tflite.latency import read_table
    from ..tflite.micro_kernels import check_kernels

    if tflite is None and saved_model is None and micro is None and serving is None:
        raise ValueError(
            "nothing to export; give --tflite FILE, --saved-model FOLDER, --micro FOLDER or --serving FOLDER, or several"
        )
    if tflite is None and (regroup != "none" or latencies is not None or io != "int8"):
        raise ValueError("--regroup, --latencies and --io are of the .tflite; give --tflite FILE, too")
    if serving is None and not (version is None and name is None and precision is None):
        raise ValueError("--version, --name and --precision are of TensorFlow Serving; give --serving FOLDER, too")
    if micro is None and kernels is not None:
        raise ValueError("--kernels is of the sources for a microcontroller; give --micro FOLDER, too")
    check_kernels(kernels or "reference")
    table = None if latencies is None else read_table(latencies)
    for path in (tflite, saved_model, micro):
        if path is not None and path.exists():
            raise FileExistsError(f"{path} is there already; choose another name or remove it")
    net = find_net(source, zoo_)
    if saved_model is not None or serving is not None or net.kind in ("weights", "keras"):
        import_tensorflow()
    written = []
    if tflite is not None:
        from ..tflite.export import export_tflite

        exported = export_tflite(net.tflite(), tflite, name=net.name, regroup=regroup, latencies=table, io=io)
        written.append(exported.row())
        if exported.regrouping is not None and exported.regrouping.layers and not as_json:
            show(exported.regrouping.rows(), False, f"Groups, by latencies of {exported.regrouping.table.machine}")
    if saved_model is not None:
        from ..models.convert import write_saved_model

        model = net.float_model() if net.kind == "run" else net.model()
        written.append({"file": str(saved_model), "bytes": write_saved_model(model, saved_model)})
    if micro is not None:
        from ..tflite.micro_export import export_micro

        sources = export_micro(net.tflite(), micro, name=net.name, kernels=kernels or "reference")
        written.append(sources.row())
        if not as_json:
            print(sources.arena_note())
    if serving is not None:
        from ..serving.saved_model import export as export_serving

        written.append(export_serving(net, serving, name=name, version=version, precision=precision).row())
    if as_json:
        print_json(written)
    else:
        for row in written:
            show([row], False, "Written")


def latencies(
    out: Annotated[Path, typer.Option(help="The table, for `export --regroup fastest --latencies`.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="int8 nets whose layers are measured: names of the zoo, runs' folders, .tflite files."),
    ] = None,
    width: Annotated[int, typer.Option(help="Without sources: every level of this width's family.")] = 16,
    size: Annotated[int, typer.Option(help="Its images' height and width in pixels.")] = 32,
    threads: Annotated[int, typer.Option(help="Of one inference.")] = 1,
    zoo_: ZooOption = None,
    as_json: Json = False,
):
    """Measure on this machine how fast grouped convolutions run in fewer groups.

    Run it on the board where the net will run; it needs no TensorFlow.
    """
    from ..files import write_text
    from ..tflite.latency import int8_convolutions, largest_groups, measure_convolutions, planned_convolutions

    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name or remove it")
    if sources:
        convolutions = [row[1:] for source in sources for row in int8_convolutions(find_net(source, zoo_).tflite())]
    else:
        convolutions = planned_convolutions(width, (size, size, 3))
    shapes = largest_groups(convolutions)
    if not shapes:
        raise ValueError(f"no grouped convolution in {', '.join(sources or [])}: there is nothing to measure")
    table = measure_convolutions(shapes, threads=threads)
    write_text(out, table.to_json())
    show(table.rows(), as_json, f"{table.machine}, {table.runtime}, threads: {table.threads}")


def label(
    folder: Annotated[Path, typer.Argument(help="Of `export --serving`.")],
    name: Annotated[str, typer.Argument(help="Of the model.")],
    stable: Annotated[int | None, typer.Option(help="The version to serve.", show_default="as it is")] = None,
    canary: Annotated[int | None, typer.Option(help="The version to try beside it.", show_default="none")] = None,
    as_json: Json = False,
):
    """Promote an exported version, or roll back to one."""
    from ..serving.config import set_labels

    labels = set_labels(folder, name, stable=stable, canary=canary)
    show([{"name": name, "stable": labels.stable, "canary": labels.canary}], as_json, "Labels")


def serve(
    sources: Annotated[
        list[str],
        typer.Argument(help="Names of the zoo, runs' folders, .tflite files, exported versions; other=SOURCE renames."),
    ],
    host: Annotated[str, typer.Option(help="0.0.0.0 listens on every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8501,
    threads: Annotated[int, typer.Option(help="Of one inference.")] = 1,
    max_images: Annotated[int, typer.Option(help="In one request.")] = 64,
    max_bytes: Annotated[int, typer.Option(help="Of one request.")] = 8 * 2**20,
    max_requests: Annotated[int, typer.Option(help="At once; the next is 503.")] = 64,
    request_seconds: Annotated[float, typer.Option(help="Until a request must be whole.")] = 10.0,
    grace_seconds: Annotated[int, typer.Option(help="That running requests get at the end.")] = 10,
    zoo_: ZooOption = None,
):
    """Serve models over HTTP until Ctrl-C, as TensorFlow Serving's REST API does."""
    from ..serving.server import Limits
    from ..serving.server import serve as serve_models

    limits = Limits(
        images=max_images,
        body_bytes=max_bytes,
        requests=max_requests,
        body_seconds=request_seconds,
        grace_seconds=grace_seconds,
    )
    serve_models(sources, host=host, port=port, threads=threads, limits=limits, zoo_dir=zoo_, started=_say_started)


def predict(
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files.")],
    url: Annotated[str, typer.Option(help="http://host:8501, or grpc://host:8500.")],
    model: Annotated[str, typer.Option(help="Its name on the server.")],
    version: Annotated[int | None, typer.Option(help="A version.", show_default="the server's own")] = None,
    label: Annotated[str | None, typer.Option(help="stable or canary, in the place of a version.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of one attempt.")] = 5.0,
    retries: Annotated[int, typer.Option(help="Further attempts.")] = 2,
    deadline: Annotated[float | None, typer.Option(help="Seconds of all.", show_default="of all attempts")] = None,
    as_json: Json = False,
):
    """Classify image files by a server: TensorFlow Serving or `serve`."""
    from ..serving.client import Client

    contents = [path.read_bytes() for path in images]
    options = {"version": version, "label": label, "timeout": timeout, "retries": retries, "deadline": deadline}
    rows = []
    with Client(url, model, **options) as client:
        for first in range(0, len(images), FILES_AT_ONCE):
            found = client.predict_files(contents[first : first + FILES_AT_ONCE])
            rows += _class_rows(images[first : first + FILES_AT_ONCE], found, model)
    show(rows, as_json, model)


def _class_rows(paths, found, model):
    columns = ("class_name", "class_id", "probabilities")
    if any(name not in found for name in columns):
        raise ValueError(
            f"the model {model} gives {', '.join(found)}, not class_name and probabilities; ask one that "
            "`factorizenet export --serving` wrote or `factorizenet serve` serves"
        )
    return [
        {"file": str(path), "class": str(name), "class_id": int(number), "probability": round(float(row[number]), 4)}
        for path, name, number, row in zip(paths, *(found[name] for name in columns))
    ]


def _say_started(nets, url) -> None:
    for net in nets:
        print(f"{url}/v1/models/{net.name}: {net.kind}, version {net.version}, {len(net.labels)} classes", flush=True)
