"""All ops: one class each, grouped by what they do."""

from typing import TYPE_CHECKING

from ..errors import did_you_mean
from .attention import attention as attention
from .bits import bitwise_and as bitwise_and
from .bits import bitwise_not as bitwise_not
from .bits import bitwise_or as bitwise_or
from .bits import bitwise_xor as bitwise_xor
from .cache import cache_append as cache_append
from .cache import cache_read as cache_read
from .convolution import conv1d as conv1d
from .convolution import conv2d as conv2d
from .division import floor_div as floor_div
from .division import mod as mod
from .elementwise import abs as abs
from .elementwise import add as add
from .elementwise import cast as cast
from .elementwise import constant as constant
from .elementwise import cos as cos
from .elementwise import div as div
from .elementwise import erf as erf
from .elementwise import exp as exp
from .elementwise import floor as floor
from .elementwise import log as log
from .elementwise import maximum as maximum
from .elementwise import minimum as minimum
from .elementwise import mul as mul
from .elementwise import neg as neg
from .elementwise import pow as pow
from .elementwise import rsqrt as rsqrt
from .elementwise import sigmoid as sigmoid
from .elementwise import sin as sin
from .elementwise import sqrt as sqrt
from .elementwise import sub as sub
from .elementwise import tanh as tanh
from .experts import moe as moe
from .experts import topk as topk
from .feed_forward import dropout as dropout
from .feed_forward import feed_forward as feed_forward
from .feed_forward import gated_feed_forward as gated_feed_forward
from .feed_forward import gelu as gelu
from .feed_forward import relu as relu
from .feed_forward import silu as silu
from .feed_forward import softplus as softplus
from .gradient import detach as detach
from .linear import embedding as embedding
from .linear import linear as linear
from .linear import matmul as matmul
from .logic import equal as equal
from .logic import less as less
from .logic import less_equal as less_equal
from .logic import logical_and as logical_and
from .logic import logical_not as logical_not
from .logic import logical_or as logical_or
from .logic import where as where
from .loss import cross_entropy as cross_entropy
from .norm import add_layer_norm as add_layer_norm
from .norm import add_rms_norm as add_rms_norm
from .norm import layer_norm as layer_norm
from .norm import rms_norm as rms_norm
from .position import rope as rope
from .position import rope_frequencies as rope_frequencies
from .position import sinusoidal_positions as sinusoidal_positions
from .quant import dequantize as dequantize
from .quant import encoded_part as encoded_part
from .recurrent import compact as compact
from .recurrent import gru as gru
from .recurrent import lstm as lstm
from .recurrent import rnn as rnn
from .reduce import any as any
from .reduce import argmax as argmax
from .reduce import cumsum as cumsum
from .reduce import max as max
from .reduce import mean as mean
from .reduce import min as min
from .reduce import softmax as softmax
from .reduce import sum as sum
from .rounding import ceil as ceil
from .rounding import round as round
from .rounding import sign as sign
from .scatter import gather_nd as gather_nd
from .scatter import pad as pad
from .scatter import prod as prod
from .scatter import scatter as scatter
from .scatter import scatter_nd as scatter_nd
from .shape import concat as concat
from .shape import expand as expand
from .shape import gather as gather
from .shape import iota as iota
from .shape import reshape as reshape
from .shape import slice_ as slice_
from .shape import take_along_axis as take_along_axis
from .shape import transpose as transpose
from .state_space import causal_conv as causal_conv
from .state_space import state_space as state_space

__all__ = [
    "abs", "add", "add_layer_norm", "add_rms_norm", "any", "argmax", "attention", "bitwise_and", "bitwise_not",
    "bitwise_or", "bitwise_xor", "cache_append", "cache_read", "cast", "causal_conv", "ceil", "compact", "concat",
    "constant", "conv1d", "conv2d", "cos", "cross_entropy", "cumsum", "dequantize", "detach", "div", "dropout",
    "embedding", "encoded_part", "equal", "erf", "exp", "expand", "feed_forward", "floor", "floor_div",
    "gated_feed_forward", "gather", "gather_nd", "gelu", "gru", "iota", "layer_norm", "less", "less_equal",
    "linear", "log", "logical_and", "logical_not", "logical_or", "lstm", "matmul", "max", "maximum", "mean", "min",
    "minimum", "mod", "moe", "mul", "neg", "pad", "pow", "prod", "relu", "reshape", "rms_norm", "rnn", "rope",
    "rope_frequencies", "round", "rsqrt", "scatter", "scatter_nd", "sigmoid", "sign", "silu", "sin",
    "sinusoidal_positions", "slice_", "softmax", "softplus", "sqrt", "state_space", "sub", "sum", "take_along_axis",
    "tanh", "topk", "transpose", "where",
]  # fmt: skip


if not TYPE_CHECKING:  # a checker calls a misspelt op an error by itself

    def __getattr__(name: str) -> object:
        guess = "" if name.startswith("_") else did_you_mean(name, __all__)
        raise AttributeError(f"no op is called {name!r}{guess}")


def __dir__() -> list[str]:
    return list(__all__)
