"""An int8 net as C++ sources for TensorFlow Lite for Microcontrollers, with a golden input and output to check it by."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .flatbuffer import read_flatbuffer, write_flatbuffer
from .int8_model import Int8Model
from .micro import arena_bytes, micro_outputs
from .micro_sources import TEMPLATES
from .regroup import check_lower, lower_fastest

__all__ = ["MicroExport", "export_micro"]

RESOLVED = {
    "ADD": "AddAdd",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "FULLY_CONNECTED": "AddFullyConnected",
    "HARD_SWISH": "AddHardSwish",
    "LEAKY_RELU": "AddLeakyRelu",
    "LOGISTIC": "AddLogistic",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean",
    "MUL": "AddMul",
    "PACK": "AddPack",
    "PAD": "AddPad",
    "PADV2": "AddPadV2",
    "QUANTIZE": "AddQuantize",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "SHAPE": "AddShape",
    "SOFTMAX": "AddSoftmax",
    "STRIDED_SLICE": "AddStridedSlice",
    "SUB": "AddSub",
}
GOLDEN_SEED = 0
A_LINE = 16  # numbers


@dataclass(frozen=True)
class MicroExport:
    """What was written.

    Args:
        folder: of model.h, model.cc, golden.h, golden.cc, main.cc and model.json, which has these fields.
        name: of the model.
        model_bytes: flash of its array.
        arena_bytes: what the interpreter records in tflite-micro's x86-64 build, and what suffices there; a 32-bit
            target takes less, since structures with pointers are smaller.
        operators: of the file, by the resolver's methods.
        lsb_to_litert: largest distance of the golden output from LiteRT's reference kernels, in steps of the output.
        lsb_to_xnnpack: the same from LiteRT with XNNPACK, which rounds in another way at each layer.
    """

    folder: Path
    name: str
    model_bytes: int
    arena_bytes: int
    operators: tuple[str, ...]
    lsb_to_litert: int
    lsb_to_xnnpack: int

    def row(self) -> dict:
        """The fields as a line of a table."""
        return asdict(self) | {"folder": str(self.folder), "operators": ", ".join(self.operators)}


def export_micro(
    content: bytes, folder: str | os.PathLike, *, name: str, lower: str = "none", latencies=None
) -> MicroExport:
    """Write the C++ sources of a net: its array, its operators, its arena, a golden image, and a program that checks it.

    Args:
        content: the bytes of an int8 .tflite.
        folder: new; written aside and renamed.
        name: of the net, in the sources.
        lower, latencies: as for `to_tflite`; on a microcontroller's kernels more MACs are slower, so "none".

    Raises:
        ValueError: the bytes are damaged, or an operator is not known here.
        FileExistsError: `folder` is there already.
        ModuleNotFoundError: tflite-micro is not installed.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another name or remove it")
    check_lower(lower, latencies)
    if lower == "fastest":
        content = lower_fastest(content, latencies).content
    model = Int8Model(content)
    labels = model.labels or tuple(map(str, range(model.num_classes)))
    content = write_flatbuffer(read_flatbuffer(content))  # aligned, and without files behind it that cost flash
    operators = tuple(sorted(set(model.operators)))
    unknown = [operator for operator in operators if operator not in RESOLVED]
    if unknown:
        raise ValueError(f"{name} has {', '.join(unknown)}; the resolver's method for it is not known here")
    image = golden_image(model.input_shape)
    output = micro_outputs(content, image[None])[0]
    exported = MicroExport(
        folder=folder,
        name=name,
        model_bytes=len(content),
        arena_bytes=arena_bytes(content),
        operators=tuple(RESOLVED[name] for name in operators),
        lsb_to_litert=_distance(output, model.predict_reference(image[None])[0]),
        lsb_to_xnnpack=_distance(output, model.predict_quantized(image[None])[0]),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        new = Path(aside) / "sources"
        new.mkdir()
        for file, text in _sources(exported, content, model, labels, image, output).items():
            (new / file).write_text(text, encoding="utf-8")
        shutil.move(new, folder)
    return exported


def golden_image(shape: tuple[int, int, int]) -> np.ndarray:
    """A synthetic uint8 image (height, width, channels) of waves and noise: the same for everybody."""
    height, width, channels = shape
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    waves = 96 * np.sin(x / 3 + c) * np.cos(y / 5 - c)
    noise = np.random.default_rng(GOLDEN_SEED).integers(-32, 33, shape)
    return np.clip(128 + waves + noise, 0, 255).astype(np.uint8)


def _distance(a, b) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def _sources(exported, content, model, labels, image, output) -> dict[str, str]:
    scale, zero_point = model.output_quantization
    values = {
        "NAME": exported.name,
        "MODEL_BYTES": str(len(content)),
        "ARENA_BYTES": str(exported.arena_bytes),
        "IMAGE_BYTES": str(image.size),
        "SHAPE": " x ".join(map(str, image.shape)),
        "CLASSES": str(model.num_classes),
        "SCALE": repr(float(scale)),
        "ZERO_POINT": str(zero_point),
        "OPERATORS": str(len(exported.operators)),
        "ADD": "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{method}());" for method in exported.operators),
        "LABELS": ",\n".join(f"    {_c_string(label)}" for label in labels),
        "MODEL": _numbers(content),
        "INPUT": _numbers((image ^ 0x80).view(np.int8).ravel()),
        "OUTPUT": _numbers(output),
    }
    report = json.dumps(exported.row() | {"folder": exported.folder.name}, indent=2) + "\n"
    texts = {name: re.sub(r"@(\w+)@", lambda found: values[found[1]], text) for name, text in TEMPLATES.items()}
    return texts | {"model.json": report}


def _numbers(values) -> str:
    rows = (values[i : i + A_LINE] for i in range(0, len(values), A_LINE))
    return ",\n".join("    " + ", ".join(str(int(value)) for value in row) for row in rows)


def _c_string(text) -> str:
    # Octal escapes of UTF-8: a hexadecimal one would go on over the next letter.
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'
