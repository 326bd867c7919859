"""Where depth has edges: the geometric saliency of DAAT (Section 3.2), and how two maps of saliency are compared.

Depth comes as disparity, the inverse of the distance along the camera's axis: a plane is as flat in it as it looks, and it
is what relative depth networks give. The saliency does not depend on its scale.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.files import InputError

Operator = Literal["sobel", "sobel_squared", "laplacian"]
Distance = Literal["cosine", "jensen_shannon", "l1", "earth_mover"]

SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
FLAT = 1e-6  # a map whose edges are weaker than this share of its largest value has none
BLUR = 0.01  # of the earth mover's distance: entropic regularisation, as a share of the map's diagonal
ROUNDS = 100  # of Sinkhorn's iteration


def disparity(depth: Tensor) -> Tensor:
    """1 / depth of distances N×H×W. Raises InputError where a distance is not positive and finite."""
    if not bool(((depth > 0) & torch.isfinite(depth)).all()):
        raise InputError("a depth map holds a distance that is not positive and finite")
    return 1 / depth


def edges(maps: Tensor, operator: Operator = "sobel") -> Tensor:
    """The strength of the edges ℰ of maps N×H×W: |∇| by Sobel's operator, its square, or |Laplacian|; N×H×W, at least 0.

    Maps are continued beyond the frame by their outermost pixels, so the frame itself is no edge. The Laplacian of a
    plane's disparity is zero, its gradient is not. Raises InputError for an operator that is not there.
    """
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")

    def filtered(kernel: Tensor) -> Tensor:
        return F.conv2d(padded, kernel.to(maps)[None, None])[:, 0]

    if operator == "laplacian":
        return filtered(LAPLACE).abs()
    squared = filtered(SOBEL).square() + filtered(SOBEL.T).square()
    if operator == "sobel_squared":
        return squared
    if operator == "sobel":
        tiny = 1e-12  # whose root is taken away again: a gradient at zero, and zero where there is no edge
        return (squared + tiny).sqrt() - math.sqrt(tiny)
    raise InputError(f"operator = {operator!r}; choose from sobel, sobel_squared, laplacian")


def pooled(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of maps N×H×W over each cell of a grid h×w: N×h×w."""
    return F.adaptive_avg_pool2d(maps, grid)


def unit_mass(maps: Tensor) -> Tensor:
    """𝒩: nonnegative maps N×h×w divided by their sum; a map that is zero everywhere stays zero."""
    total = maps.flatten(1).sum(1)[:, None, None]
    return torch.where(total > 0, maps / total.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def saliency(maps: Tensor, grid: tuple[int, int], operator: Operator = "sobel") -> Tensor:
    """Depth saliency G = 𝒩(ℰ(g)) of disparities N×H×W on the grid of an attention map: N×h×w of unit mass (Equation 1).

    A flat map has no edges; its G is zero everywhere, and `misalignment` leaves the image out.
    """
    spread = maps.flatten(1).abs().amax(1).clamp_min(torch.finfo(maps.dtype).tiny)
    scaled = maps / spread[:, None, None]
    found = edges(scaled, operator)
    found = torch.where((found.flatten(1).amax(1) > FLAT)[:, None, None], found, 0.0)
    # Equation (1)
    return unit_mass(pooled(found, grid))


def uniform(count: int, grid: tuple[int, int], like: Tensor) -> Tensor:
    """The map that says nothing: N×h×w, of unit mass."""
    return torch.full((count, *grid), 1 / math.prod(grid), device=like.device, dtype=like.dtype)


# How far two maps are apart ----------------------------------------------------------------------------------------


def misalignment(attention: Tensor, target: Tensor, distance: Distance = "cosine") -> Tensor:
    """How far attention A is from a target G, both N×h×w of unit mass: each image's, N; zero where G is zero everywhere.

    "cosine" is Equation (2). Jensen–Shannon divergence (in nats, at most ln 2) and earth mover's distance (in diagonals of
    the map) are the alternatives that Section 3.3 names, L1 is that of Appendix C. Raises InputError for another distance.
    """
    one, two = attention.flatten(1), target.flatten(1)
    if distance == "cosine":
        # Equation (2)
        apart = 1 - F.cosine_similarity(one, two, dim=1)
    elif distance == "jensen_shannon":
        middle = (one + two) / 2
        apart = (_relative_entropy(one, middle) + _relative_entropy(two, middle)) / 2
    elif distance == "l1":
        apart = (one - two).abs().sum(1)
    elif distance == "earth_mover":
        apart = earth_mover(attention, target)
    else:
        raise InputError(f"distance = {distance!r}; choose from cosine, jensen_shannon, l1, earth_mover")
    return torch.where(two.sum(1) > 0, apart, 0.0)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q.clamp_min(torch.finfo(q.dtype).tiny))).sum(1)


def earth_mover(one: Tensor, two: Tensor) -> Tensor:
    """The Sinkhorn divergence of maps N×h×w of unit mass on a grid, distances in units of its diagonal: N.

    The entropic approximation of the earth mover's distance, less the two maps' own, so that equal maps are zero apart
    (Feydy et al. 2019, Equation 3). It is up to a tenth below the distance itself.
    """
    rows, columns = one.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    points = torch.stack([y, x], -1).view(-1, 2).to(one)
    cost = torch.cdist(points, points) / max(1.0, math.hypot(rows - 1, columns - 1))
    first, second = one.flatten(1), two.flatten(1)
    return _transport(first, second, cost) - (_transport(first, first, cost) + _transport(second, second, cost)) / 2


def _transport(p: Tensor, q: Tensor, cost: Tensor) -> Tensor:
    """The dual value of entropic transport between N×K and N×K at the K×K cost: N, differentiable in both."""
    log_p, log_q = (values.clamp_min(1e-12).log() for values in (p, q))
    f, g = torch.zeros_like(p), torch.zeros_like(q)
    with torch.no_grad():  # at the optimum the value changes with p and q as the potentials say (the envelope theorem)
        for _ in range(ROUNDS):
            f = -BLUR * torch.logsumexp((g / BLUR + log_q)[:, None, :] - cost / BLUR, 2)
            g = -BLUR * torch.logsumexp((f / BLUR + log_p)[:, None, :] - cost / BLUR, 2)
    return (p * f).sum(1) + (q * g).sum(1)
