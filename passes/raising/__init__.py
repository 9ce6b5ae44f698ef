"""Raise a graph of primitives to layers by what it means, whatever its exporter's spelling."""

from .raise_graph import raise_graph as raise_graph
from .report import Left as Left
from .report import Raised as Raised
from .report import RaisingReport as RaisingReport
