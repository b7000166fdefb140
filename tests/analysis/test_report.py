"""The report as a reader's browser runs it, what is in the file, and the numbers of each net in its first table."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas
import pytest

from factorizenet_tf.analysis import report
from factorizenet_tf.analysis.report import report_html
from factorizenet_tf.analysis.summary import accumulated, net_table

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(analysis):
    return report_html(analysis)


def charts_of(page):
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])


def test_the_report_loads_nothing_and_is_small(page):
    vega = re.search(r"<script type=\"module\">(.{500000,}?)</script>", page, re.DOTALL)[1]
    own = page.replace(vega, "")
    assert not re.findall(r"(?:src|href)=\"(?!#)", own)
    named = set(re.findall(r"https?:[\w./-]+", own))  # what the charts' format is called
    assert all(address.startswith("https://vega.github.io/schema/vega-lite/") for address in named)
    assert "default-src 'none'" in page
    assert len(page.encode()) < report.MAX_BYTES == 1_500_000


def test_its_figures_are_the_analysis(page, analysis, spec):
    charts = charts_of(page)
    names = {"accuracy", "channel_precision", "ranges", "sqnr", "accumulation", "sensitivity", "channels"}
    assert {name.rpartition("-")[0] for name in charts} == names
    (rows,) = charts["channel_precision-0"]["datasets"].values()
    drawn = {row["layer"]: row["value"] for row in rows}
    weights = analysis.weights.query("source == 'float' and tensor == 'folded'").set_index("layer")
    layer = "stage1_block1_spatial"
    assert drawn[layer] == pytest.approx(weights.loc[layer, "average_channel_precision"], rel=1e-4)
    assert "stage1_block1_pointwise" not in drawn  # of 3x3 kernels alone
    tensors = {(t["net"], t["layer"], t["tensor"][:7]): t for t in charts["channels-0"]["datasets"]["tensors"]}
    tensor = tensors[f"{spec.name}, float", layer, "weights"]
    assert len(tensor["rows"]) == 8
    of_layer = f"source == 'float' and tensor == 'folded' and layer == '{layer}'"
    counts = analysis.histograms.query(f"{of_layer} and channel == 3")
    assert [i for i, letter in enumerate(tensor["rows"][3]) if letter != "0"] == counts["bin"].tolist()


def test_its_tables_are_the_analysis(page, analysis):
    cell = f"{analysis.output.set_index('scheme').loc['qat', 'accuracy']:.4g}"
    assert f"<td>QAT int8</td><td>{cell}</td>" in page
    logits = analysis.errors.query("layer == 'logits' and scheme == 'per_tensor'").iloc[0]
    assert f"<td>{logits['sqnr_db']:.4g}</td><td>{logits['accumulated_sqnr_db']:.4g}</td>" in page
    assert page.count("<details") == 2  # the float and the quantization-aware weights
    error = 100 * np.sqrt((1 - analysis.output.set_index("scheme").loc["qat", "top1_agreement"]) / 60)
    assert f"<td>{error:.4g}</td>" in page


def test_it_shows_the_error_of_factorizing_each_layer_of_its_nets(analysis):
    layers = ["stage1_block1_spatial"] * 3
    table = pandas.DataFrame({"layer": layers, "level": [0, 2, 2], "middle": [1, 1, 2], "macs_share": [1, 0.3, 0.6]})
    table["logits_error_int8"] = [0.01, 0.25, 0.125]
    page = report_html(analysis, factorization={"ta<ble.csv": table})
    assert "Each layer factorized alone: ta&lt;ble.csv" in page
    (rows,) = charts_of(page)["factorization-0"]["datasets"].values()
    assert [(row["column"], row["percent"], row["error"]) for row in rows] == [("2, 1", 30, 0.25), ("2, 2", 60, 0.125)]
    with pytest.raises(ValueError, match=r"t\.csv is of another net than .*: no layer 'conv7'"):
        report_html(analysis, factorization={"t.csv": table.assign(layer="conv7")})
    with pytest.raises(ValueError, match=r"t\.csv has no column 'level'"):
        report_html(analysis, factorization={"t.csv": table.drop(columns="level")})


def test_every_note_is_in_the_page_and_a_wild_name_is_text(analysis):
    notes = pandas.DataFrame([{"source": "float", "layer": "stem", "tensor": "weights", "note": "3 < 4", "net": "x"}])
    wild = dataclasses.replace(analysis, notes=notes).renamed({analysis.names[0]: "</script><b>@vega@"})
    wild = dataclasses.replace(wild, notes=notes)
    made = report_html(wild)
    assert "</script><b>" not in made
    assert "<li>x (float), stem, weights: 3 &lt; 4.</li>" in made
    assert charts_of(made)["channels-0"]["params"][0]["value"] == "</script><b>@vega@, float"


def test_many_channels_are_thinned_and_too_many_nets_refused(analysis, page, monkeypatch):
    monkeypatch.setattr(report, "CHANNELS", (4_096, 4))
    monkeypatch.setattr(report, "MAX_BYTES", len(page.encode()) - 1)
    drawn = charts_of(report_html(analysis))["channels-0"]["datasets"]["tensors"]
    assert max(len(tensor["rows"]) for tensor in drawn) == 4
    assert any("8 channels, 4 of them drawn" in tensor["facts"] for tensor in drawn)
    monkeypatch.setattr(report, "MAX_BYTES", 1_000)
    with pytest.raises(ValueError, match="over 1,000; report fewer"):
        report_html(analysis)


def test_a_nets_row_is_its_tables(analysis, page, spec):
    (row,) = net_table(analysis).to_dict("records")
    rows = analysis.errors.query("source == 'qat' and weight_mse.notna()", engine="python").set_index("layer")
    assert (row["net"], row["precision"]) == (spec.name, "QAT int8")
    assert row["first_db"] == rows.loc["stem", "accumulated_sqnr_db"]
    assert row["logits_qat_sqnr_db"] == rows.loc["logits", "accumulated_sqnr_db"]
    weights = analysis.weights.query("source == 'float' and tensor == 'folded'")
    spatial = weights[weights["layer"].str.endswith("_spatial")]["average_channel_precision"]
    assert row["channel_precision_3x3"] == pytest.approx(spatial.mean())
    sensitivity = analysis.sensitivity.query("source == 'float'")
    only = sensitivity.query("part == 'only'").set_index("layer")["kl"]
    assert (row["worst_layer"], row["worst_share"]) == (only.idxmax(), only.max() / only.sum())
    assert row["weights_points"] == sensitivity.set_index("part").loc["weights", "decrease_points"]
    assert f"<td>{row['worst_layer']}</td><td>{row['worst_share']:.4g}</td>" in page


def test_where_the_error_accumulates_by_hand():
    columns = {"layer": list("abcd"), "weight_mse": [1.0, 1.0, np.nan, 1.0], "sqnr_db": [40.0, 38.0, 41.0, 37.0]}
    errors = pandas.DataFrame(columns | {"accumulated_sqnr_db": [40.0, 30.0, 20.0, 35.0]})
    found = accumulated(errors)  # c has no weights
    assert (found["first_db"], found["lowest_db"], found["lowest_layer"], found["alone_db"]) == (40, 30, "b", 37)
    assert (found["step_db"], found["step_layer"]) == (10, "b")
    assert accumulated(errors[:1])["lowest_layer"] == ""


# Run in the page, in a frame as narrow as a phone: a window has a least width.
CHECKS = """
<script>
const found = { errors: [] };
addEventListener("error", e => found.errors.push(e.message));
addEventListener("unhandledrejection", e => found.errors.push(String(e.reason)));
addEventListener("securitypolicyviolation", e => found.errors.push(e.blockedURI));
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const change = async (name, value) => {
  const select = document.querySelector(`#channels-0 select[name=${name}]`);
  select.value = value;
  select.dispatchEvent(new Event("change"));
  select.dispatchEvent(new Event("input"));
  await wait(500);
  return document.querySelector("#channels-0").textContent;
};
addEventListener("load", async () => {
  while (!document.documentElement.dataset.ready) await wait(100);
  await wait(300);
  found.charts = [...document.querySelectorAll(".chart")].map(c => c.querySelectorAll("path").length);
  found.options = [...document.querySelectorAll("#channels-0 select")].map(s => s.options.length);
  found.pointwise = await change("layer", "stage1_block1_pointwise");
  found.pool = await change("layer", "pool");
  const head = [...document.querySelectorAll("#layers th")].find(h => h.textContent === "kurtosis");
  const cells = () => [...head.closest("table").tBodies[0].rows].map(r => r.cells[head.cellIndex].textContent);
  head.firstChild.click();
  found.ascending = cells();
  head.firstChild.click();
  found.descending = cells();
  found.sorted = head.getAttribute("aria-sort");
  found.wide = [document.documentElement, ...document.querySelectorAll(".chart")].filter(e => e.scrollWidth > e.clientWidth).length;
  found.unlabelled = [...document.querySelectorAll("select")].filter(s => !s.labels.length).length;
  found.colours = [getComputedStyle(document.body).backgroundColor, document.querySelector("#accuracy-0 .role-axis-label text").getAttribute("fill")];
  parent.document.getElementById("outer").textContent = JSON.stringify(found);
});
</script>
"""
FRAME = '<body><pre id="outer"></pre><iframe src="page.html" style="border:0;width:390px;height:900px"></iframe>'


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_it_works_in_chromium_on_a_narrow_dark_screen(page, analysis, tmp_path):
    (tmp_path / "page.html").write_text(page.replace("</head>", f"{CHECKS}</head>", 1), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += ["--virtual-time-budget=40000", f"--user-data-dir={tmp_path}/profile"]
    options += ["--blink-settings=preferredColorScheme=0"]
    command = [BROWSER, *options, (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=150).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="outer">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert found["errors"] == []
    assert len(found["charts"]) == 13  # two panels a figure, and the channels
    assert all(count > 5 for count in found["charts"])
    assert found["options"] == [2, found["options"][1], 2]  # float and quantization-aware; weights and activations
    layers = analysis.weights.query("source == 'float' and tensor == 'folded'").set_index("layer")
    assert f"pointwise, {layers.loc['stage1_block1_pointwise', 'channels']} channels" in found["pointwise"]
    assert "has no such layer" in found["pool"]  # no weights
    assert "has no such layer" not in found["pointwise"]
    numbers = [float(text) for text in found["ascending"] if text != "-"]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 3
    assert [float(text) for text in found["descending"] if text != "-"] == numbers[::-1]
    assert found["descending"][-1] == "-"  # what has no number stays last
    assert found["sorted"] == "descending"
    assert found["wide"] == 0  # nothing to scroll sideways but the tables' own boxes
    assert found["unlabelled"] == 0
    assert found["colours"] == ["rgb(15, 19, 24)", "#9aa4af"]
