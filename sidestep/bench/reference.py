"""SID's published form as a naive loop: what our step time is compared with, and an oracle in the tests.

Ye & Tang, arXiv:2510.03273, in the order of work of the released code: float32, one graph for all modules, an
optimizer each, a synchronisation in every step.   B batch, C classes, D features.

    z = c(x);   sweep 1, no graph:  p_0 = 1/C,  p_i = softmax(f_i([p_{i-1}; sg z]))
                sweep 2:            q_i = softmax(f_i([p_{i-1}; z])),
                                    loss = sum_i alpha KL(y || q_i) + (1 - alpha) KL(p_{i-1} || q_i)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceSID:
    """An extractor x -> (B, D), and `modules` belief modules [p; z] -> logits (B, C) that all train it."""

    def __init__(
        self,
        extractor: nn.Module,
        features: int,
        num_classes: int,
        modules: int = 5,
        alpha: float = 0.5,
        lr: float = 1e-3,
    ) -> None:
        self.num_classes = num_classes
        self.alpha = alpha
        self.lr = lr
        self.extractor = extractor
        self.beliefs = [
            nn.Sequential(nn.Linear(features + num_classes, 256), nn.ReLU(), nn.Linear(256, num_classes))
            for _ in range(modules)
        ]
        device = next(extractor.parameters()).device
        self.network = nn.ModuleList([extractor, *self.beliefs]).to(device)
        self.optimizers = [self.optimizer(part) for part in self.network]

    def optimizer(self, part: nn.Module) -> torch.optim.Adam:
        """As each part has one of its own."""
        return torch.optim.Adam(part.parameters(), lr=self.lr)

    def step(self, batch: tuple[Tensor, Tensor]) -> float:
        """One update from a batch (x, y): x (B, ...), contiguous; y (B,) class indices.  Returns the summed loss."""
        self.network.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The sum of the modules' objectives, (), in nats per sample."""
        x, y = batch
        z = self.extractor(x)
        one_hot = F.one_hot(y, self.num_classes).to(z.dtype)
        with torch.no_grad():
            before = [self._uniform(z)]
            for module in self.beliefs:
                before.append(F.softmax(module(torch.cat([before[-1], z.detach()], 1)), 1))
        total = z.new_zeros(())
        for module, p in zip(self.beliefs, before, strict=False):
            log_q = F.log_softmax(module(torch.cat([p, z], 1)), 1)
            target = F.kl_div(log_q, one_hot, reduction="batchmean")
            consistency = F.kl_div(log_q, p, reduction="batchmean")
            total = total + self.alpha * target + (1 - self.alpha) * consistency
        return total

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits of the last module, (B, C), in eval mode."""
        self.network.eval()
        z = self.extractor(x)
        logits = p = self._uniform(z)
        for module in self.beliefs:
            logits = module(torch.cat([p, z], 1))
            p = F.softmax(logits, 1)
        return logits

    def _uniform(self, z: Tensor) -> Tensor:
        return z.new_full((len(z), self.num_classes), 1 / self.num_classes)
