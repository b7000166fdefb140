"""TensorFlow Serving's routes that KServe's server lacks: status, metadata, versions, labels, its metrics' address."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.server import metrics_handler
from kserve.protocol.rest.v1_endpoints import V1Endpoints

from .server_nets import Net
from .server_protocol import metadata, status

__all__ = ["add_routes"]

LABEL = "stable"


def add_routes(app: FastAPI, data_plane: DataPlane, nets: dict[str, Net]) -> None:
    """Add the routes to KServe's app, before its own are registered: the first that matches answers."""
    endpoints = V1Endpoints(data_plane)
    router = APIRouter(prefix="/v1/models/{name}")

    def missing(name, version=None, label=None):
        """A 404 where there is no such model, version or label; else None."""
        if name not in nets:
            error = f"no model {name!r}; there are {', '.join(nets)}"
        elif version is not None and version != str(nets[name].version):
            error = f"{name} has no version {version}; it has {nets[name].version}"
        elif label is not None and label != LABEL:
            error = f"{name} has no label {label!r}; it has {LABEL}"
        else:
            return None
        return JSONResponse({"error": error}, 404)

    async def model_status(name: str, version: str | None = None, label: str | None = None):
        return missing(name, version, label) or status(nets[name])

    async def model_metadata(name: str, version: str | None = None, label: str | None = None):
        return missing(name, version, label) or metadata(nets[name])

    async def predict(request: Request, name: str, version: str | None = None, label: str | None = None):
        return missing(name, version, label) or await endpoints.predict(name, request)

    for place in ("", "/versions/{version}", "/labels/{label}"):
        options = {"response_model": None, "methods": ["POST"]}
        # Before the status: its last part would match "1:predict", too.
        router.add_api_route(f"{place}:predict", predict, **options)
        router.add_api_route(f"{place}/metadata", model_metadata, response_model=None)
        router.add_api_route(place, model_status, response_model=None)
    app.include_router(router)

    async def closed():
        return JSONResponse({"error": "models are not loaded or unloaded over the network; restart the server"}, 403)

    # KServe's model repository would let anybody unload a model.
    app.add_api_route("/v2/repository/{rest:path}", closed, methods=["GET", "POST"])
    app.add_api_route("/monitoring/prometheus/metrics", metrics_handler)
