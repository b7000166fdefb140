"""Data sets as uint8 arrays, in memory or mapped into it, with a fixed train / validation / test split."""

from .dataset import Dataset, Split, check_images
from .images import MAX_PIXELS, RESIZES, check_resize, read_image
from .load import is_folder, load_dataset
from .named import NAMED

__all__ = ["MAX_PIXELS", "NAMED", "RESIZES", "Dataset", "Split", "check_images", "check_resize", "is_folder"]
__all__ += ["load_dataset", "read_image"]
