"""The language: what a graph is and what each op means. Imports neither torch nor onnx."""

from . import ops as ops
from .errors import MonographError as MonographError
from .graph import Graph as Graph
from .graph import Location as Location
from .graph import Node as Node
from .graph import Value as Value
from .graph import building as building
from .init import Init as Init
from .interpret import interpret as interpret
from .op import OPS as OPS
from .op import Op as Op
from .op import body_of as body_of
from .op import op as op
from .text import parse as parse
from .text import print_graph as print_graph
from .types import Dim as Dim
from .types import DType as DType
from .types import TensorType as TensorType
from .types import tensor as tensor
from .verify import verify as verify
