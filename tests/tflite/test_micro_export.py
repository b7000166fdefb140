import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.tflite import micro_export
from factorizenet_tf.tflite.latency import int8_convolutions
from factorizenet_tf.tflite.micro import arena_bytes, micro_outputs
from factorizenet_tf.tflite.micro_export import c_identifier, export_micro, resolver_method
from factorizenet_tf.tflite.micro_kernels import estimate_arenas, without_groups

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C and C++ compiler here")
STRICT = ["-pedantic", "-Wall", "-Wextra", "-Werror"]
LANGUAGES = {"C99": ["gcc", "-std=c99", *STRICT], "C++17": ["g++", "-std=c++17", "-x", "c++", *STRICT]}
PRINT = """
#include <stdio.h>
#include "mine_1_golden.h"
#include "OTHER_golden.h"
int main(void) {
  int i;
  printf("%d %d %d %d %.9g\\n", MINE_1_MODEL_BYTES, MINE_1_ARENA_BYTES, MINE_1_CLASSES, MINE_1_OUTPUT_ZERO_POINT,
         MINE_1_OUTPUT_SCALE);
  printf("%d\\n", (int)((uintptr_t)mine_1_model % 16));
  for (i = 0; i < MINE_1_CLASSES; ++i) printf("%s,", mine_1_labels[i]);
  printf("\\n");
  for (i = 0; i < MINE_1_IMAGE_BYTES; ++i) printf("%d ", mine_1_golden_input[i]);
  printf("\\n");
  for (i = 0; i < MINE_1_CLASSES; ++i) printf("%d ", mine_1_golden_output[i]);
  printf("\\n");
  for (i = 0; i < MINE_1_MODEL_BYTES; ++i) printf("%02x", mine_1_model[i]);
  printf("\\n%d %.9g\\n", OTHER_UPPER_INPUT_ZERO_POINT, OTHER_UPPER_INPUT_SCALE);
  for (i = 0; i < 256; ++i) printf("%d ", mine_1_quantize((uint8_t)i));
  printf("\\n");
  for (i = 0; i < 256; ++i) printf("%d ", OTHER_quantize((uint8_t)i));
  printf("\\n");
  return 0;
}
""".replace("OTHER_UPPER", "FOREIGN_NET_0").replace("OTHER", "foreign_net_0")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    content = (run.folder / "model.tflite").read_bytes()
    return export_micro(content, tmp_path_factory.mktemp("micro") / "sources", name="mine-1")


@pytest.fixture(scope="module")
def exported_foreign(foreign, tmp_path_factory):
    """Of a file of others: its input's scale is 4/255."""
    return export_micro(foreign[1], tmp_path_factory.mktemp("foreign") / "sources", name="foreign net (0)")


def test_the_sources_are_written_and_described(exported, run):
    sources = ["golden.c", "golden.h", "model.c", "model.h", "operators.h"]
    names = ["README.md", "main.cc", *(f"mine_1_{name}" for name in sources), "model.json"]
    assert sorted(path.name for path in exported.folder.iterdir()) == sorted(names)
    assert [path.name for path in exported.folder.parent.iterdir()] == ["sources"]
    report = json.loads((exported.folder / "model.json").read_text())
    row = exported.row()
    assert {key: report[key] for key in ("name", "kernels", "model_bytes", "arena_bytes", "lsb_to_xnnpack")} == {
        key: row[key] for key in ("name", "kernels", "model_bytes", "arena_bytes", "lsb_to_xnnpack")
    }
    assert exported.operators == ("AddConv2D", "AddFullyConnected", "AddMean")
    content = (run.folder / "model.tflite").read_bytes()
    assert exported.arena_bytes == exported.reference_arena_bytes == arena_bytes(content)
    assert exported.model_bytes < len(content)  # its labels are strings of C
    operators = (exported.folder / "mine_1_operators.h").read_text()
    assert all(f"resolver.{method}()" in operators for method in exported.operators)
    assert "namespace mine_1 {" in operators
    assert "@" not in "".join(path.read_text() for path in exported.folder.iterdir())
    for text in ((exported.folder / name).read_text() for name in ("README.md", "mine_1_model.h")):
        assert "recorded with TensorFlow Lite Micro's reference kernels" in " ".join(text.split())


