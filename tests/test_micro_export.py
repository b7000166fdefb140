import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf import micro_export
from factorizenet_tf.micro import arena_bytes, micro_outputs
from factorizenet_tf.micro_export import export_micro

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
COMPILE = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export_micro(run.folder, tmp_path_factory.mktemp("micro") / "sources")


def test_the_sources_are_written_and_described(exported, run):
    names = ["golden.cc", "golden.h", "main.cc", "model.cc", "model.h", "model.json", "operators.h"]
    assert sorted(path.name for path in exported.folder.iterdir()) == names
    assert [path.name for path in exported.folder.parent.iterdir()] == ["sources"]
    report = json.loads((exported.folder / "model.json").read_text())
    assert report == exported.row() | {"folder": "sources"}
    assert exported.name == f"{run.spec.name}-int8"
    assert exported.operators == ("AddConv2D", "AddFullyConnected", "AddMean")
    assert exported.arena_bytes == arena_bytes((run.folder / "model.tflite").read_bytes())
    assert exported.model_bytes < (run.folder / "model.tflite").stat().st_size  # its labels are strings of C++
    operators = (exported.folder / "operators.h").read_text()
    assert all(f"resolver.{method}()" in operators for method in exported.operators)
    assert "@" not in "".join(path.read_text() for path in exported.folder.glob("*.[hc]*"))


@needs_compiler
def test_the_arrays_compile_to_the_models_bytes_labels_and_golden_numbers(exported, run, digits, tmp_path):
    (tmp_path / "print.cc").write_text("""
#include <cstdio>
#include "golden.h"
using namespace factorizenet;
int main() {
  std::printf("%zu %zu %d %d %.9g\\n", kModelBytes, kArenaBytes, kClasses, kZeroPoint, kScale);
  std::printf("%d\\n", static_cast<int>(reinterpret_cast<std::uintptr_t>(kModel) % 16));
  for (auto label : kLabels) std::printf("%s,", label);
  std::printf("\\n");
  for (auto value : kGoldenInput) std::printf("%d ", value);
  std::printf("\\n");
  for (auto value : kGoldenOutput) std::printf("%d ", value);
  std::printf("\\n");
  for (auto value : kModel) std::printf("%02x", value);
}
""")
    sources = [exported.folder / "model.cc", exported.folder / "golden.cc", tmp_path / "print.cc"]
    subprocess.run([*COMPILE, "-I", exported.folder, *sources, "-o", tmp_path / "print"], check=True)
    lines = subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout.splitlines()
    model_bytes, arena, classes, zero_point, scale = lines[0].split()
    content = bytes.fromhex(lines[5])
    model = fnet.Int8Model(content)
    assert (int(model_bytes), int(arena), int(classes)) == (len(content), exported.arena_bytes, 10)
    assert (int(zero_point), pytest.approx(float(scale))) == model.output_quantization[::-1]
    assert lines[1] == "0"  # aligned
    assert lines[2].rstrip(",").split(",") == list(digits.class_names)
    golden = np.array(lines[3].split(), int) + 128
    image = golden.astype(np.uint8).reshape(1, *model.input_shape)
    assert image.std() > 30
    output = np.array(lines[4].split(), int)
    np.testing.assert_array_equal(micro_outputs(content, image)[0], output)
    expected = run.int8_model().predict_quantized(digits.test.images)
    np.testing.assert_array_equal(model.predict_quantized(digits.test.images), expected)


@needs_compiler
@pytest.mark.skipif("TFLITE_MICRO" not in os.environ, reason="TFLITE_MICRO names no checkout of tflite-micro")
def test_the_example_compiles_against_tflite_micro(exported):
    root = os.environ["TFLITE_MICRO"]
    downloads = f"{root}/tensorflow/lite/micro/tools/make/downloads"
    includes = [f"-I{folder}" for folder in (root, f"{downloads}/flatbuffers/include", f"{downloads}/gemmlowp")]
    subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", *includes, "-I", exported.folder, exported.folder / "main.cc"],
        check=True,
    )


def test_the_recorded_arena_suffices_and_less_does_not(exported, run):
    from tflite_micro.python.tflite_micro import runtime

    content = (run.folder / "model.tflite").read_bytes()
    image = np.zeros((1, *run.spec.input_shape), np.int8)
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=exported.arena_bytes)
    interpreter.set_input(image, 0)
    interpreter.invoke()
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(content, arena_size=exported.arena_bytes - 16)


def distances(content, images):
    micro, model = micro_outputs(content, images).astype(int), fnet.Int8Model(content)
    return np.abs(micro - model.predict_reference(images)), np.abs(micro - model.predict_quantized(images))


def test_it_is_within_1_step_of_litert_and_of_the_same_class_as_xnnpack(run, digits):
    images = digits.test.images[:200]
    content = (run.folder / "model.tflite").read_bytes()
    reference, xnnpack = distances(content, images)
    assert reference.max() <= 1
    assert np.mean(reference == 0) > 0.98
    assert xnnpack.max() <= 3
    classes = [f(images).argmax(1) for f in (run.int8_model().predict_quantized, run.int8_model().predict_reference)]
    assert np.mean(classes[0] == classes[1]) >= 0.98


@pytest.mark.slow
def test_the_whole_family_is_within_1_step_of_litert_on_200_images(digits):
    images = digits.test.images[:200]
    for level in range(4):
        spec = fnet.ModelSpec(level, width=8, input_shape=(16, 16, 1), stages=((1, 2), (2, 2)))
        aware = fnet.quantize_aware(fnet.build(spec), calibration=digits.calibration(128))
        reference, _ = distances(fnet.to_tflite(aware), images)
        assert reference.max() <= 1, level


def test_labels_of_any_script_are_c_strings():
    assert micro_export._c_string("cat") == '"cat"'
    assert micro_export._c_string('a"b\\c?') == '"a\\042b\\134c\\077"'
    assert micro_export._c_string("é1") == '"\\303\\2511"'


def test_what_cannot_be_exported_is_refused(exported, run, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is there already"):
        export_micro(run.folder, exported.folder)
    with pytest.raises(ValueError, match="is a float model"):
        export_micro(run.folder / "float.h5", tmp_path / "new")
    monkeypatch.delitem(micro_export.RESOLVED, "MEAN")
    with pytest.raises(ValueError, match="has MEAN; the resolver's method for it is not known"):
        export_micro(run.folder, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
