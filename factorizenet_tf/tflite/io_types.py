"""The type of a .tflite's input and output: int8 as it computes, or uint8 as cameras and image files have it."""

from __future__ import annotations

import copy

from .flatbuffer import associated_files, read_flatbuffer, with_associated_files, write_flatbuffer

__all__ = ["IO_TYPES", "for_server", "with_io"]

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
    if io not in IO_TYPES:
        raise ValueError(f"io is {io!r}; it must be int8 or uint8")
    model = _int8_model(content)
    if io == "int8":
        return content
    graph = model.subgraphs[0]
    taken, given = _uint8_input(model), int(graph.outputs[0])
    outer = _append(graph, _uint8(graph.tensors[given]))
    graph.tensors[given].name = "logits_int8"
    _operator(model, "QUANTIZE", "QuantizeOptions", [given], [outer])
    _set_ends(model, {"": taken}, {"": outer})
    return with_associated_files(write_flatbuffer(model), associated_files(content))


def for_server(content: bytes) -> bytes:
    """An int8 .tflite as TensorFlow Serving takes it with --prefer_tflite_model.

    Signature `serving_default`: `image` uint8 in; `logits` and `probabilities` float32 out, by one dequantization and
    a softmax.

    Raises:
        ValueError: as `with_io`.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _int8_model(content)
    graph = model.subgraphs[0]
    taken, given = _uint8_input(model), int(graph.outputs[0])
    made = []
    for name in ("logits", "probabilities"):
        tensor = copy.copy(graph.tensors[given])
        tensor.type, tensor.buffer, tensor.name = schema.TensorType.FLOAT32, 0, name
        tensor.quantization = None
        made.append(_append(graph, tensor))
    graph.tensors[given].name = "logits_int8"
    _operator(model, "DEQUANTIZE", "DequantizeOptions", [given], made[:1])
    _operator(model, "SOFTMAX", "SoftmaxOptions", made[:1], made[1:], beta=1.0)
    _set_ends(model, {"image": taken}, {"logits": made[0], "probabilities": made[1]})
    return with_associated_files(write_flatbuffer(model), associated_files(content))


def _int8_model(content):
    from ai_edge_litert.schema_py_generated import TensorType

    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    for number in (*graph.inputs, *graph.outputs):
        if graph.tensors[number].type != TensorType.INT8:
            raise ValueError("the .tflite is not int8 in and out; give the one that `factorizenet train` wrote")
    return model


def _uint8_input(model) -> int:
    """Put a QUANTIZE from uint8 in front; gives the new input's number."""
    graph = model.subgraphs[0]
    inner = int(graph.inputs[0])
    outer = _append(graph, _uint8(graph.tensors[inner]))
    graph.tensors[outer].name = "image"
    _operator(model, "QUANTIZE", "QuantizeOptions", [outer], [inner], place=0)
    return outer


def _uint8(tensor):
    """A copy of an int8 tensor as uint8: the same values by numbers that are 128 higher."""
    from ai_edge_litert.schema_py_generated import TensorType

    outer = copy.copy(tensor)
    outer.type, outer.buffer = TensorType.UINT8, 0
    outer.quantization = copy.copy(outer.quantization)
    outer.quantization.zeroPoint = [int(point) + SHIFT for point in outer.quantization.zeroPoint]
    return outer


def _append(graph, tensor) -> int:
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model, name, options, inputs, outputs, *, place=None, beta=None):
    from ai_edge_litert import schema_py_generated as schema

    code = getattr(schema.BuiltinOperator, name)
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1))
    settings = getattr(schema, f"{options}T")()
    if beta is not None:
        settings.beta = beta
    operator = schema.OperatorT(
        opcodeIndex=len(model.operatorCodes) - 1,
        inputs=inputs,
        outputs=outputs,
        builtinOptionsType=getattr(schema.BuiltinOptions, options),
        builtinOptions=settings,
    )
    operators = model.subgraphs[0].operators
    operators.insert(len(operators) if place is None else place, operator)


def _set_ends(model, inputs, outputs):
    """Make tensors the graph's inputs and outputs; "" keeps the signature's name for the one that was there."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
    if "" in inputs:
        for signature in model.signatureDefs or ():
            signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex = inputs[""], outputs[""]
        return
    entries = [
        [schema.TensorMapT(name=name, tensorIndex=number) for name, number in ends.items()]
        for ends in (inputs, outputs)
    ]
    model.signatureDefs = [
        schema.SignatureDefT(inputs=entries[0], outputs=entries[1], signatureKey="serving_default", subgraphIndex=0)
    ]
