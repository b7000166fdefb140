"""Read and write a .tflite's flatbuffer as objects, and the files associated with it. Needs no TensorFlow."""

import io
import re
import zipfile

import flatbuffers
import numpy as np

__all__ = ["LABELS_FILE", "RESIZE_FILE", "add_tensor", "associated_files", "data_bytes", "data_of", "insert_operator"]
__all__ += ["operator_name", "output_name", "read_flatbuffer", "set_data", "tensor_type", "text_of"]
__all__ += ["with_associated_files", "write_flatbuffer"]

RESIZE_FILE = "resize.txt"  # the associated file that says how images of another aspect were resized, if not stretched
LABELS_FILE = "labels.txt"  # the associated file with the class names, one a line
IDENTIFIER = b"TFL3"
NUMBERS = ("int8", "uint8", "int32", "float32")  # types of weights and biases that are read
ZIP_ENTRY = re.compile(rb"PK\x03\x04[\n-?]\x00")  # how a file in an archive begins, with the version that reads it
ALIGNMENT = 16  # bytes, what the schema demands of a buffer; the generated Python code leaves it out


def read_flatbuffer(content: bytes):
    """Read a .tflite as a `ModelT`: objects of ai-edge-litert's generated schema, which can be changed.

    Raises:
        ValueError: it is no .tflite, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != IDENTIFIER:
        raise ValueError(f"no .tflite: its bytes 4 to 8 are {content[4:8]!r} and not {IDENTIFIER!r}; convert it again")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        _check_numbers(model)
    except Exception as error:  # the generated code checks nothing and raises whatever its unpacking meets
        raise ValueError(f"the .tflite is damaged ({error}); convert it again") from None
    return model


def _check_numbers(model) -> None:
    """Raise if a number names nothing; inputs and outputs that are left out become empty lists."""
    if not model.subgraphs:
        raise ValueError("it has no subgraph")
    for graph in model.subgraphs:
        graph.operators = graph.operators or []
        for table in (graph, *graph.operators):
            table.inputs = [] if table.inputs is None else table.inputs
            table.outputs = [] if table.outputs is None else table.outputs
            for number in (*table.inputs, *table.outputs):
                graph.tensors[number]  # -1: an input that is left out
        for operator in graph.operators:
            model.operatorCodes[operator.opcodeIndex]
        for tensor in graph.tensors:
            model.buffers[tensor.buffer]


def write_flatbuffer(model, *, files_of: bytes = b"") -> bytes:
    """Write a `ModelT` as bytes, with the associated files of another .tflite, each with its date and compression.

    Buffers are aligned as the schema demands; equal vectors of scales or zero points, equal buffers and equal options of
    operators are written once. Raises as `associated_files`.
    """
    for buffer in model.buffers:
        buffer.data = None if buffer.data is None else np.asarray(buffer.data, np.uint8)
    builder = _SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return _with_archive(bytes(builder.Output()), _archive(files_of))


class _SharingBuilder(flatbuffers.Builder):
    """Write equal strings, vectors and tables of numbers once, and vectors of bytes at multiples of ALIGNMENT.

    Tables that refer to other tables are always written, so that a net's size depends little on which of its activations
    happen to share a scale. The methods override flatbuffers 25.12.19's, which the schema's generated code calls: what is
    finished lies at the builder's head; if an equal one exists already, the head goes back and that one's place is used.
    """

    def __init__(self):
        super().__init__(1024)
        self._places = {}  # by content
        self._start, self._content = 0, None

    def CreateString(self, s, *options):  # noqa: N802 (flatbuffers' names)
        text = s.encode() if isinstance(s, str) else s
        if text not in self._places:
            self._places[text] = super().CreateString(text, *options)
        return self._places[text]

    def StartVector(self, elemSize, numElems, alignment):  # noqa: N802, N803
        alignment = ALIGNMENT if elemSize == 1 else alignment
        self._start, self._content = self.Offset(), (alignment, elemSize * numElems)
        return super().StartVector(elemSize, numElems, alignment)

    def EndVector(self):  # noqa: N802
        numbers, self._content = self._content, None
        place = super().EndVector()
        if numbers is None:
            return place
        alignment, length = numbers
        numbers = alignment, bytes(self.Bytes[self.Head() : self.Head() + 4 + length])  # 4: of their count
        return self._back_to(numbers) if numbers in self._places else self._places.setdefault(numbers, place)

    def StartObject(self, numfields):  # noqa: N802
        self._start, self._content = self.Offset(), ()
        super().StartObject(numfields)

    def PrependSlot(self, flags, o, x, d):  # noqa: N802
        if x != d and self._content is not None:
            self._content += ((o, flags, str(x)),)
        super().PrependSlot(flags, o, x, d)

    def PrependUOffsetTRelative(self, off):  # noqa: N802
        self._content = None  # these bytes depend on where they lie
        super().PrependUOffsetTRelative(off)

    def EndObject(self):  # noqa: N802
        fields = self._content
        if fields in self._places:  # before a vtable is written for it
            self.nested, self.current_vtable = False, None
            return self._back_to(fields)
        place = super().EndObject()
        return place if fields is None else self._places.setdefault(fields, place)

    def _back_to(self, content):
        self.head = len(self.Bytes) - self._start
        return self._places[content]


def text_of(name: bytes | str | None) -> str:
    """Give a name in a `ModelT` as text, "" for none."""
    return name if isinstance(name, str) else (name or b"").decode(errors="replace")


def tensor_type(tensor) -> str:
    """Name a `TensorT`'s type, e.g. "INT8"; "?" for one that ai-edge-litert does not know."""
    from ai_edge_litert.schema_py_generated import TensorType

    return next((name for name, value in vars(TensorType).items() if value == tensor.type), "?")


