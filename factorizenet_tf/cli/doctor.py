"""The command that reports what is installed, missing or slow on this machine."""

import contextlib
import importlib.util
import os
import platform
import re
import warnings
from collections import Counter
from pathlib import Path

from .. import machine, zoo
from ..console import Progress, print_json, show_rows
from ..data.named import NAMED, folder_variable
from ..files import CACHE_VARIABLE, cache_folder
from . import options

__all__ = ["doctor"]

PACKAGES = (*machine.PACKAGES, "keras", "keras-tuner", "tensorflow-datasets", "typer")
EXTRAS = {"report": "altair vl_convert pyarrow", "serve": "fastapi uvicorn tensorflow_serving"}
EXTRAS |= {"micro": "tflite_micro", "ray": "ray"}
VARIABLES = "FACTORIZENET_ZOO TF_ENABLE_ONEDNN_OPTS ONEDNN_MAX_CPU_ISA OMP_NUM_THREADS TF_NUM_INTRAOP_THREADS CUDA_VISIBLE_DEVICES"
SECRET = re.compile(r"(?<=://)[^/\s@]*@|(?<=\w)\?[^\s,]*")  # in addresses: user, password, query
LITTLE_GIB = 2  # training on CIFAR-10 peaks at 1.6 GB


def doctor(as_json: options.Json = False):
    """Show versions, processor, folders, zoos, and what is slow here.

    For reports of bugs: it fails for nothing that is missing, and says the remedy.
    """
    found, advice = {}, []
    with warnings.catch_warnings(record=True) as caught, Progress() as progress:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)  # a zoo that cannot be read
        progress.bar("asking TensorFlow", 1)
        for look in (_software, _machine, _places):
            look(found, advice)
    advice += [str(warning.message) for warning in caught]
    found, advice = {what: SECRET.sub("", text) for what, text in found.items()}, [SECRET.sub("", a) for a in advice]
    if as_json:
        print_json({"found": found, "advice": advice})
    else:
        show_rows([{"what": what, "found": text} for what, text in found.items()])
        print("\n".join(f"* {text}" for text in advice or ["nothing is missing, nothing slow that could be helped"]))


def _software(found, advice):
    found |= {"system": platform.platform()} | machine.versions(PACKAGES)
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules.split() if importlib.util.find_spec(module) is None]
        remedy = f"without {', '.join(missing)}: pip install 'factorizenet_tf[{extra}]'"
        found[f"extra {extra}"] = remedy if missing else "installed"
    found["variables"] = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES.split() if name in os.environ)
    try:
        from ..models.native import has_native_gradient

        is_native = has_native_gradient()
    except Exception as error:  # whatever a broken installation raises is what is reported
        text = " ".join(str(error).split())
        advice.append(f"TensorFlow cannot be used ({text}): pip install factorizenet_tf in a new environment")
        return
    is_off = os.environ["TF_ENABLE_ONEDNN_OPTS"].lower() in ("0", "false")
    why = "TF_ENABLE_ONEDNN_OPTS is 0: unset it" if is_off else f"TensorFlow for {platform.machine()} has none"
    found["oneDNN"] = "on" if is_native else f"off, {why}"
    if not is_native:
        text = "no native gradient for grouped convolutions: they train as regular ones, up to twice as slow"
        advice.append(f"{text}, since oneDNN is off ({why})")


def _machine(found, advice):
    import joblib

    cores, meminfo = joblib.cpu_count(), Path("/proc/meminfo")
    found |= {"processor": machine.cpu_name(), "cores allowed": str(cores)}
    found["threads"] = f"TensorFlow {os.environ.get('TF_NUM_INTRAOP_THREADS', 'one a core')}, LiteRT 1 unless told"
    if cores == 1:
        advice.append("one core: trainings, searches and reading images take about half as long on two")
    if machine.cpu_name().endswith("AVX2"):
        advice.append("no AVX-512 VNNI and no AMX: int8 inference is faster on processors that have it")
    text = meminfo.read_text() if meminfo.is_file() else ""
    if len(amounts := re.findall(r"^Mem(?:Total|Available): +(\d+)", text, re.MULTILINE)) == 2:
        total, free = (int(kibibytes) / 2**20 for kibibytes in amounts)
        found["memory"] = f"{free:.1f} of {total:.1f} GiB available"
        if free < LITTLE_GIB:
            advice.append(f"{free:.1f} GiB of memory available: training on CIFAR-10 takes 1.6; end other programs")


def _places(found, advice):
    defaults = {CACHE_VARIABLE: cache_folder(), "TFDS_DATA_DIR": "~/tensorflow_datasets"}
    for name in (*defaults, *map(folder_variable, NAMED)):
        given = os.environ.get(name)
        if not (given or name in defaults):
            found[name] = "not set"
            continue
        path = Path(given or defaults[name]).expanduser()
        nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.isdir(folder))
        is_there, is_open = os.path.isdir(path), os.access(nearest, os.W_OK)
        state = ("set" if given else "default") + ", not there" * (not is_there) + ", not writable" * (not is_open)
        if name == "TFDS_DATA_DIR" and not os.path.isdir(path / "cifar10"):
            state += ", cifar10 is fetched when asked for, where there is a network"
        if name == CACHE_VARIABLE:
            with contextlib.suppress(OSError):  # a file that another process removes meanwhile
                state += f", {sum(file.stat().st_size for file in path.rglob('*')) / 2**20:,.1f} MiB"
            if not is_open:
                advice.append(f"{path} cannot be written: set {name} to a folder that can")
        elif given and not is_there:
            advice.append(f"{name} is {path}, and there is no such folder: make it, or unset {name}")
        found[name] = f"{path} ({state})"
    try:
        counts = Counter(card.zoo for card in zoo.list())
        found |= {SECRET.sub("", f"zoo {location}"): f"{count} models" for location, count in counts.items()}
    except (OSError, ValueError) as error:
        advice.append(str(error))
