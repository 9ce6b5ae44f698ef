"""ONNX Runtime: its fused ops by rewrites, and sessions that generate over shared buffers."""

from .beside import Beside as Beside
from .build import BuildReport as BuildReport
from .build import build as build
from .build import positions_of as positions_of
from .build import variants_of as variants_of
from .opening import open as open
from .session import Session as Session
