"""Write an int8 .tflite where it is used: with metadata, its layers regrouped and its ends uint8 where that is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..files import write_bytes
from .int8_model import Int8Model
from .io_types import check_io, with_uint8_io
from .latency import LatencyTable
from .metadata import with_metadata
from .regroup import Regrouping, check_regroup, compare, regroup_fastest

__all__ = ["TfliteExport", "export_tflite"]

DESCRIPTION = "An int8 image classifier written by factorizenet_tf."


@dataclass(frozen=True)
class TfliteExport:
    """A written .tflite.

    Args:
        path: of the file.
        size_bytes: its length.
        net: the net in it, int8 in and out whatever the file's types are.
        regrouping: the choice for each grouped convolution; None where it was not regrouped.
    """

    path: Path
    size_bytes: int
    net: bytes
    regrouping: Regrouping | None

    def row(self) -> dict:
        """Measure `net` on this machine, LiteRT with XNNPACK, batch 1, one thread: file, bytes, median latency.

        A regrouped net is compared with the plain one: bytes, RAM and latency of both (`regroup.compare`).
        """
        row = {"file": str(self.path), "bytes": self.size_bytes}
        if self.regrouping is not None:
            return row | compare(self.regrouping.plain, self.regrouping.content)
        return row | {"latency_ms": round(Int8Model(self.net).latency_ms().median_ms, 4)}


def export_tflite(
    content: bytes,
    path: str | os.PathLike,
    *,
    name: str,
    regroup: str = "none",
    latencies: LatencyTable | None = None,
    io: str = "int8",
) -> TfliteExport:
    """Write an int8 .tflite with metadata, and the labels that are in it.

    Args:
        content: the int8 .tflite, as `Source.tflite` gives it.
        path: the file; new.
        name: of the net, in the metadata.
        regroup: "none", or "fastest": the number of groups that runs fastest, by `regroup_fastest`.
        latencies: for regroup="fastest": the table measured on the target; None measures here.
        io: type of input and output, "int8" or "uint8".

    Raises:
        ValueError: the bytes are damaged, or an argument has another value.
        FileExistsError: `path` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    check_regroup(regroup, latencies)
    check_io(io)
    regrouping = regroup_fastest(content, latencies) if regroup == "fastest" else None
    net = content if regrouping is None else regrouping.content
    ends = with_uint8_io(net) if io == "uint8" else net
    written = with_metadata(ends, name=name, description=DESCRIPTION)
    write_bytes(path, written)
    return TfliteExport(path, len(written), net, regrouping)
