"""The processor and the versions that a measurement was taken with."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["cpu_name", "versions"]

PACKAGES = ("factorizenet_tf", "tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")
INT8_INSTRUCTIONS = (("amx_int8", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx2", "AVX2"), ("asimddp", "NEON dot"))


def cpu_name() -> str:
    """Name the processor, its cores and its fastest int8 instructions, e.g. "AMD EPYC, 2 cores, AVX-512 VNNI"."""
    name, flags = platform.processor() or platform.machine(), ()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = dict(
            (part.strip() for part in line.split(":", 1)) for line in cpuinfo.read_text().splitlines() if ":" in line
        )
        name = lines.get("model name", name)
        flags = (lines.get("flags") or lines.get("Features") or "").split()
    fastest = [label for flag, label in INT8_INSTRUCTIONS if flag in flags][:1]
    return ", ".join([name, f"{os.cpu_count()} cores", *fastest])


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Give the versions of Python and of `packages` by name, those not installed left out; default: what results depend on."""
    numbers = {"python": platform.python_version()}
    for package in packages:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:  # a bare checkout
            continue
    return numbers
