"""Write into a .tflite what an app must know of it: preprocessing as a TFLite metadata buffer, and the labels.

Source: TFLite's metadata schema, version 1 (identifier M001), https://www.tensorflow.org/lite/models/convert/metadata.
"""

from __future__ import annotations

from .flatbuffer import LABELS_FILE, associated_files, read_flatbuffer, with_associated_files, write_flatbuffer

__all__ = ["METADATA_NAME", "with_metadata"]

METADATA_NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"
IMAGE_PROPERTIES = 2  # the member of the union ContentProperties
NORMALIZATION = 1  # the member of the union ProcessUnitOptions
TENSOR_AXIS_LABELS = 2
COLOR_SPACES = {1: 2, 3: 1}  # channels -> GRAYSCALE, RGB


def with_metadata(content: bytes, *, name: str, description: str = "") -> bytes:
    """Add its metadata buffer to a .tflite of an image classifier, in the place of one that it has.

    The buffer says: an RGB or grey image of which size, that a pixel p in 0..255 stands for p / 255 (the tensor's own
    scale and zero point then make it an integer), and, where the file holds labels.txt, that this names the classes.

    Args:
        content: one input (1, height, width, channels), one output (1, classes).
        name: of the model.
        description: a sentence for people.

    Raises:
        ValueError: it is no .tflite, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    _, height, width, channels = (int(n) for n in graph.tensors[graph.inputs[0]].shape)
    files = associated_files(content)
    data = _metadata(name, description, (height, width, channels), LABELS_FILE in files)
    others = [entry for entry in model.metadata or () if entry.name not in (METADATA_NAME, METADATA_NAME.encode())]
    model.buffers.append(schema.BufferT(list(data)))
    model.metadata = [*others, schema.MetadataT(name=METADATA_NAME, buffer=len(model.buffers) - 1)]
    return with_associated_files(write_flatbuffer(model), files)


def _metadata(name, description, shape, labelled) -> bytes:
    import flatbuffers

    height, width, channels = shape
    builder = flatbuffers.Builder(1024)
    size = _table(builder, [("Uint32", width), ("Uint32", height)])
    image = _table(builder, [("Int8", COLOR_SPACES[channels]), ("UOffsetTRelative", size)])
    content = _table(builder, [("Uint8", IMAGE_PROPERTIES), ("UOffsetTRelative", image)])
    scaling = _table(builder, [("UOffsetTRelative", _floats(builder, values)) for values in ([0.0], [255.0])])
    unit = _table(builder, [("Uint8", NORMALIZATION), ("UOffsetTRelative", scaling)])
    pixels = "an image, pixels 0..255 divided by 255; its scale and zero point then make integers of them"
    input_ = _tensor(builder, "image", pixels, {3: content, 4: _vector(builder, [unit])})
    output_fields = {}
    if labelled:
        file = _table(
            builder,
            [
                ("UOffsetTRelative", builder.CreateString(LABELS_FILE)),
                ("UOffsetTRelative", builder.CreateString("class names by number, one a line")),
                ("Int8", TENSOR_AXIS_LABELS),
            ],
        )
        output_fields[6] = _vector(builder, [file])
    logits = _tensor(builder, "logits", "one number a class; the largest is the class", output_fields)
    graph = _table(
        builder, [None, None, *(("UOffsetTRelative", _vector(builder, [tensor])) for tensor in (input_, logits))]
    )
    texts = {0: name, 1: description, 2: "1", 7: PARSER_VERSION}
    fields: list = [None] * 8
    for slot, text in texts.items():
        if text:
            fields[slot] = ("UOffsetTRelative", builder.CreateString(text))
    fields[3] = ("UOffsetTRelative", _vector(builder, [graph]))
    builder.Finish(_table(builder, fields), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder, name, description, offsets):
    """Write a TensorMetadata table; offsets are by slot, beside name and description."""
    texts = {0: builder.CreateString(name), 1: builder.CreateString(description)}
    fields = texts | offsets
    slots = range(max(fields) + 1)
    return _table(builder, [("UOffsetTRelative", fields[slot]) if slot in fields else None for slot in slots])


def _table(builder, fields):
    """Write a flatbuffer table; fields are (kind of slot, value) by slot, None for one that is left out."""
    builder.StartObject(len(fields))
    for slot, field in enumerate(fields):
        if field is not None:
            kind, value = field
            getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
    return builder.EndObject()


def _vector(builder, offsets):
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder, values):
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return builder.EndVector()
