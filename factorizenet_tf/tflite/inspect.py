"""Show what a .tflite holds and costs, what its bytes are for, and what runtimes refuse. Needs no TensorFlow."""

from importlib.metadata import version
from math import isfinite, prod

import numpy as np

from ..machine import cpu_name
from .flatbuffer import associated_files, data_bytes, operator_name, read_flatbuffer, tensor_type, text_of
from .latency import inference, new_interpreter, time_in_turns
from .micro import arena_bytes
from .regroup import on_copies, regroup_fastest
from .slim import slim

__all__ = ["inspect_tflite", "operator_rows"]

# Their second input is a kernel, and a bias is the last one. MACs are kernel numbers x output pixels.
KERNELS = frozenset("CONV_2D CONV_3D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV".split())  # noqa: SIM905
# These may read large constants, too, and have no MACs in the sense of cost.py.
NO_MACS = frozenset(
    "ADD CONCATENATION DEQUANTIZE DIV GATHER MAXIMUM MINIMUM MUL PAD PADV2 PRELU QUANTIZE SUB".split()  # noqa: SIM905
)
UNKNOWN_MACS = frozenset("BATCH_MATMUL CALL CALL_ONCE CUSTOM IF WHILE".split())  # noqa: SIM905
INDICES = ("INT32", "INT64", "BOOL")  # types of shapes, paddings, axes
ENDS = "FLOAT32 at the ends"
HYBRID = "INT8 weights of FLOAT32"
WHY = {
    "FLOAT32": "computed in float: 4 bytes a number, and CMSIS-NN and ESP-NN have no fast kernels for it",
    ENDS: "the rest computes in int8: convert it with int8 input and output, or leave that to the caller's processor",
    "FLOAT16": "a CPU turns such weights into float32 first; TensorFlow Lite Micro does not",
    "UINT8": "the older scheme, or a camera's pixels: a QUANTIZE turns it into int8, which fast kernels take",
    "INT16": "activations of 2 bytes: more RAM, and no kernels in XNNPACK",
    "INT64": "biases of layers whose activations are int16, or indices",
    HYBRID: "dynamic range: activations are quantized anew at each run, and TensorFlow Lite Micro refuses it",
}
ESP_NN = (
    "its TensorFlow Lite Micro wrapper takes no grouped convolutions; `export --micro --kernels esp-nn` rewrites them"
)
XNNPACK = "LiteRT's own kernels run them; one in the middle of the net splits the graph"


def inspect_tflite(content: bytes) -> dict:
    """Inspect any .tflite: what it holds, and what it costs on this machine (measured, some seconds).

    Returns:
        A dict that JSON can hold, with, beside facts of the file,

        * operators: kernel and stride (height, width), groups, MACs (None: not known), bytes of its constants;
        * tensors: role, type, shape, parameters, every scale and zero point;
        * not_int8: a type, the operators (subgraph, number) that use it, and why that matters;
        * bytes: of the file, by what they are for;
        * files: the file as it is, slim and, if it has grouped convolutions, regrouped for this machine: bytes, arena of the
          reference kernels (None: tflite-micro is missing or refuses), milliseconds of an inference (None: LiteRT refuses);
        * refused: a runtime, the operators that it refuses (empty: all), and the reason.

    Raises:
        ValueError: as `slim`.
    """
    model, slimmed = read_flatbuffer(content), slim(content)
    try:
        operators, tensors = operator_rows(model), _tensors(model)
    except (IndexError, ZeroDivisionError):
        raise ValueError("the .tflite is damaged (an operator's shapes do not fit it); convert it again") from None
    macs = [row["macs"] for row in operators]
    report = {
        "size_bytes": len(content),
        "description": text_of(model.description),
        "signatures": [text_of(signature.signatureKey) for signature in model.signatureDefs or ()],
        "metadata": [text_of(entry.name) for entry in model.metadata or ()],
        "associated_files": sorted(associated_files(content)),
        "subgraphs": len(model.subgraphs),
        "macs": None if None in macs else sum(macs),
        "params": sum(row["params"] for row in tensors),
        "operators": operators,
        "tensors": tensors,
        "not_int8": _not_int8(operators, tensors),
        "bytes": _bytes(model, content, tensors),
        "machine": cpu_name(),
        "runtime": f"ai-edge-litert {version('ai-edge-litert')}, XNNPACK, one thread"
        + ", the first subgraph" * (len(model.subgraphs) > 1),
    }
    return report | _measured(content, slimmed, [row["place"] for row in operators if row["groups"] > 1])


