"""The type of a .tflite's input and output: int8 as it computes, or uint8 as cameras and image files have it."""

from __future__ import annotations

import copy

from .flatfile import associated_files, read_flatbuffer, with_associated_files, write_flatbuffer

__all__ = ["IO_TYPES", "with_io"]

IO_TYPES = ("int8", "uint8")
SHIFT = 128  # between an int8 number and the uint8 one that stands for the same value


def with_io(content: bytes, io: str) -> bytes:
    """An int8 .tflite with input and output of type `io`: for uint8, a QUANTIZE at either end that adds 128.

    The numbers stand for the same values: zero points are 128 higher, scales equal.

    Args:
        content: int8 in and out.
        io: "int8" gives it back byte by byte, or "uint8".

    Raises:
        ValueError: another type, or the file is damaged or not int8 in and out.
    """
    from ai_edge_litert import schema_py_generated as schema

    if io not in IO_TYPES:
        raise ValueError(f"io is {io!r}; it must be int8 or uint8")
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    for number in (*graph.inputs, *graph.outputs):
        if graph.tensors[number].type != schema.TensorType.INT8:
            raise ValueError("the .tflite is not int8 in and out; give the one that `factorizenet train` wrote")
    if io == "int8":
        return content
    code = schema.BuiltinOperator.QUANTIZE
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1))
    renumbered = {}
    for ends, is_input in ((graph.inputs, True), (graph.outputs, False)):
        for place, inner in enumerate(ends):
            inner = int(inner)
            outer = copy.copy(graph.tensors[inner])
            outer.type, outer.buffer = schema.TensorType.UINT8, 0
            outer.quantization = copy.copy(outer.quantization)
            outer.quantization.zeroPoint = [int(point) + SHIFT for point in outer.quantization.zeroPoint]
            graph.tensors[inner].name = f"{'image' if is_input else 'logits'}_int8_{place}"
            graph.tensors.append(outer)
            number = len(graph.tensors) - 1
            operator = schema.OperatorT(
                opcodeIndex=len(model.operatorCodes) - 1,
                inputs=[number if is_input else inner],
                outputs=[inner if is_input else number],
                builtinOptionsType=schema.BuiltinOptions.QuantizeOptions,
                builtinOptions=schema.QuantizeOptionsT(),
            )
            graph.operators.insert(0 if is_input else len(graph.operators), operator)
            renumbered[inner] = number
    graph.inputs = [renumbered[int(n)] for n in graph.inputs]
    graph.outputs = [renumbered[int(n)] for n in graph.outputs]
    for signature in model.signatureDefs or ():
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            entry.tensorIndex = renumbered.get(entry.tensorIndex, entry.tensorIndex)
    return with_associated_files(write_flatbuffer(model), associated_files(content))