@needs_compiler
@pytest.mark.parametrize("language", LANGUAGES)
def test_two_exports_in_one_program_are_the_models_bytes_labels_and_golden_numbers(
    language, exported, exported_foreign, foreign, run, digits, tmp_path
):
    (tmp_path / "print.c").write_text(PRINT)
    folders = exported.folder, exported_foreign.folder
    sources = [tmp_path / "print.c", *(file for folder in folders for file in folder.glob("*.c"))]
    includes = [f"-I{folder}" for folder in folders]
    subprocess.run([*LANGUAGES[language], *includes, *sources, "-o", tmp_path / "print"], check=True)
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
    np.testing.assert_array_equal(micro_outputs(content, image)[0], np.array(lines[4].split(), int))
    expected = run.int8_model().predict_quantized(digits.test.images)
    np.testing.assert_array_equal(model.predict_quantized(digits.test.images), expected)
    # Pixels become inputs by each file's own scale and zero point.
    np.testing.assert_array_equal(np.array(lines[7].split(), int), np.arange(-128, 128))
    scale, zero_point = fnet.Int8Model(foreign[1]).input_quantization
    assert (int(lines[6].split()[0]), pytest.approx(float(lines[6].split()[1]))) == (zero_point, scale)
    steps = np.array(lines[8].split(), int)
    np.testing.assert_array_equal(steps, np.round(np.arange(256) / 255 / scale) + zero_point)
    assert (steps[0], steps[255]) == (zero_point, zero_point + 64)  # 1 of a range of 4


def test_a_golden_image_is_quantized_by_the_files_own_scale(exported_foreign, foreign):
    text = (exported_foreign.folder / "foreign_net_0_golden.c").read_text()
    inputs = np.array(re.search(r"golden_input.*?{(.*?)}", text, re.S)[1].split(","), int)
    scale, zero_point = fnet.Int8Model(foreign[1]).input_quantization
    assert 0 <= (scale * (inputs - zero_point)).min() <= (scale * (inputs - zero_point)).max() <= 1 + scale
    assert exported_foreign.lsb_to_litert <= 1


