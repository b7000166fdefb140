"""The report as a reader's browser runs it, what is in the file, and the sentences of its summary."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest

from factorizenet_tf.analysis import report
from factorizenet_tf.analysis.report import report_html, write_report
from factorizenet_tf.analysis.summary import MIN_PRECISION, summary, trend

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def page(analysis):
    return report_html(analysis)


def charts_of(page):
    return json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])


def own_text(page):
    """The page without Vega's libraries."""
    return page.replace(re.search(r"<script type=\"module\">(.{500000,}?)</script>", page, re.DOTALL)[1], "")


def test_the_report_loads_nothing_and_is_small(page):
    assert not re.findall(r"(?:src|href)=\"(?!#)", own_text(page))
    named = set(re.findall(r"https?:[\w./-]+", own_text(page)))  # what the charts' format is called
    assert all(address.startswith("https://vega.github.io/schema/vega-lite/") for address in named)
    assert "default-src 'none'" in page
    assert len(page.encode()) < report.MAX_BYTES == 1_500_000


def test_its_figures_are_the_analysis(page, analysis, spec):
    charts = charts_of(page)
    assert {name.rpartition("-")[0] for name in charts} == {
        *("accuracy", "channel_precision", "ranges", "sqnr", "accumulation", "sensitivity", "channels")
    }
    (rows,) = charts["channel_precision-0"]["datasets"].values()
    drawn = {row["layer"]: row["value"] for row in rows}
    weights = analysis.weights.query("source == 'float' and tensor == 'folded'").set_index("layer")
    assert drawn["stage1_block1_spatial"] == pytest.approx(
        weights.loc["stage1_block1_spatial", "average_channel_precision"], rel=1e-4
    )
    assert "stage1_block1_pointwise" not in drawn  # of 3x3 kernels alone
    tensor = next(
        tensor
        for tensor in charts["channels-0"]["datasets"]["tensors"]
        if (tensor["net"], tensor["layer"]) == (f"{spec.name}, float", "stage1_block1_spatial")
        and tensor["tensor"].startswith("weights")
    )
    assert len(tensor["rows"]) == 8
    counts = analysis.histograms.query(
        "source == 'float' and tensor == 'folded' and layer == 'stage1_block1_spatial' and channel == 3"
    )
    assert [i for i, letter in enumerate(tensor["rows"][3]) if letter != "0"] == counts["bin"].tolist()


def test_its_tables_are_the_analysis(page, analysis):
    cell = f"{100 * analysis.output.set_index('scheme').loc['qat', 'accuracy']:.4g}"
    assert f"<td>quantization-aware int8</td><td>{cell}</td>" in page
    logits = analysis.errors.query("layer == 'logits' and scheme == 'per_tensor'").iloc[0]
    assert f"<td>{logits['sqnr_db']:.4g}</td><td>{logits['accumulated_sqnr_db']:.4g}</td>" in page
    assert page.count("<details") == 3  # what is said of layers, the float and the quantization-aware weights


def test_every_note_and_sentence_is_in_the_page_and_a_wild_name_is_text(page, analysis):
    for part in summary(analysis):
        assert part
        for sentence in part:
            assert f"<li>{html.escape(sentence)}</li>" in page
    notes = pandas.DataFrame([{"source": "float", "layer": "stem", "tensor": "weights", "note": "3 < 4", "net": "x"}])
    wild = dataclasses.replace(analysis, notes=notes).renamed({analysis.names[0]: "</script><b>@summary@"})
    made = report_html(wild)
    assert "</script><b>" not in made
    assert "<li>x (float), stem, weights: 3 &lt; 4.</li>" in made
    assert charts_of(made)["channels-0"]["params"][0]["value"] == "</script><b>@summary@, float"


