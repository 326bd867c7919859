"""The parts of AutoAttack, for a batch of rows: Auto-PGD, FAB and Square.

A row is an image together with its target classes; `members` int64 N holds the index of each row's image in the caller's
batch. After each iterate a part calls `leave(members, points, fooled)`, which stores the adversarial points and returns
which rows go on, bool N: all rows of a fooled image leave the batch. Parts are called under `torch.no_grad`.

Written from the papers: Croce & Hein 2020, "Reliable evaluation of adversarial robustness" (Auto-PGD), Croce & Hein 2020,
"Minimally distorted adversarial examples with a fast adaptive boundary attack" (FAB), Andriushchenko et al. 2020, "Square
Attack". Constants are those of the papers or, where a comment says so, AutoAttack's.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks.losses import attack_loss, margin, misclassified, targeted_ratio
from paperlib.attacks.projected import BOX, Norm, ascent, each_image, lengths, within

Leave = Callable[[Tensor, Tensor, Tensor], Tensor]


def _keep(going: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(one[going] for one in tensors)


# Auto-PGD ------------------------------------------------------------------------------------------------------------


def checkpoints(steps: int) -> list[int]:
    """Return the iterations, below `steps`, after which Auto-PGD may halve a step size; for 100: 22, 41, 57, …, 99."""
    found, last, length = [], 0, 22  # in hundredths, so that rounding up is exact
    while last + length < 100:
        # Croce & Hein 2020, Auto-PGD, checkpoints: p₁ = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), ⌈p_j N⌉
        last, length = last + length, max(length - 3, 6)
        found.append(-(-last * steps // 100))
    return found


def halving(rises: Tensor, length: int, halved: Tensor, best: Tensor, before: Tensor) -> Tensor:
    """Return for which rows Auto-PGD halves the step size at a checkpoint: bool N.

    `rises` counts increases of the loss in the `length` steps since the last checkpoint. `halved` marks the rows halved at
    that checkpoint, `before` is the best loss at that time, and `best` is the best loss now.
    """
    # Croce & Hein 2020, Auto-PGD, conditions: Σ 1[f(xᵢ₊₁) > f(xᵢ)] < 0.75 (w_j − w_{j−1}), or η and f_max as at w_{j−1}
    return (rises < 0.75 * length) | (~halved & (best <= before))


def auto_pgd(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    members: Tensor,
    leave: Leave,
    *,
    eps: float,
    norm: Norm,
    steps: int = 100,
) -> int:
    """Run Auto-PGD from a random start on cross-entropy or, with `targets` N×1, on the targeted difference of logits ratio.

    Returns the number of zero gradients at the start.
    """
    into = partial(within, eps=eps, norm=norm, box=BOX)
    noise = torch.empty_like(clean)
    start = noise.uniform_(-eps, eps) if norm == "linf" else eps * ascent(noise.normal_(), norm)
    aims = labels if targets is None else targets.squeeze(1)
    x = old = into(clean, clean + start)
    best = best_slope = x
    most = before = last = torch.full_like(x.flatten(1)[:, 0], -torch.inf)
    size, rises, halved = torch.full_like(most, 2 * eps), torch.zeros_like(most), torch.zeros_like(labels, dtype=torch.bool)
    at, previous, zeros = checkpoints(steps), 0, 0
    for step in range(steps + 1):
        x.requires_grad_(True)
        with torch.enable_grad():
            logits = model(x)
            loss = attack_loss(logits, labels, "ce") if targets is None else targeted_ratio(logits, labels, aims)
        going = leave(members, x.detach(), misclassified(logits.detach(), labels))
        if step == steps or not going.any():
            break
        (slope,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
        x, loss = x.detach(), loss.detach()
        if step == 0:
            zeros = int((slope.flatten(1) == 0).all(1).sum())
            best, best_slope, most, before = x.clone(), slope.clone(), loss.clone(), loss
        else:
            rises += loss > last
            better = loss > most
            best[better], best_slope[better], most[better] = x[better], slope[better], loss[better]
        last = loss
        if not going.all():
            clean, labels, aims, members, x, old, best = _keep(going, clean, labels, aims, members, x, old, best)
            slope, best_slope, most, before, last = _keep(going, slope, best_slope, most, before, last)
            size, rises, halved = _keep(going, size, rises, halved)
        if step in at:
            halved = halving(rises, step - previous, halved, most, before)
            # Rows with a halved step size continue from their best point.
            x, slope = (torch.where(each_image(halved, x), one, other) for one, other in ((best, x), (best_slope, slope)))
            size = torch.where(halved, size / 2, size)
            rises, before, previous = torch.zeros_like(rises), most.clone(), step
        ahead = into(clean, x + each_image(size, x) * ascent(slope, norm))
        share = 0.75 if step else 1.0
        # Croce & Hein 2020, Auto-PGD, step: z = P(xₖ + η ∇f(xₖ)), xₖ₊₁ = P(xₖ + α (z − xₖ) + (1 − α) (xₖ − xₖ₋₁))
        x, old = into(clean, x + share * (ahead - x) + (1 - share) * (x - old)), x
    return zeros


# FAB -----------------------------------------------------------------------------------------------------------------


def onto_plane(points: Tensor, normals: Tensor, values: Tensor, norm: Norm) -> Tensor:
    """Return the smallest moves δ from points in the box onto planes ⟨w, δ⟩ + v = 0 that stay in the box, K×N×D.

    `points` is K×N×D, `normals` w is N×D, `values` v is K×N. If the box ends before the plane, δ ends at the box.
    By duality each coordinate moves at the speed 1 (linf) or |w| (l2) until the box stops it. The distance covered is then
    a concave, piecewise linear function of time, for which Newton's method from below ends in the solution.
    """
    weights = normals.abs()
    speeds = torch.ones_like(weights[:, :1]) if norm == "linf" else weights
    toward = -normals.sign() * torch.where(values < 0, -1.0, 1.0)[..., None]
    room = toward * ((BOX[0] + BOX[1]) / 2 - points) + (BOX[1] - BOX[0]) / 2
    goal = values.abs()
    time = goal / (weights * speeds).sum(1).clamp_min(1e-12)  # exact if no coordinate meets the box
    moves = torch.minimum(time[..., None] * speeds, room)
    short = (goal - torch.einsum("knd,nd->kn", moves, weights) > 1e-6 * goal).nonzero(as_tuple=True)
    w, s, r, t, left = weights[short[1]], speeds[short[1]], room[short], time[short][:, None], goal[short][:, None]
    for _ in range(points.shape[2] if len(t) else 0):
        moving = t * s < r
        pace = (w * s * moving).sum(1, keepdim=True)
        # Croce & Hein 2020, FAB, projection: argmin ‖δ‖_p, ⟨w, x + δ⟩ + b = 0, l ≤ x + δ ≤ u; here: Newton's step
        later = ((left - (w * r * ~moving).sum(1, keepdim=True)) / pace).where(pace > 0, 0)
        if not (later > t * (1 + 1e-6)).any():
            break
        t = torch.maximum(t, later)
    moves[short] = torch.minimum(t * s, r)
    return toward * moves


def nearest_plane(model: nn.Module, points: Tensor, labels: Tensor, targets: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Find the linearised boundary nearest to each point among the wrong classes t in `targets` N×T.

    Returns the lead z_t − z_y of that class, N, and its gradient, N×….
    """
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points)
        leads = (logits.gather(1, targets) - logits.gather(1, labels[:, None])).unbind(1)
    ones = torch.ones_like(leads[0])
    planes = [(one.detach(), torch.autograd.grad(one, points, ones, retain_graph=True)[0]) for one in leads[1:]]
    lead, normal = leads[0].detach(), torch.autograd.grad(leads[0], points, ones)[0]
    for other, its_normal in planes:
        # Croce & Hein 2020, FAB, nearest boundary: argmin_{l≠c} |f_l(x) − f_c(x)| / ‖∇f_l(x) − ∇f_c(x)‖_q, 1/p + 1/q = 1
        nearer = other.abs() * _dual(normal, norm) < lead.abs() * _dual(its_normal, norm)
        lead, normal = other.where(nearer, lead), its_normal.where(each_image(nearer, normal), normal)
    return lead, normal


