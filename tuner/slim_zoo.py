"""Publishes every int8 net of a zoo folder again, slim: its next version, beside the float net of the same training.

    python tuner/slim_zoo.py zoo

A net's slim file must give the outputs of the one before, bit by bit, on 64 images of noise: by LiteRT's XNNPACK and reference
kernels and by TensorFlow Lite Micro (extra micro). Its accuracies are then those of the card before; bytes and arena are
measured, and the latency of all nets again, in one run. The other files are the same and are not copied. A net that is
slim already stays as it is, so that the same command can be given twice. Expected: one line a net, then the table; a
minute for 13 nets on 2 cores. `factorizenet verify --all` then checks everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import sys
from pathlib import Path

import numpy as np

from factorizenet_tf.files import write_bytes, write_text
from factorizenet_tf.tflite.int8_model import Int8Model
from factorizenet_tf.tflite.micro import arena_bytes, micro_outputs
from factorizenet_tf.tflite.slim import slim
from factorizenet_tf.zoo.cards import Cards, PublishedFile, index_to_json
from factorizenet_tf.zoo.publishing import measure_latencies
from factorizenet_tf.zoo.store import INDEX_FILE, FolderStore

IMAGES = 64


def check_equal(name: str, before: bytes, after: bytes) -> None:
    """Raise ValueError where two .tflite files give other outputs."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *Int8Model(before).input_shape)).astype(np.uint8)
    runtimes = {
        "XNNPACK": lambda content: Int8Model(content).predict_quantized(images),
        "LiteRT's reference kernels": lambda content: Int8Model(content).predict_reference(images),
        "TensorFlow Lite Micro": lambda content: micro_outputs(content, images),
    }
    for runtime, outputs in runtimes.items():
        if not np.array_equal(outputs(before), outputs(after)):
            raise ValueError(f"{name}: {runtime} gives other outputs for the slim file; it is not published")


def next_versions(zoo: Path) -> Cards:
    """Write the slim file of each net that has none, and give all cards, each new one behind those of its name."""
    store, today = FolderStore(zoo), datetime.date.today().isoformat()
    cards = store.cards()
    new = {}  # by the reference of the version before
    for card in cards.newest():
        if card.precision != "int8":
            continue
        before = store.path(card.file("tflite")).read_bytes()
        after = slim(before)
        if after == before:
            continue
        check_equal(card.reference, before, after)
        digest, base = hashlib.sha256(after).hexdigest(), card.name.removesuffix("-int8")
        path = f"models/{base}-{digest[:8]}/model.tflite"
        write_bytes(zoo / path, after)
        file = PublishedFile("tflite", path, digest, len(after))
        files = tuple(file if old.role == "tflite" else old for old in card.files)
        measured = {"size_bytes": len(after), "ram_bytes": arena_bytes(after), "files": files}
        place = {"version": card.version + 1, "published": today}
        new[card.reference] = dataclasses.replace(card, **measured, **place)
        sibling = f"{base}-float@{card.version}"
        new |= {
            float_.reference: dataclasses.replace(float_, **place) for float_ in cards if float_.reference == sibling
        }
        print(f"{new[card.reference].reference}: {len(before):,} -> {len(after):,} bytes", flush=True)
    return Cards(one for card in cards for one in (card, new.get(card.reference)) if one is not None)


def main(arguments: list[str] | None = None) -> None:
    """Publish, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="the zoo's folder")
    zoo = parser.parse_args(arguments).zoo
    cards = next_versions(zoo)
    write_text(zoo / INDEX_FILE, index_to_json(cards))
    print(measure_latencies(zoo).newest())


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