def operator_rows(model) -> list[dict]:
    """List the operators of a `ModelT` with the fields of `inspect_tflite`'s `operators`."""
    rows = []
    for subgraph, graph in enumerate(model.subgraphs):
        times = {}  # by tensor: how many times the numbers it has that its shape says, where that leaves a size open
        for number, operator in enumerate(graph.operators):
            name, options = operator_name(model, operator), operator.builtinOptions
            read = [graph.tensors[n] for n in operator.inputs if n >= 0]
            shapes = [_shape(tensor) for tensor in read]
            output = _shape(graph.tensors[operator.outputs[0]]) if len(operator.outputs) else []
            row = {"place": (subgraph, number), "operator": name, "kernel": None, "stride": None, "groups": 1}
            if name in KERNELS and hasattr(options, "strideH"):
                row |= {"kernel": shapes[1][-3:-1], "stride": [options.strideH, options.strideW]}
                row["groups"] = shapes[0][-1] // shapes[1][-1] if name == "CONV_2D" else 1
            sizes = [data_bytes(model, tensor) for tensor in read]
            numbers = [size * (tensor_type(tensor) not in INDICES) for size, tensor in zip(sizes, read)]
            macs = _macs(name, shapes, output, numbers)
            if name in ("RESHAPE", "FULLY_CONNECTED") and prod(output):
                total = times.get(int(operator.inputs[0]), 1) * prod(shapes[0])
                if name == "FULLY_CONNECTED":
                    total = total // shapes[1][1] * shapes[1][0]
                    macs = total * shapes[1][1]
                times[int(operator.outputs[0])] = max(1, total // prod(output))
            elif len(operator.inputs) and (given := int(operator.inputs[0])) in times and name != "BATCH_TO_SPACE_ND":
                times |= {int(n): times[given] for n in operator.outputs}
                macs = macs and macs * times[given]
            elif name == "SPACE_TO_BATCH_ND" and sizes[1] and output[:1] == shapes[0][:1]:
                times[int(operator.outputs[0])] = prod(model.buffers[read[1].buffer].data.view(np.int32).tolist())
            row |= {"output_shape": output, "macs": macs, "constant_bytes": sum(sizes)}
            rows.append(row | {key: [int(n) for n in getattr(operator, key)] for key in ("inputs", "outputs")})
    return rows


def _macs(name, shapes, output, sizes) -> int | None:
    """Multiply-and-adds of an operator by shapes and, but for indices, constant bytes of what it reads; None where not known."""
    if name in KERNELS:
        pixels = shapes[2] if name == "TRANSPOSE_CONV" else output
        channels = shapes[1][0] if name == "FULLY_CONNECTED" else pixels[-1]
        return prod(shapes[1]) * (prod(pixels) // channels)
    has_kernel = name not in NO_MACS and any(size and len(shape) > 1 for shape, size in zip(shapes, sizes))
    return None if has_kernel or name in UNKNOWN_MACS or name.startswith("STABLEHLO") else 0


def _tensors(model) -> list[dict]:
    rows = []
    for subgraph, graph in enumerate(model.subgraphs):
        roles, kept = {}, {}
        for operator in graph.operators:
            if operator_name(model, operator) == "DEQUANTIZE":  # of weights that are kept in float16
                kept[int(operator.outputs[0])] = int(operator.inputs[0])
            if operator_name(model, operator) in KERNELS:
                read = [kept.get(int(n), int(n)) for n in operator.inputs[1:] if n >= 0]
                constants = [n for n in read if data_bytes(model, graph.tensors[n])]
                roles |= dict(zip(constants, ("weights", "bias")))
        roles |= {int(n): "input" for n in graph.inputs} | {int(n): "output" for n in graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            size, kind, found = data_bytes(model, tensor), tensor_type(tensor), tensor.quantization
            role = roles.get(number, "constant" if size else "activation")
            is_number = role == "constant" and kind not in INDICES
            params = prod(_shape(tensor)) if is_number or role in ("weights", "bias") else 0
            row = {"place": (subgraph, number), "name": text_of(tensor.name), "role": role, "type": kind}
            row |= {"shape": _shape(tensor), "params": params, "quantization": None}
            if found is not None and found.scale is not None and found.zeroPoint is not None and len(found.scale):
                scales = [scale if isfinite(scale) else None for scale in found.scale.tolist()]
                row["quantization"] = {"scales": scales, "zero_points": found.zeroPoint.tolist()}
                row["quantization"]["dimension"] = found.quantizedDimension
            rows.append(row)
    return rows


def _not_int8(operators, tensors) -> list[dict]:
    """Make a row for each type other than int8 and int32 (biases, shapes, axes), with the operators that use it."""
    types = {row["place"]: row["type"] for row in tensors}
    users: dict[str, list] = {}
    for row in operators:
        found = {types[row["place"][0], n] for n in (*row["inputs"], *row["outputs"]) if n >= 0}
        if {"INT8", "FLOAT32"} <= found and row["operator"] in KERNELS:
            found = {HYBRID}
        for kind in sorted(found - {"INT8", "INT32"}):
            users.setdefault(kind, []).append(row["place"])
    names = {row["place"]: row["operator"] for row in operators}
    if {names[place] for place in users.get("FLOAT32", ())} <= {"QUANTIZE", "DEQUANTIZE"} and "FLOAT32" in users:
        users = {ENDS if kind == "FLOAT32" else kind: places for kind, places in users.items()}
    other = "no int8 kernel computes in it"
    return [{"type": kind, "operators": places, "why": WHY.get(kind, other)} for kind, places in users.items()]


def _bytes(model, content, tensors) -> dict[str, int]:
    """Bytes of the file by what they are for; what several tensors share is counted once."""
    parts = dict.fromkeys(("weights", "bias", "other constants", "scales", "zero points", "metadata"), 0)
    counted = set()

    def count(part, array):
        if array is not None and len(array) and (place := (array.ctypes.data, array.nbytes)) not in counted:
            counted.add(place)
            parts[part] += array.nbytes

    for tensor, row in zip((tensor for graph in model.subgraphs for tensor in graph.tensors), tensors):
        count(row["role"] if row["role"] in parts else "other constants", model.buffers[tensor.buffer].data)
        if tensor.quantization is not None:
            count("scales", tensor.quantization.scale)
            count("zero points", tensor.quantization.zeroPoint)
    names = {row["name"].encode() for row in tensors} - {b""}
    parts["names"] = sum(4 + (len(name) // 4 + 1) * 4 for name in names)  # length, text, at least one 0
    for buffer in model.buffers:
        count("metadata", buffer.data)
    parts["associated files"] = sum(map(len, associated_files(content).values()))
    return parts | {"tables and padding": len(content) - sum(parts.values())}


def _measured(content, slimmed, grouped) -> dict:
    """Measure arena and latency of the file as it is, slim and regrouped, and find what runtimes refuse.

    A file that LiteRT refuses is not given to Micro, which checks less.
    """
    files = {"as it is": content, "slim": slimmed}
    refused, arenas, times = [("ESP-NN", grouped, ESP_NN)] if grouped else [], {}, {}
    try:
        left = _left_to_litert(content)
        if left:
            refused.append(("XNNPACK", left, XNNPACK))
        if grouped or on_copies(slimmed) is not slimmed:
            regrouped = regroup_fastest(slimmed).content
            files |= {} if regrouped == slimmed else {"regrouped": regrouped}
        calls = [inference(file) for file in files.values()]
        times = dict(zip(files, np.median(time_in_turns(calls), axis=0).round(5).tolist()))
        arenas = {kind: arena_bytes(file) for kind, file in files.items()}
    except ModuleNotFoundError:  # tflite-micro
        pass
    except (ValueError, RuntimeError) as error:
        runtime = "TensorFlow Lite Micro" if times else "LiteRT"
        refused.append((runtime, [], str(error).strip().partition("\n")[0].rstrip(".")))
    rows = [
        {"file": kind, "size_bytes": len(file), "ram_bytes": arenas.get(kind), "latency_ms": times.get(kind)}
        for kind, file in files.items()
    ]
    return {"files": rows, "refused": [dict(zip(("runtime", "operators", "reason"), row)) for row in refused]}


def _left_to_litert(content) -> list[tuple[int, int]]:
    """The operators of the first subgraph that no delegate runs."""
    nodes = new_interpreter(content)._get_ops_details()
    own = {node["index"]: node for node in nodes if node["op_name"] != "DELEGATE"}
    writers = {number: node for node in own.values() for number in node["outputs"]}
    for delegate in (node for node in nodes if node["op_name"] == "DELEGATE"):
        given, wanted = set(delegate["inputs"]), list(delegate["outputs"])
        while wanted:
            node = writers.get(wanted.pop())
            if node is not None and own.pop(node["index"], None):
                wanted += [number for number in node["inputs"] if number not in given]
    return [(0, number) for number in own]


def _shape(tensor) -> list[int]:
    return [] if tensor.shape is None else [int(n) for n in tensor.shape]
