"""Efficient additive attention, and the three modules that the paper compares it with (its figure 2).

All four take tokens `(B, N, D)` and return tokens `(B, N, D)`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer.convolutions import in_autocast, is_plain_layer, scaled
from swiftformer.l2_normalization import l2_normalize

GlobalQueryWeighting = Literal["uniform", "l2"]


class EfficientAdditiveAttention(nn.Module):
    """Attention whose cost is linear in the number of tokens (paper, section 3.2, equations 3 to 5).

    The tokens' queries are pooled into one global query, which modulates every key:

        q, k = Wq x, Wk x                        normalised over D if `normalize_query_key`
        a    = (q . w_g) / sqrt(D)               one score per token
        g    = sum_n f(a)_n q_n                  the global query
        out  = Wf(Wp(g * k) + q)

    The two releases differ in `f`. July 2023, `"l2"`: the scores are L2-normalised over the N tokens. March 2023,
    `"uniform"`: a softmax over an axis of length one, which gives every token the weight 1 and leaves `w_g` unused.
    """

    def __init__(
        self, dim: int, global_query_weighting: GlobalQueryWeighting | str = "l2", normalize_query_key: bool = True
    ) -> None:
        super().__init__()
        if global_query_weighting not in ("uniform", "l2"):
            raise ValueError(f"global_query_weighting: expected uniform or l2, found {global_query_weighting!r}")
        self.to_query = nn.Linear(dim, dim)
        self.to_key = nn.Linear(dim, dim)
        self.w_g = nn.Parameter(torch.randn(dim, 1))
        self.proj = nn.Linear(dim, dim)
        self.final = nn.Linear(dim, dim)
        self.scale = dim**-0.5
        self.global_query_weighting = global_query_weighting
        self.normalize_query_key = normalize_query_key

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`, times `scale`, of D values."""
        if is_plain_layer(self.to_query) and is_plain_layer(self.to_key):
            x = in_autocast(x)  # once for both, which gives the sum of their gradients in half precision too
        query, key = self.to_query(x), self.to_key(x)
        if self.normalize_query_key:
            query, key = l2_normalize(query, dim=-1), l2_normalize(key, dim=-1)
        global_query = self.pool(query)
        return scaled(self.final, self.proj(global_query * key) + query, scale)

    def pool(self, query: Tensor) -> Tensor:
        """The global query: `(B, N, D)` to `(B, 1, D)`."""
        if self.global_query_weighting == "l2":
            weights = l2_normalize(query @ self.w_g * self.scale, dim=1)  # (B, N, 1)
            return weights.transpose(1, 2) @ query
        global_query = query.sum(dim=1, keepdim=True)
        if self.w_g.requires_grad and torch.is_grad_enabled():
            # A parameter without any gradient makes DistributedDataParallel wait for it for ever.
            global_query = global_query + 0 * self.w_g.flatten()
        return global_query

    def extra_repr(self) -> str:
        return f"global_query_weighting={self.global_query_weighting}, normalize_query_key={self.normalize_query_key}"


class SelfAttention(nn.Module):
    """Softmax self-attention, `softmax(Q K^T / sqrt(D)) V`, in one head: quadratic in N (paper, figure 2a)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_query_key_value = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.to_query_key_value(x).chunk(3, dim=-1)
        heads = (each.unsqueeze(1) for each in (query, key, value))  # without which a GPU has no fused kernels
        return self.proj(F.scaled_dot_product_attention(*heads).squeeze(1))


class TransposedSelfAttention(nn.Module):
    """Attention between channels instead of tokens: linear in N, quadratic in D (paper, figure 2b; EdgeNeXt, XCiT).

    The D x D map is `softmax(q^T k * temperature)` of queries and keys normalised over the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_query_key_value = nn.Linear(dim, 3 * dim)
        self.temperature = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.to_query_key_value(x).chunk(3, dim=-1)
        query, key = l2_normalize(query, dim=1), l2_normalize(key, dim=1)
        channels = (query.transpose(1, 2) @ key * self.temperature).softmax(dim=-1)  # (B, D, D)
        return self.proj(value @ channels.transpose(1, 2))


class SeparableSelfAttention(nn.Module):
    """Keys pooled by one softmax over the tokens, then multiplied into the values (paper, figure 2c; MobileViT-v2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_score = nn.Linear(dim, 1)
        self.to_key = nn.Linear(dim, dim)
        self.to_value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.to_score(x).softmax(dim=1)  # (B, N, 1)
        context = scores.transpose(1, 2) @ self.to_key(x)  # (B, 1, D)
        return self.proj(F.relu(self.to_value(x)) * context)


ATTENTION_MODULES: dict[str, type[nn.Module]] = {
    "self": SelfAttention,
    "transposed": TransposedSelfAttention,
    "separable": SeparableSelfAttention,
    "additive": EfficientAdditiveAttention,
}
