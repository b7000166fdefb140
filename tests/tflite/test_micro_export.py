import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator

import factorizenet_tf as fnet
from factorizenet_tf.tflite import micro_export
from factorizenet_tf.tflite.latency import int8_convolutions
from factorizenet_tf.tflite.micro import arena_bytes, micro_outputs
from factorizenet_tf.tflite.micro_export import c_identifier, export_micro, resolver_method

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C and C++ compiler here")
STRICT = ["-pedantic", "-Wall", "-Wextra", "-Werror"]
LANGUAGES = {"C99": ["gcc", "-std=c99", *STRICT], "C++17": ["g++", "-std=c++17", "-x", "c++", *STRICT]}
PRINT = """
#include <stdio.h>
#include "mine_1_golden.h"
#include "foreign_net_0_golden.h"
#define PRINT(format, count, value) for (i = 0; i < (count); ++i) printf(format, value); printf("\\n");
int main(void) {
  int i;
  printf("%d %d %d %.9g ", MINE_1_ARENA_BYTES, MINE_1_CLASSES, MINE_1_OUTPUT_ZERO_POINT, MINE_1_OUTPUT_SCALE);
  printf("%d\\n", (int)((uintptr_t)mine_1_model % 16));
  PRINT("%s ", MINE_1_CLASSES, mine_1_labels[i])
  PRINT("%d ", MINE_1_IMAGE_BYTES, mine_1_golden_input[i])
  PRINT("%d ", MINE_1_CLASSES, mine_1_golden_output[i])
  PRINT("%02x", MINE_1_MODEL_BYTES, mine_1_model[i])
  printf("%d %.9g\\n", FOREIGN_NET_0_INPUT_ZERO_POINT, FOREIGN_NET_0_INPUT_SCALE);
  PRINT("%d ", 256, mine_1_quantize((uint8_t)i))
  PRINT("%d ", 256, foreign_net_0_quantize((uint8_t)i))
  return 0;
}
"""


pytestmark = pytest.mark.filterwarnings("ignore:the input of .* stands for:RuntimeWarning")  # that of `foreign`


@pytest.fixture(scope="module")
def exported(content, foreign, tmp_path_factory):
    """The fields and the folder of the run's net, and the folder of a file of others, whose input's scale is 4/255."""
    folder = tmp_path_factory.mktemp("micro")
    fields = export_micro(content, folder / "sources", name="mine-1")
    assert [path.name for path in folder.iterdir()] == ["sources"]
    export_micro(foreign[1], folder / "foreign", name="foreign net (0)")
    return fields, folder / "sources", folder / "foreign"


def array(folder, pattern):
    """The numbers of the one array of a folder's C sources that a pattern names."""
    texts = (path.read_text() for path in folder.glob("*.c"))
    (found,) = (match for text in texts for match in re.findall(rf"{pattern}\[.*?= {{(.*?)}}", text, re.S))
    return np.array(found.split(","), int)