def data_of(model, tensor) -> np.ndarray | None:
    """Give the numbers of a constant tensor in its shape; None for any other tensor, and for a type that is not in NUMBERS."""
    data, kind = model.buffers[tensor.buffer].data, tensor_type(tensor).lower()
    return None if data is None or kind not in NUMBERS else np.asarray(data, np.uint8).view(kind).reshape(tensor.shape)


def set_data(model, tensor, numbers: np.ndarray) -> None:
    """Give a tensor other numbers, in a buffer of its own, since a buffer may serve several tensors."""
    from ai_edge_litert.schema_py_generated import BufferT

    model.buffers.append(BufferT(np.ascontiguousarray(numbers).view(np.uint8).ravel()))
    tensor.shape, tensor.buffer = list(numbers.shape), len(model.buffers) - 1


def operator_name(model, operator) -> str:
    """Name a builtin operator of a `ModelT`, e.g. "CONV_2D"."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return next((name for name, value in vars(BuiltinOperator).items() if value == number), f"OPERATOR_{number}")


def add_tensor(graph, tensor) -> int:
    """Add a tensor to a graph; give its number."""
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def insert_operator(model, graph, place: int, kind: str, inputs: list[int], output: int, *, version=1, **options):
    """Insert an operator, e.g. "Quantize", into a graph, and its code if the model lacks it; tensors are given by number."""
    from ai_edge_litert import schema_py_generated as schema

    code = getattr(schema.BuiltinOperator, kind.upper())
    known = [max(entry.builtinCode, entry.deprecatedBuiltinCode) for entry in model.operatorCodes]
    if code not in known:
        model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=version))
        known.append(code)
    operator = schema.OperatorT(
        opcodeIndex=known.index(code),
        inputs=inputs,
        outputs=[output],
        builtinOptionsType=getattr(schema.BuiltinOptions, f"{kind}Options"),
        builtinOptions=getattr(schema, f"{kind}OptionsT")(**options),
    )
    graph.operators.insert(place, operator)


def data_bytes(model, tensor) -> int:
    """Count the bytes of a constant tensor; 0 for any other."""
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)


def output_name(model, graph, number: int) -> str:
    """Name the output of a graph's operator; in a slim file, which has no names, "CONV_2D 4" by its number."""
    operator = graph.operators[number]
    return text_of(graph.tensors[operator.outputs[0]].name) or f"{operator_name(model, operator)} {number}"


def associated_files(content: bytes) -> dict[str, bytes]:
    """Read the files in the archive behind a .tflite's flatbuffer, by name; none if there is no archive.

    Raises:
        ValueError: the archive is damaged; the message is zipfile's.
    """
    return {entry.filename: data for entry, data in _archive(content)}


def _archive(content) -> list[tuple[zipfile.ZipInfo, bytes]]:
    opened = io.BytesIO(content)
    if not zipfile.is_zipfile(opened):
        if ZIP_ENTRY.search(content):
            raise ValueError(
                "associated files: the archive's end is missing; fetch the file, or convert its model, again"
            )
        return []
    try:
        with zipfile.ZipFile(opened) as archive:
            return [(entry, archive.read(entry.filename)) for entry in archive.infolist()]
    except Exception as error:  # zipfile raises many kinds on damaged bytes
        raise ValueError(f"associated files: {error}") from None


def with_associated_files(flatbuffer: bytes, files: dict[str, bytes]) -> bytes:
    """Append files as TFLite's metadata does: in an archive behind the flatbuffer, which its readers skip."""
    # A ZipInfo has a fixed date: the same net gives the same bytes.
    return _with_archive(flatbuffer, [(zipfile.ZipInfo(name), data) for name, data in files.items()])


def _with_archive(flatbuffer, entries):
    appended = io.BytesIO(flatbuffer)
    if entries:
        with zipfile.ZipFile(appended, "a") as archive:
            for entry in entries:
                archive.writestr(*entry)
    return appended.getvalue()
