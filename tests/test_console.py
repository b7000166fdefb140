import os
import subprocess
import sys
import threading

import pytest

from factorizenet_tf.console import quiet_native_stderr, require_extra


def native(text):
    os.write(2, text)


def test_native_lines_are_kept_off_and_pythons_pass(capfd):
    with quiet_native_stderr():
        with quiet_native_stderr():
            native(b"inner\n")
        native(b"outer\n")
        print("a warning", file=sys.stderr)
    native(b"after\n")
    assert sorted(capfd.readouterr().err.splitlines()) == ["a warning", "after"]


def test_what_python_writes_to_descriptor_2_itself_passes_in_order():
    code = """
import os, sys
from factorizenet_tf.console import quiet_native_stderr
stderr = sys.stderr
with quiet_native_stderr():
    print("first", file=sys.stderr)
    os.write(2, b"native")
assert sys.stderr is stderr
print("second", file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "first\nsecond\n"
    code = "import os; os.close(2)\nfrom factorizenet_tf.console import quiet_native_stderr\nwith quiet_native_stderr(): pass"
    subprocess.run([sys.executable, "-c", code], check=True)  # a process without stderr


def test_an_error_in_the_block_passes_and_stderr_is_back(capfd):
    with pytest.raises(ZeroDivisionError), quiet_native_stderr():
        1 / 0  # noqa: B018
    native(b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_the_first_thread_to_leave_does_not_bring_stderr_back_for_the_other(capfd):
    inside, left = threading.Event(), threading.Event()

    def first():
        with quiet_native_stderr():
            inside.wait()
        left.set()

    thread = threading.Thread(target=first)
    with quiet_native_stderr():
        thread.start()
        inside.set()
        left.wait()
        native(b"native\n")
    thread.join()
    assert capfd.readouterr().err == ""


def test_all_is_shown_where_it_is_asked_for(capfd, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_TRACEBACK", "1")
    with quiet_native_stderr():
        native(b"native\n")
    assert capfd.readouterr().err == "native\n"


def test_a_missing_extra_is_named_with_its_remedy_and_nothing_is_imported(monkeypatch):
    require_extra("json", "xml.dom", extra="report", what="drawing figures")
    monkeypatch.setitem(sys.modules, "json", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError) as found:
        require_extra("json", "no_such_module.part", "xml", extra="report", what="drawing figures")
    assert str(found.value) == (
        "drawing figures needs json and no_such_module.part: pip install 'factorizenet_tf[report]'"
    )
    assert found.value.name == "json"


def test_what_a_logger_kept_of_stderr_within_a_block_never_reaches_a_file_opened_after_it(tmp_path):
    code = f"""
import logging
from factorizenet_tf.console import quiet_native_stderr
with quiet_native_stderr():
    logging.getLogger("kept").addHandler(logging.StreamHandler())
with open({str(tmp_path / "victim")!r}, "w"):
    logging.getLogger("kept").warning("a warning")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (tmp_path / "victim").read_text() == ""
    assert result.stderr == "a warning\n"
