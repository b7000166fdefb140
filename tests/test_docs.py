"""Every code block of README.md and docs/ is run by Sybil, a page's blocks in their order and in a folder of its own.

`factorizenet` runs in this process, other shell lines in bash. A block behind `<!-- slow: next -->` is run by the page's slow
test, one behind `<!-- skip: next "reason" -->` by none. ADDED, CUTS and the fixture `small` are all that is changed for time.
"""

import functools
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image, ImageDraw
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer
from tensorflow_serving.config import model_server_config_pb2

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.zoo import publishing

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
SHORT = "--epochs 1 --qat-epochs 1 --quiet"
# Added to a command, by its name; of an option given twice the last counts.
ADDED = {
    "train": f"{SHORT} --batch-size 64",
    "quantize": "--quiet",
    "search": f"{SHORT} --max-trials 2",
    "factorize": "--images 64 --quiet",
    "study": f"{SHORT} --levels 1",
}
CUTS = (
    (r"--run \S+", r"\g<0> --epochs 1 --qat-epochs 1"),
    (r"--method qat", r"\g<0> --qat-epochs 1"),
    (r"verify --all", "verify fnet-l2-int8"),
    (r"theirs.tflite --dataset photos", "theirs.tflite --dataset digits"),
    (r"baseline-resnet8-float(.*)--dataset cifar10", r"model.keras\1--dataset digits"),
    (r"baseline-resnet8-float", "model.keras --dataset digits"),
    (r"analyze runs/half", "analyze runs/l6"),
    (r"(?<!best\(dataset=.)(?<!--best --dataset )cifar10\b(?!-)", "digits"),
    (r"^(?!.*(--from|--size|\.keras))(factorizenet (?:train|search).*--dataset digits)", r"\2 --size 16 --channels 1"),
    (r"^(?!.*tiny-imagenet)(.*)(--size 64|--size 32(?=.*--max))", r"\1--size 16"),
    (r"--macros base,early,\S+", "--macros base,2x2.3x2r"),
    (r"--width (16,24|24,32,40)", "--width 8,16"),
    (r"--min-accuracy 0.97", "--min-accuracy 0.1"),
    (r"^factorizenet train --level 2", r"\g<0> --width 8"),
    (r'load_dataset\("digits"\)', 'load_dataset("digits", input_shape=(16, 16, 1))'),
    (r"ModelSpec\(width=16\)", "ModelSpec(width=8, input_shape=(16, 16, 1))"),
    (r"recipe=fnet.tuning_recipe_for\(data.name\)", "recipe=short"),
    (r'fnet.train\(spec, data, out="[^"]*"(?!.*recipe)', r"\g<0>, recipe=short"),
    (r"max_trials=20", "max_trials=2"),
    (r"calibration\((1024|512)\)", "calibration(64)"),
)


def blocks(path, run=None):
    """Pairs of a block of a page and what stands before it: None, "slow" or the reason why it is skipped."""

    def slow(document):
        for region in DirectiveInHTMLCommentLexer("slow")(document):
            region.parsed, region.evaluator = ("next", "slow"), run
            yield region

    before = None
    for example in Sybil([CodeBlockParser("python", run), CodeBlockParser("sh", run), SkipParser(), slow]).parse(path):
        if isinstance(example.parsed, tuple):
            assert example.parsed[0] == "next"
            before = example.parsed[1].strip('"')
        else:
            yield example, before
            before = None


def bash(script):
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


