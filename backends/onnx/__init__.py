"""Graph to a portable ONNX model: standard opset, lazy weights, written tensor by tensor."""

from .builder import Builder as Builder
from .builder import Handle as Handle
from .builder import UnavailableError as UnavailableError
from .lower import lower as lower
from .lower import prepared as prepared
from .rewrites import AS_IT_IS as AS_IT_IS
from .rewrites import PORTABLE as PORTABLE
from .save import export as export
from .save import save as save
