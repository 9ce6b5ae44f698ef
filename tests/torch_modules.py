"""Modules written by hand, as people write them: tied and rotary, of two sequences, of sound; every size but the width
varies."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, WORDS, BANDS = 16, 4, 50, 8


class Norm(nn.Module):
    """RMS norm in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def turned(x: Any, at: Any) -> Any:
    """x [B,H,S,D] with rotary positions, pairs beside each other."""
    rate = 100.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    cos, sin = (at[:, None, :, None] * rate).cos(), (at[:, None, :, None] * rate).sin()
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Block(nn.Module):
    """Packed q, k and v with two heads of keys, attention in parts, and a gated feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Norm(), Norm()
        self.qkv_proj, self.o_proj = nn.Linear(WIDTH, WIDTH * 2, bias=False), nn.Linear(WIDTH, WIDTH)
        self.gate_up, self.down_proj = nn.Linear(WIDTH, 48), nn.Linear(24, WIDTH)

    def forward(self, x: Any, keep: Any, at: Any) -> Any:
        b, n, _ = x.shape
        qkv = self.qkv_proj(self.first(x)).view(b, n, 2 * HEADS, WIDTH // HEADS).transpose(1, 2)
        q, k, v = qkv.split([HEADS, 2, 2], dim=1)
        k, v = (y.repeat_interleave(2, dim=1) for y in (turned(k, at), v))
        scores = torch.einsum("bhsd,bhtd->bhst", turned(q, at), k) / (WIDTH // HEADS) ** 0.5
        weights = scores.masked_fill(~keep, torch.finfo(x.dtype).min).softmax(-1)
        x = x + self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, WIDTH))
        gate, up = self.gate_up(self.second(x)).chunk(2, dim=-1)
        return x + self.down_proj(functional.silu(gate) * up)


class Writer(nn.Module):
    """A decoder whose table is its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(WORDS, WIDTH), nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = Norm(), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        x = self.embed(input_ids)
        n = input_ids.shape[1]
        at = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        ahead = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        keep = ~ahead & attention_mask[:, None, None].bool() | torch.eye(n, dtype=torch.bool)
        for block in self.blocks:
            x = block(x, keep, at)
        return {"logits": self.head(self.norm(x))}


class Reader(nn.Module):
    """Queries that look into another sequence: nn.MultiheadAttention across, and F.scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.told = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Linear(6, WIDTH)
        self.places = nn.Parameter(torch.randn(1, 64, WIDTH) * 0.1)
        self.across = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=WIDTH, vdim=WIDTH)
        self.packed = nn.Linear(WIDTH, WIDTH * 3)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.scores = nn.Linear(WIDTH, 5)

    def forward(self, asked_ids: Any, told: Any, heard_mask: Any) -> Any:
        """asked_ids i64 [B,U], told [B,T,6], heard_mask [B,T]: which of them there are."""
        x, y = self.asked(asked_ids) + self.places[:, : asked_ids.shape[1]], self.told(told)
        q, k, v = self.packed(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        own = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        x = x + own.transpose(1, 2).flatten(2)
        found, weights = self.across(self.norms[1](x), y, y, key_padding_mask=heard_mask == 0)
        x = self.norms[2](x + found)
        return {"scores": self.scores(x), "looked": weights.amax(-1), "summary": (x.mean(1), y.sum(1))}


class Listener(nn.Module):
    """Convolutions with statistics kept, an LSTM both ways, and a GRU that starts where the LSTM ended."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv1d(BANDS, 12, 3, padding=1), nn.BatchNorm1d(12), nn.GELU(), nn.Conv1d(12, 12, 3, padding=1, groups=3)
        )
        self.both = nn.LSTM(12, 10, num_layers=2, batch_first=True, bidirectional=True)
        self.last = nn.GRU(20, 20, batch_first=True)
        self.weights, self.score = nn.Linear(20, 1), nn.Linear(20, 5)
        norm: Any = self.down[1]
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)

    def forward(self, sound: Any) -> Any:
        """sound [B,8,T]."""
        x, (h, _) = self.both(self.down(sound).transpose(1, 2))
        y, _ = self.last(x, h[-2:].transpose(0, 1).flatten(1)[None])
        pooled = (self.weights(y).softmax(1) * y).sum(1)
        return {"scores": self.score(functional.dropout(pooled, 0.1, self.training)), "ended": h}
