"""TensorFlow Serving's gRPC form. Importing it imports TensorFlow, which the protos need."""

from __future__ import annotations

import json

import numpy as np

from .client import ServingError

__all__ = ["GrpcTransport"]

MESSAGE_MOST = 64 * 2**20
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_MOST),
    ("grpc.max_send_message_length", MESSAGE_MOST),
    # gRPC's own pauses, 1 s and growing to minutes, would make further attempts fail without asking.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
AWAY = ("UNAVAILABLE", "CANCELLED")  # nothing here cancels a call: a server did that goes away
HTTP_OF = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
}


class GrpcTransport:
    """One channel, by TensorFlow Serving's PredictionService and ModelService."""

    def __init__(self, address: str):
        try:
            import grpc
            from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
        except ModuleNotFoundError as error:
            if "tensorflow_serving" not in str(error) and "grpc" not in str(error):
                raise
            raise ModuleNotFoundError(
                "gRPC needs tensorflow-serving-api: pip install 'factorizenet_tf[serve]', or use http://"
            ) from None
        self.where = f"grpc://{address}"
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(self, client, values, signature: str, *, timeout: float) -> dict:
        """PredictionService.Predict."""
        from tensorflow_serving.apis import predict_pb2

        from .._keras import tf

        key = "image_bytes" if signature == "serving_bytes" else "image"
        values = np.array(values, object) if signature == "serving_bytes" else values
        spec = self._spec(client, signature)
        request = predict_pb2.PredictRequest(model_spec=spec, inputs={key: tf.make_tensor_proto(values)})
        answer = self._answer(self._predictions.Predict, request, timeout)
        found = {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}
        if "class_name" in found:
            found["class_name"] = np.array([name.decode() for name in found["class_name"]])
        return found

    def status(self, client, *, timeout: float) -> list[dict]:
        """ModelService.GetModelStatus."""
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec(client))
        answer = self._answer(self._models.GetModelStatus, request, timeout)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True).get("model_version_status", [])

    def metadata(self, client, *, timeout: float) -> dict:
        """PredictionService.GetModelMetadata."""
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_metadata_pb2

        spec = self._spec(client)
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        answer = self._answer(self._predictions.GetModelMetadata, request, timeout)
        return json.loads(json_format.MessageToJson(answer, preserving_proto_field_name=True)).get("metadata", {})

    def _spec(self, client, signature=""):
        from tensorflow_serving.apis import model_pb2

        spec = model_pb2.ModelSpec(name=client.model, signature_name=signature)
        if client.version is not None:
            spec.version.value = client.version
        if client.label is not None:
            spec.version_label = client.label
        return spec

    def _answer(self, method, request, timeout):
        import grpc

        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details()
            if code == "DEADLINE_EXCEEDED":
                raise TimeoutError(f"no answer from {self.where} within {timeout:.3g} s") from None
            if code in AWAY:
                raise ConnectionError(f"cannot reach {self.where} ({details}); is the server running there?") from None
            raise ServingError(HTTP_OF.get(code, 500), f"{code}: {details}") from None