def _dual(vectors: Tensor, norm: Norm) -> Tensor:
    flat = vectors.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)


def fab(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    targets: Tensor,
    members: Tensor,
    leave: Leave,
    *,
    eps: float,
    norm: Norm,
    steps: int = 100,
) -> None:
    """Run FAB from the clean image toward the nearest of the classes `targets` N×T. A row ends once fooled within `eps`."""
    x = clean
    for _ in range(steps):
        lead, normal = nearest_plane(model, x, labels, targets, norm)
        from_clean = lead + (normal * (clean - x)).flatten(1).sum(1)
        pair = torch.stack([x, clean]).flatten(2)
        moves = onto_plane(pair, normal.flatten(1), torch.stack([lead, from_clean]), norm).view(2, *x.shape)
        near, far = (lengths(move, norm).clamp_min(1e-8) for move in moves)
        # Croce & Hein 2020, FAB, bias: α = min(‖δ‖ / (‖δ‖ + ‖δ_orig‖), α_max = 0.1)
        bias = each_image((near / (near + far)).clamp_max(0.1), x)
        # Croce & Hein 2020, FAB, step: proj_C((1 − α) (x + η δ) + α (x_orig + η δ_orig)), η = 1.05
        x = torch.lerp(x.add(moves[0], alpha=1.05), clean.add(moves[1], alpha=1.05), bias).clamp(*BOX)
        fooled = misclassified(model(x), labels)
        going = leave(members, x, fooled & (lengths(x - clean, norm) <= eps))
        # Croce & Hein 2020, FAB, backward step: (1 − β) x_orig + β x if x is adversarial, β = 0.9
        x = torch.lerp(clean, x, each_image(torch.where(fooled, 0.9, 1.0), x))
        if not going.any():
            return
        if not going.all():
            clean, labels, targets, members, x = _keep(going, clean, labels, targets, members, x)


