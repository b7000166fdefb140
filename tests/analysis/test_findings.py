"""The script behind zoo/FINDINGS.md, and the page: its tables are those of the published numbers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import factorizenet_tf as fnet

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tuner" / "findings.py"


@pytest.fixture(scope="module")
def findings():
    described = importlib.util.spec_from_file_location("findings", SCRIPT)
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published():
    """The tables under zoo/findings as an `Analysis`, those that are published."""
    tables = {path.stem: pandas.read_csv(path) for path in (ROOT / "zoo" / "findings").glob("*.csv")}
    empty = pandas.DataFrame({"net": []})
    return fnet.Analysis(**{name: tables.get(name, empty) for name in fnet.Analysis.__dataclass_fields__})


def test_the_pages_tables_are_the_published_numbers(findings, published):
    rows = findings.finding_rows(published)
    saved = pandas.read_csv(ROOT / "zoo" / "findings" / "findings.csv")
    pandas.testing.assert_frame_equal(pandas.DataFrame(rows), saved, check_dtype=False)
    costs = {net: findings._costs(net, None) for net in published.names}
    page = (ROOT / "zoo" / "FINDINGS.md").read_text(encoding="utf-8")
    for name, table in findings.finding_tables(rows, costs).items():
        assert f"<!-- {name} -->\n{table}\n\n" in page, name


def test_a_table_leaves_out_what_is_not_known_and_limits_name_the_best_net(findings, analysis):
    costs = {
        "l0": {"macs": 300, "size_bytes": 10, "latency_ms": 2.0, "accuracy": 0.9},
        "l1": {"macs": 200, "size_bytes": 20, "latency_ms": 3.0, "accuracy": 0.898},
        "l2": {"macs": 100, "size_bytes": 30, "latency_ms": 1.0, "accuracy": 0.8, "ram_bytes": None},
    }
    rows = [row | {"w4a8": np.nan} for row in findings.finding_rows(analysis)]
    tables = findings.finding_tables(rows, costs)
    assert "W4A8" not in tables["accuracy"]
    assert tables["budgets"].splitlines()[2:] == [
        "| from 100 MACs to below 200 | l2 | 80.00 % |",
        "| from 200 MACs to below 300 | l1 | 89.80 % |",
        "| from 300 MACs | l0 | 90.00 % |",
        "| from 10 bytes of the .tflite | l0 | 90.00 % |",
        "| from 1.0 ms (LiteRT) to below 2.0 | l2 | 80.00 % |",
        "| from 2.0 ms (LiteRT) | l0 | 90.00 % |",
    ]


@pytest.mark.slow
def test_the_script_writes_everything_and_keeps_what_is_measured(run, tmp_path):
    (tmp_path / "zoo").mkdir()
    page = tmp_path / "zoo" / "FINDINGS.md"
    page.write_text("By hand.\n\n<!-- accuracy -->\n| old |\n|---|\n\nMore by hand.\n")
    command = [sys.executable, SCRIPT, run.folder, "--evaluation-images", "30"]
    command += ["--out", tmp_path / "findings", "--publish", tmp_path / "zoo"]
    subprocess.run(command, check=True, capture_output=True)
    out = tmp_path / "findings"
    tables = (out / "findings.md").read_text()
    assert tables.startswith("<!-- accuracy -->\n| net | MACs | float |")
    assert len((out / "findings.csv").read_text().splitlines()) == 2
    assert (out / "figures" / "channel_precision.png").is_file()
    assert (out / "report.html").is_file()
    assert page.read_text() == f"By hand.\n\n{tables.partition(chr(10) * 2)[0]}\n\nMore by hand.\n"
    names = {path.name for path in (tmp_path / "zoo" / "findings").iterdir()}
    assert {"accuracy.png", "errors.csv", "findings.csv"} <= names
    kept = (out / "nets" / run.folder.name / "analysis.json").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True)
    assert (out / "nets" / run.folder.name / "analysis.json").stat().st_mtime_ns == kept
    wrong = subprocess.run([*command[:2], "nothing-here", *command[3:]], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "no model 'nothing-here' in the zoo" in wrong.stderr
