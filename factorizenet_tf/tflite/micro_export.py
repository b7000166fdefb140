"""Write an int8 net as C and C++ sources for TensorFlow Lite for Microcontrollers, with a golden image to check it by."""

import json
import os
import re
import textwrap
from importlib import resources

import numpy as np

from ..files import atomic_folder, check_new
from .flatbuffer import read_flatbuffer, write_flatbuffer
from .int8_model import Int8Model, quantize_pixels
from .latency import int8_convolutions
from .micro import arena_bytes, micro_outputs
from .micro_kernels import LIBRARIES, check_kernels, estimate_arenas
from .regroup import with_groups
from .slim import slim

__all__ = ["export_micro"]

# Exceptions to the rule of `resolver_method`, among the 100 operators of tflite-micro 90b983c.
METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
NUMBERS_A_LINE = 16


def export_micro(content: bytes, folder: str | os.PathLike, *, name: str, kernels: str = "reference") -> dict:
    """Write the sources of a net: its array, its operators, its arena, a golden image, and a program that checks them.

    Args:
        content: the bytes of an int8 .tflite.
        folder: the new folder, whole or absent.
        name: of the net, in the sources.
        kernels: "reference", "cmsis-nn" or "esp-nn", for which the arena is sized. For esp-nn, which takes no grouped
            convolutions, these are written as dense ones with the same outputs.

    Returns:
        The content of the folder's model.json, with

        * name, kernels, and identifier, the C identifier with which files and symbols begin;
        * model_bytes: flash of the array;
        * arena_bytes: RAM with these kernels, on the processor on which they need most; arenas: the same by processor,
          empty for the reference kernels; reference_arena_bytes: recorded in tflite-micro's x86-64 build; arena: the kernels
          and the build that arena_bytes holds for;
        * operators: the resolver's methods;
        * lsb_to_litert, lsb_to_xnnpack: the golden output's largest distance, in steps of the output, from LiteRT's reference
          kernels, and from XNNPACK, which rounds differently at each layer.

    Raises:
        ValueError: the bytes are damaged, tflite-micro cannot run them, or the kernels are others.
        FileExistsError: `folder` is there already.
        ModuleNotFoundError: tflite-micro is not installed.
    """
    check_kernels(kernels)
    check_new(folder)
    model = Int8Model(content)
    labels = model.labels or tuple(map(str, range(model.num_classes)))
    if kernels == "esp-nn":  # its wrapper stops at groups in a debug build, and reads too few channels in another
        content = with_groups(content, [1] * len(int8_convolutions(content)))
    # Without names, and files behind it, that cost flash.
    content = write_flatbuffer(read_flatbuffer(slim(content)))
    arenas, recorded = estimate_arenas(content, kernels), arena_bytes(content)
    image = golden_image(model.input_shape)
    output = micro_outputs(content, image[None])[0]
    fields = {
        "name": name,
        "identifier": c_identifier(name),
        "kernels": kernels,
        "model_bytes": len(content),
        "arena_bytes": max(arenas.values(), default=recorded),
        "reference_arena_bytes": recorded,
        "arenas": arenas,
        "operators": [resolver_method(operator) for operator in sorted(set(model.operators))],
        "lsb_to_litert": _distance(output, model.predict_reference(image[None])[0]),
        "lsb_to_xnnpack": _distance(output, model.predict_quantized(image[None])[0]),
        "arena": "Arena: recorded with TensorFlow Lite Micro's reference kernels in an x86-64 build. CMSIS-NN and ESP-NN "
        "need more: export with --kernels.",
    }
    if arenas:
        fields["arena"] = (
            f"Arena: computed, not measured: an upper bound for {LIBRARIES[kernels]}, from the {recorded} bytes recorded with "
            "the reference kernels in an x86-64 build and the published sizes of scratch buffers."
        )
    with atomic_folder(folder) as new:
        (new / "model.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        for file, text in _sources(fields, content, model, labels, image, output).items():
            (new / file).write_text(text, encoding="utf-8")
    return fields


def golden_image(shape: tuple[int, int, int]) -> np.ndarray:
    """Make a synthetic uint8 image (height, width, channels) of waves and noise, the same at each call."""
    height, width, channels = shape
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    waves = 96 * np.sin(x / 3 + c) * np.cos(y / 5 - c)
    noise = np.random.default_rng(0).integers(-32, 33, shape)
    return np.clip(128 + waves + noise, 0, 255).astype(np.uint8)


def c_identifier(name: str) -> str:
    """Turn a name into an identifier of C and C++: "fnet-l1.2.4-int8" into "fnet_l1_2_4_int8"."""
    identifier = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    # A plain word may be a keyword of theirs.
    return identifier if re.match(r"[A-Za-z].*[0-9_]", identifier) else f"net_{identifier}"


def resolver_method(operator: str) -> str:
    """Name the method of MicroMutableOpResolver that registers an operator: "CONV_2D" is "AddConv2D"."""
    words = "".join(word.capitalize() for word in operator.split("_"))
    return METHODS.get(operator, "Add" + re.sub(r"2d$|v2$", lambda end: end[0].upper(), words))


def _distance(a, b) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def _sources(fields, content, model, labels, image, output) -> dict[str, str]:
    (input_scale, input_zero), (output_scale, output_zero) = model.input_quantization, model.output_quantization
    steps = quantize_pixels(np.arange(256, dtype=np.uint8), model.input_quantization)
    quantize = f"  static const int8_t steps[256] = {{\n{_numbers(steps)}}};\n  return steps[pixel];"
    if (steps == np.arange(-128, 128)).all():
        quantize = "  return (int8_t)((int)pixel - 128);"
    values = {key.upper(): value for key, value in fields.items()} | {
        "ID": fields["identifier"],
        "GUARD": fields["identifier"].upper(),
        "ARENA_NOTE": textwrap.fill(fields["arena"], 110),
        "ARENAS": "\n".join(f"* {processor}: {size} bytes" for processor, size in fields["arenas"].items()),
        "IMAGE_BYTES": image.size,
        "SHAPE": " x ".join(map(str, image.shape)),
        "QUANTIZE": quantize,
        "INPUT_SCALE": float(input_scale),
        "INPUT_ZERO_POINT": input_zero,
        "CLASSES": model.num_classes,
        "OUTPUT_SCALE": float(output_scale),
        "OUTPUT_ZERO_POINT": output_zero,
        "OPERATORS": len(fields["operators"]),
        "ADD": "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{method}());" for method in fields["operators"]),
        "LABELS": ",\n".join(f"    {_c_string(label)}" for label in labels),
        "MODEL": _numbers(content),
        "INPUT": _numbers(quantize_pixels(image, model.input_quantization).ravel()),
        "OUTPUT": _numbers(output),
    }
    texts = {}
    for template in (resources.files(__package__) / "micro_templates").iterdir():
        file = template.name.removesuffix(".in")
        if file not in ("main.cc", "README.md"):
            file = f"{fields['identifier']}_{file}"
        text = template.read_text(encoding="utf-8")
        texts[file] = re.sub(r"@(\w+)@", lambda key: str(values[key[1]]), text).rstrip("\n") + "\n"
    return texts


def _numbers(values) -> str:
    rows = (values[i : i + NUMBERS_A_LINE] for i in range(0, len(values), NUMBERS_A_LINE))
    return ",\n".join("    " + ", ".join(str(int(value)) for value in row) for row in rows)


def _c_string(text) -> str:
    # Octal escapes of UTF-8: a hexadecimal one would go on over the next letter.
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'
