"""ONNX files as models: read, checked, and translated to the IR."""

from .errors import OnnxFileError as OnnxFileError
from .load import load_onnx as load_onnx
from .load import model_of_proto as model_of_proto
