"""Data preparation: read, clean, remove duplicates, split, tokenize, pack into memory-mapped shards."""

from .engine import Engine, Local, RayData
from .errors import DataError, ShardError
from .packing import Dataset, all_batches, batches
from .recipe import Recipe
from .run import prepare
from .shards import Shards
from .tokenizers import train as train_tokenizer

__all__ = [
    "DataError",
    "Dataset",
    "Engine",
    "Local",
    "RayData",
    "Recipe",
    "ShardError",
    "Shards",
    "all_batches",
    "batches",
    "prepare",
    "train_tokenizer",
]
