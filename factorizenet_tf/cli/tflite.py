"""The commands that look into a .tflite and make it smaller; they load no TensorFlow."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from ..console import print_json, show, show_rows
from .options import Json, KeepNames, ZooOption, net

__all__ = ["inspect", "slim"]

File = Annotated[str, net("Any .tflite, or the int8 net of a zoo's name or a run's folder.")]


def slim(
    file: File,
    out: Annotated[Path, Argument(help="The new file.")],
    keep_names: KeepNames = False,
    zoo_: ZooOption = None,
    as_json: Json = False,
):
    """Write a .tflite in fewer bytes: same outputs, same arena."""
    from ..files import check_new, write_bytes
    from ..tflite.slim import slim as slim_bytes

    check_new(out)
    content = _content(file, zoo_)
    slimmed = slim_bytes(content, keep_names=keep_names)
    write_bytes(out, slimmed)
    show([{"file": str(out), "bytes": len(slimmed), "before": len(content)}], as_json, "Written")


def inspect(file: File, zoo_: ZooOption = None, as_json: Json = False):
    """Show what a .tflite holds and costs, and what runtimes refuse."""
    from ..tflite.inspect import inspect_tflite

    report = inspect_tflite(_content(file, zoo_))
    if as_json:
        print_json(report)
        return
    size, several = report["size_bytes"], report["subgraphs"] > 1

    def numbers(*places):
        return ", ".join(f"{graph}.{number}" if several else str(number) for graph, number in places) or "all"

    rows = [{"n": numbers(row["place"])} | _operator_row(row) for row in report["operators"]]
    if rows:
        show_rows(rows, title="Operators")
    show_rows([{"n": numbers(row["place"])} | _tensor_row(row) for row in report["tensors"]], title="Tensors")
    parts = report["bytes"].items()
    rows = [{"bytes_for": part, "bytes": count, "share": f"{count / size:.1%}"} for part, count in parts]
    show_rows(rows, title=f"Where the {size:,} bytes are")
    show_rows(report["files"], title=f"On {report['machine']}; RAM: arena of Micro's kernels")
    found = [(row["type"], row["operators"], row["why"]) for row in report["not_int8"]]
    found += [(f"{row['runtime']} refuses", row["operators"], row["reason"]) for row in report["refused"]]
    if found:
        rows = [{"what": what, "operators": numbers(*places), "why": why} for what, places, why in found]
        show_rows(rows, title="Not int8, and refused")
    macs = "some operators' MACs not known" if report["macs"] is None else f"{report['macs']:,} MACs"
    print(f"{len(report['operators'])} operators, {macs}, {report['params']:,} parameters, {size:,} bytes")


def _content(file, zoo) -> bytes:
    """Read a .tflite as it is, int8 or not; of a name or run its int8 net's."""
    from ..loading import resolve

    path = Path(file)
    if not path.is_file():
        return resolve(file, zoo_dir=zoo).tflite()
    if zoo is not None:
        raise ValueError(f"{file} is a file, so --zoo would have no effect; leave it out")
    return path.read_bytes()


def _operator_row(row) -> dict:
    kernel = ""
    if row["kernel"]:
        kernel = _sides(row["kernel"]) + (f"/{_sides(row['stride'])}" if max(row["stride"]) > 1 else "")
        kernel += f" g{row['groups']}" if row["groups"] > 1 else ""
    macs = "not known" if row["macs"] is None else row["macs"]
    start = {"operator": row["operator"], "kernel": kernel, "output": _sides(row["output_shape"])}
    return start | {"MACs": macs, "bytes": row["constant_bytes"]}


def _tensor_row(row) -> dict:
    scale = zero = ""
    if row["quantization"]:
        scales, zeros = row["quantization"]["scales"], set(row["quantization"]["zero_points"])
        scales = [float("nan") if scale is None else scale for scale in scales]
        scale = f"{scales[0]:.4g}" if len(scales) == 1 else f"{len(scales)}: {min(scales):.2g} to {max(scales):.2g}"
        zero = ", ".join(map(str, sorted(zeros)))
    start = {"role": row["role"], "type": row["type"].lower(), "shape": _sides(row["shape"])}
    return start | {"scale": scale, "zero": zero}


def _sides(shape) -> str:
    return "x".join(map(str, shape))
