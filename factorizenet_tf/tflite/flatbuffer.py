"""A .tflite as objects: its flatbuffer read and written, and the files associated with it. Needs no TensorFlow."""

from __future__ import annotations

import io
import zipfile

import numpy as np

__all__ = [
    "LABELS_FILE",
    "associated_files",
    "operator_name",
    "read_flatbuffer",
    "tensor_name",
    "with_associated_files",
    "write_flatbuffer",
]

LABELS_FILE = "labels.txt"  # the associated file with the class names, one a line
IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes, what the schema demands of a buffer; the generated Python code leaves it out


def read_flatbuffer(content: bytes):
    """The `ModelT` of a .tflite, objects of ai-edge-litert's generated schema that can be changed.

    Raises:
        ValueError: it is no .tflite, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != IDENTIFIER:
        raise ValueError(f"no .tflite: its bytes 4 to 8 are {content[4:8]!r} and not {IDENTIFIER!r}; convert it again")
    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    except Exception as error:  # the generated code checks nothing and raises whatever its unpacking meets
        raise ValueError(f"the .tflite is damaged ({error}); convert it again") from None


def write_flatbuffer(model) -> bytes:
    """The bytes of a `ModelT`, buffers aligned as the schema demands; associated files are not among them."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class AlignedBuffer(schema.BufferT):
        def Pack(self, builder):  # noqa: N802 (the schema's name)
            if self.data is None or not len(self.data):
                return super().Pack(builder)
            data = np.asarray(self.data, np.uint8)
            builder.StartVector(1, len(data), ALIGNMENT)
            builder.head = builder.Head() - len(data)
            builder.Bytes[builder.Head() : builder.Head() + len(data)] = data.tobytes()
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    model.buffers = [AlignedBuffer(buffer.data, buffer.offset, buffer.size) for buffer in model.buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def tensor_name(tensor) -> str:
    """The name of a `TensorT` as text."""
    return tensor.name.decode(errors="replace") if isinstance(tensor.name, bytes) else str(tensor.name)


def operator_name(model, operator) -> str:
    """The name of a builtin operator of a `ModelT`, e.g. "CONV_2D"."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return next(name for name, value in vars(BuiltinOperator).items() if value == number)


def associated_files(content: bytes) -> dict[str, bytes]:
    """The files in the archive behind a .tflite's flatbuffer, by name; empty where there is none.

    Raises:
        ValueError: the archive is damaged; the message is zipfile's.
    """
    opened = io.BytesIO(content)
    if not zipfile.is_zipfile(opened):
        return {}
    try:
        with zipfile.ZipFile(opened) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except Exception as error:  # zipfile raises many kinds on damaged bytes
        raise ValueError(f"associated files: {error}") from None


def with_associated_files(flatbuffer: bytes, files: dict[str, bytes]) -> bytes:
    """Append files as TFLite's metadata does: an archive behind the flatbuffer, which readers of that skip."""
    if not files:
        return flatbuffer
    appended = io.BytesIO()
    appended.write(flatbuffer)
    with zipfile.ZipFile(appended, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # a fixed date: the same net gives the same bytes
    return appended.getvalue()
