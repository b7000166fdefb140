import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.findings import finding_rows, findings_page, trend

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([3, 2, 1], "falls"),
        ([1, 2, 4], "rises"),
        ([1, 1.05, 1.02], "hardly changes"),
        ([1, 3, 2], "goes up and down"),
        ([3, 2.05, 2.1, 1], "falls"),  # a step up within what counts as flat
        ([1, np.nan], "is not known"),
        ([1], "is not known"),
    ],
)
def test_trends_are_named_as_they_are(values, word):
    assert trend(values, 0.1) == word


def test_a_row_is_the_mean_of_the_tables(analysis, spec):
    (row,) = finding_rows(analysis)
    weights = analysis.weights.query("source == 'float' and tensor == 'folded'")
    spatial = weights[weights["layer"].str.endswith("_spatial")]
    assert row["spatial_precision"] == pytest.approx(spatial["average_channel_precision"].mean())
    assert row["macs"] == fnet.count_macs(spec)
    accuracy = analysis.output.set_index("precision")["accuracy"]
    assert (row["float"], row["w4a8"], row["qat"]) == tuple(accuracy[["float", "per_channel W4A8", "qat W8A8"]])
    errors = analysis.errors.query("scheme == 'per_channel' and weight_bits == 8").set_index("layer")
    assert np.isnan(row["sums_channel_db"])  # these nets have no residual sums
    assert row["logits_channel_db"] == errors.loc["logits", "accumulated_sqnr_db"]


def test_the_page_says_no_more_than_the_numbers(analysis):
    def two(second):
        tables = {}
        for name in analysis.__dataclass_fields__:
            table = getattr(analysis, name)
            other = table.assign(net="second")
            if name == "weights":
                other["average_channel_precision"] *= second
            tables[name] = pandas.concat([table, other], ignore_index=True)
        return findings_page(fnet.Analysis(**tables))

    assert "folded 3x3 kernels hardly changes from coarse to fine" in two(1.0)
    assert "folded 3x3 kernels falls from coarse to fine" in two(0.5)
    page = two(1.0)
    assert page.count("| second |") == 2
    assert "Per-channel PTQ against float: " in page
    assert "in each net" in page
    assert "accuracy on 60 images, one of which is 1.67 points" in page
    assert "The layer that costs most when it alone is quantized: fnet-l1-x0.5: " in page


@pytest.mark.slow
def test_the_script_writes_everything_and_keeps_what_is_measured(run, tmp_path):
    command = [sys.executable, ROOT / "tuner" / "findings.py", run.folder, "--evaluation-images", "30"]
    command += ["--out", tmp_path / "findings"]
    subprocess.run(command, check=True, capture_output=True)
    out = tmp_path / "findings"
    assert (out / "findings.md").read_text().startswith("# What quantization does to fnet-l1-x0.5")
    assert len((out / "findings.csv").read_text().splitlines()) == 2
    assert (out / "figures" / "channel_precision.png").is_file()
    assert (out / "report.html").is_file()
    kept = (out / "nets" / run.folder.name / "analysis.json").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True)
    assert (out / "nets" / run.folder.name / "analysis.json").stat().st_mtime_ns == kept
    wrong = subprocess.run([*command[:2], "nothing-here", *command[3:]], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "error: no model 'nothing-here'" in wrong.stderr
