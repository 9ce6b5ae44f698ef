"""PyTorch modules in: torch.export's programs as models with parameter names, ties and symbolic sizes kept."""

from .errors import NotImportableError as NotImportableError
from .program import from_module as from_module
from .program import from_program as from_program
from .program import is_module as is_module
from .program import is_program as is_program
