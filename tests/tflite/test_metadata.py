import io
import struct
import zipfile

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from runtimes import on_litert, on_micro

import factorizenet_tf as fnet
from factorizenet_tf.tflite.export import METADATA_NAME, with_metadata
from factorizenet_tf.tflite.flatbuffer import read_flatbuffer, write_flatbuffer
from factorizenet_tf.tflite.int8_model import TFLiteModel
from factorizenet_tf.tflite.io_types import with_uint8_io
from factorizenet_tf.tflite.micro import micro_outputs


class Table(flatbuffers.table.Table):
    """A reader of its own: fields by their number in the schema."""

    def place(self, field):
        return self.Pos + self.Offset(4 + 2 * field)

    def text(self, field):
        return self.String(self.place(field)).decode()

    def number(self, field, kind):
        return struct.unpack_from(kind, self.Bytes, self.place(field))[0]

    def table(self, field):
        return Table(self.Bytes, self.Indirect(self.place(field)))

    def tables(self, field):
        offset = self.Offset(4 + 2 * field)
        places = [self.Vector(offset) + 4 * number for number in range(self.VectorLen(offset))] if offset else []
        return [Table(self.Bytes, self.Indirect(place)) for place in places]

    def floats(self, field):
        offset = self.Offset(4 + 2 * field)
        return list(struct.unpack_from(f"<{self.VectorLen(offset)}f", self.Bytes, self.Vector(offset)))


def metadata(content):
    model = read_flatbuffer(content)
    (entry,) = [entry for entry in model.metadata if entry.name.decode() == METADATA_NAME]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    return Table(data, struct.unpack_from("<I", data)[0])


def described(content):
    """The tables of a file's net, its input and its output, and what normalizes a pixel."""
    root = metadata(with_metadata(content, name="mine"))
    (graph,) = root.tables(3)
    (input_,), (output,) = graph.tables(2), graph.tables(3)
    (unit,) = input_.tables(4)
    return root, input_, output, unit


def test_the_buffer_says_what_an_app_must_do_with_an_image(content):
    root, input_, output, unit = described(content)
    assert [root.text(field) for field in (0, 2, 7)] == ["mine", "1", "1.0.0"]
    assert root.text(1).startswith("An int8 image classifier")
    assert (input_.text(0), output.text(0)) == ("image", "logits")
    image = input_.table(3)
    assert image.number(0, "<B") == 2  # ImageProperties
    properties = image.table(1)
    assert properties.number(0, "<b") == 2  # GRAYSCALE
    assert [properties.table(1).number(field, "<I") for field in (0, 1)] == [16, 16]
    assert unit.number(0, "<B") == 1  # NormalizationOptions
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0.0], [255.0])
    (file,) = output.tables(6)
    assert (file.text(0), file.number(2, "<b")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


def test_a_file_of_pixels_in_another_range_runs_by_it_and_says_so(around_0, noise):
    _, content = around_0
    images = noise(20, (4, 4, 1))
    np.testing.assert_array_equal(fnet.Int8Model(content).predict(images), TFLiteModel(content).predict(images))
    _, input_, _, unit = described(content)
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([127.5], [127.5])
    assert "brought to -1..1" in input_.text(1)


def test_a_wide_colour_image_has_its_width_first(content):
    model = read_flatbuffer(content)
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape = [1, 20, 30, 3]
    _, input_, output, _ = described(write_flatbuffer(model))
    properties = input_.table(3).table(1)
    assert properties.number(0, "<b") == 1  # RGB
    assert [properties.table(1).number(field, "<I") for field in (0, 1)] == [30, 20]
    assert output.tables(6) == []  # the bare flatbuffer has no labels


def test_metadata_changes_no_output_and_is_replaced_by_newer(content, models, digits):
    once = with_metadata(content, name="first")
    twice = with_metadata(once, name="second")
    assert metadata(once).text(0) == "first"
    assert metadata(twice).text(0) == "second"
    net, images = fnet.Int8Model(twice), digits.test.images[:50]
    np.testing.assert_array_equal(net.predict_quantized(images), models.int8.predict_quantized(images))
    assert net.labels == digits.class_names
    assert zipfile.ZipFile(io.BytesIO(twice)).namelist() == ["labels.txt"]


def test_a_uint8_file_takes_pixels_as_they_are_and_gives_the_same_values(content, models, digits):
    images, written = digits.test.images[:50], with_uint8_io(content)
    outputs = on_litert(written, images)
    assert outputs.dtype == np.uint8
    np.testing.assert_array_equal(outputs.astype(int) - 128, models.int8.predict_quantized(images))
    np.testing.assert_array_equal(on_micro(written, images).astype(int) - 128, micro_outputs(content, images))
    interpreter = Interpreter(model_content=written)
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = models.int8.output_quantization
    assert input_["quantization"] == (pytest.approx(1 / 255), 0)
    assert output["quantization"] == (pytest.approx(scale), zero_point + 128)
    np.testing.assert_array_equal(interpreter.get_signature_runner()(image=images[:1])["output_0"], outputs[:1])
    with pytest.raises(ValueError, match="is not int8 in and out"):
        with_uint8_io(written)


def test_export_writes_labels_metadata_and_the_type(run, digits, tmp_path, prints_json, fails):
    for io_type, dtype in (("int8", np.int8), ("uint8", np.uint8)):
        path = tmp_path / f"{io_type}.tflite"
        (row,) = prints_json("export", run.folder, "--tflite", path, "--io", io_type)
        written = path.read_bytes()
        assert row["bytes"] == len(written)
        assert metadata(written).text(0) == f"{run.spec.name}-int8"
        assert zipfile.ZipFile(io.BytesIO(written)).read("labels.txt").decode().split() == list(digits.class_names)
        assert Interpreter(model_content=written).get_input_details()[0]["dtype"] is dtype
    said = fails("export", run.folder, "--tflite", tmp_path / "x.tflite", "--io", "int16")
    assert "io is 'int16'; it must be int8 or uint8" in said
    assert not (tmp_path / "x.tflite").exists()
