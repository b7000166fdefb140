"""Data sets as uint8 arrays with a fixed train / validation / test split."""

from .dataset import Dataset, Split, check_images
from .images import MAX_PIXELS, read_image
from .load import load_dataset

__all__ = ["MAX_PIXELS", "Dataset", "Split", "check_images", "load_dataset", "read_image"]
