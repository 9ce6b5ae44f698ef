"""PyTorch: a graph becomes a torch.fx.GraphModule that trains, compiles and loads and saves checkpoints."""

from .module import load_state as load_state
from .module import save_state as save_state
from .module import state_of as state_of
from .module import to_inputs as to_inputs
from .module import to_torch as to_torch
from .recompute import compiled as compiled
