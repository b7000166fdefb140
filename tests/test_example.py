"""The way from a folder of images to a small device, as docs/data.md has it."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

SECTION = (Path(__file__).parents[1] / "docs" / "data.md").read_text().split("## From a folder to a small device")[1]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """200 circles, squares and triangles each, on noise."""
    random = np.random.default_rng(0)
    for number in range(600):
        picture = Image.fromarray(random.integers(0, 90, (40, 40, 3)).astype(np.uint8))
        kind, (x, y), r = number % 3, random.integers(14, 26, 2).tolist(), int(random.integers(8, 14))
        draw, colour = ImageDraw.Draw(picture), tuple(random.integers(120, 256, 3).tolist())
        if kind == 2:
            draw.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], colour)
        else:
            (draw.ellipse, draw.rectangle)[kind]((x - r, y - r, x + r, y + r), colour)
        path = tmp_path / "photos" / ("circle", "square", "triangle")[kind] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_folder_becomes_a_net_within_the_devices_limits_that_knows_its_classes(photos, succeeds, prints_json):
    search, run, analyze, export, predict = SECTION.split("```")[1].removeprefix("sh\n").strip().splitlines()
    succeeds(*shlex.split(search)[1:], "--quiet")
    answer = Path("runs/photos/summary.txt").read_text().split("the answer is ")[1].partition(":")[0]
    rows = csv.DictReader(Path("runs/photos/results.csv").read_text().splitlines())
    (best,) = (row for row in rows if row["name"] == answer)
    assert int(best["ram_bytes"]) <= 40_000
    assert int(best["size_bytes"]) <= 60_000
    assert run.startswith("RUN=runs/photos/trial_1/run  #")
    found = f"runs/photos/trial_{best['trial']}/run"
    metrics = json.loads(Path(found, "metrics.json").read_text())
    assert metrics["accuracy"]["test"]["tflite"] > 0.9
    for line in (analyze, export):
        succeeds(*shlex.split(line.replace("$RUN", found))[1:])
    assert "<html" in Path("report.html").read_text()
    assert Path("photos.tflite").stat().st_size <= 60_000  # metadata included
    assert list(Path("sources").rglob("*.cc"))
    answers = prints_json(*shlex.split(predict)[1:])
    assert [(row["file"], row["class"]) for row in answers] == [
        ("photos/circle/0.png", "circle"),
        ("photos/square/1.png", "square"),
    ]
