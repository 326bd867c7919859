"""Theorem 2 of RAAT: the difference between a function at an interpolated point and the interpolation of its values.

With ẍ = ẋ + Δ and λ̂ = 1 − λ, f(λẋ + λ̂ẍ) − (λ f(ẋ) + λ̂ f(ẍ)) = Σₖ (λ̂ᵏ − λ̂)/k! · f⁽ᵏ⁾(ẋ) Δᵏ over k ≥ 2, because value and
slope of f cancel. DICAR is the square of this difference, so it penalises second and higher derivatives.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn


def remainders(
    sizes: Sequence[float] = (1.0, 0.5, 0.25, 0.125), orders: Sequence[int] = (2, 3, 4, 5), rate: float = 0.7, seed: int = 0
) -> pd.DataFrame:
    """Return the relative error of the theorem's sum up to k = K: one row for each size of Δ, one column for each K.

    f is a random network with one smooth hidden layer, along a random unit direction, in double precision. Halving Δ
    divides the error by about 2ᴷ⁻¹.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        start, direction = torch.randn(2, 2, dtype=torch.float64)
    unit, hat = direction / direction.norm(), 1 - rate

    def along(t: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = net(start + t * unit).squeeze()
        return found

    place = torch.zeros((), dtype=torch.float64, requires_grad=True)
    derivatives = [along(place)]
    for _ in range(max(orders)):
        derivatives.append(torch.autograd.grad(derivatives[-1], place, create_graph=True)[0])
    rows = {}
    for size in sizes:
        first, between, second = (along(torch.tensor(t * size, dtype=torch.float64)).item() for t in (0.0, hat, 1.0))
        distance = between - (rate * first + hat * second)
        # RAAT (5): ℓ(f(λẋ + λ̂ẍ), λf(ẋ) + λ̂f(ẍ)) = (Σₖ (λ̂ − λ̂ᵏ)/k! · ∂ᵏf(ẋ) Δᵏ + O(‖Δ‖ᴷ))², k = 2 … K; here: the summands
        terms = [(hat**k - hat) / math.factorial(k) * derivatives[k].item() * size**k for k in range(2, max(orders) + 1)]
        rows[f"Δ = {size:g}"] = {
            f"K = {order}": abs(distance - sum(terms[: order - 1])) / abs(distance) for order in orders
        }
    return pd.DataFrame(rows).T
