"""Write a .tflite in fewer bytes: inner names dropped, equal vectors, buffers and tables written once. Needs no TensorFlow.

The converter writes an int64 zero point for each output channel of weights and bias, though all are 0, and a name of some
100 bytes for each tensor, together a third of a small net. Everything that a runtime computes with is kept, a bias's scales
included, without which XNNPACK refuses the graph.
"""

from .flatbuffer import data_bytes, read_flatbuffer, write_flatbuffer

__all__ = ["slim"]


def slim(content: bytes, *, keep_names: bool = False) -> bytes:
    """Write a .tflite without what no runtime reads; outputs stay equal to the bit, and the arena the same.

    Names of inputs, outputs and signatures, metadata, associated files and all numbers of tensors, operators and buffers
    stay.

    Args:
        content: any .tflite: int8, float or mixed, of one subgraph or several, of any converter.
        keep_names: keep those of inner tensors, for tools that show the graph.

    Returns:
        The file's bytes; where nothing is saved, those that were given.

    Raises:
        ValueError: it is no .tflite, damaged, of a newer schema than that of the ai-edge-litert here, or larger than
            2 GB with its weights outside of the flatbuffer.
    """
    model = read_flatbuffer(content)
    operators = [operator for graph in model.subgraphs for operator in graph.operators]
    if any(operator.builtinOptionsType and operator.builtinOptions is None for operator in operators):
        raise ValueError("the .tflite has operators that ai-edge-litert does not know; update that and try again")
    if any(max(buffer.offset, buffer.size) > 1 for buffer in model.buffers):
        raise ValueError("the .tflite has weights outside of its flatbuffer, as files above 2 GB do; leave it as it is")
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            if number not in ends and not keep_names:
                tensor.name = None
            if not data_bytes(model, tensor) and model.buffers[0].data is None:
                tensor.buffer = 0  # the empty one, as the schema asks for; a 0 takes no bytes
    written = write_flatbuffer(model, files_of=content)
    return written if len(written) < len(content) else content
