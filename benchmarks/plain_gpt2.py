"""GPT-2 in plain PyTorch, written by hand as people do: what Monograph's training is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.ln_1(x)).split(width, dim=2)
        q, k, v = (y.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for y in split)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class PlainGPT2(nn.Module):
    """Next-token loss of `input_ids` [B,S] against `labels` [B,S], without dropout; the head is the embedding."""

    def __init__(self, vocab: int, width: int, heads: int, layers: int, positions: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(positions, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def load(self, weights: dict[str, Tensor]) -> None:
        """Weights under the checkpoint's names, whose matrices are [in, out]."""
        names = {"attn.c_attn": "qkv", "attn.c_proj": "out", "mlp.c_fc": "up", "mlp.c_proj": "down"}
        state: dict[str, Tensor] = {}
        for path, tensor in weights.items():
            name = path.removeprefix("transformer.")
            for theirs, ours in names.items():
                if theirs in name:
                    name = name.replace(theirs, ours)
                    tensor = tensor.t() if tensor.ndim == 2 else tensor
            state[name] = tensor
        self.load_state_dict(state)
