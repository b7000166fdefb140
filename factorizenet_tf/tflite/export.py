"""Write an int8 .tflite with what an app needs to know: preprocessing, as a TFLite metadata buffer, and the labels.

Source: TFLite's metadata schema, version 1 (identifier M001), https://www.tensorflow.org/lite/models/convert/metadata.
"""

import os

import flatbuffers

from ..files import check_new, write_bytes
from ..pixels import RANGES
from .flatbuffer import LABELS_FILE, RESIZE_FILE, associated_files, read_flatbuffer, tensor_type, write_flatbuffer
from .int8_model import input_range
from .io_types import check_io, with_uint8_io

__all__ = ["METADATA_NAME", "export_tflite", "with_metadata"]

METADATA_NAME = "TFLITE_METADATA"
DESCRIPTION = "An int8 image classifier written by factorizenet_tf."
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"
IMAGE_PROPERTIES = ("Uint8", 2)  # the member of the union ContentProperties
NORMALIZATION = ("Uint8", 1)  # the member of the union ProcessUnitOptions
TENSOR_AXIS_LABELS = ("Int8", 2)
COLOR_SPACES = {1: ("Int8", 2), 3: ("Int8", 1)}  # channels -> GRAYSCALE, RGB


def export_tflite(content: bytes, path: str | os.PathLike, *, name: str, io: str = "int8") -> int:
    """Write an int8 .tflite with metadata and its labels; give the file's size in bytes.

    Args:
        content: the int8 .tflite, from `Source.tflite` or `regroup_fastest`.
        path: of the new file.
        name: of the net, in the metadata.
        io: type of input and output, "int8" or "uint8".

    Raises:
        ValueError: the bytes are damaged, or `io` is another type.
        FileExistsError: `path` is there already.
    """
    check_new(path)
    check_io(io)
    written = with_metadata(with_uint8_io(content) if io == "uint8" else content, name=name)
    write_bytes(path, written)
    return len(written)


def with_metadata(content: bytes, *, name: str) -> bytes:
    """Add the metadata buffer to an image classifier's .tflite, or replace the one that it has.

    The buffer describes the image (RGB or grey, its size), the real value that a pixel in 0..255 stands for (p / 255, or the
    range that the input's scale and zero point show) and, if the file holds labels.txt, that it names the classes.

    Args:
        content: the .tflite: one input (1, height, width, channels), one output (1, classes).
        name: of the model.

    Raises:
        ValueError: it is no .tflite, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    tensor = graph.tensors[graph.inputs[0]]
    _, height, width, channels = (int(n) for n in tensor.shape)
    # Tables of the schema, their fields by number.
    image = {0: COLOR_SPACES[channels], 1: {0: ("Uint32", width), 1: ("Uint32", height)}}
    found, kind = tensor.quantization, "uint8" if tensor_type(tensor) == "UINT8" else "int8"
    name_of_range = input_range(kind, (float(found.scale[0]), int(found.zeroPoint[0])))[0] or "0..1"
    span, start = RANGES[name_of_range]
    pixels = f"an image, pixels 0..255 brought to {name_of_range}; its scale and zero point then make integers of them"
    files = associated_files(content)
    if RESIZE_FILE in files:
        pixels += f"; of another aspect: {files[RESIZE_FILE].decode()}"
    unit = {0: NORMALIZATION, 1: {0: [0 - start * 255 / span], 1: [255 / span]}}
    input_ = {0: "image", 1: pixels, 3: {0: IMAGE_PROPERTIES, 1: image}, 4: [unit]}
    output = {0: "logits", 1: "one number a class; the largest is the class"}
    if LABELS_FILE in files:
        output[6] = [{0: LABELS_FILE, 1: "class names by number, one a line", 2: TENSOR_AXIS_LABELS}]
    root = {0: name, 1: DESCRIPTION, 2: "1", 3: [{2: [input_], 3: [output]}], 7: PARSER_VERSION}
    others = [entry for entry in model.metadata or () if entry.name not in (METADATA_NAME, METADATA_NAME.encode())]
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, root), file_identifier=IDENTIFIER)
    model.buffers.append(schema.BufferT(list(builder.Output())))
    model.metadata = [*others, schema.MetadataT(name=METADATA_NAME, buffer=len(model.buffers) - 1)]
    return write_flatbuffer(model, files_of=content)


def _write(builder, value) -> int:
    """Write a text, a vector (list) or a table (dict: field -> value, or (type, number)); gives where it lies."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        items = [item if isinstance(item, float) else _write(builder, item) for item in value]
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            (builder.PrependFloat32 if isinstance(item, float) else builder.PrependUOffsetTRelative)(item)
        return builder.EndVector()
    fields = {
        number: field if isinstance(field, tuple) else ("UOffsetTRelative", _write(builder, field))
        for number, field in value.items()
    }
    builder.StartObject(max(fields) + 1)
    for number, (kind, field) in fields.items():
        getattr(builder, f"Prepend{kind}Slot")(number, field, 0)
    return builder.EndObject()
