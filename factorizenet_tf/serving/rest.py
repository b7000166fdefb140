"""TensorFlow Serving's REST form, version 1, as a client speaks it. Needs no TensorFlow."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import numpy as np

from .client import Client, ServingError

__all__ = ["RestTransport"]

RESPONSE_MOST = 64 * 2**20
COLUMNS = {"logits": np.float32, "probabilities": np.float32, "class_id": np.int64, "class_name": str}


class RestTransport:
    """TensorFlow Serving's REST form, version 1."""

    def __init__(self, where: str):
        import requests

        from .deadline import DeadlineAdapter

        self.where, self._session, self._adapter = where, requests.Session(), DeadlineAdapter()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def predict(self, client: Client, values, signature: str, *, timeout: float) -> dict:
        """POST :predict."""
        if signature == "serving_bytes":
            instances = [{"b64": base64.b64encode(value).decode()} for value in values]
        else:
            instances = values.tolist()
        body = json.dumps({"signature_name": signature, "instances": instances}).encode()
        answer = self._answer("POST", f"{_place(client)}:predict", timeout, body)
        try:
            rows = answer["predictions"]
            if len(rows) != len(values):
                raise ValueError(f"{len(rows)} answers to {len(values)} images")
            return {key: np.array([row[key] for row in rows], COLUMNS.get(key)) for key in rows[0]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(502, f"no predictions in its answer ({error!r}): {str(answer)[:100]}") from None

    def status(self, client: Client, *, timeout: float) -> list[dict]:
        """GET the model."""
        return self._field("model_version_status", _place(client), timeout)

    def metadata(self, client: Client, *, timeout: float) -> dict:
        """GET /metadata."""
        return self._field("metadata", f"{_place(client)}/metadata", timeout)

    def _field(self, name, path, timeout):
        answer = self._answer("GET", path, timeout)
        if not isinstance(answer, dict) or name not in answer:
            raise ServingError(502, f"no {name} in its answer: {str(answer)[:100]}")
        return answer[name]

    def _answer(self, method, path, timeout, body=None):
        import requests
        import urllib3

        until = self._adapter.until = time.monotonic() + timeout
        headers = {"Content-Type": "application/json"}
        try:
            with self._session.request(
                method,
                self.where + path,
                data=body,
                headers=headers,
                timeout=timeout,
                stream=True,
                allow_redirects=False,
            ) as response:
                content = bytearray()
                while chunk := response.raw.read1(65_536, decode_content=True):
                    content += chunk
                    if len(content) > RESPONSE_MOST:
                        raise ServingError(502, f"an answer of more than {RESPONSE_MOST:,} bytes")
                code = response.status_code
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            is_timeout = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError))
            if is_timeout or time.monotonic() >= until:
                raise TimeoutError(f"no answer from {self.where} within {timeout:.3g} s") from None
            raise ConnectionError(
                f"cannot reach {self.where} ({_reason(error)}); is the server running there?"
            ) from None
        try:
            answer = json.loads(content.decode())
        except ValueError:
            answer = None
        if code != 200:
            has_error = isinstance(answer, dict) and "error" in answer
            raise ServingError(code, str(answer["error"]) if has_error else content[:200].decode(errors="replace"))
        if answer is None:
            raise ServingError(502, f"its answer is no JSON: {content[:100]!r}")
        return answer


def _place(client) -> str:
    path = f"/v1/models/{quote(client.model)}"
    if client.version is not None:
        return f"{path}/versions/{client.version}"
    return path if client.label is None else f"{path}/labels/{quote(client.label)}"


def _reason(error) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error) or type(error).__name__
