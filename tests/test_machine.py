import os

from factorizenet_tf.machine import machine, versions


def test_the_machine_says_its_cores():
    assert f"{os.cpu_count()} cores" in machine()
    assert len(machine()) < 120


def test_versions_have_what_results_depend_on():
    found = versions()
    assert {"python", "tensorflow", "tf_keras", "ai-edge-litert"} <= set(found)
    assert all(number[0].isdigit() for number in found.values())
