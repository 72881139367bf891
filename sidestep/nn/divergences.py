"""Kullback-Leibler divergences between rows of class probabilities, in nats.

Written out instead of `F.kl_div`, which has no batching rule for vmap.   B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_c p_c (log p_c - log q_c), (...).  log_p, log_q: (..., C); where p_c = 0 the term is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
