import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.analysis.differences import changes, trend
from factorizenet_tf.analysis.findings import finding_rows, findings_page
from factorizenet_tf.analysis.requirements_met import frontier_of, requirement_texts

ROOT = Path(__file__).parents[2]


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


def family(analysis, *, precision=1.0, kind=None, lost_db=0.0, **accuracies):
    """The analysis beside itself under another name, changed in what is given."""
    tables = {}
    for name in analysis.__dataclass_fields__:
        table = getattr(analysis, name)
        first, other = table, table.assign(net="second")
        if name == "weights":
            other["average_channel_precision"] *= precision
            if kind is not None:
                is_spatial = table["layer"].str.endswith("_spatial")
                first = table.assign(kind=table["kind"].mask(is_spatial, "conv"))
                other["kind"] = other["kind"].mask(is_spatial, kind)
        if name == "errors":
            other["accumulated_sqnr_db"] -= lost_db
        if name == "output":
            for scheme, (accuracy, agreement) in accuracies.items():
                chosen = other["precision"].str.startswith(scheme)
                other.loc[chosen, ["accuracy", "top1_agreement"]] = accuracy, agreement
        tables[name] = pandas.concat([first, other], ignore_index=True)
    return fnet.Analysis(**tables)


def test_the_page_says_no_more_than_the_numbers(analysis):
    page = findings_page(family(analysis))
    assert "folded 3x3 kernels hardly changes from coarse to fine, " in page
    assert "the fall that one expects is absent." in page
    assert "by 0.00 of the" not in page
    assert page.count("| second |") == 4
    assert "Per-channel PTQ against float: " in page
    assert "on 60 validation images, one of which is 1.67 points" in page
    assert "its share of the sum over the layers: fnet-l1-x0.5: " in page
    assert "requirement" not in page
    assert "2104.11849" not in page  # no regular and no depthwise net
    fallen = findings_page(family(analysis, precision=0.5))
    assert "folded 3x3 kernels falls from coarse to fine, " in fallen
    assert "normal random numbers in the same shapes go from" in fallen
    assert "the fall that one expects is absent." not in fallen


def test_a_page_without_float_weights_or_blocks_says_less(analysis):
    def only(name, chosen):
        tables = {key: getattr(analysis, key) for key in analysis.__dataclass_fields__}
        tables[name] = tables[name].query(chosen)
        return findings_page(fnet.Analysis(**tables))

    page = only("errors", "source == 'qat'")
    assert "## Accuracy in each precision" in page
    assert "accumulate" not in page
    assert "nan" not in page + only("weights", "kind != 'grouped' and kind != 'conv'")


def test_each_figure_and_every_question_is_in_the_page(analysis):
    costs = {
        "fnet-l1-x0.5": {"macs": 9, "size_bytes": 9, "accuracy": 0.9, "images": 100},
        "second": {"macs": 5, "size_bytes": 8, "accuracy": 0.8, "images": 100},
    }
    page = findings_page(family(analysis, kind="depthwise"), costs, figures="findings")
    for figure in ("accuracy", "channel_precision", "accumulation", "sqnr", "sensitivity", "ranges"):
        assert f"](findings/{figure}.png)" in page
    for title in ("channel precision fall", "error accumulate", "Per-tensor against", "Post-training", "Four-bit"):
        assert title in page
    assert "## Which level is best under which requirement?" in page
    assert "## Beside the findings of arXiv 2104.11849" in page


def test_published_findings_are_seen_only_where_the_numbers_show_them(analysis):
    page = findings_page(family(analysis, kind="depthwise"))
    part = page[page.index("## Beside") :]
    assert part.count("seen here, too") == 0
    assert part.count("not seen here") == 5  # the first at 8 bits and at 4
    made = family(analysis, kind="depthwise", precision=0.5, lost_db=3.0, per_tensor=(0.3, 0.3))
    part = findings_page(made)[findings_page(made).index("## Beside") :]
    assert "post-training quantization: seen here, too at 8 bits" in part
    assert part.count("seen here, too") == 3
    assert "Ranges go up and down more from layer to layer: not seen here" in part


def test_a_difference_on_the_same_images_has_the_error_of_those_that_changed():
    row = {"net": "a", "float": 0.9, "float_agreement": 1.0, "qat": 0.88, "qat_agreement": 0.96}
    ((points, error),) = changes([row], 400, "qat", "float").values()
    assert points == pytest.approx(-2)
    assert error == pytest.approx(100 * np.sqrt(16) / 400)  # at most 16 of 400 images count in either direction
    assert changes([row | {"qat": np.nan}], 400, "qat", "float") == {}


def test_budgets_and_floors_by_hand():
    costs = {
        name: {
            "macs": macs,
            "size_bytes": 10,
            "ram_bytes": None,
            "latency_ms": ms,
            "accuracy": accuracy,
            "images": 5_000,
        }
        for name, macs, ms, accuracy in (("l0", 300, 2.0, 0.90), ("l1", 200, 3.0, 0.898), ("l2", 100, 1.0, 0.80))
    }
    assert frontier_of(costs, "macs") == ["l2", "l1", "l0"]
    assert frontier_of(costs, "latency_ms") == ["l2", "l0"]
    assert frontier_of(costs, "size_bytes") == ["l0"]
    table, among, floors, never, doubt = requirement_texts(costs)
    assert among.startswith(f"Among these {len(costs)} nets alone")
    assert "| from 100 MACs to below 200 | l2 | 80.00 % |" in table
    assert "| from 2.0 ms (LiteRT, one thread) | l0 | 90.00 % |" in table
    assert "RAM" not in table
    assert floors.endswith("up to 80.00 % l2; above 80.00 % up to 89.80 % l1; above 89.80 % up to 90.00 % l0.")
    assert "by bytes of the .tflite l1, l2; by ms (LiteRT, one thread) l1." in never
    assert doubt.endswith("neighbours within: l1 and l0.")


@pytest.mark.slow
def test_the_script_writes_everything_and_keeps_what_is_measured(run, tmp_path):
    command = [sys.executable, ROOT / "tuner" / "findings.py", run.folder, "--evaluation-images", "30"]
    command += ["--out", tmp_path / "findings", "--publish", tmp_path / "zoo"]
    subprocess.run(command, check=True, capture_output=True)
    out = tmp_path / "findings"
    assert (out / "findings.md").read_text().startswith("# What depth factorization does")
    assert len((out / "findings.csv").read_text().splitlines()) == 2
    assert (out / "figures" / "channel_precision.png").is_file()
    assert (out / "report.html").is_file()
    published = (tmp_path / "zoo" / "FINDINGS.md").read_text()
    assert "](findings/accuracy.png)" in published
    assert (
        f"python tuner/findings.py {run.folder} --evaluation-images 30 --out runs/findings --publish zoo" in published
    )
    assert {"accuracy.png", "errors.csv", "findings.csv"} <= {
        path.name for path in (tmp_path / "zoo" / "findings").iterdir()
    }
    kept = (out / "nets" / run.folder.name / "analysis.json").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True)
    assert (out / "nets" / run.folder.name / "analysis.json").stat().st_mtime_ns == kept
    wrong = subprocess.run([*command[:2], "nothing-here", *command[3:]], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "error: no model 'nothing-here'" in wrong.stderr
