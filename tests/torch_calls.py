"""Calls of PyTorch that modules are made of, each as a function of x [rows, length, 6] and ids [rows, length]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as nn

Function = Callable[[torch.Tensor, torch.Tensor], Any]

CALLS: dict[str, Function] = {
    "add with alpha": lambda x, ids: torch.add(x, ids[..., None], alpha=0.5),
    "integers beside floats": lambda x, ids: x * ids[..., None] + ids[..., None] / 3 - (ids[..., None] // 2),
    "division by rounding": lambda x, ids: (
        torch.div(ids - 7, 3, rounding_mode="trunc") + torch.div(ids, 4, rounding_mode="floor")
    ),
    "remainder and fmod": lambda x, ids: (torch.remainder(x, 0.3), torch.fmod(x, 0.3), ids % 3, torch.fmod(ids - 5, 3)),
    "powers": lambda x, ids: x.pow(2) + x.abs().pow(1.5) + ids[..., None] ** 2 + 2.0**x + x.abs().sqrt() + x.square(),
    "compare": lambda x, ids: ((x > 0.2) & (x <= 1) | (ids[..., None] == 3)) ^ (x != x.round()),
    "logical": lambda x, ids: (
        torch.logical_and(ids, ids - 1) | torch.logical_not(ids) | torch.logical_xor(ids > 1, ids > 2)
    ),
    "bits": lambda x, ids: (ids & 3) | (ids ^ 5) | ~ids,
    "clamp": lambda x, ids: x.clamp(-0.5, 0.5) + x.clamp_min(0.1) + ids.clamp(max=3)[..., None],
    "where": lambda x, ids: torch.where(x > 0, x, 0.0) + torch.where((ids > 2)[..., None], 1.0, x),
    "masked_fill": lambda x, ids: x.masked_fill((ids == 1)[..., None], -1e4),
    "rounding": lambda x, ids: x.floor() + x.ceil() * 2 + x.round() * 3 + x.trunc() + x.sign(),
    "functions": lambda x, ids: x.exp() + (x.abs() + 1).log() + x.sin() * x.cos() + x.tanh() + x.erf() + x.sigmoid(),
    "more functions": lambda x, ids: x.expm1() + x.abs().log1p() + (x.abs() + 1).log2() + (x.abs() + 1).reciprocal(),
    "activations": lambda x, ids: nn.gelu(x) + nn.gelu(x, approximate="tanh") + nn.silu(x) + nn.relu(x) + nn.elu(x),
    "more activations": lambda x, ids: (
        nn.softplus(x) + nn.leaky_relu(x, 0.2) + nn.hardswish(x) + nn.mish(x) + nn.relu6(x)
    ),
    "still more": lambda x, ids: nn.hardsigmoid(x) + nn.hardtanh(x) + nn.logsigmoid(x) + nn.softsign(x) + nn.selu(x),
    "glu": lambda x, ids: nn.glu(x, dim=-1),
    "nan and inf": lambda x, ids: torch.isnan(x / x) | torch.isinf(x),
    "nan_to_num": lambda x, ids: torch.nan_to_num(x / x.sign()),
    "casts": lambda x, ids: x.to(torch.float64).float() + ids.float()[..., None] + (x > 0).int() + x.long(),
    "type_as": lambda x, ids: ids.type_as(x)[..., None] * x,
    "views": lambda x, ids: x.view(x.shape[0], -1, 2, 3).flatten(2).unsqueeze(1).squeeze(1).reshape(x.shape),
    "unflatten": lambda x, ids: x.unflatten(-1, (2, 3)).transpose(1, 2).movedim(0, 1),
    "permute": lambda x, ids: x.permute(2, 0, 1).mT,
    "expand": lambda x, ids: x[:, :1].expand(-1, 4, -1) + x[:1, :1],
    "slices": lambda x, ids: x[:, 1:, ::2][:, :, 1:] + x[:, :-1, -2:],
    "steps": lambda x, ids: x[..., 1::2] + x[..., :5:2],
    "select": lambda x, ids: x[:, 0] + x[:, -1] + x[0, 0, 2] + x.select(-1, 3)[:, :1],
    "cat": lambda x, ids: torch.cat([x, x[:, :1], ids[..., None].expand(-1, -1, 6)], dim=1),
    "stack": lambda x, ids: torch.stack([x, x * 2], dim=-2).sum(1),
    "split": lambda x, ids: torch.cat(x.split([1, 2, 3], dim=-1)[::-1], -1) + torch.cat(x.chunk(2, -1)[::-1], -1),
    "unbind": lambda x, ids: sum(p * i for i, p in enumerate(x.unbind(-1))),
    "repeat": lambda x, ids: x.repeat(1, 2, 1).tile(2, 1, 1),
    "repeat_interleave": lambda x, ids: x.repeat_interleave(3, dim=1),
    "flip and roll": lambda x, ids: x.flip(1) + x.roll(2, 2) + x.roll((1, -1), (1, 2)),
    "pad": lambda x, ids: nn.pad(x, (1, 2, 0, 1), value=0.5),
    "negative pad": lambda x, ids: nn.pad(x, (-1, 1)),
    "tril and triu": lambda x, ids: x.tril() + x.triu(1) - x.tril(-1),
    "bool tril": lambda x, ids: torch.ones(5, 5, dtype=torch.bool).tril() & (x[0, 0, 0] < 100),
    "diagonal": lambda x, ids: (
        x[..., :5, :].unsqueeze(-1).expand(-1, -1, -1, 6).diagonal(0, -2, -1) if x.shape[1] > 5 else x
    ),
    "in place": lambda x, ids: _in_place(x),
    "einsum": lambda x, ids: torch.einsum("bsc,btc->bst", x, x),
    "matmul of vectors": lambda x, ids: (x @ x[0, 0]) + (x[0, 0] @ x[0, 0]),
    "bmm": lambda x, ids: (
        torch.bmm(x, x.transpose(1, 2)) + torch.baddbmm(ids[:, None].float(), x, x.mT, beta=0.5, alpha=2)
    ),
    "sums": lambda x, ids: x.sum() + x.sum((0, 2), keepdim=True) + x.mean(1, keepdim=True) + ids.sum(-1)[:, None, None],
    "sum of bools": lambda x, ids: (x > 0).sum(-1) + (ids > 2).sum(),
    "extremes": lambda x, ids: x.amax(-1) + x.amin((0, 1)).sum() + x.max() + x.min(),
    "max with place": lambda x, ids: (*x.max(-1), *x.min(1)),
    "argmax": lambda x, ids: (x.argmax(-1), x.argmin(1), x[0, 0].argmax()),
    "any and all": lambda x, ids: (x > 1).any(-1) | (x > -9).all(-1) | (ids == 3).any(),
    "variance": lambda x, ids: (
        x.var(-1) + x.std(-1, unbiased=False) + x.var((0, 1), correction=0).sum() + x.std(1).sum()
    ),
    "softmax": lambda x, ids: x.softmax(-1) + nn.log_softmax(x, 1) + torch.logsumexp(x, -1, keepdim=True),
    "running sum": lambda x, ids: x.cumsum(1) + ids.cumsum(-1)[..., None] + (ids > 2).cumsum(1)[..., None],
    "norms": lambda x, ids: (
        x / x.norm(dim=-1, keepdim=True) + nn.normalize(x, dim=-1) + x.norm(1, dim=-1, keepdim=True)
    ),
    "topk": lambda x, ids: x.topk(3, dim=-1),
    "prod": lambda x, ids: x.prod(-1),
    "sorted": lambda x, ids: (
        *x.sort(1),
        *x.sort(-1, descending=True),
        *torch.sort(ids % 3, stable=True),
        x.argsort(0),
        x[:, torch.argsort(ids[0])],
    ),
    "as many as there are": lambda x, ids: x.topk(x.shape[1] - 2, dim=1, largest=False),
    "in the middle": lambda x, ids: (*x.median(-1), *x.kthvalue(2, 0), *x.kthvalue(3, -1, keepdim=True)),
    "of exponentials": lambda x, ids: x.exp2() + x.sinh() + x.cosh() + torch.erfc(x),
    "beside NaN": lambda x, ids: (
        torch.fmax(x, torch.where(ids > 4, torch.nan, 0.1)[..., None]),
        torch.fmin(torch.where((ids > 4)[..., None], torch.nan, x), torch.tensor(0.2)),
    ),
    "shifted bits": lambda x, ids: ((ids << 2) + (ids - 5 >> 1), ids >> ids % 3, torch.bitwise_left_shift(ids, 3)),
    "sum of products": lambda x, ids: torch.addbmm(x[0, :6, :6], x[:, :6].mT, x[:, :6], beta=0.5, alpha=2),
    "places of edges": lambda x, ids: (
        torch.searchsorted(torch.tensor([-0.5, 0.0, 0.5]), x),
        torch.searchsorted(x.detach().sort(-1)[0].contiguous(), x[..., :2].contiguous(), right=True),
        torch.bucketize(ids, torch.tensor([2, 5, 7]), right=True),
    ),
    "histogram": lambda x, ids: torch.histc(ids.float(), bins=8, min=0, max=7) + torch.histc(x, 8, -1, 1),
    "bags of rows": lambda x, ids: tuple(
        nn.embedding_bag(ids, _ten(x), mode=mode, padding_idx=3) for mode in ("sum", "mean", "max")
    ),
    "bags that begin anywhere": lambda x, ids: (
        nn.embedding_bag(ids[0], _ten(x), torch.tensor([0, 3, 3]), mode="sum", per_sample_weights=x[0, :, 0]),
        nn.embedding_bag(ids[0], _ten(x), torch.tensor([0, 3, 3]), mode="max"),
        nn.embedding_bag(ids[0, :6], _ten(x), torch.tensor([0, 2, 6]), mode="mean", include_last_offset=True),
    ),
    "layer norms": lambda x, ids: nn.layer_norm(x, (6,)) + nn.rms_norm(x, (6,), eps=1e-5) + nn.rms_norm(x, (6,)),
    "group norm": lambda x, ids: nn.group_norm(x.transpose(1, 2), 3).transpose(1, 2),
    "instance norm": lambda x, ids: nn.instance_norm(x.transpose(1, 2)),
    "index by one": lambda x, ids: x[:, torch.tensor([2, 0, 1])] + x[:, [-1, 0, 1]],
    "index by two": lambda x, ids: x[torch.arange(x.shape[0]), ids[:, 0] % 3],
    "index by negative": lambda x, ids: x[torch.arange(x.shape[0]), -1 - ids[:, 0] % 2],
    "index apart": lambda x, ids: x[torch.tensor([0, 1]), :, torch.tensor([2, 3])],
    "index by ranges": lambda x, ids: ids[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]],
    "last token": lambda x, ids: x[torch.arange(x.shape[0]), (ids != 0).sum(-1) - 1],
    "index_select": lambda x, ids: x.index_select(-1, torch.tensor([5, 1])),
    "gather": lambda x, ids: x.gather(1, (ids % 3)[:, :2, None].expand(-1, -1, 4)),
    "take_along_dim": lambda x, ids: torch.take_along_dim(x, (ids % 6)[..., None], -1),
    "embedding": lambda x, ids: nn.embedding(ids, x[0, :1].expand(10, 6) * torch.arange(10)[:, None], padding_idx=3),
    "one_hot": lambda x, ids: nn.one_hot(ids, 10),
    "scatter": lambda x, ids: (
        x.scatter(-1, (ids % 6)[..., None], 0.0) + x.scatter_add(2, (ids % 6)[..., None], x[..., :1])
    ),
    "index_put": lambda x, ids: x.index_put((torch.tensor([0, 1]), torch.tensor([1, 0])), torch.tensor(5.0)),
    "index_put adds": lambda x, ids: x.index_put((torch.tensor([0, 0]),), x[:1].expand(2, -1, -1), accumulate=True),
    "mask put": lambda x, ids: x.index_put((x > 0.5,), torch.tensor(0.0)),
    "select_scatter": lambda x, ids: x.select_scatter(x[:, :, 0], 2, 1).slice_scatter(x[..., :2], 2, 1, 3),
    "cross entropy": lambda x, ids: nn.cross_entropy(x.flatten(0, 1), ids.flatten() % 6, label_smoothing=0.1),
    "cross entropy by channel": lambda x, ids: nn.cross_entropy(x.transpose(1, 2), ids % 6, ignore_index=2),
    "errors": lambda x, ids: (
        nn.mse_loss(x, x.flip(2)) + nn.l1_loss(x, x * 2, reduction="sum") + nn.smooth_l1_loss(x, x.flip(2))
    ),
    "cosine": lambda x, ids: nn.cosine_similarity(x, x.flip(2), dim=-1),
    "convolutions": lambda x, ids: nn.conv1d(
        x.transpose(1, 2), x[0, 0].expand(4, 6)[..., None] * torch.ones(3), padding=1
    ),
    "same convolution": lambda x, ids: nn.conv1d(x.mT, torch.ones(6, 1, 4), padding="same", groups=6, dilation=2),
    "pools": lambda x, ids: (
        nn.max_pool1d(x, 2) + nn.avg_pool1d(x, 2) + nn.adaptive_avg_pool1d(x, 3) + nn.max_pool1d(x, 3, 2, 1)
    ),
    "sizes as numbers": lambda x, ids: (
        x * x.shape[1] + torch.arange(x.shape[1])[:, None] + torch.full((x.shape[1], 1), x.shape[0])
    ),
    "aranges": lambda x, ids: (
        torch.arange(0, 12, 2)
        + torch.arange(5, -1, -1)
        + torch.arange(0, 3, 0.5)
        + torch.linspace(0, 1, 6)
        + torch.arange(1.5, 13.0, 2.0, dtype=torch.long)
    ),
    "created": lambda x, ids: (
        torch.zeros_like(x) + torch.ones(x.shape[0], 1, 6) + x.new_full((6,), 2) + torch.eye(6)[0]
    ),
    "detached": lambda x, ids: x * x.detach() + (x - x.detach()),
    "addcmul": lambda x, ids: (
        torch.addcmul(x, x, x, value=0.5) + torch.lerp(x, x * 2, 0.3) + torch.addcdiv(x, x, x.abs() + 1)
    ),
    "meshgrid": lambda x, ids: sum(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")) + x[0, 0, 0],
    "outer": lambda x, ids: torch.outer(x[0, 0], x[0, 1]),
    "truth values added": lambda x, ids: (x > 0) + (ids > 3)[..., None],
    "powers of integers": lambda x, ids: 2**ids + ids ** ids.clamp(max=3),
    "windows": lambda x, ids: (x.unfold(1, 4, 1).sum(-1), x.unfold(-1, 2, 3)),
    "index_copy": lambda x, ids: x.index_copy(-1, torch.tensor([3, 1]), x[..., :2] * 3).index_fill(
        1, ids[0, :1] % 3, 2.0
    ),
    "masked_scatter": lambda x, ids: x.masked_scatter((ids > 4)[..., None], x.flip(0) * 2),
    "pads by what is there": lambda x, ids: tuple(
        nn.pad(x[:, None], (2, 1, 1, 0), mode=mode) for mode in ("reflect", "replicate", "circular")
    ),
    "transposed convolutions": lambda x, ids: (
        nn.conv_transpose1d(x.mT, x[0, :6, :4, None].expand(6, 4, 3), stride=2, padding=1, output_padding=1, groups=2),
        nn.conv_transpose2d(x[:, None], x[0, 0].reshape(1, 2, 1, 3), x[0, 0, :2], stride=(1, 3), dilation=(2, 1)),
    ),
    "means without padding": lambda x, ids: (
        nn.avg_pool1d(x, 3, 2, 1, count_include_pad=False)
        + nn.avg_pool2d(x, (1, 4), (1, 2), (0, 1), count_include_pad=False).sum()
    ),
    "means of parts": lambda x, ids: (nn.adaptive_avg_pool1d(x, 4), nn.adaptive_avg_pool2d(x[:, :6].mT, (4, 1))),
    "norms of other orders": lambda x, ids: tuple(x.norm(p, dim=-1) for p in (0, 3, torch.inf, -torch.inf)),
    "norm of nothing": lambda x, ids: (x * 0).norm(dim=-1) + nn.normalize(x * 0, dim=-1).sum(-1) + (x * 0).norm(3, -1),
    "attention to nothing": lambda x, ids: nn.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.where((ids > 4)[:, :, None], 0.0, -torch.inf)
    ),
    "ops in parts": lambda x, ids: torch.addmv(x[0, 0], x[0, :6], x[0, 1]) + torch.addr(x[0, :6], x[0, 0], x[0, 1]),
    "upsampled": lambda x, ids: nn.interpolate(x[:, None, :4], size=(8, 6), mode="nearest"),
}
"""By what is called."""


def _ten(x: torch.Tensor) -> torch.Tensor:
    return x[0, :5].repeat(2, 1)


def _in_place(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 0] = 0
    y[..., 1:3] += 2
    y.mul_(2).relu_()
    return y
