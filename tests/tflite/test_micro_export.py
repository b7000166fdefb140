import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.benchmarks.micro import KERNELS, kernel_distances
from factorizenet_tf.tflite import micro_export
from factorizenet_tf.tflite.micro import arena_bytes, micro_outputs
from factorizenet_tf.tflite.micro_export import export_micro

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
COMPILE = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    content = (run.folder / "model.tflite").read_bytes()
    return export_micro(content, tmp_path_factory.mktemp("micro") / "sources", name=f"{run.spec.name}-int8")


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


@pytest.fixture(scope="module")
def checkout():
    """A checkout of tflite-micro, and the flags of a program that is compiled within it."""
    if "TFLITE_MICRO" not in os.environ:
        pytest.skip("TFLITE_MICRO names no checkout of tflite-micro")
    root = Path(os.environ["TFLITE_MICRO"])
    downloads = root / "tensorflow" / "lite" / "micro" / "tools" / "make" / "downloads"
    folders = (root, downloads / "flatbuffers" / "include", downloads / "gemmlowp")
    return root, ["g++", "-std=c++17", "-DTF_LITE_STATIC_MEMORY", *(f"-isystem{folder}" for folder in folders)]


@needs_compiler
def test_the_example_compiles_against_tflite_micro(exported, checkout):
    _, compiler = checkout
    warnings = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    command = [*compiler, *warnings, "-I", exported.folder, exported.folder / "main.cc"]
    subprocess.run(command, check=True)
    # Without it the structures differ from the library's, and the program would link and go wrong.
    unlike = [word for word in command if word != "-DTF_LITE_STATIC_MEMORY"]
    refused = subprocess.run(unlike, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "compile with -DTF_LITE_STATIC_MEMORY" in refused.stderr


def test_every_method_of_the_resolver_is_one_of_tflite_micros(checkout):
    header = (checkout[0] / "tensorflow" / "lite" / "micro" / "micro_mutable_op_resolver.h").read_text()
    assert [method for method in micro_export.RESOLVED.values() if f"TfLiteStatus {method}(" not in header] == []


@needs_compiler
def test_the_example_runs_on_tflite_micros_library_and_gives_the_golden_output(exported, checkout, digits, tmp_path):
    root, compiler = checkout
    libraries = sorted(root.glob("gen/*/lib/libtensorflow-microlite.a"))
    if not libraries:
        pytest.skip("the checkout has no gen/*/lib/libtensorflow-microlite.a; its Makefile's target microlite makes it")
    sources = tmp_path / "sources"
    shutil.copytree(exported.folder, sources)

    def run_example():
        program = tmp_path / "example"
        subprocess.run([*compiler, *sources.glob("*.cc"), libraries[0], "-o", program], check=True)
        return subprocess.run([program], capture_output=True, text=True)

    ran = run_example()
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    output = [
        int(n) for n in re.findall(r"kGoldenOutput.*?{(.*?)}", (sources / "golden.cc").read_text(), re.S)[0].split(",")
    ]
    assert f"class {np.argmax(output)} ({digits.class_names[np.argmax(output)]}), 0 steps from the golden" in said
    used = int(re.search(r"(\d+) bytes of arena used", said)[1])
    assert used <= exported.arena_bytes

    model = (sources / "model.h").read_text()
    (sources / "model.h").write_text(re.sub(r"kArenaBytes = \d+", f"kArenaBytes = {used - 1024}", model))
    short = run_example()
    assert short.returncode == 1
    assert "is too small" in short.stdout + short.stderr


def test_the_recorded_arena_suffices_and_less_does_not(exported, run):
    from tflite_micro.python.tflite_micro import runtime

    content = (run.folder / "model.tflite").read_bytes()
    image = np.zeros((1, *run.spec.input_shape), np.int8)
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=exported.arena_bytes)
    interpreter.set_input(image, 0)
    interpreter.invoke()
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(content, arena_size=exported.arena_bytes - 16)


def test_it_is_within_1_step_of_litert_and_of_the_same_class_as_xnnpack(run, digits):
    content = (run.folder / "model.tflite").read_bytes()
    reference, xnnpack = kernel_distances(content, digits.test.images[:200])
    assert (reference.kernels, xnnpack.kernels, reference.images) == (*KERNELS, 200)
    assert reference.largest <= 1
    assert reference.equal > 0.98
    assert xnnpack.largest <= 3
    assert min(reference.same_class, xnnpack.same_class) >= 0.98


def test_labels_of_any_script_are_c_strings():
    assert micro_export._c_string("cat") == '"cat"'
    assert micro_export._c_string('a"b\\c?') == '"a\\042b\\134c\\077"'
    assert micro_export._c_string("é1") == '"\\303\\2511"'


def test_what_cannot_be_exported_is_refused(exported, run, tmp_path, monkeypatch):
    content = (run.folder / "model.tflite").read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        export_micro(content, exported.folder, name="net")
    monkeypatch.delitem(micro_export.RESOLVED, "MEAN")
    with pytest.raises(ValueError, match="has MEAN; the resolver's method for it is not known"):
        export_micro(content, tmp_path / "new", name="net")
    assert list(tmp_path.iterdir()) == []
