"""A trained net written where it is used: an int8 .tflite or a SavedModel."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import zoo
from .files import write_bytes
from .int8 import Int8Model
from .latency_table import LatencyTable
from .lowering import Lowering, check_lower, compare, lower_fastest
from .spec import spec_from_json
from .tflite_metadata import with_metadata
from .tflite_types import with_io

__all__ = ["TfliteExport", "export_saved_model", "export_tflite", "int8_content", "int8_file", "model_name"]

DESCRIPTION = "An int8 image classifier written by factorizenet_tf."


@dataclass(frozen=True)
class TfliteExport:
    """A written .tflite.

    Args:
        path: of the file.
        size_bytes: its length.
        net: the net in it, int8 in and out whatever the file's types are.
        lowering: what was chosen for each grouped convolution; None where it was not lowered.
    """

    path: Path
    size_bytes: int
    net: bytes
    lowering: Lowering | None

    def row(self) -> dict:
        """File, bytes and `net`'s median latency on this machine: LiteRT with XNNPACK, batch 1, one thread.

        Of a lowered one bytes, RAM and latency beside the plain net's instead (`lowering.compare`).
        """
        row = {"file": str(self.path), "bytes": self.size_bytes}
        if self.lowering is not None:
            return row | compare(self.lowering.plain, self.lowering.content)
        return row | {"latency_ms": round(Int8Model(self.net).latency_ms().median_ms, 4)}


def int8_file(source: str | os.PathLike) -> Path:
    """The file that holds a source's int8 net: a .tflite, or what one can be converted from."""
    folder = Path(source)
    if zoo.is_published(source):
        folder = zoo.load(str(source), "path")
    return folder / "model.tflite" if (folder / "model.tflite").is_file() else folder


def int8_content(source: str | os.PathLike) -> bytes:
    """The int8 .tflite of a run, a name of the zoo, a .tflite or a qat.h5.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: it is damaged, or a float model, which needs calibration images (`factorizenet quantize`).
    """
    file = int8_file(source)
    if file.suffix == ".tflite":
        Int8Model(file)  # a damaged file is not passed on
        return file.read_bytes()
    from .own import load_any
    from .quantize import is_quantize_aware
    from .tflite import to_tflite

    model = load_any(file)
    if not is_quantize_aware(model):
        raise ValueError(f"{source} is a float model; `factorizenet quantize` makes it int8 with calibration images")
    return to_tflite(model)


def model_name(source: str | os.PathLike) -> str:
    """What a source is called where it is used: its name in the zoo, its spec's for a run, else the file's.

    Letters, digits, dots, hyphens and underscores only, so that it can be a folder and a part of an address.
    """
    path = Path(source)
    if not path.exists():
        return str(source)
    if (path / "spec.json").is_file():
        try:
            return f"{spec_from_json((path / 'spec.json').read_text()).name}-int8"
        except ValueError:  # a model of one's own
            pass
    return (
        re.sub(r"[^\w.-]+", "-", path.resolve().stem if path.is_file() else path.resolve().name).strip("-.") or "model"
    )


def export_tflite(
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    lower: str = "none",
    latencies: LatencyTable | None = None,
    io: str = "int8",
) -> TfliteExport:
    """Write the int8 .tflite of a source, as `int8_content` takes it, with metadata and labels.

    Args:
        source: what to export.
        path: the file.
        lower, latencies: as for `to_tflite`.
        io: type of input and output, "int8" or "uint8".

    Raises:
        FileNotFoundError, ValueError: as `int8_content`, or an argument is another.
        FileExistsError: `path` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    check_lower(lower, latencies)
    plain = int8_content(source)
    lowering = lower_fastest(plain, latencies) if lower == "fastest" else None
    net = plain if lowering is None else lowering.content
    content = with_metadata(with_io(net, io), name=model_name(source), description=DESCRIPTION)
    write_bytes(path, content)
    return TfliteExport(path, len(content), net, lowering)


def export_saved_model(source: str | os.PathLike, folder: str | os.PathLike) -> int:
    """Write a SavedModel with the signature `image` float32 (batch, height, width, channels) in 0..1 -> `logits`.

    Args:
        source: a run's folder (its float model), a name of the zoo, float.h5, qat.h5 or a tf_keras model. Grouped
            convolutions in it are TensorFlow's native ones, not XLA's.
        folder: new; written aside and renamed.

    Returns:
        The bytes of all its files.

    Raises:
        FileNotFoundError, ValueError: as `own.load_any`.
        FileExistsError: `folder` is there already.
    """
    from ._keras import tf
    from .grouped import inference_kernels
    from .own import load_any

    folder, source = Path(folder), Path(source)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another name or remove it")
    if zoo.is_published(source):
        model = zoo.load(str(source), "keras")
    else:
        model = load_any(source / "float.h5" if (source / "float.h5").is_file() else source)
    if isinstance(model, Int8Model):
        raise ValueError(f"{source} is a .tflite; a SavedModel is made from a run's folder or its .h5 files")
    module = tf.Module()
    module.variables_used = model.variables
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    module.predict = tf.function(lambda image: {"logits": model(image, training=False)}, input_signature=[signature])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside, inference_kernels(model):
        tf.saved_model.save(module, str(Path(aside) / "model"), signatures={"serving_default": module.predict})
        shutil.move(Path(aside) / "model", folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