class Reader:
    """Runs a page's blocks in the current folder, where `recorded` are trained nets that a command may make anew."""

    def __init__(self, names, recorded, monkeypatch):
        self.names, self.recorded, self.monkeypatch, self.server = names, recorded, monkeypatch, None

    def __call__(self, example):
        text = functools.reduce(lambda text, change: re.sub(*change, text, flags=re.MULTILINE), CUTS, example.parsed)
        if self.server:
            text = text.replace("http://localhost:8501", self.url)
        if example.region.lexemes["arguments"] == "sh":
            for line in text.replace("\\\n", "").strip().splitlines():
                self.shell(line)
        elif name := re.match(r"# (\w+\.py)\n", text):
            Path(name[1]).write_text(text)
        else:
            for folder in re.findall(r'out="(.*?)"', text):
                self.make_anew(folder)
            exec(compile("\n" * example.line + text, example.path, "exec"), self.names)

    def make_anew(self, folder):
        if folder in self.recorded:
            self.recorded.remove(folder)
            shutil.rmtree(folder)

    def shell(self, line):
        if line.startswith("factorizenet "):
            self.command(bash(f'printf "%s\n" {line}').splitlines()[1:], line)
        elif pairs := re.match(r"(export )?((\w+=\S+ ?)+)", line):
            for pair in bash(f'printf "%s\n" {pairs[2]}').splitlines():
                self.monkeypatch.setenv(*pair.split("=", 1))
        else:
            mine = f'python() {{ \'{sys.executable}\' "$@"; }}; curl() {{ command curl --fail --silent "$@"; }}'
            print(bash(f"{mine}\n{line}"))

    def command(self, words, line):
        if words[0] == "serve":
            command = [sys.executable, "-m", "factorizenet_tf.cli", *words, "--port", "0"]
            self.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.url = re.match(r"http://[\d.]+:\d+", self.server.stdout.readline())[0]
            return
        for option in {"--out", "--run"} & set(words):
            self.make_anew(words[words.index(option) + 1])
        assert main([*words, *ADDED.get(words[0], "").split()]) == 0, line


def draw(folder, name="{}.png"):
    """Circles of ten sizes on noise, a folder each."""
    random = np.random.default_rng(0)
    for number in range(120):
        picture, size = Image.fromarray(random.integers(0, 90, (40, 40, 3)).astype(np.uint8)), number % 10 + 1
        ImageDraw.Draw(picture).ellipse((20 - size, 20 - size, 20 + size, 20 + size), "white")
        path = folder / f"size{size}" / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def read(name, wanted, request, tmp_path, monkeypatch):
    """Run the wanted blocks of a page as a reader who has pictures, a trained net in each of runs/, models of their own."""
    monkeypatch.chdir(tmp_path)
    reader = Reader({"fnet": fnet, "keras_tuner": keras_tuner}, set(), monkeypatch)
    chosen = [example for example, before in blocks(PAGES[name], reader) if before == wanted]
    text = "\n".join(example.parsed for example in chosen)
    reader.names["images"] = np.zeros((2, 32, 32, 3), np.uint8)
    for file in ("cat.png", "picture.png"):
        Image.fromarray(np.arange(200 * 300 * 3).reshape(200, 300, 3).astype(np.uint8)).save(file)
    if "runs/" in text:
        for folder in ("runs/l0", "runs/l2", "runs/l6"):
            shutil.copytree(request.getfixturevalue("run").folder, folder)
            reader.recorded.add(folder)
    if wanted == "slow":
        reader.names |= request.getfixturevalue("small")
    try:
        for example in chosen:
            example.evaluate()
    finally:
        if reader.server:
            reader.server.terminate()
            reader.server.communicate(timeout=60)


@pytest.fixture
def small(run, digits, spec, no_conversion, tmp_path, monkeypatch):
    """Searches and studies find the session's run in the place of what they would train, and its costs; names for Python."""
    from tf_keras import Input, Sequential, layers

    def recorded(spec, dataset, *, out, **options):
        shutil.copytree(run.folder, out, dirs_exist_ok=True)
        return fnet.load_run(out)

    for name in ("tuner.tuner.train", "analysis.study.train"):
        monkeypatch.setattr(f"factorizenet_tf.{name}", recorded)
    costs = {"size_bytes": 20_000, "ram_bytes": 20_000, "latency_ms": 0.1}
    monkeypatch.setattr(
        "factorizenet_tf.tuner.costs.measure", lambda spec, wanted, labels=None: {c: costs[c] for c in wanted}
    )
    monkeypatch.setattr(publishing, "LATENCY_ROUNDS", 1)
    monkeypatch.setattr(publishing, "_reference", lambda *_: (run.folder / "model.tflite").read_bytes())
    draw(tmp_path / "photos")
    draw(tmp_path / "path" / "to" / "signs", "cam{}.png")
    shutil.copy(run.folder / "model.tflite", "theirs.tflite")
    filters = {"conv1": 8, "conv3": 8, "conv4": 16}
    convolutions = [layers.Conv2D(n, 3, padding="same", activation="relu", name=name) for name, n in filters.items()]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    model = Sequential([Input((16, 16, 1)), *convolutions, *head], name="mine")
    for name in ("model.keras", "mine.keras"):
        model.save(name)
    short = fnet.recipe_for("digits", epochs=1, qat_epochs=1, calibration_images=64)
    return {"model": model, "data": digits, "spec": spec, "run": run, "short": short}


