"""The report as a reader's browser runs it, and what is in the file."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.analysis import report
from factorizenet_tf.analysis.layer_figures import write_figures
from factorizenet_tf.analysis.report import report_html, write_report
from factorizenet_tf.analysis.summary import summary

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def page(analysis):
    return report_html(analysis)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_report_loads_nothing_and_is_small(page):
    own = page.replace(re.search(r"<script>(.{1000000,}?)</script>", page, re.DOTALL)[1], "")
    assert not re.findall(r"(?:src|href)=\"(?!#)", own)
    assert not re.findall(r"https?:", own)
    assert "default-src 'none'" in page
    assert len(page.encode()) < 7_000_000


def test_its_data_is_the_analysis(page, analysis, spec):
    data = data_of(page)
    assert [net["net"] for net in data["nets"]] == [spec.name]
    assert len(data["output"]) == len(analysis.output)
    layer = next(row for row in data["layers"] if (row["source"], row["layer"]) == ("float", "stage1_block1_spatial"))
    row = analysis.weights.query("source == 'float' and tensor == 'folded' and layer == 'stage1_block1_spatial'").iloc[
        0
    ]
    assert layer["folded"]["precision"] == pytest.approx(row["average_channel_precision"], rel=1e-5)
    drawn = data["histograms"][f"{spec.name}|float|folded|stage1_block1_spatial"]
    assert len(drawn["rows"]) == 8
    counts = analysis.histograms.query(
        "source == 'float' and tensor == 'folded' and layer == 'stage1_block1_spatial' and channel == 3"
    )
    assert [i for i, letter in enumerate(drawn["rows"][3]) if letter != "0"] == counts["bin"].tolist()


def test_the_summary_is_escaped_and_in_the_page(page, analysis):
    for part in summary(analysis):
        assert part
        for sentence in part:
            assert f"<li>{html.escape(sentence)}</li>" in page


def test_a_net_of_a_wild_name_is_text(analysis):
    renamed = {name: getattr(analysis, name).assign(net="</script><b>x") for name in analysis.__dataclass_fields__}
    page = report_html(fnet.Analysis(**renamed))
    assert "</script><b>x" not in page
    assert data_of(page)["nets"][0]["net"] == "</script><b>x"


def test_many_channels_are_thinned_and_too_many_nets_refused(analysis, monkeypatch):
    monkeypatch.setattr(report, "CHANNELS", (4_096, 4))
    whole = len(report_html(analysis).encode())
    monkeypatch.setattr(report, "MOST_BYTES", whole - 1)
    drawn = data_of(report_html(analysis))["histograms"]
    assert max(len(found["rows"]) for found in drawn.values()) == 4
    assert any(found["channels"] for found in drawn.values())
    monkeypatch.setattr(report, "MOST_BYTES", 1_000)
    with pytest.raises(ValueError, match="over 1,000; report fewer"):
        report_html(analysis)


def test_an_existing_file_is_kept(analysis, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        write_report(analysis, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_the_summarys_numbers_are_the_tables(analysis, spec):
    of_all, of_layers = summary(analysis)
    accuracy = 100 * analysis.output.query("scheme == 'float'")["accuracy"].iloc[0]
    assert of_all[0].startswith(f"{spec.name}: float {accuracy:.2f} %, per channel W4A8 ")
    assert of_all[1] == "One image of 60 is 1.67 points."
    many = analysis.errors.query("scheme == 'per_channel' and weight_bits == 8").set_index("layer")["weight_sqnr_db"]
    single = analysis.errors.query("scheme == 'per_tensor'").set_index("layer")["weight_sqnr_db"]
    most = (many - single).replace(np.inf, np.nan).max()
    found = float(re.search(r"(?:lose|more than) ([\d.]+) dB", of_layers[0])[1])
    assert 0 <= found <= most + 0.05


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


def test_sensitivity_names_the_layer_of_most_divergence(analysis):
    only = analysis.sensitivity.query("part == 'only' and source == 'float'").sort_values("kl")
    text = next(sentence for sentence in summary(analysis)[1] if "with weights only quantized" in sentence)
    share = 100 * only["kl"].iloc[-1] / only["kl"].sum()
    assert f"{only['layer'].iloc[-1]} costs most alone, {share:.0f} % of the sum" in text


def test_precision_by_level_is_said_as_it_is(analysis):
    def spread(values):
        tables = {name: [] for name in ("nets", "weights")}
        for number, value in enumerate(values):
            net = {"net": f"l{number}"}
            tables["nets"].append(analysis.nets.assign(**net))
            rows = analysis.weights[analysis.weights["source"] == "float"]
            tables["weights"].append(rows.assign(**net, average_channel_precision=value))
        import pandas

        joined = {name: pandas.concat(rows, ignore_index=True) for name, rows in tables.items()}
        made = dataclasses.replace(analysis, **joined)
        from factorizenet_tf.analysis.summary import _precision_by_level

        return _precision_by_level(made)

    assert "falls with each of these nets: l0 0.70, l1 0.60, l2 0.50" in spread([0.7, 0.6, 0.5])
    assert "rises with each" in spread([0.5, 0.6, 0.7])
    assert "is lowest in l1 and highest in l2, not monotonic" in spread([0.6, 0.5, 0.7])
    assert "hardly differs" in spread([0.60, 0.61, 0.605])
    assert spread([0.6]) is None


def test_figures_are_pngs_and_the_same_each_time(analysis, tmp_path):
    paths = write_figures(analysis, tmp_path / "one")
    assert {path.stem for path in paths} == {
        "accuracy",
        "channel_precision",
        "ranges",
        "sqnr",
        "accumulation",
        "sensitivity",
    }
    for path, again in zip(paths, write_figures(analysis, tmp_path / "two")):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.read_bytes() == again.read_bytes()


CHECKS = """
<script>
const found = { errors: [] };
addEventListener("error", e => found.errors.push(e.message));
addEventListener("securitypolicyviolation", e => found.errors.push(e.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const change = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
  found.plots = [...document.querySelectorAll(".plot")].map(p => [p.id, p.querySelectorAll(".trace, .bars, .hm").length]);
  found.rows = $("table-body").rows.length;
  const lowest = () => $("accuracy-plot")._fullLayout.yaxis.range[0];
  const all = lowest(), lines = $("accuracy-plot").data.length;
  change("accuracy-shown", "wide");
  found.enlarged = [all < lowest(), lines - $("accuracy-plot").data.length];
  change("accuracy-shown", "all");
  const cells = index => [...$("table-body").rows].map(r => r.cells[index].textContent);
  const button = document.querySelector('[data-id="precision"]');
  button.focus();
  button.click();
  found.ascending = cells(6);
  document.querySelector('[data-id="precision"]').click();
  found.descending = cells(6);
  found.sorted = document.querySelector("[aria-sort]").getAttribute("aria-sort");
  found.focus = document.activeElement.dataset.id;
  const before = $("depth-plot").data[0].y.join();
  change("depth-metric", "activations.range");
  found.redrawn = before !== $("depth-plot").data[0].y.join();
  change("depth-metric", "accumulated_sqnr_db");
  found.schemeShown = $("depth-scheme").parentElement.style.display !== "none";
  const layers = $("one-layer").options.length;
  change("one-layer", "stage1_block1_pointwise");
  found.facts = $("one-facts").textContent;
  change("one-layer", "pool");
  found.poolTensor = $("one-tensor").value;
  change("one-net", $("one-net").options[1].value);
  found.layers = [layers, $("one-layer").options.length];
  [...$("table-body").querySelectorAll("button")].find(b => b.textContent === "logits").click();
  found.shown = $("one-layer").value;
  $("depth-plot").emit("plotly_click", { points: [{ customdata: [nets[0], "float", "stem", "conv"] }] });
  found.clicked = [$("one-net").value, $("one-layer").value];
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.unlabelled = [...document.querySelectorAll("select")].filter(s => !s.labels.length).length;
  found.ground = getComputedStyle(document.body).backgroundColor;
  found.ready = document.documentElement.dataset.ready;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
}, 1500));
</script>
"""


def browsed(page, folder, width, dark):
    """What the page found when the checks above ran in it."""
    file = folder / f"page-{width}-{dark}.html"
    file.write_text(page.replace('<script>\n"use strict";', CHECKS + '<script>\n"use strict";'), encoding="utf-8")
    outer = folder / f"frame-{width}-{dark}.html"  # a window has a least width; a frame has none
    outer.write_text(f'<body style="margin:0"><iframe src="{file.name}" style="border:0;width:{width}px;height:900px">')
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [
        f"--window-size={max(width, 600)},900",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder}/profile",
    ]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    outer.write_text(
        outer.read_text()
        + "</iframe><script>addEventListener('load', () => setTimeout(() => { const r = frames[0].document."
        "getElementById('result'); document.body.append(Object.assign(document.createElement('pre'), "
        "{ id: 'outer', textContent: r ? r.textContent : 'nothing' })); }, 6000));</script>"
    )
    command = [BROWSER, *options, "--dump-dom", outer.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=150).stdout
    text = html.unescape(re.search(r'<pre id="outer">(.*?)</pre>', dom, re.DOTALL)[1])
    assert text != "nothing", dom[-2000:]
    return json.loads(text)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_works_in_chromium(page, analysis, spec, tmp_path, width, dark):
    found = browsed(page, tmp_path, width, dark)
    assert found["errors"] == []
    assert found["ready"] == "yes"
    assert all(count > 0 for _, count in found["plots"])
    assert len(found["plots"]) == 5
    assert found["rows"] >= 10
    numbers = [float(text) for text in found["ascending"] if text != "-"]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 3
    assert [text for text in found["descending"] if text != "-"] == [f"{n:.3f}" for n in sorted(numbers, reverse=True)]
    assert found["descending"][-1] == "-"  # what has no number stays last
    assert (found["sorted"], found["focus"]) == ("descending", "precision")
    assert found["redrawn"]
    assert found["enlarged"][1] == 1  # W4A8's line is left out
    assert found["schemeShown"]
    row = analysis.weights.query(
        "source == 'float' and tensor == 'folded' and layer == 'stage1_block1_pointwise'"
    ).iloc[0]
    assert found["facts"].startswith(f"stage1_block1_pointwise (pointwise): {row['channels']} channels from ")
    assert found["poolTensor"] == "activations"
    assert found["layers"][0] == found["layers"][1] > 5
    assert found["shown"] == "logits"
    assert found["clicked"] == [f"{spec.name}|float", "stem"]
    assert found["wide"] <= 0  # nothing to scroll sideways but the table's own box
    assert found["unlabelled"] == 0
    assert found["ground"] == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")
