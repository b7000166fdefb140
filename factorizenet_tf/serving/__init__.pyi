from .saved_model import ServingExport, export
from .server import serve
