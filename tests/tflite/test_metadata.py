import io
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.tflite import flatbuffer as flatfile
from factorizenet_tf.tflite.export import export_tflite
from factorizenet_tf.tflite.io_types import with_io
from factorizenet_tf.tflite.metadata import METADATA_NAME, with_metadata
from factorizenet_tf.tflite.micro import micro_outputs

DOCS = Path(__file__).parents[2] / "docs"


class Table(flatbuffers.table.Table):
    """A reader of its own: fields by their number in the schema."""

    def place(self, field):
        offset = self.Offset(4 + 2 * field)
        return None if offset == 0 else self.Pos + offset

    def text(self, field):
        return None if self.place(field) is None else self.String(self.place(field)).decode()

    def number(self, field, kind):
        return struct.unpack_from(kind, self.Bytes, self.place(field))[0]

    def table(self, field):
        return Table(self.Bytes, self.Indirect(self.place(field)))

    def tables(self, field):
        offset = self.Offset(4 + 2 * field)
        if not offset:
            return []
        start = self.Vector(offset)
        return [Table(self.Bytes, self.Indirect(start + 4 * i)) for i in range(self.VectorLen(offset))]

    def floats(self, field):
        offset = self.Offset(4 + 2 * field)
        return list(struct.unpack_from(f"<{self.VectorLen(offset)}f", self.Bytes, self.Vector(offset)))


def metadata(content):
    model = flatfile.read_flatbuffer(content)
    (entry,) = [entry for entry in model.metadata if entry.name.decode() == METADATA_NAME]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    return Table(data, struct.unpack_from("<I", data)[0])


@pytest.fixture(scope="module")
def content(run):
    return (run.folder / "model.tflite").read_bytes()