def test_many_channels_are_thinned_and_too_many_nets_refused(analysis, page, monkeypatch):
    monkeypatch.setattr(report, "CHANNELS", (4_096, 4))
    monkeypatch.setattr(report, "MAX_BYTES", len(page.encode()) - 1)
    drawn = charts_of(report_html(analysis))["channels-0"]["datasets"]["tensors"]
    assert max(len(tensor["rows"]) for tensor in drawn) == 4
    assert any("8 channels, 4 of them drawn" in tensor["facts"] for tensor in drawn)
    monkeypatch.setattr(report, "MAX_BYTES", 1_000)
    with pytest.raises(ValueError, match="over 1,000; report fewer"):
        report_html(analysis)


def test_an_existing_file_is_kept(analysis, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        write_report(analysis, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_without_the_extra_the_remedy_is_named(analysis, monkeypatch):
    monkeypatch.delitem(sys.modules, "factorizenet_tf.plots", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"needs altair: pip install 'factorizenet_tf\[report\]'"):
        report_html(analysis)


def test_the_summarys_numbers_are_the_tables(analysis, spec):
    of_all, of_layers = summary(analysis)
    accuracy = 100 * analysis.output.query("scheme == 'float'")["accuracy"].iloc[0]
    assert of_all[0].startswith(f"{spec.name}: float {accuracy:.2f} %, per channel W4A8 ")
    assert of_all[1] == "One image of 60 is 1.67 points."
    rows = analysis.errors.query("source == 'qat' and weight_mse.notna()", engine="python").set_index("layer")
    assert f"to {rows.loc['logits', 'accumulated_sqnr_db']:.1f} dB at logits" in of_layers[0]
    only = analysis.sensitivity.query("part == 'only' and source == 'float'").sort_values("kl")
    share = 100 * only["kl"].iloc[-1] / only["kl"].sum()
    assert f"{only['layer'].iloc[-1]} costs most alone, {share:.0f} % of the sum" in of_layers[1]


def test_a_change_is_named_only_beyond_what_chance_makes(analysis):
    def said(points, agreement):
        output = analysis.output.assign(decrease_points=0.0, top1_agreement=1.0)
        chosen = output["precision"] == "per_tensor W8A8"
        output.loc[chosen, ["decrease_points", "top1_agreement"]] = points, agreement
        return summary(dataclasses.replace(analysis, output=output))[0][2]

    # 9 of 60 images of another class: a standard error of sqrt(9) / 60 = 5 points
    assert said(9.0, 51 / 60) == "No change against float is beyond 2 standard errors: each may be chance."
    assert "per tensor int8 -11.00; each other change may be chance." in said(11.0, 51 / 60)
    assert "per tensor int8 +11.00" in said(-11.0, 51 / 60)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.7, 0.6, 0.5], "falls"),
        ([0.7, 0.6, 0.61, 0.5], "falls"),  # a step up within what counts as flat
        ([0.5, 0.6, 0.7], "rises"),
        ([0.6, 0.5, 0.7], "goes up and down"),
        ([0.60, 0.61, 0.605], "hardly changes"),
        ([0.6, np.nan], "is not known"),
        ([0.6], "is not known"),
    ],
)
def test_precision_by_level_is_said_as_it_is(analysis, values, word):
    assert trend(values, MIN_PRECISION) == word
    if word == "falls":
        rows = analysis.weights[analysis.weights["source"] == "float"]
        made = [rows.assign(net=f"l{n}", average_channel_precision=value) for n, value in enumerate(values)]
        said = summary(dataclasses.replace(analysis, weights=pandas.concat(made)))[0][-1]
        assert f"kernels falls from the first net to the last: l0 0.70, l1 0.60, l2 {values[2]:.2f}" in said


