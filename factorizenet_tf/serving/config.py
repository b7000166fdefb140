"""What TensorFlow Serving reads beside the models: text protos, a compose file, its command line."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import locked, write_text

__all__ = [
    "BATCH_SIZES",
    "CONFIG_FILE",
    "Labels",
    "config_locked",
    "read_labels",
    "set_labels",
    "versions_in",
    "write_configs",
]

CONFIG_FILE = "models.config"
BATCH_SIZES = (1, 4, 16, 64)
BATCH_TIMEOUT_MICROS = 1_000
REST_PORT, GRPC_PORT = 8501, 8500
POLL_SECONDS = 10
LOCK_SECONDS = 30
MOUNTED = "/models"
IMAGE = "tensorflow/serving:latest"


@dataclass(frozen=True)
class Labels:
    """Which version clients mean by a label.

    Args:
        stable: what most of them ask for; it moves when `set_labels` says so.
        canary: what is tried beside it, the newest export; None where that is the stable one.
    """

    stable: int
    canary: int | None = None


def versions_in(folder: str | os.PathLike) -> list[int]:
    """The versions of one model's folder, in order; a folder whose name is no number is none."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def read_labels(folder: str | os.PathLike) -> dict[str, Labels]:
    """The labels of each model in a serving folder's models.config; empty where there is none."""
    path = Path(folder) / CONFIG_FILE
    found = {}
    for block in path.read_text().split("config {")[1:] if path.is_file() else ():
        name = re.search(r'name: "([^"]+)"', block)
        labels = {key: int(value) for key, value in re.findall(r'key: "(\w+)"\s+value: (\d+)', block)}
        if name and "stable" in labels:
            found[name[1]] = Labels(labels["stable"], labels.get("canary"))
    return found


@contextlib.contextmanager
def config_locked(folder: str | os.PathLike) -> Iterator[None]:
    """A serving folder's configuration is read and written anew by one at a time.

    Raises:
        TimeoutError: another export or command held it for 30 s.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(folder) / ".lock", LOCK_SECONDS))
        except TimeoutError:
            raise TimeoutError(
                f"another process has changed {Path(folder) / CONFIG_FILE} for {LOCK_SECONDS} s; wait for its end"
            ) from None
        yield


def set_labels(folder: str | os.PathLike, name: str, *, stable: int | None = None, canary: int | None = None) -> Labels:
    """Move a model's labels: promote a canary, or roll back. A running server follows within its polling interval.

    Args:
        folder: the serving folder, with models.config.
        name: of the model.
        stable: its version; None leaves it.
        canary: its version; None takes the label away.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: there is no such version.
        TimeoutError: as `config_locked`.
    """
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"no {CONFIG_FILE} in {folder}; give a folder of `factorizenet export --serving`")
    with config_locked(folder):
        return _set_labels(folder, name, stable, canary)


def _set_labels(folder, name, stable, canary):
    known = read_labels(folder)
    there = versions_in(Path(folder) / name)
    if name not in known or not there:
        raise FileNotFoundError(f"no model {name!r} in {folder}; there are {', '.join(known) or 'none'}")
    for version in (stable, canary):
        if version is not None and version not in there:
            raise ValueError(f"{name} has no version {version}; it has {', '.join(map(str, there))}")
    labels = Labels(known[name].stable if stable is None else stable, canary)
    if labels.canary == labels.stable:
        labels = Labels(labels.stable)
    write_configs(folder, known | {name: labels})
    return labels


def write_configs(folder: str | os.PathLike, labels: dict[str, Labels]) -> None:
    """Write models.config, batching.config, monitoring.config, docker-compose.yml and serve.sh, each whole or not at all."""
    folder = Path(folder)
    for name, text in CONSTANT.items():
        write_text(folder / name, text)
    (folder / "serve.sh").chmod(0o755)
    write_text(folder / CONFIG_FILE, _model_config(labels))


def _model_config(labels) -> str:
    # A server moves a label that is in use only to a version that it has loaded, so it loads them all.
    lines = ["# Every version is loaded; `factorizenet label` moves the labels.", "model_config_list {"]
    for name, which in sorted(labels.items()):
        versions = {"stable": which.stable} | ({} if which.canary is None else {"canary": which.canary})
        lines += [
            "  config {",
            f'    name: "{name}"',
            f'    base_path: "{MOUNTED}/{name}"',
            '    model_platform: "tensorflow"',
            "    model_version_policy {",
            "      all {",
            "      }",
            "    }",
        ]
        for label, version in versions.items():
            lines += ["    version_labels {", f'      key: "{label}"', f"      value: {version}", "    }"]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


ARGUMENTS = (
    f"--port={GRPC_PORT}",
    f"--rest_api_port={REST_PORT}",
    f"--model_config_file={{}}/{CONFIG_FILE}",
    f"--model_config_file_poll_wait_seconds={POLL_SECONDS}",
    "--allow_version_labels_for_unavailable_models=true",  # for new labels; one that is in use moves to what is loaded
    "--enable_batching=true",
    "--batching_parameters_file={}/batching.config",
    "--monitoring_config_file={}/monitoring.config",
)
CONSTANT = {
    "batching.config": "\n".join(
        [
            f"max_batch_size {{ value: {BATCH_SIZES[-1]} }}",
            f"batch_timeout_micros {{ value: {BATCH_TIMEOUT_MICROS} }}",
            "max_enqueued_batches { value: 100 }",
            f"num_batch_threads {{ value: {os.cpu_count() or 1} }}",
            *(f"allowed_batch_sizes: {size}" for size in BATCH_SIZES),
            "",
        ]
    ),
    "monitoring.config": 'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n',
    "docker-compose.yml": "\n".join(
        [
            "services:",
            "  serving:",
            f"    image: {IMAGE}",
            "    restart: unless-stopped",
            "    stop_grace_period: 30s",
            "    ports:",
            f'      - "{GRPC_PORT}:{GRPC_PORT}"',
            f'      - "{REST_PORT}:{REST_PORT}"',
            "    volumes:",
            f"      - .:{MOUNTED}:ro",
            "    entrypoint: tensorflow_model_server",
            "    command:",
            *(f"      - {argument.format(MOUNTED)}" for argument in ARGUMENTS),
            "      # For -int8 models, their LiteRT file in place of the fake-quantized graph (experimental):",
            "      # - --prefer_tflite_model=true",
            "",
        ]
    ),
    "serve.sh": "\n".join(
        [
            "#!/bin/sh",
            f"# Serves this folder without Docker. {CONFIG_FILE} names {MOUNTED}: here it is read with this folder's own path.",
            'folder=$(cd "$(dirname "$0")" && pwd)',
            "config=$(mktemp)",
            f'sed "s|{MOUNTED}/|$folder/|" "$folder/{CONFIG_FILE}" > "$config"',
            "exec tensorflow_model_server \\",
            *(
                f'  "{argument}" \\'.format("$folder").replace(f"$folder/{CONFIG_FILE}", "$config")
                for argument in ARGUMENTS
                if "poll_wait" not in argument
            ),
            '  "$@"',
            "",
        ]
    ),
}
