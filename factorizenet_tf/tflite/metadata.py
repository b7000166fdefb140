"""What an app must know of a .tflite, kept in the file: preprocessing as a TFLite metadata buffer, and the labels.

Source: TFLite's metadata schema, version 1 (identifier M001), https://www.tensorflow.org/lite/models/convert/metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

from .flatbuffer import associated_files, read_flatbuffer, with_associated_files, write_flatbuffer

__all__ = ["LABELS_FILE", "METADATA_NAME", "with_metadata"]

LABELS_FILE = "labels.txt"
METADATA_NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"
IMAGE_PROPERTIES = 2  # the member of the union ContentProperties
NORMALIZATION = 1  # the member of the union ProcessUnitOptions
TENSOR_AXIS_LABELS = 2
COLOR_SPACES = {1: 2, 3: 1}  # channels -> GRAYSCALE, RGB


def with_metadata(
    content: bytes, *, name: str, labels: Sequence[str] | None = None, description: str = "", licence: str = ""
) -> bytes:
    """A .tflite of an image classifier with its metadata buffer and, where there are labels, the file labels.txt.

    The buffer says: an RGB or grey image of which size, that a pixel p in 0..255 stands for p / 255 (the tensor's own
    scale and zero point then make it an integer), and that the output's last axis is labelled by labels.txt. A file
    that has labels keeps them; metadata that was in it is replaced.

    Args:
        content: one input (1, height, width, channels), one output (1, classes).
        name: of the model.
        labels: class names by number; None keeps those of the file.
        description: a sentence for people.
        licence: of the weights.

    Raises:
        ValueError: it is no .tflite, or labels do not agree with the number of classes.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    _, height, width, channels = (int(n) for n in graph.tensors[graph.inputs[0]].shape)
    classes = int(graph.tensors[graph.outputs[0]].shape[-1])
    if labels is not None and len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes; give one name a class")
    files = associated_files(content)
    if labels is not None:
        files[LABELS_FILE] = ("\n".join(labels) + "\n").encode()
    data = _metadata(name, description, licence, (height, width, channels), LABELS_FILE in files)
    kept = [entry for entry in model.metadata or () if entry.name not in (METADATA_NAME, METADATA_NAME.encode())]
    model.buffers.append(schema.BufferT(list(data)))
    model.metadata = [*kept, schema.MetadataT(name=METADATA_NAME, buffer=len(model.buffers) - 1)]
    return with_associated_files(write_flatbuffer(model), files)


def _metadata(name, description, licence, shape, labelled) -> bytes:
    import flatbuffers

    height, width, channels = shape
    builder = flatbuffers.Builder(1024)
    size = _table(builder, [("Uint32", width), ("Uint32", height)])
    image = _table(builder, [("Int8", COLOR_SPACES[channels]), ("UOffsetTRelative", size)])
    content = _table(builder, [("Uint8", IMAGE_PROPERTIES), ("UOffsetTRelative", image)])
    scaling = _table(builder, [("UOffsetTRelative", _floats(builder, values)) for values in ([0.0], [255.0])])
    unit = _table(builder, [("Uint8", NORMALIZATION), ("UOffsetTRelative", scaling)])
    pixels = "an image, pixels 0..255 divided by 255; its scale and zero point then make integers of them"
    taken = _tensor(builder, "image", pixels, {3: content, 4: _vector(builder, [unit])})
    given = {}
    if labelled:
        file = _table(
            builder,
            [
                ("UOffsetTRelative", builder.CreateString(LABELS_FILE)),
                ("UOffsetTRelative", builder.CreateString("class names by number, one a line")),
                ("Int8", TENSOR_AXIS_LABELS),
            ],
        )
        given[6] = _vector(builder, [file])
    logits = _tensor(builder, "logits", "one number a class; the largest is the class", given)
    graph = _table(
        builder, [None, None, *(("UOffsetTRelative", _vector(builder, [tensor])) for tensor in (taken, logits))]
    )
    texts = {0: name, 1: description, 2: "1", 5: licence, 7: PARSER_VERSION}
    fields: list = [None] * 8
    for slot, text in texts.items():
        if text:
            fields[slot] = ("UOffsetTRelative", builder.CreateString(text))
    fields[3] = ("UOffsetTRelative", _vector(builder, [graph]))
    builder.Finish(_table(builder, fields), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder, name, description, offsets):
    """TensorMetadata; offsets by slot beside name and description."""
    texts = {0: builder.CreateString(name), 1: builder.CreateString(description)}
    found = texts | offsets
    return _table(
        builder, [("UOffsetTRelative", found[slot]) if slot in found else None for slot in range(max(found) + 1)]
    )


def _table(builder, fields):
    """A flatbuffer table of (kind of slot, value) by slot, None for a field that is left out."""
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
