"""Depth edges: the geometric saliency of DAAT (Section 3.2), and distances between saliency maps.

Depth is given as disparity, the inverse of the distance along the camera's axis. Relative depth networks predict disparity,
and the disparity of a plane is linear in the pixel coordinates. The saliency does not depend on its scale.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.runs.files import InputError

Operator = Literal["sobel", "sobel_squared", "laplacian"]
Distance = Literal["cosine", "jensen_shannon", "l1", "earth_mover"]

FLAT = 1e-6  # a map has no edges if all edges are weaker than this share of its largest value
BLUR = 0.01  # entropic regularisation of the earth mover's distance, as a share of the map's diagonal
ROUNDS = 100  # Sinkhorn iterations; in the first half, the regularisation falls to BLUR


def disparity(depth: Tensor) -> Tensor:
    """Return 1 / depth for distances N×H×W. Raises InputError if a distance is not positive and finite."""
    if not bool(((depth > 0) & torch.isfinite(depth)).all()):
        raise InputError("a depth map holds a distance that is not positive and finite")
    return 1 / depth


def edges(maps: Tensor, operator: Operator = "sobel") -> Tensor:
    """Return the edge strength ℰ of maps N×H×W: |∇| by Sobel's operator, its square, or |Laplacian|: N×H×W, at least 0.

    Border pixels repeat their inner neighbours, so the frame is no edge. For a plane's disparity the Laplacian is zero, but
    the gradient is not. Raises InputError for an unknown operator.
    """
    above, middle, below = maps[:, :-2], maps[:, 1:-1], maps[:, 2:]
    if operator == "laplacian":
        found = (above + below)[:, :, 1:-1] + middle[:, :, :-2] + middle[:, :, 2:] - 4 * middle[:, :, 1:-1]
        found = found.abs()
    elif operator in ("sobel", "sobel_squared"):
        rows, columns = above + 2 * middle + below, maps[:, :, :-2] + 2 * maps[:, :, 1:-1] + maps[:, :, 2:]
        along = (rows[:, :, 2:] - rows[:, :, :-2]) / 8
        down = (columns[:, 2:] - columns[:, :-2]) / 8
        found = along.square() + down.square()
        if operator == "sobel":
            tiny = 1e-12  # keeps the root differentiable at zero; subtracting √tiny restores the value 0 there
            found = (found + tiny).sqrt() - math.sqrt(tiny)
    else:
        raise InputError(f"operator = {operator!r}; choose from sobel, sobel_squared, laplacian")
    return F.pad(found[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]


def pooled(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean of maps N×H×W over each cell of a grid h×w: N×h×w."""
    return F.adaptive_avg_pool2d(maps, grid)


def unit_mass(maps: Tensor) -> Tensor:
    """Divide nonnegative maps N×h×w by their sum (𝒩); an all-zero map stays zero."""
    total = maps.flatten(1).sum(1)[:, None, None]
    return torch.where(total > 0, maps / total.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def outlines(maps: Tensor, operator: Operator = "sobel") -> Tensor:
    """Return edges of disparities N×H×W, each map first divided by its largest value: N×H×W; all zero for a flat map.

    Raises InputError if a disparity is not finite.
    """
    if not bool(torch.isfinite(maps).all()):
        raise InputError("a depth oracle gave a disparity that is not a finite number")
    spread = maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(maps.dtype).tiny)
    found = edges(maps / spread[:, None, None], operator)
    least = FLAT**2 if operator == "sobel_squared" else FLAT
    return torch.where((found.flatten(1).amax(1) > least)[:, None, None], found, 0.0)


def saliency(maps: Tensor, grid: tuple[int, int], operator: Operator = "sobel") -> Tensor:
    """Return the depth saliency G = 𝒩(ℰ(g)) of disparities N×H×W on an attention grid: N×h×w of unit mass (Equation 1).

    A flat map has no edges: its G is zero everywhere, and `misalignment` is zero. Raises InputError if a disparity is not
    finite.
    """
    # DAAT (1): G(x) = 𝒩(ℰ(g(x))), ‖G(x)‖₁ = 1
    return unit_mass(pooled(outlines(maps, operator), grid))


