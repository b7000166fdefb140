from .cards import Card, Cards, PublishedFile
from .catalog import best, card, list, load, names
from .publishing import publish
from .verification import verify
