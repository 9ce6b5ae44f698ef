"""Graphs that somebody else wrote, made ready for a cache: what follows from the number of columns becomes explicit."""

from .cacheable import make_cacheable as make_cacheable
from .join_caches import join_caches as join_caches