def uniform(count: int, grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return `count` uniform maps N×h×w of unit mass, with the device and type of `like`."""
    return torch.full((count, *grid), 1 / math.prod(grid), device=like.device, dtype=like.dtype)


# Distances between maps ----------------------------------------------------------------------------------------------


def misalignment(attention: Tensor, target: Tensor, distance: Distance = "cosine") -> Tensor:
    """Return the distance between attention A and target G, both N×h×w of unit mass: shape N; zero if G is all zero.

    "cosine" is Equation (2). Section 3.3 names two alternatives: Jensen–Shannon divergence (in nats, at most ln 2) and
    earth mover's distance (in diagonals of the map). Appendix C uses L1. Raises InputError for an unknown distance.
    """
    one, two = attention.flatten(1), target.flatten(1)
    if distance == "cosine":
        # DAAT (2): L_align = 1 − ⟨vec A, vec G⟩ / (‖vec A‖₂ ‖vec G‖₂)
        apart = 1 - F.cosine_similarity(one, two, dim=1)
    elif distance == "jensen_shannon":
        middle = (one + two) / 2
        # DAAT, Section 3.3 (Jensen–Shannon): ½ KL(A‖M) + ½ KL(G‖M), M = ½ (A + G)
        apart = (_relative_entropy(one, middle) + _relative_entropy(two, middle)) / 2
    elif distance == "l1":
        # DAAT, Appendix C: L_align = Σᵢ |aᵢ − gᵢ|
        apart = (one - two).abs().sum(1)
    elif distance == "earth_mover":
        apart = earth_mover(attention, target)
    else:
        raise InputError(f"distance = {distance!r}; choose from cosine, jensen_shannon, l1, earth_mover")
    return torch.where(two.sum(1) > 0, apart, 0.0)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    tiny = torch.finfo(p.dtype).tiny  # clamps the logarithms' arguments, so that no gradient is infinite
    return (p * (p.clamp_min(tiny).log() - q.clamp_min(tiny).log())).sum(1)


def earth_mover(one: Tensor, two: Tensor) -> Tensor:
    """Return the Sinkhorn divergence of maps N×h×w of unit mass, with distances in units of the grid's diagonal: shape N.

    It approximates the earth mover's distance by entropic transport. Subtracting each map's cost to itself makes it zero
    for equal maps (Feydy et al. 2019). It is too small by a tenth for different maps, by a quarter for nearly equal maps.
    """
    rows, columns = one.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    points = torch.stack([y, x], -1).view(-1, 2).to(one)
    cost = torch.cdist(points, points) / max(1.0, math.hypot(rows - 1, columns - 1))
    first, second = one.flatten(1), two.flatten(1)
    # Feydy et al. 2019 (3): S(p, q) = OT(p, q) − ½ OT(p, p) − ½ OT(q, q)
    return _transport(first, second, cost) - (_own(first, cost) + _own(second, cost)) / 2


def _transport(p: Tensor, q: Tensor, cost: Tensor) -> Tensor:
    """Return the dual value of entropic transport between N×K and N×K at the K×K cost: shape N, differentiable in both."""
    f = g = torch.zeros_like(p)
    with torch.no_grad():  # envelope theorem: at the optimum the gradients in p and q are the potentials
        for step in range(ROUNDS):
            blur = max(BLUR, BLUR ** (2 * step / ROUNDS))  # falls from 1, the whole diagonal
            f, g = _softest(g, q, cost, blur), _softest(f, p, cost, blur)
            f = _softest(g, q, cost, blur)
    return (p * f).sum(1) + (q * g).sum(1)


def _own(p: Tensor, cost: Tensor) -> Tensor:
    """Return `_transport` of a map to itself: both potentials are equal, and averaged steps converge in a few rounds."""
    f = torch.zeros_like(p)
    with torch.no_grad():
        for _ in range(ROUNDS // 2):
            f = (f + _softest(f, p, cost, BLUR)) / 2
    return 2 * (p * f).sum(1)


def _softest(potential: Tensor, mass: Tensor, cost: Tensor, blur: float) -> Tensor:
    """Return the soft minimum over K places of cost − potential, weighted by the mass at each place: N×K."""
    return -blur * torch.logsumexp((potential / blur + mass.clamp_min(1e-12).log())[:, None, :] - cost / blur, 2)
