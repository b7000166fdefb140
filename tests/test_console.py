import os
import subprocess
import sys
import threading

import pytest

from factorizenet_tf import console
from factorizenet_tf.console import quiet_native_stderr, require_extra, show_rows, text_table


def native(text):
    os.write(2, text)


def test_native_lines_are_kept_off_and_pythons_pass_until_the_block_ends_well_or_not(capfd, monkeypatch):
    def fails_after_lines():
        with quiet_native_stderr():
            with quiet_native_stderr():
                native(b"inner\n")
            native(b"outer\n")
            print("a warning", file=sys.stderr)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails_after_lines()
    native(b"after\n")
    assert sorted(capfd.readouterr().err.splitlines()) == ["a warning", "after"]
    monkeypatch.setenv("FACTORIZENET_TRACEBACK", "1")
    with quiet_native_stderr():
        native(b"shown\n")
    assert capfd.readouterr().err == "shown\n"


def test_what_python_writes_to_descriptor_2_itself_passes_in_order_and_into_no_other_file(tmp_path):
    code = f"""
import logging, os, sys
from factorizenet_tf.console import quiet_native_stderr
stderr = sys.stderr
for text in ("first", "second"):
    with quiet_native_stderr():
        print(text, file=sys.stderr)
        os.write(2, b"native")
        logging.getLogger("kept").addHandler(logging.StreamHandler())
    assert sys.stderr is stderr
with open({str(tmp_path / "victim")!r}, "w"):
    logging.getLogger("kept").warning("a warning")
os.close(2)
with quiet_native_stderr():  # a process without stderr
    pass
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "first\nsecond\na warning\na warning\n"
    assert (tmp_path / "victim").read_text() == ""


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


def test_a_missing_extra_is_named_with_its_remedy_and_nothing_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "json", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError) as found:
        require_extra("json", "no_such_module", "xml", extra="report", what="drawing figures")
    assert str(found.value) == "drawing figures needs json and no_such_module: pip install 'factorizenet_tf[report]'"
    assert found.value.name == "json"


def test_whole_numbers_of_a_table_have_separators_and_others_what_a_reader_wants(capsys):
    row = {"macs": 5259904, "share": 0.36029, "shape": (1024, 16, 3), "found": (0.0039216, -128)}
    row |= {"operators": ("A", "B"), "unknown": None}
    show_rows([row], title="A net")
    printed = capsys.readouterr().out
    for text in ("5,259,904", "0.3603", "1024x16x3", "0.003922, -128", "A, B"):
        assert text in printed
        assert text in text_table([row])
    assert "None" not in printed


@pytest.fixture
def narrow(monkeypatch):
    """Tables are made for a terminal of 40 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))


def test_a_table_in_a_pipe_is_plain_and_whole():
    row = {"layer_name": "[red]x[/red] :smile:", "macs": 1_000, "why": "so " * 100 + "it is"}
    head, rule, line = text_table([row]).splitlines()
    assert head.split() == ["layer", "name", "macs", "why"]
    assert set(rule) == {"-"}
    assert line == f"{row['layer_name']}  1,000  {row['why']}"


def test_a_table_fits_a_terminal_by_folded_texts_and_columns_below(narrow):
    row = {"layer": "stem", "weight_bytes": 1_234_567, "why": "a long text is folded at its words", "n": 123}
    assert text_table([row | {"layer": "last"}, row]).splitlines() == [
        "          weight",
        "layer      bytes",
        "----------------",
        "last   1,234,567",
        "stem   1,234,567",
        "",
        "layer  why                         n",
        "------------------------------------",
        "last   a long text is folded at  123",
        "       its words",
        "stem   a long text is folded at  123",
        "       its words",
    ]


def test_a_single_row_too_wide_for_a_terminal_is_a_line_a_column(narrow):
    row = {"file_name": "a" * 29, "bytes": 12_345, "note": None, "why": "it is folded at its words, too"}
    assert text_table([row]).splitlines() == [
        f"file name  {'a' * 29}",
        "bytes      12,345",
        "note",
        "why        it is folded at its words,",
        "           too",
    ]


def test_a_narrow_terminal_has_the_columns_wanted_most_and_the_others_names(narrow):
    rows = [{"name": "fnet-l2-int8", "level": "1.2.4", "data": "CIFAR-10 (JPEG)", "macs": 5_259_904}] * 2
    assert text_table(rows, brief=("name", "macs")).splitlines()[2:] == [
        *["fnet-l2-int8  5,259,904"] * 2,
        "In a wider window or a pipe, too: level,",
        "data.",
    ]