def pages_with(wanted):
    return [name for name, path in PAGES.items() if any(before == wanted for _, before in blocks(path))]


@pytest.mark.parametrize("name", pages_with(None))
def test_the_blocks_of_a_page_run(name, request, tmp_path, monkeypatch):
    read(name, None, request, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", pages_with("slow"))
def test_the_slow_blocks_of_a_page_run(name, request, tmp_path, monkeypatch):
    read(name, "slow", request, tmp_path, monkeypatch)


def test_what_is_not_run_is_counted_and_has_a_reason():
    reasons = [before for path in PAGES.values() for _, before in blocks(path) if before not in (None, "slow")]
    assert all(len(reason) > 5 for reason in reasons)
    assert len(reasons) == 23
    fences = [kind for path in PAGES.values() for kind in re.findall(r"^```(.+)$", path.read_text(), re.MULTILINE)]
    assert set(fences) == {"python", "sh", "text", "cpp", "{toctree}"}  # text: lines of tests/test_board.py
    assert (fences.count("text"), fences.count("cpp")) == (1, 1)


def test_the_nets_by_ram_of_the_microcontrollers_page_are_the_indexs():
    row = r"^\| (\S+-int8) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) % \| ([\d.]+) % \|$"
    rows = re.findall(row, PAGES["microcontroller"].read_text(), re.MULTILINE)
    cards = [fnet.zoo.card(name) for name, *_ in rows]
    costs = [[f"{cost:,}" for cost in (card.ram_bytes, card.size_bytes, card.macs)] for card in cards]
    accuracies = [[f"{100 * share:.2f}" for share in (card.validation_accuracy, card.accuracy)] for card in cards]
    assert [list(numbers) for _, *numbers in rows] == [a + b for a, b in zip(costs, accuracies)]
    assert len(rows) == 10


def test_the_configurations_of_the_serving_page_are_the_servers():
    fenced = re.findall(r"^```(.*?)\n(.*?)^```", PAGES["serve"].read_text(), re.MULTILINE | re.DOTALL)
    label, _ = (text for kind, text in fenced if not kind)
    entry = text_format.Parse(label, model_server_config_pb2.ModelConfig())
    assert list(entry.model_version_policy.specific.versions) == [1, 2]
    assert dict(entry.version_labels) == {"stable": 1, "canary": 2}
    docker = PAGES["serve"].read_text().partition("\ndocker run ")[2].partition("```")[0]
    assert '--volume "$PWD/models:/models:ro"' in docker  # what the lines around it export to
    assert "--model_config_file=/models/models.config" in docker


def test_the_tables_of_results_on_the_pages_are_the_files():
    script = runpy.run_path(ROOT / "tuner" / "tables.py")
    for page in script["PAGES"]:
        assert script["filled"](page.read_text()) == page.read_text(), "run python tuner/tables.py"


def test_public_names_tables_of_results_and_what_the_readme_links_to_are_where_a_page_says():
    api = (ROOT / "docs" / "api.rst").read_text()
    for module in (fnet, fnet.zoo, fnet.tuner, fnet.serving):
        listed = re.findall(r"^\.\. auto\w+:: (?:\S+\.)?(\w+)$", api, re.MULTILINE)
        assert set(module.__all__) - {"baselines", "serving", "tuner", "zoo"} <= set(listed)
    reproduced = PAGES["reproducibility"].read_text()
    tables = {path.name for path in (ROOT / "tuner" / "results").glob("*.csv")}
    assert set(re.findall(r"\w+\.csv", reproduced)) == tables
    assert all((ROOT / path).exists() for path in re.findall(r"python (tuner/\w+\.py)", reproduced))
    readme = PAGES["README"].read_text()
    assert readme.count("\n") <= 150
    assert all((ROOT / link).exists() for link in re.findall(r"\]\((?!http)([^)#]+)", readme))
    assert int(re.search(r"\| factorizenet_tf \| (\d+), of", readme)[1]) == len(fnet.zoo.list(precision="int8"))
