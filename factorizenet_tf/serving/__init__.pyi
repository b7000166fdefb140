from .client import Client, ServingError
from .config import set_labels
from .saved_model import ServingExport, export
from .server import serve
