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

from .export import int8_content, model_name
from .flatfile import read_flatbuffer, write_flatbuffer
from .int8 import Int8Model
from .lowering import check_lower, lower_fastest
from .micro import arena_bytes, micro_outputs

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
    source: str | os.PathLike, folder: str | os.PathLike, *, lower: str = "none", latencies=None
) -> MicroExport:
    """Write the C++ sources of a net: its array, its operators, its arena, a golden image, and a program that checks it.

    Args:
        source: a name of the zoo, a run's folder, a .tflite or a qat.h5.
        folder: new; written aside and renamed.
        lower, latencies: as for `to_tflite`; on a microcontroller's kernels more MACs are slower, so "none".

    Raises:
        FileNotFoundError, ValueError: as `export.int8_content`, or an operator that is not known here.
        FileExistsError: `folder` is there already.
        ModuleNotFoundError: tflite-micro is not installed.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another name or remove it")
    check_lower(lower, latencies)
    content = int8_content(source)
    if lower == "fastest":
        content = lower_fastest(content, latencies).content
    model = Int8Model(content)
    labels = model.labels or tuple(map(str, range(model.num_classes)))
    content = write_flatbuffer(read_flatbuffer(content))  # aligned, and without files behind it that cost flash
    operators = tuple(sorted(set(model.operators)))
    unknown = [name for name in operators if name not in RESOLVED]
    if unknown:
        raise ValueError(f"{source} has {', '.join(unknown)}; the resolver's method for it is not known here")
    image = golden_image(model.input_shape)
    output = micro_outputs(content, image[None])[0]
    exported = MicroExport(
        folder=folder,
        name=model_name(source),
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
        for name, text in _sources(exported, content, model, labels, image, output).items():
            (new / name).write_text(text, encoding="utf-8")
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


TEMPLATES = {
    "model.h": """\
// @NAME@, an int8 image classifier written by factorizenet_tf. Needs no header of TensorFlow Lite Micro.
#ifndef FACTORIZENET_MODEL_H_
#define FACTORIZENET_MODEL_H_

#include <cstddef>
#include <cstdint>

namespace factorizenet {

// @SHAPE@ (height, width, channels), int8: a pixel of 0..255 less 128.
constexpr std::size_t kImageBytes = @IMAGE_BYTES@;
constexpr int kClasses = @CLASSES@;
// A logit is kScale * (output - kZeroPoint); the largest output is the class.
constexpr float kScale = @SCALE@f;
constexpr int kZeroPoint = @ZERO_POINT@;
// Recorded by the interpreter in an x86-64 build; a 32-bit target takes less.
constexpr std::size_t kArenaBytes = @ARENA_BYTES@;
constexpr int kOperators = @OPERATORS@;

constexpr std::size_t kModelBytes = @MODEL_BYTES@;
extern const std::uint8_t kModel[kModelBytes];
extern const char* const kLabels[kClasses];

}  // namespace factorizenet

#endif  // FACTORIZENET_MODEL_H_
""",
    "model.cc": """\
#include "model.h"

namespace factorizenet {

alignas(16) const std::uint8_t kModel[kModelBytes] = {
@MODEL@};

const char* const kLabels[kClasses] = {
@LABELS@};

}  // namespace factorizenet
""",
    "golden.h": """\
// A synthetic image and what TensorFlow Lite Micro's reference kernels make of it.
#ifndef FACTORIZENET_GOLDEN_H_
#define FACTORIZENET_GOLDEN_H_

#include "model.h"

namespace factorizenet {

extern const std::int8_t kGoldenInput[kImageBytes];
extern const std::int8_t kGoldenOutput[kClasses];

}  // namespace factorizenet

#endif  // FACTORIZENET_GOLDEN_H_
""",
    "golden.cc": """\
#include "golden.h"

namespace factorizenet {

const std::int8_t kGoldenInput[kImageBytes] = {
@INPUT@};

const std::int8_t kGoldenOutput[kClasses] = {
@OUTPUT@};

}  // namespace factorizenet
""",
    "operators.h": """\
// The operators of @NAME@, registered one by one so that no other kernel is linked.
#ifndef FACTORIZENET_OPERATORS_H_
#define FACTORIZENET_OPERATORS_H_

#include "model.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace factorizenet {

using Resolver = tflite::MicroMutableOpResolver<kOperators>;

inline TfLiteStatus AddOperators(Resolver& resolver) {
@ADD@
  return kTfLiteOk;
}

}  // namespace factorizenet

#endif  // FACTORIZENET_OPERATORS_H_
""",
    "main.cc": """\
// Runs the golden image and compares: prints the class, returns 0 where every output is within 1 step.
// Optimized kernels (CMSIS-NN, ESP-NN) may round otherwise than the reference ones by that step.
#include <cstdlib>
#include <cstring>

#include "golden.h"
#include "model.h"
#include "operators.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

alignas(16) std::uint8_t arena[factorizenet::kArenaBytes];

}  // namespace

int main() {
  namespace fnet = factorizenet;
  tflite::InitializeTarget();
  const tflite::Model* model = tflite::GetModel(fnet::kModel);
  if (model->version() != TFLITE_SCHEMA_VERSION) {
    MicroPrintf("the model has schema %d, the library %d", static_cast<int>(model->version()), TFLITE_SCHEMA_VERSION);
    return 1;
  }
  static fnet::Resolver resolver;
  if (fnet::AddOperators(resolver) != kTfLiteOk) {
    return 1;
  }
  static tflite::MicroInterpreter interpreter(model, resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    MicroPrintf("an arena of %d bytes is too small", static_cast<int>(sizeof(arena)));
    return 1;
  }
  std::memcpy(interpreter.input(0)->data.int8, fnet::kGoldenInput, fnet::kImageBytes);
  if (interpreter.Invoke() != kTfLiteOk) {
    return 1;
  }
  const std::int8_t* output = interpreter.output(0)->data.int8;
  int best = 0;
  int farthest = 0;
  for (int i = 0; i < fnet::kClasses; ++i) {
    best = output[i] > output[best] ? i : best;
    const int distance = std::abs(output[i] - fnet::kGoldenOutput[i]);
    farthest = distance > farthest ? distance : farthest;
  }
  MicroPrintf("class %d (%s), %d steps from the golden output, %d bytes of arena used", best, fnet::kLabels[best],
              farthest, static_cast<int>(interpreter.arena_used_bytes()));
  return farthest <= 1 ? 0 : 1;
}
""",
}
