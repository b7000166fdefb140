"""TensorFlow Serving's gRPC services over an exported version, which this process loads as the server would."""

import contextlib
import time
from concurrent import futures
from types import SimpleNamespace


@contextlib.contextmanager
def grpc_services(folder, model):
    """Serve the version in a folder under a name; the label canary is slow. Gives the address, the name and each call's
    model_spec."""
    import grpc
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    signatures = tf.saved_model.load(str(folder)).signatures
    (graph,) = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
    version = int(folder.name)
    calls = []

    def checked(spec, context):
        calls.append(spec)
        if spec.name != model or (spec.HasField("version") and spec.version.value != version):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {spec.name}")

    class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            checked(request.model_spec, context)
            if request.model_spec.version_label == "canary":
                time.sleep(3)
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            try:
                given = signatures[request.model_spec.signature_name](**inputs)
            except (tf.errors.InvalidArgumentError, TypeError) as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:200])
            return predict_pb2.PredictResponse(
                outputs={key: tf.make_tensor_proto(value.numpy()) for key, value in given.items()}
            )

        def GetModelMetadata(self, request, context):  # noqa: N802
            checked(request.model_spec, context)
            answer = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
            signature_map = get_model_metadata_pb2.SignatureDefMap(signature_def=graph.signature_def)
            answer.metadata["signature_def"].Pack(signature_map)
            return answer

    class Models(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):  # noqa: N802
            checked(request.model_spec, context)
            answer = get_model_status_pb2.GetModelStatusResponse()
            answer.model_version_status.add(version=version, state="AVAILABLE")
            return answer

    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield SimpleNamespace(url=f"grpc://127.0.0.1:{port}", model=model, calls=calls)
    finally:
        server.stop(1).wait(10)