# Square --------------------------------------------------------------------------------------------------------------

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10,000, at which the share p is halved
SPAN = 100  # number of queries whose random numbers are drawn together


def side(query: int, size: tuple[int, int], norm: Norm) -> int:
    """Return the side of Square's windows in pixels at a query, counted from 0, for images of this height and width."""
    # Andriushchenko et al. 2020, schedule of p: halved at 10, 50, 200, … of 10,000; here: p = 0.8, as in AutoAttack
    share = 0.8 / 2 ** bisect_left(HALVINGS, query)
    wide = round(math.sqrt(share * size[0] * size[1]))
    return min(max(wide, 1) if norm == "linf" else max(wide, 3) // 2 * 2 + 1, *size)


def square(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    members: Tensor,
    leave: Leave,
    *,
    eps: float,
    norm: Norm,
    queries: int = 5000,
    schedule: int = 10000,
) -> None:
    """Run Square on the margin of images N×C×H×W: a query redraws a window of each image and is undone unless better.

    `schedule` is the number of queries over which the windows shrink. AutoAttack uses 10,000 although it makes only 5,000.
    """
    x = (_stripes if norm == "linf" else _tiles)(clean, eps)
    draw, redraw = (_colours, _recolour) if norm == "linf" else (_moves, _move)
    sides = [side(query * 10000 // schedule, (clean.shape[2], clean.shape[3]), norm) for query in range(queries)]
    least = -margin(model(x), labels)
    fooled, draws, window = least <= 0, list[tuple[Tensor, ...]](), torch.empty(0)
    for query in range(queries + 1):
        if fooled.any():
            going = leave(members, x, fooled)
            if not going.any():
                return
            clean, labels, members, x, least = _keep(going, clean, labels, members, x, least)
            draws = [tuple(one[going] for one in each) for each in draws]
        if query == queries:
            return
        if not draws:
            count = sum(wide == sides[query] for wide in sides[query : query + SPAN])
            window = _window(clean, sides[query])
            draws = list(zip(*(one.unbind() for one in draw(count, clean, sides[query], eps)), strict=True))
        places, old = redraw(x, clean, window, eps, *draws.pop())
        lead = -margin(model(x), labels)
        better, fooled = lead < least, lead <= 0
        flat, least = x.view(len(x), -1), torch.minimum(least, lead)
        flat.scatter_(1, places, torch.where(better[:, None], flat.gather(1, places), old))


def _signs(*shape: int, like: Tensor) -> Tensor:
    return torch.randint(2, shape, device=like.device).to(like.dtype) * 2 - 1


def _window(images: Tensor, wide: int) -> Tensor:
    """Return the indices of the top left window of `wide` × `wide` pixels in a flat image: int64 C×wide²."""
    _, channels, height, width = images.shape
    plane, across = torch.arange(channels, device=images.device), torch.arange(wide, device=images.device)
    return plane[:, None] * (height * width) + (across[:, None] * width + across).flatten()


def _corners(count: int, images: Tensor, wide: int) -> Tensor:
    """Draw the index offsets of random windows from the top left one, for `count` queries: int64 count×N×1×1."""
    height, width = images.shape[2:]
    shape = count, len(images), 1, 1
    rows = torch.randint(height - wide + 1, shape, device=images.device)
    return rows * width + torch.randint(width - wide + 1, shape, device=images.device)


def _stripes(clean: Tensor, eps: float) -> Tensor:
    """Return Square's start in L∞: vertical stripes one pixel wide of random colours ±ε."""
    count, channels, _, width = clean.shape
    return (clean + eps * _signs(count, channels, 1, width, like=clean)).clamp(*BOX)


def _colours(count: int, images: Tensor, wide: int, eps: float) -> tuple[Tensor, ...]:
    """Draw the windows of `count` queries in L∞, and a colour ±ε for each channel."""
    return _corners(count, images, wide), eps * _signs(count, *images.shape[:2], 1, like=images)


def _recolour(
    x: Tensor, clean: Tensor, window: Tensor, eps: float, corners: Tensor, colours: Tensor
) -> tuple[Tensor, Tensor]:
    """Give a window of each image x one colour per channel, in place. Return its indices and its old values, N×…"""
    flat, places = x.view(len(x), -1), (corners + window).flatten(1)
    old, pixels = flat.gather(1, places), clean.view(len(x), -1).gather(1, places)
    # Andriushchenko et al. 2020, Algorithm 2: δ in the window = ρ ε − (x̂ − x) with ρ uniform in {−1, 1} by channel
    new = (pixels.view(len(x), *window.shape) + colours).clamp(*BOX)
    flat.scatter_(1, places, new.flatten(1))
    return places, old


def bump(wide: int) -> Tensor:
    """Return the pattern η of Square's windows in L2, of norm one: a positive bump on one half, a negative on the other."""

    def half(height: int) -> Tensor:
        rows, columns = torch.arange(height) - height // 2, torch.arange(wide) - wide // 2
        away = torch.maximum(rows.abs()[:, None], columns.abs())
        terms = 1 / torch.arange(1, max(height, wide) // 2 + 2).square()
        # Andriushchenko et al. 2020 (3): η_{r,s} = Σ_{k=0}^{M} 1 / (n + 1 − k)²; here: n − M is the distance to the centre
        sums: Tensor = terms.flip(0).cumsum(0).flip(0)
        return sums[away]

    pattern: Tensor = torch.cat([half(wide // 2), -half(wide - wide // 2)])
    return F.normalize(pattern.flatten(), dim=0).view(wide, wide)


def _bumps(wide: int, *shape: int, like: Tensor) -> Tensor:
    """Draw bumps, each turned by 90° or not: shape × wide²."""
    pattern = bump(wide).to(like)
    both = torch.stack([pattern.flatten(), pattern.T.flatten()])
    found: Tensor = both[torch.randint(2, shape, device=like.device)]
    return found


def _tiles(clean: Tensor, eps: float) -> Tensor:
    """Return Square's start in L2: a grid of 5 × 5 bumps of random signs, together of length ε."""
    count, channels, height, width = clean.shape
    wide = max(min(height, width) // 5, 1)
    down, across = min(height // wide, 5), min(width // wide, 5)
    bumps = _bumps(wide, count, 1, down, across, like=clean) * _signs(count, channels, down, across, 1, like=clean)
    grid = bumps.view(count, channels, down, across, wide, wide).transpose(3, 4)
    change, top, left = torch.zeros_like(clean), (height - down * wide) // 2, (width - across * wide) // 2
    change[:, :, top : top + down * wide, left : left + across * wide] = grid.reshape(
        count, channels, down * wide, across * wide
    )
    return (clean + eps * ascent(change, "l2")).clamp(*BOX)


def _moves(count: int, images: Tensor, wide: int, eps: float) -> tuple[Tensor, ...]:
    """Draw two windows for each of `count` queries in L2, and a bump for each channel."""
    bumps = _bumps(wide, count, len(images), 1, like=images) * _signs(count, *images.shape[:2], 1, like=images)
    return _corners(count, images, wide), _corners(count, images, wide), bumps


def _move(
    x: Tensor, clean: Tensor, window: Tensor, eps: float, corners: Tensor, others: Tensor, bumps: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the change of each image x from a second window into a new bump in a first window, in place.

    Returns the indices of both windows and their old values, N×….
    """
    flat, base, shape = x.view(len(x), -1), clean.view(len(x), -1), (len(x), *window.shape)
    unused = eps**2 - (flat - base).square().sum(1)  # may be slightly negative by rounding
    first, second = (corners + window).flatten(1), (others + window).flatten(1)
    pixels, cleared = base.gather(1, first), base.gather(1, second)
    old, old_second = flat.gather(1, first), flat.gather(1, second)
    flat.scatter_(1, first, pixels)
    change, moved = (old - pixels).view(shape), (flat.gather(1, second) - cleared).view(shape)
    flat.scatter_(1, second, cleared)
    # Andriushchenko et al. 2020, Algorithm 3, ε_avail: √(‖ν_{W₁∪W₂}‖² + ε²_unused / c)
    given = (change.square().sum(2) + moved.square().sum(2) + unused[:, None] / shape[1]).clamp_min(0).sqrt()
    # Andriushchenko et al. 2020, Algorithm 3, window: ν_W₁ = ε_avail ν_temp / ‖ν_temp‖, ν_temp = ρ η + ν_W₁ / ‖ν_W₁‖
    new = given[..., None] * F.normalize(bumps + F.normalize(change, dim=2), dim=2)
    flat.scatter_(1, first, (pixels + new.flatten(1)).clamp(*BOX))
    return torch.cat([first, second], 1), torch.cat([old, old_second], 1)
