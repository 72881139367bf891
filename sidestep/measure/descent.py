"""The belief curves of a method whose theory speaks of descent (SID): what is measured beside what is predicted.

K blocks, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summarise(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, object]:
    """Batches of `Method.descent` to what a reader looks at; {} where the method has no such theory.

    D: mean distance to the target before the first and after every block (K+1).  C: mean distance moved (K).  e: mean
    slack of the local objective (K), its quantiles (K, 5), and the share of samples whose slack is positive (K), those
    that the block made worse by its own measure.  identity: the largest difference of the two sides of the identity.
    """
    if not parts or not parts[0]:
        return {}
    whole = {name: torch.cat([part[name] for part in parts], 1).double() for name in parts[0]}
    quantiles = torch.quantile(whole["e"], torch.tensor(QUANTILES, dtype=torch.double, device=whole["e"].device), dim=1)
    summary: dict[str, object] = {
        "D": whole["D"].mean(1).tolist(),
        "C": whole["C"].mean(1).tolist(),
        "e": whole["e"].mean(1).tolist(),
        "e_quantiles": quantiles.T.tolist(),
        "e_positive": (whole["e"] > 0).double().mean(1).tolist(),
        "identity": whole["identity"].abs().max().item(),
        "samples": whole["D"].shape[1],
    }
    if "D_population" in whole:
        summary["D_population"] = whole["D_population"].mean(1).tolist()
    return summary