def test_the_buffer_says_what_an_app_must_do_with_an_image(content):
    root = metadata(with_metadata(content, name="mine", description="A net.", licence="Apache-2.0"))
    assert [root.text(field) for field in (0, 1, 5, 7)] == ["mine", "A net.", "Apache-2.0", "1.0.0"]
    (graph,) = root.tables(3)
    (taken,), (given,) = graph.tables(2), graph.tables(3)
    assert (taken.text(0), given.text(0)) == ("image", "logits")
    image = taken.table(3)
    assert image.number(0, "<B") == 2  # ImageProperties
    properties = image.table(1)
    assert properties.number(0, "<b") == 2  # GRAYSCALE
    size = properties.table(1)
    assert (size.number(0, "<I"), size.number(1, "<I")) == (16, 16)
    (unit,) = taken.tables(4)
    assert unit.number(0, "<B") == 1  # NormalizationOptions
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0.0], [255.0])
    (file,) = given.tables(6)
    assert (file.text(0), file.number(2, "<b")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


def test_a_wide_colour_image_has_its_width_first(content):
    model = flatfile.read_flatbuffer(content)
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = [1, 20, 30, 3]
    graph.tensors[graph.inputs[0]].name = b"image"
    (graph,) = metadata(with_metadata(flatfile.write_flatbuffer(model), name="wide")).tables(3)
    properties = graph.tables(2)[0].table(3).table(1)
    assert properties.number(0, "<b") == 1  # RGB
    assert [properties.table(1).number(field, "<I") for field in (0, 1)] == [30, 20]
    assert graph.tables(3)[0].tables(6) == []  # the bare flatbuffer has no labels


def test_metadata_changes_no_output_and_is_replaced_by_newer(content, digits):
    once = with_metadata(content, name="first")
    twice = with_metadata(once, name="second", labels=list("abcdefghij"))
    assert metadata(once).text(0) == "first"
    assert metadata(twice).text(0) == "second"
    expected = fnet.Int8Model(content).predict_quantized(digits.test.images)
    for made in (once, twice):
        np.testing.assert_array_equal(fnet.Int8Model(made).predict_quantized(digits.test.images), expected)
    assert fnet.Int8Model(once).labels == digits.class_names
    assert fnet.Int8Model(twice).labels == tuple("abcdefghij")
    assert len(zipfile.ZipFile(io.BytesIO(twice)).namelist()) == 1
    with pytest.raises(ValueError, match="3 labels for 10 classes"):
        with_metadata(content, name="x", labels=["a", "b", "c"])


def run_litert(content, images):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for image in images:
        interpreter.set_tensor(taken["index"], image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(given["index"])[0])
    return np.array(outputs), taken, given


def test_a_uint8_file_takes_pixels_as_they_are_and_gives_the_same_values(content, models, digits):
    images = digits.test.images[:50]
    outputs, taken, given = run_litert(with_io(content, "uint8"), images)
    assert (taken["dtype"], given["dtype"], outputs.dtype) == (np.uint8, np.uint8, np.uint8)
    scale, zero_point = models.int8.output_quantization
    assert taken["quantization"] == (pytest.approx(1 / 255), 0)
    assert given["quantization"] == (pytest.approx(scale), zero_point + 128)
    np.testing.assert_array_equal(outputs.astype(int) - 128, models.int8.predict_quantized(images))
    interpreter = Interpreter(model_content=with_io(content, "uint8"))
    signature = interpreter.get_signature_runner()
    np.testing.assert_array_equal(signature(image=images[:1])["output_0"], outputs[:1])


def test_tflite_micro_runs_the_uint8_file_too(content, digits):
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(with_io(content, "uint8"), arena_size=2**20)
    image = digits.test.images[:1]
    interpreter.set_input(image, 0)
    interpreter.invoke()
    np.testing.assert_array_equal(interpreter.get_output(0).astype(int) - 128, micro_outputs(content, image))


def test_other_types_are_refused(content):
    assert with_io(content, "int8") == content
    with pytest.raises(ValueError, match="io is 'float32'; it must be int8 or uint8"):
        with_io(content, "float32")
    with pytest.raises(ValueError, match="is not int8 in and out"):
        with_io(with_io(content, "uint8"), "uint8")


def test_export_writes_labels_metadata_and_the_type(run, content, digits, tmp_path, capsys):
    for io_type in ("int8", "uint8"):
        exported = export_tflite(content, tmp_path / f"{io_type}.tflite", name=f"{run.spec.name}-int8", io=io_type)
        made = (tmp_path / f"{io_type}.tflite").read_bytes()
        assert exported.size_bytes == len(made)
        assert metadata(made).text(0) == f"{run.spec.name}-int8"
        assert zipfile.ZipFile(io.BytesIO(made)).read("labels.txt").decode().split() == list(digits.class_names)
    code = main(["export", str(run.folder), "--tflite", str(tmp_path / "cli.tflite"), "--io", "uint8", "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)[0]["bytes"] == (tmp_path / "uint8.tflite").stat().st_size
    assert (tmp_path / "cli.tflite").read_bytes() == (tmp_path / "uint8.tflite").read_bytes()
    assert main(["export", str(run.folder), "--tflite", str(tmp_path / "x.tflite"), "--io", "int16"]) == 2
    assert "io is 'int16'" in capsys.readouterr().err
    assert not (tmp_path / "x.tflite").exists()


@pytest.mark.parametrize("io_type", ["int8", "uint8"])
def test_the_documented_example_classifies_with_litert_alone(io_type, content, digits, models, tmp_path):
    (example,) = re.findall(r"```python\n(# classify\.py\n.*?)```", (DOCS / "deploy.md").read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line and line[0] != "#"]) <= 15
    (tmp_path / "classify.py").write_text(example)
    export_tflite(content, tmp_path / "net.tflite", name="net", io=io_type)
    np.save(tmp_path / "image.npy", digits.test.images[0])
    checked = "import runpy, sys; runpy.run_path(sys.argv[0]); assert not {'tensorflow', 'factorizenet_tf'} & set(sys.modules)"
    code = f"import sys; sys.argv = ['classify.py', 'net.tflite', 'image.npy']; {checked}"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    label, logit = result.stdout.split()
    expected = models.int8.predict(digits.test.images[:1])[0]
    assert label == digits.class_names[expected.argmax()]
    assert float(logit) == pytest.approx(expected.max(), rel=1e-4)


def test_an_independent_reader_finds_the_same(content, tmp_path):
    schema = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    export_tflite(content, tmp_path / "net.tflite", name="net")
    model = flatfile.read_flatbuffer((tmp_path / "net.tflite").read_bytes())
    (entry,) = [entry for entry in model.metadata if entry.name.decode() == METADATA_NAME]
    root = schema.ModelMetadataT.InitFromPackedBuf(bytes(model.buffers[entry.buffer].data))
    (graph,) = root.subgraphMetadata
    (taken,), (given,) = graph.inputTensorMetadata, graph.outputTensorMetadata
    assert list(taken.processUnits[0].options.std) == [255.0]
    assert given.associatedFiles[0].name == b"labels.txt"