@pytest.mark.parametrize("kernels", ["cmsis-nn", "esp-nn"])
def test_for_other_kernels_the_arena_is_theirs_and_esp_nn_gets_no_groups(kernels, run, tmp_path, capsys):
    content = (run.folder / "model.tflite").read_bytes()
    assert main(["export", str(run.folder), "--micro", str(tmp_path / "out"), "--kernels", kernels, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    expected = estimate_arenas(without_groups(content) if kernels == "esp-nn" else content, kernels)
    report = json.loads((tmp_path / "out" / "model.json").read_text())
    assert report["arenas"] == expected
    assert row["arena_bytes"] == max(report["arenas"].values()) > row["reference_arena_bytes"]
    header = next((tmp_path / "out").glob("*_model.h")).read_text()
    assert f"_ARENA_BYTES {row['arena_bytes']}\n" in header
    assert "computed, not measured" in header
    array = re.search(r"_model\[.*?= {(.*?)}", next((tmp_path / "out").glob("*_model.c")).read_text(), re.S)[1]
    written = bytes(map(int, array.split(",")))
    groups = {groups for _, _, groups in int8_convolutions(written)}
    assert groups == ({1} if kernels == "esp-nn" else {1, 2})


def test_a_name_becomes_an_identifier():
    names = {
        "fnet-l1.2.4-x2-int8": "fnet_l1_2_4_x2_int8",
        "fnet-l2-int8@1": "fnet_l2_int8_1",
        "2nd": "net_2nd",
        "class": "net_class",
        "čeština_7": "e_tina_7",
        "日本": "net_",
    }
    assert {name: c_identifier(name) for name in names} == names


@needs_compiler
@pytest.mark.skipif("TFLITE_MICRO" not in os.environ, reason="TFLITE_MICRO names no checkout with its library built")
def test_the_example_runs_on_tflite_micros_library_and_gives_the_golden_output(exported, digits, tmp_path):
    root = Path(os.environ["TFLITE_MICRO"])
    header = (root / "tensorflow" / "lite" / "micro" / "micro_mutable_op_resolver.h").read_text()
    methods = map(resolver_method, micro_export.OPERATORS)
    assert [method for method in methods if f"TfLiteStatus {method}(" not in header] == []
    downloads = root / "tensorflow" / "lite" / "micro" / "tools" / "make" / "downloads"
    folders = (root, downloads / "flatbuffers" / "include", downloads / "gemmlowp")
    strict = [
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fno-exceptions",
        *(f"-isystem{folder}" for folder in folders),
    ]
    (library,) = root.glob("gen/*/lib/libtensorflow-microlite.a")  # its Makefile's target microlite
    sources = tmp_path / "sources"
    shutil.copytree(exported.folder, sources)

    def run_example(*flags):
        files = (*sources.glob("*.cc"), *sources.glob("*.c"))
        built = subprocess.run(
            ["g++", *strict, *flags, *files, library, "-o", tmp_path / "run"], capture_output=True, text=True
        )
        if built.returncode:
            return built.returncode, built.stderr
        ran = subprocess.run([tmp_path / "run"], capture_output=True, text=True)
        return ran.returncode, ran.stdout + ran.stderr

    # Without it the structures differ from the library's, and the program would link and go wrong.
    assert "compile with -DTF_LITE_STATIC_MEMORY" in run_example()[1]
    code, said = run_example("-DTF_LITE_STATIC_MEMORY")
    assert code == 0, said
    text = (sources / "mine_1_golden.c").read_text()
    best = np.argmax([int(n) for n in re.search(r"golden_output.*?{(.*?)}", text, re.S)[1].split(",")])
    assert f"class {best} ({digits.class_names[best]}), 0 steps from the golden" in said
    used = int(re.search(r"(\d+) bytes of arena used", said)[1])
    assert used <= exported.arena_bytes
    model = (sources / "mine_1_model.h").read_text()
    (sources / "mine_1_model.h").write_text(re.sub(r"ARENA_BYTES \d+", f"ARENA_BYTES {used - 1024}", model))
    code, said = run_example("-DTF_LITE_STATIC_MEMORY")
    assert code == 1
    assert "is too small" in said


def test_the_recorded_arena_suffices_and_less_does_not(exported, run):
    from tflite_micro.python.tflite_micro import runtime

    content = (run.folder / "model.tflite").read_bytes()
    image = np.zeros((1, *run.spec.input_shape), np.int8)
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=exported.arena_bytes)
    interpreter.set_input(image, 0)
    interpreter.invoke()
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(content, arena_size=exported.arena_bytes - 16)


def test_labels_of_any_script_are_c_strings():
    assert micro_export._c_string("cat") == '"cat"'
    assert micro_export._c_string('a"b\\c?') == '"a\\042b\\134c\\077"'
    assert micro_export._c_string("é1") == '"\\303\\2511"'


def test_what_cannot_be_exported_is_refused(exported, run, tmp_path, monkeypatch, capsys):
    content = (run.folder / "model.tflite").read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        export_micro(content, exported.folder, name="net")
    with pytest.raises(ValueError, match="kernels is 'arm'; it must be one of reference, cmsis-nn, esp-nn"):
        export_micro(content, tmp_path / "new", name="net", kernels="arm")
    file = str(tmp_path / "net.tflite")
    for arguments, message in (
        (["--tflite", file, "--kernels", "esp-nn"], "--kernels is of the sources for a microcontroller"),
        (["--tflite", file, "--micro", str(tmp_path / "new"), "--kernels", "arm"], "kernels is 'arm'"),
    ):
        assert main(["export", str(run.folder), *arguments]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(micro_export, "OPERATORS", micro_export.OPERATORS - {"MEAN"})
    with pytest.raises(ValueError, match="has MEAN; the resolver's method for it is not known"):
        export_micro(content, tmp_path / "new", name="net")
    assert list(tmp_path.iterdir()) == []
