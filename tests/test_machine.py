import os
import platform

import pytest

from factorizenet_tf import machine

CPUINFO = """processor\t: 0
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse2 {flags}
"""


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx2 avx512_vnni amx_int8", "AMD EPYC 7B13, 4 cores, AMX"),
        ("avx2 avx512_vnni", "AMD EPYC 7B13, 4 cores, AVX-512 VNNI"),
        ("avx2", "AMD EPYC 7B13, 4 cores, AVX2"),
        ("", "AMD EPYC 7B13, 4 cores"),
        (None, "arm, 4 cores"),  # no such file
    ],
)
def test_the_processor_is_named_with_its_cores_and_fastest_int8_instructions(flags, name, tmp_path, monkeypatch):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags=flags))
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine.cpu_name() == name


def test_versions_have_what_results_depend_on():
    numbers = machine.versions()
    assert {"python", "tensorflow", "tf_keras", "ai-edge-litert"} <= set(numbers)
    assert all(number[0].isdigit() for number in numbers.values())
