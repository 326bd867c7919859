"""Saliency maps: attention of a vision transformer, activations of a convolutional network, and Grad-CAM."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.attacks import evaluating
from paperlib.geometry import layer_outputs
from paperlib.geometry.depth import unit_mass
from paperlib.runs.files import InputError

Attention = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]  # model and images to logits N×C and A, N×h×w, unit mass


def transformer(model: nn.Module) -> nn.Module:
    """Return the vision transformer of timm's form within `model`. Raises InputError if none has a class token."""
    for module in model.modules():
        if all(hasattr(module, name) for name in ("blocks", "patch_embed", "cls_token", "num_prefix_tokens")):
            if module.cls_token is None:
                raise InputError("the transformer has no class token, so there is no row of attention to align")
            return module
    raise InputError("the model is no vision transformer of timm's form (blocks, patch_embed, cls_token)")


def grid(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of rows and columns of a vision transformer's patches."""
    rows, columns = transformer(model).patch_embed.grid_size  # type: ignore[union-attr, misc]
    return int(rows), int(columns)


def attended(
    model: nn.Module, images: Tensor, blocks: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return logits N×C of images N×…, and the class token's attention to the patches: N×h×w of unit mass.

    The attention is the mean over the given blocks and heads (all if None), from the same forward pass, differentiable.
    Only the class token's row is computed, from the queries and keys of each block, so attention may stay fused. Raises
    InputError if the model is no vision transformer, or if a block or head does not exist.
    """
    chosen = _chosen(transformer(model), blocks)
    logits, found = _with_queries(model, images, chosen)
    rows = [_attention(module, qkv, first=True)[:, :, 0] for module, qkv in found]
    # DAAT, Section 3.2: A(x) ≥ 0, ‖A(x)‖₁ = 1, aggregated self-attention; here: the mean over blocks and heads
    weights = torch.stack([_of_heads(row, heads).mean(1) for row in rows]).mean(0)
    return logits, _on_patches(model, weights)


def saliency(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[str, Tensor] | None:
    """Return a saliency map N×h×w, at least 0, and its kind, "attention" or "Grad-CAM"; None if there is no `last_map`.

    The map is a transformer's attention, or Grad-CAM of the classes int64 N at `last_map`. The mode is not changed.
    """
    try:
        with torch.no_grad():
            return "attention", attended(model, images)[1]
    except InputError:  # no transformer, or none with a class token
        layer = last_map(model, images)
        return None if layer is None else ("Grad-CAM", grad_cam(model, images, classes, layer))


def last_map(model: nn.Module, images: Tensor) -> str | None:
    """Find the last layer, not before the first convolution, whose output is N×C×h×w with h·w > 1; None if there is none.

    Layers with submodules do not count.
    """
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            begun = bool(found) or isinstance(module, nn.Conv2d)
            if begun and isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        return hook

    leaves = {name: module for name, module in model.named_modules() if not any(module.children())}
    handles = [module.register_forward_hook(look(name)) for name, module in leaves.items()]
    try:
        with evaluating(model), torch.no_grad():
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None


def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Return a vision transformer's class and patch tokens after its last norm, without registers: N×T×D, differentiable.

    Raises InputError if the transformer has no norm after its last block.
    """
    vit = transformer(model)
    last: nn.Module = vit.norm  # type: ignore[assignment]
    if isinstance(last, nn.Identity):
        raise InputError("the transformer has no norm after its last block, which its features are taken from")
    _, found = _with_output(model, images, name_in(model, last))
    skipped: int = vit.num_prefix_tokens  # type: ignore[assignment]
    return _precise(torch.cat([found[:, :1], found[:, skipped:]], 1))


def name_in(model: nn.Module, module: nn.Module) -> str:
    """Return the name of a submodule in the model."""
    found: str = next(name for name, one in model.named_modules() if one is module)
    return found


def _precise(values: Tensor) -> Tensor:
    """Return the values in single precision or better, also under autocast."""
    return values if values.dtype == torch.float64 else values.float()


def rollout(model: nn.Module, images: Tensor, heads: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return logits N×C, and attention rollout (Abnar & Zuidema 2020) from class token to patches: N×h×w of unit mass.

    Rollout is the product over all blocks of ½ (A + I): the mean attention of the heads, and I for the residual connection.
    """
    logits, found = _with_queries(model, images, _chosen(transformer(model), None))
    total = None
    for module, qkv in found:
        attention = _of_heads(_attention(module, qkv, first=False), heads).mean(1)
        step = (attention + torch.eye(attention.shape[1], device=attention.device)) / 2
        # Abnar & Zuidema 2020, attention rollout: Π ½ (A + I) over the blocks
        total = step if total is None else step @ total
    assert total is not None
    return logits, _on_patches(model, total[:, 0])


def _chosen(vit: nn.Module, blocks: Sequence[int] | None) -> list[nn.Module]:
    present: list[nn.Module] = list(vit.blocks)  # type: ignore[arg-type]
    if blocks is None:
        return present
    if not blocks or any(not -len(present) <= index < len(present) for index in blocks):
        raise InputError(f"blocks = {list(blocks)}: the transformer has blocks 0 to {len(present) - 1}; name one at least")
    return [present[index] for index in blocks]


def _with_queries(model: nn.Module, images: Tensor, blocks: Sequence[nn.Module]) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
    """Return logits, and for each block its attention module and the projection to queries, keys and values."""
    attentions: list[Any] = [block.attn for block in blocks]
    names = [name_in(model, one.qkv) for one in attentions]
    with layer_outputs(model, names) as found:
        logits = _precise(model(images))
    return logits, [(one, found[name]) for one, name in zip(attentions, names, strict=True)]


def _attention(module: Any, qkv: Tensor, *, first: bool) -> Tensor:
    """Return softmax(Q Kᵀ / √d) from the projection N×T×3D: N×heads×T×T, or with `first` the class token's N×heads×1×T."""
    count, length, _ = qkv.shape
    queries, keys, _ = qkv.reshape(count, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    with torch.autocast(qkv.device.type, enabled=False):
        queries, keys = _precise(queries[:, :, :1] if first else queries), _precise(keys)
        # Vaswani et al. 2017 (1): softmax(Q Kᵀ / √d)
        found: Tensor = (module.q_norm(queries) * module.scale @ module.k_norm(keys).mT).softmax(-1)
        return found


def _of_heads(attention: Tensor, heads: Sequence[int] | None) -> Tensor:
    if heads is None:
        return attention
    if not heads or any(not 0 <= head < attention.shape[1] for head in heads):
        raise InputError(f"heads = {list(heads)}: there are heads 0 to {attention.shape[1] - 1}; name one at least")
    return attention[:, list(heads)]


def _on_patches(model: nn.Module, weights: Tensor) -> Tensor:
    """Return weights N×T of all tokens as maps N×h×w of unit mass over the patches."""
    return unit_mass(_patches(model, weights[..., None])[:, 0])


def _patches(model: nn.Module, found: Tensor) -> Tensor:
    """Return the patch tokens among all tokens N×T×D as maps N×D×h×w. Raises InputError if they do not fill the grid."""
    skipped: int = transformer(model).num_prefix_tokens  # type: ignore[assignment]
    rows, columns = grid(model)
    if found.shape[1] != skipped + rows * columns:
        raise InputError(
            f"{found.shape[1]} tokens are no map of {rows}×{columns} patches; images of another size, or dropped?"
        )
    return found[:, skipped:].mT.reshape(len(found), -1, rows, columns)


def activated(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return logits N×C, and a layer's activation attention (Zagoruyko & Komodakis 2017): N×h×w of unit mass.

    It is the sum over channels of the squared output, differentiable. Raises InputError if the output is not N×C×h×w.
    """
    logits, output = _with_output(model, images, layer)
    if output.ndim != 4:
        raise InputError(f"layer {layer!r} puts out {output.ndim - 1} dimensions an image, not a map of channels")
    # Zagoruyko & Komodakis 2017, activation attention: Σ_c |A_c|²
    return logits, unit_mass(output.float().square().sum(1))


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor, layer: str, *, signed: bool = False) -> Tensor:
    """Return Grad-CAM of the given classes int64 N (Selvaraju et al. 2017): N×h×w, not normalised, at least 0.

    `signed` omits the ReLU, which sets a map without positive evidence to zero. The output of `layer` is channels×h×w, or
    the tokens of a vision transformer; the class token is left out. For a transformer, choose the last block's norm1: the
    last block's output affects the logits only through the class token, so its map is zero. The model is in evaluation
    mode. To compare clean and adversarial images, use the same class. Raises InputError for a layer with another output.
    """
    with evaluating(model), torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits, output = _with_output(model, leaf, layer)
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), output)
    if output.ndim == 3:
        output, gradient = _patches(model, output), _patches(model, gradient)
    if output.ndim != 4:
        raise InputError(
            f"layer {layer!r} puts out neither maps of channels nor tokens; Grad-CAM has nothing to weigh there"
        )
    # Selvaraju et al. 2017 (1): α_k = 1/Z Σ ∂y/∂A_k
    alpha = gradient.mean((2, 3), keepdim=True)
    # Selvaraju et al. 2017 (2): ReLU(Σ_k α_k A_k); here: before the ReLU
    weighed = (alpha * output.detach()).sum(1)
    return weighed if signed else weighed.clamp_min(0)


def _with_output(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    with layer_outputs(model, [layer]) as found:
        logits = _precise(model(images))
    return logits, found[layer]
