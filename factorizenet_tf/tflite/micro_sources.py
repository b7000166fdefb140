"""The C++ sources that `micro_export` fills in: @NAME@ and its like are its numbers."""

from __future__ import annotations

__all__ = ["TEMPLATES"]

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

// Its structures have other members without it: such a program links with the library and then reads the wrong ones.
#ifndef TF_LITE_STATIC_MEMORY
#error "compile with -DTF_LITE_STATIC_MEMORY, as TensorFlow Lite Micro's library is"
#endif

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
