"""TensorFlow Serving's REST form, version 1: what a request holds and what an answer looks like.

Source: https://www.tensorflow.org/tfx/serving/api_rest.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np

from .server_nets import Net, read_image

__all__ = ["answer", "images_of", "metadata", "status"]

SIGNATURES = {"serving_default": "image", "serving_bytes": "image_bytes"}
OUTPUTS = {
    "logits": ("DT_FLOAT", True),
    "probabilities": ("DT_FLOAT", True),
    "class_id": ("DT_INT64", False),
    "class_name": ("DT_STRING", False),
}


def images_of(payload: object, net: Net, most: int) -> tuple[np.ndarray, bool]:
    """The images uint8 (n, *net.input_shape) of a request, and whether it is in rows ("instances") or columns ("inputs").

    `serving_default` takes nested lists of integers 0..255, `serving_bytes` {"b64": ...} of PNG or JPEG files; either
    may be wrapped in its input's name.

    Args:
        payload: the parsed JSON.
        net: that was asked.
        most: images in a request.

    Raises:
        ValueError: it is anything else; the message says what.
    """
    if not isinstance(payload, dict):
        raise ValueError('the request is no JSON object; send {"instances": [...]}')
    signature = payload.get("signature_name", "serving_default") or "serving_default"
    if not isinstance(signature, str) or signature not in SIGNATURES:
        raise ValueError(f"no signature {signature!r}; there are {', '.join(SIGNATURES)}")
    if ("instances" in payload) == ("inputs" in payload):
        raise ValueError('the request needs either "instances" (rows) or "inputs" (columns)')
    in_rows, key = "instances" in payload, SIGNATURES[signature]
    values = payload["instances"] if in_rows else payload["inputs"]
    if in_rows and isinstance(values, list):
        values = [_unwrapped(value, key) for value in values]
    elif not in_rows:
        values = _unwrapped(values, key)
    if not isinstance(values, list) or not values:
        raise ValueError("the request has no images; give a list of at least one")
    if len(values) > most:
        raise ValueError(f"{len(values)} images in one request; at most {most}")
    if signature == "serving_bytes":
        return np.stack([read_image(_decoded(value), net.input_shape) for value in values]), in_rows
    return _pixels(values, net.input_shape), in_rows


def answer(found: dict, in_rows: bool) -> dict:
    """What is sent back: a dict a row ("predictions") or an array a column ("outputs")."""
    columns = {key: value if isinstance(value, list) else value.tolist() for key, value in found.items()}
    if not in_rows:
        return {"outputs": columns}
    return {"predictions": [dict(zip(columns, row)) for row in zip(*columns.values())]}


def status(net: Net) -> dict:
    """The answer to GET /v1/models/NAME."""
    fine = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": str(net.version), "state": "AVAILABLE", "status": fine}]}


def metadata(net: Net) -> dict:
    """The answer to GET /v1/models/NAME/metadata."""
    outputs = {
        name: _tensor(name, dtype, [len(net.labels)] if is_wide else []) for name, (dtype, is_wide) in OUTPUTS.items()
    }
    inputs = {
        "serving_default": _tensor("image", "DT_UINT8", net.input_shape),
        "serving_bytes": _tensor("image_bytes", "DT_STRING", []),
    }
    signatures = {
        signature: {"inputs": {key: inputs[signature]}, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
        for signature, key in SIGNATURES.items()
    }
    return {
        "model_spec": {"name": net.name, "signature_name": "", "version": str(net.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _tensor(name, dtype, shape):
    sizes = [{"size": str(size), "name": ""} for size in (-1, *shape)]
    return {"dtype": dtype, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}


def _unwrapped(value, key):
    return value[key] if isinstance(value, dict) and set(value) == {key} else value


def _decoded(value) -> bytes:
    if not isinstance(value, dict) or set(value) != {"b64"} or not isinstance(value["b64"], str):
        raise ValueError('an image file is sent as {"b64": "..."}')
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"an image's base64 is damaged ({error})") from None


def _pixels(values, shape) -> np.ndarray:
    try:
        array = np.array(values)
    except ValueError:
        array = np.array(values, object)
    if array.dtype.kind not in "iu" or array.ndim != 4 or array.shape[1:] != tuple(shape):
        what = "numbers" if array.dtype.kind in "iuf" else "values"
        kind = {"i": "integers", "u": "integers", "f": "fractions"}.get(array.dtype.kind, "something else")
        raise ValueError(
            f"the images are {what} of shape {array.shape}, {kind}; they must be integers 0..255 of shape (n, "
            f"{', '.join(map(str, shape))})"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise ValueError(f"the images have pixels of {low} to {high}; they must be 0..255")
    return array.astype(np.uint8)
