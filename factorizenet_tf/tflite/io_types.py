"""Give a .tflite other inputs and outputs: uint8 for cameras and browsers, or TensorFlow Serving's signature."""

import copy

from .flatbuffer import add_tensor, insert_operator, read_flatbuffer, tensor_type, write_flatbuffer

__all__ = ["check_io", "with_browser_io", "with_serving_signature", "with_uint8_io"]

IO_TYPES = ("int8", "uint8")
SHIFT = 128  # between an int8 number and the uint8 one that stands for the same value


def check_io(io: str) -> None:
    """Raise ValueError where `io` is neither int8 nor uint8."""
    if io not in IO_TYPES:
        raise ValueError(f"io is {io!r}; it must be int8 or uint8")


def with_uint8_io(content: bytes) -> bytes:
    """Give an int8 .tflite uint8 input and output: a QUANTIZE at either end adds or subtracts 128.

    The values stay the same: zero points are 128 higher, scales equal.

    Raises:
        ValueError: the file is damaged or not int8 in and out.
    """
    model, logits = _with_uint8_input(content)
    graph = model.subgraphs[0]
    output = add_tensor(graph, _uint8(graph.tensors[logits]))
    graph.tensors[logits].name = "logits_int8"
    insert_operator(model, graph, len(graph.operators), "Quantize", [logits], output)
    graph.outputs = [output]
    for signature in model.signatureDefs or ():  # its names stay
        signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex = graph.inputs[0], output
    return write_flatbuffer(model, files_of=content)


def with_browser_io(content: bytes) -> bytes:
    """Give an int8 .tflite the form that LiteRT.js takes: uint8 in and out, batch size 1. Raises as `with_uint8_io`."""
    model = read_flatbuffer(with_uint8_io(content))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.shapeSignature = None  # which leaves the batch open
    return write_flatbuffer(model)


def with_serving_signature(content: bytes) -> bytes:
    """Give an int8 .tflite the signature that TensorFlow Serving takes with --prefer_tflite_model.

    `serving_default`: `image` uint8 in; `logits` and `probabilities` float32 out, by one dequantization and a softmax.

    Raises:
        ValueError: as `with_uint8_io`.
    """
    from ai_edge_litert import schema_py_generated as schema

    model, inner = _with_uint8_input(content)
    graph = model.subgraphs[0]
    outputs = {}
    for name in ("logits", "probabilities"):
        tensor = copy.copy(graph.tensors[inner])
        tensor.type, tensor.buffer, tensor.name, tensor.quantization = schema.TensorType.FLOAT32, 0, name, None
        outputs[name] = add_tensor(graph, tensor)
    graph.tensors[inner].name = "logits_int8"
    logits, probabilities = graph.outputs = list(outputs.values())
    insert_operator(model, graph, len(graph.operators), "Dequantize", [inner], logits)
    insert_operator(model, graph, len(graph.operators), "Softmax", [logits], probabilities, beta=1.0)
    ends = {"image": graph.inputs[0]}, outputs
    names = ([schema.TensorMapT(name=name, tensorIndex=number) for name, number in end.items()] for end in ends)
    model.signatureDefs = [schema.SignatureDefT(*names, signatureKey="serving_default", subgraphIndex=0)]
    return write_flatbuffer(model, files_of=content)


def _with_uint8_input(content):
    """Read a model and put a QUANTIZE from uint8 in front; gives it and the number of its int8 output."""
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    if any(tensor_type(graph.tensors[number]) != "INT8" for number in (*graph.inputs, *graph.outputs)):
        raise ValueError("the .tflite is not int8 in and out; give the one that `factorizenet train` wrote")
    inner = graph.inputs[0]
    graph.inputs = [add_tensor(graph, _uint8(graph.tensors[inner]))]
    graph.tensors[graph.inputs[0]].name = "image"
    insert_operator(model, graph, 0, "Quantize", graph.inputs, inner)
    return model, graph.outputs[0]


def _uint8(tensor):
    """Copy an int8 tensor as uint8: the same values by numbers that are 128 higher."""
    from ai_edge_litert.schema_py_generated import TensorType

    outer = copy.copy(tensor)
    outer.type, outer.buffer = TensorType.UINT8, 0
    outer.quantization = copy.copy(outer.quantization)
    outer.quantization.zeroPoint = [int(point) + SHIFT for point in outer.quantization.zeroPoint]
    return outer
