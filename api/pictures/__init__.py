"""Pictures of models: the architecture as papers draw it, and a page with the graph after every pass."""

from .page import write_page as write_page
from .picture import Picture as Picture
from .picture import draw as draw