CHECKS = """
<script>
const found = { errors: [] };
addEventListener("error", e => found.errors.push(e.message));
addEventListener("unhandledrejection", e => found.errors.push(String(e.reason)));
addEventListener("securitypolicyviolation", e => found.errors.push(e.blockedURI));
const wait = ready => new Promise(done => { const ask = () => ready() ? setTimeout(done, 300) : setTimeout(ask, 100); ask(); });
const change = async (name, value) => {
  const select = document.querySelector(`#channels-0 select[name=${name}]`);
  select.value = value;
  select.dispatchEvent(new Event("change"));
  select.dispatchEvent(new Event("input"));
  await new Promise(done => setTimeout(done, 500));
  return document.querySelector("#channels-0").textContent;
};
addEventListener("load", async () => {
  await wait(() => document.documentElement.dataset.ready);
  found.charts = [...document.querySelectorAll(".chart")].map(c => [c.id, c.querySelectorAll("path").length]);
  found.wider = [...document.querySelectorAll(".chart")].filter(c => c.scrollWidth > c.clientWidth).length;
  found.options = [...document.querySelectorAll("#channels-0 select")].map(s => s.options.length);
  found.first = document.querySelector("#channels-0").textContent;
  found.pointwise = await change("layer", "stage1_block1_pointwise");
  found.pool = await change("layer", "pool");
  const head = [...document.querySelectorAll("#layers th")].find(h => h.textContent === "kurtosis");
  const cells = () => [...head.closest("table").tBodies[0].rows].map(r => r.cells[head.cellIndex].textContent);
  head.firstChild.click();
  found.ascending = cells();
  head.firstChild.click();
  found.descending = cells();
  found.sorted = head.getAttribute("aria-sort");
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.unlabelled = [...document.querySelectorAll("select")].filter(s => !s.labels.length).length;
  found.ground = getComputedStyle(document.body).backgroundColor;
  found.ink = document.querySelector("#accuracy-0 .role-axis-label text").getAttribute("fill");
  document.body.append(Object.assign(document.createElement("pre"), { id: "result", textContent: JSON.stringify(found) }));
});
</script>
"""
OUTER = """<body style="margin:0"><iframe src="%s" style="border:0;width:%dpx;height:900px"></iframe><script>
addEventListener("load", async () => {
  let result;
  for (let i = 0; i < 150 && !result; i++) {
    await new Promise(done => setTimeout(done, 200));
    result = frames[0].document.getElementById("result");
  }
  document.body.append(Object.assign(document.createElement("pre"), { id: "outer", textContent: result?.textContent ?? "nothing" }));
});</script>"""


def browsed(page, folder, width, dark):
    """What the page found when the checks above ran in it; a window has a least width, a frame has none."""
    (folder / "page.html").write_text(page.replace("</head>", f"{CHECKS}</head>", 1), encoding="utf-8")
    (folder / "frame.html").write_text(OUTER % ("page.html", width))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--window-size={max(width, 600)},900", "--virtual-time-budget=40000"]
    options += [f"--user-data-dir={folder}/profile", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [BROWSER, *options, "--dump-dom", (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=150).stdout
    text = html.unescape(re.search(r'<pre id="outer">(.*?)</pre>', dom, re.DOTALL)[1])
    assert text != "nothing", dom[-2000:]
    return json.loads(text)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_works_in_chromium(page, analysis, tmp_path, width, dark):
    found = browsed(page, tmp_path, width, dark)
    assert found["errors"] == []
    assert len(found["charts"]) == 13  # two panels a figure, and the channels
    assert all(count > 5 for _, count in found["charts"])
    assert found["options"][0] == 2  # float and quantization-aware
    assert found["options"][1] > 5
    assert found["options"][2] == 2  # weights and activations
    layers = analysis.weights.query("source == 'float' and tensor == 'folded'").set_index("layer")
    channels = layers.loc["stage1_block1_pointwise", "channels"]
    assert "conv, " in found["first"] or "grouped, 2 groups, 8 channels" in found["first"]
    assert f"pointwise, {channels} channels" in found["pointwise"]
    assert "has no such layer" in found["pool"]  # no weights
    assert "has no such layer" not in found["pointwise"]
    numbers = [float(text) for text in found["ascending"] if text != "-"]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 3
    assert [float(text) for text in found["descending"] if text != "-"] == numbers[::-1]
    assert found["descending"][-1] == "-"  # what has no number stays last
    assert found["sorted"] == "descending"
    assert found["wide"] <= 0  # nothing to scroll sideways but the tables' own boxes
    assert found["wider"] == 0
    assert found["unlabelled"] == 0
    assert found["ground"] == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")
    assert found["ink"] == ("#9aa4af" if dark else "#57606a")
