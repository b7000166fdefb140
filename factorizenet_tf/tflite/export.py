"""Write an int8 .tflite with its metadata, its layers regrouped and its ends uint8 where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import write_bytes
from .int8_model import Int8Model
from .io_types import with_io
from .latency import LatencyTable
from .metadata import with_metadata
from .regroup import Lowering, check_lower, compare, lower_fastest

__all__ = ["TfliteExport", "export_tflite"]

DESCRIPTION = "An int8 image classifier written by factorizenet_tf."


@dataclass(frozen=True)
class TfliteExport:
    """A written .tflite.

    Args:
        path: of the file.
        size_bytes: its length.
        net: the net in it, int8 in and out whatever the file's types are.
        lowering: what was chosen for each grouped convolution; None where none was rewritten.
    """

    path: Path
    size_bytes: int
    net: bytes
    lowering: Lowering | None

    def row(self) -> dict:
        """Measure the net on this machine, LiteRT with XNNPACK, batch 1, one thread: file, bytes and median latency.

        A lowered net is compared with the plain one: bytes, RAM and latency of both (`regroup.compare`).
        """
        row = {"file": str(self.path), "bytes": self.size_bytes}
        if self.lowering is not None:
            return row | compare(self.lowering.plain, self.lowering.content)
        return row | {"latency_ms": round(Int8Model(self.net).latency_ms().median_ms, 4)}


def export_tflite(
    content: bytes,
    path: str | os.PathLike,
    *,
    name: str,
    labels: Sequence[str] | None = None,
    lower: str = "none",
    latencies: LatencyTable | None = None,
    io: str = "int8",
) -> TfliteExport:
    """Write an int8 .tflite with metadata and labels.

    Args:
        content: the int8 .tflite, as `Source.tflite` gives it.
        path: the file; new.
        name: of the net, in the metadata.
        labels: class names by number; None keeps those in the file.
        lower, latencies: as for `to_tflite`.
        io: type of input and output, "int8" or "uint8".

    Raises:
        ValueError: the bytes are damaged, or an argument has another value.
        FileExistsError: `path` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    check_lower(lower, latencies)
    lowering = lower_fastest(content, latencies) if lower == "fastest" else None
    net = content if lowering is None else lowering.content
    written = with_metadata(with_io(net, io), name=name, labels=labels, description=DESCRIPTION)
    write_bytes(path, written)
    return TfliteExport(path, len(written), net, lowering)