def test_the_sources_are_written_and_described(exported, content):
    fields, folder, _ = exported
    sources = ["golden.c", "golden.h", "model.c", "model.h", "operators.h"]
    names = ["README.md", "main.cc", *(f"mine_1_{name}" for name in sources), "model.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert json.loads((folder / "model.json").read_text()) == fields
    assert fields["operators"] == ["AddConv2D", "AddFullyConnected", "AddMean"]
    assert fields["arena_bytes"] == fields["reference_arena_bytes"] == arena_bytes(content)
    assert fields["model_bytes"] < len(content)  # its labels are strings of C
    operators = (folder / "mine_1_operators.h").read_text()
    assert all(f"resolver.{method}()" in operators for method in fields["operators"])
    assert "namespace mine_1 {" in operators
    assert "@" not in "".join(path.read_text() for path in folder.iterdir())
    for text in ((folder / name).read_text() for name in ("README.md", "mine_1_model.h")):
        assert "recorded with TensorFlow Lite Micro's reference kernels" in " ".join(text.split())


@needs_compiler
@pytest.mark.parametrize("language", LANGUAGES)
def test_two_exports_in_one_program_are_the_models_bytes_labels_and_golden_numbers(
    language, exported, foreign, models, digits, tmp_path
):
    fields, *folders = exported
    (tmp_path / "print.c").write_text(PRINT)
    sources = [tmp_path / "print.c", *(file for folder in folders for file in folder.glob("*.c"))]
    includes = [f"-I{folder}" for folder in folders]
    subprocess.run([*LANGUAGES[language], *includes, *sources, "-o", tmp_path / "print"], check=True)
    output = subprocess.run([tmp_path / "print"], check=True, capture_output=True, text=True).stdout
    numbers, labels, golden, outputs, net, others, *steps = (line.split() for line in output.splitlines())
    content = bytes.fromhex(net[0])
    model = fnet.Int8Model(content)
    assert (len(content), *map(int, numbers[:2])) == (fields["model_bytes"], fields["arena_bytes"], 10)
    assert (pytest.approx(float(numbers[3])), int(numbers[2])) == model.output_quantization
    assert numbers[4] == "0"  # aligned
    assert tuple(labels) == digits.class_names
    image = (np.array(golden, int) + 128).astype(np.uint8).reshape(1, *model.input_shape)
    assert image.std() > 30
    np.testing.assert_array_equal(micro_outputs(content, image)[0], np.array(outputs, int))
    images = digits.test.images[:50]
    np.testing.assert_array_equal(model.predict_quantized(images), models.int8.predict_quantized(images))
    # Pixels become inputs by each file's own scale and zero point.
    own, foreign_steps = np.array(steps, int)
    np.testing.assert_array_equal(own, np.arange(-128, 128))
    scale, zero_point = fnet.Int8Model(foreign[1]).input_quantization
    assert (int(others[0]), pytest.approx(float(others[1]))) == (zero_point, scale)
    np.testing.assert_array_equal(foreign_steps, np.round(np.arange(256) / 255 / scale) + zero_point)
    values = scale * (array(folders[1], "golden_input") - zero_point)  # and so do the golden image's
    assert 0 <= values.min() <= values.max() <= 1 + scale


@pytest.mark.parametrize(("kernels", "groups"), [("cmsis-nn", {1, 2}), ("esp-nn", {1})])
def test_for_other_kernels_the_arena_is_theirs_and_esp_nn_gets_no_groups(
    kernels, groups, content, run, noise, tmp_path, prints_json
):
    (row,) = prints_json("export", run.folder, "--micro", tmp_path / "out", "--kernels", kernels)
    fields = json.loads((tmp_path / "out" / "model.json").read_text())
    assert row["arena_bytes"] == max(fields["arenas"].values()) > row["reference_arena_bytes"]
    header = next((tmp_path / "out").glob("*_model.h")).read_text()
    assert f"_ARENA_BYTES {row['arena_bytes']}\n" in header
    assert "computed, not measured" in header
    written = bytes(array(tmp_path / "out", "_model").tolist())
    assert {found for _, _, found in int8_convolutions(written)} == groups
    np.testing.assert_array_equal(micro_outputs(written, noise(20)), micro_outputs(content, noise(20)))


def test_names_become_identifiers_and_methods_of_the_resolver_and_labels_strings():
    names = {
        "fnet-l1.2.4-x2-int8": "fnet_l1_2_4_x2_int8",
        "fnet-l2-int8@1": "fnet_l2_int8_1",
        "2nd": "net_2nd",
        "class": "net_class",
        "čeština_7": "e_tina_7",
        "日本": "net_",
    }
    assert {name: c_identifier(name) for name in names} == names
    methods = {"MAX_POOL_2D": "AddMaxPool2D", "PADV2": "AddPadV2", "HARD_SWISH": "AddHardSwish", "CUMSUM": "AddCumSum"}
    assert {operator: resolver_method(operator) for operator in methods} == methods
    assert micro_export._c_string('a"b\\c?é1') == '"a\\042b\\134c\\077\\303\\2511"'


@needs_compiler
@pytest.mark.skipif("TFLITE_MICRO" not in os.environ, reason="TFLITE_MICRO names no checkout with its library built")
def test_the_example_runs_on_tflite_micros_library_and_gives_the_golden_output(exported, digits, tmp_path):
    root = Path(os.environ["TFLITE_MICRO"])
    header = (root / "tensorflow" / "lite" / "micro" / "micro_mutable_op_resolver.h").read_text()
    operators = set(re.findall(r"BuiltinOperator_(\w+)", header)) & set(vars(BuiltinOperator)) - {"CUSTOM"}
    assert [name for name in operators if f"TfLiteStatus {resolver_method(name)}(" not in header] == []
    downloads = root / "tensorflow" / "lite" / "micro" / "tools" / "make" / "downloads"
    folders = (root, downloads / "flatbuffers" / "include", downloads / "gemmlowp")
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions"]
    strict += [f"-isystem{folder}" for folder in folders]
    (library,) = root.glob("gen/*/lib/libtensorflow-microlite.a")  # its Makefile's target microlite
    fields, sources = exported[0], tmp_path / "sources"
    shutil.copytree(exported[1], sources)

    def run_example(*flags):
        command = ["g++", *strict, *flags, *sources.glob("*.cc"), *sources.glob("*.c"), library, "-o", tmp_path / "run"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            return built.returncode, built.stderr
        ran = subprocess.run([tmp_path / "run"], capture_output=True, text=True)
        return ran.returncode, ran.stdout + ran.stderr

    # Without it the structures differ from the library's, and the program would link and go wrong.
    assert "compile with -DTF_LITE_STATIC_MEMORY" in run_example()[1]
    code, said = run_example("-DTF_LITE_STATIC_MEMORY")
    assert code == 0, said
    best = array(sources, "golden_output").argmax()
    assert f"class {best} ({digits.class_names[best]}), 0 steps from the golden" in said
    used = int(re.search(r"(\d+) bytes of arena used", said)[1])
    assert used <= fields["arena_bytes"]
    model = sources / "mine_1_model.h"
    model.write_text(re.sub(r"ARENA_BYTES \d+", f"ARENA_BYTES {used - 1024}", model.read_text()))
    code, said = run_example("-DTF_LITE_STATIC_MEMORY")
    assert (code, "is too small" in said) == (1, True)


def test_what_cannot_be_exported_is_refused(exported, content, run, tmp_path, fails):
    with pytest.raises(FileExistsError, match="is there already"):
        export_micro(content, exported[1], name="net")
    for options, message in (
        (["--kernels", "esp-nn"], "without --micro FOLDER no sources are written, so --kernels would have no effect"),
        (["--micro", tmp_path / "new", "--kernels", "arm"], "kernels is 'arm'; it must be one of reference, cmsis-nn"),
    ):
        assert message in fails("export", run.folder, "--tflite", tmp_path / "net.tflite", *options)
    assert list(tmp_path.iterdir()) == []
