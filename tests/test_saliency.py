"""Attention against what the blocks themselves compute, rollout against its definition, Grad-CAM against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import models
from paperlib.geometry import saliency
from paperlib.runs.files import InputError


@pytest.fixture
def vit() -> nn.Module:
    return models.build("vit", classes=5, channels=3, width=64, seed=0, size=32, normalisation="half").eval()


def own_attention(vit: nn.Module, images: Tensor) -> list[Tensor]:
    """N×heads×T×T of each block, as the unfused block forms it on its way."""
    found: list[Tensor] = []
    handles = [
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: found.append(output))
        for block in saliency.transformer(vit).blocks  # type: ignore[union-attr]
    ]
    vit(images)
    for handle in handles:
        handle.remove()
    return found


def test_attention_is_that_of_the_blocks(vit: nn.Module) -> None:
    images = torch.rand(3, 3, 32, 32)
    expected = own_attention(vit, images)
    for blocks, heads in ((None, None), ([-1], None), ([0, 2], [1])):
        logits, found = saliency.attended(vit, images, blocks, heads)
        torch.testing.assert_close(logits, vit(images))
        chosen = [expected[index] for index in (range(6) if blocks is None else blocks)]
        rows = torch.stack([one[:, range(2) if heads is None else heads, 0, 1:].mean(1) for one in chosen]).mean(0)
        torch.testing.assert_close(found, (rows / rows.sum(1, keepdim=True)).view(3, 8, 8))


def test_fused_attention_gives_the_same_map(vit: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32)
    _, before = saliency.attended(vit, images)
    for block in saliency.transformer(vit).blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = True
    torch.testing.assert_close(saliency.attended(vit, images)[1], before)


def test_attention_is_in_single_precision_under_autocast(vit: nn.Module) -> None:
    """From the same projection: what autocast may round is the projection, not what is made of it."""
    images, kept = torch.rand(2, 3, 32, 32), []
    block = saliency.transformer(vit).blocks[-1]  # type: ignore[union-attr, index]
    handle = block.attn.qkv.register_forward_hook(lambda module, inputs, output: kept.append(output.detach() * 15))
    with torch.autocast("cpu", torch.bfloat16):
        vit(images)
        found = saliency._attention(block.attn, kept[0], first=True)
    handle.remove()
    assert kept[0].dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, saliency._attention(block.attn, kept[0].float(), first=True))


def test_registers_belong_neither_to_the_map_nor_to_the_features() -> None:
    from timm.models.vision_transformer import VisionTransformer

    form = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 1, "num_classes": 3}
    net = VisionTransformer(reg_tokens=4, **form).eval()  # type: ignore[arg-type]
    images = torch.rand(2, 3, 16, 16)
    assert saliency.attended(net, images)[1].shape == (2, 4, 4)
    found, whole = saliency.tokens(net, images), net.forward_features(images)
    torch.testing.assert_close(found, torch.cat([whole[:, :1], whole[:, 5:]], 1))
    dropped = VisionTransformer(patch_drop_rate=0.25, **form).train()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="13 tokens are no map of 4×4 patches"):
        saliency.attended(dropped, images)
    pooled = VisionTransformer(global_pool="avg", **form)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no norm after its last block"):
        saliency.tokens(pooled, images)


def test_rollout_is_the_product_of_attention_and_identity(vit: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32)
    total = torch.eye(65).expand(2, 65, 65)
    for one in own_attention(vit, images):
        total = (0.5 * one.mean(1) + 0.5 * torch.eye(65)) @ total
    logits, found = saliency.rollout(vit, images)
    torch.testing.assert_close(logits, vit(images))
    torch.testing.assert_close(found, (total[:, 0, 1:] / total[:, 0, 1:].sum(1, keepdim=True)).view(2, 8, 8))
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(2))


def test_the_map_trains_queries_and_keys_and_leaves_no_hook(vit: nn.Module) -> None:
    _, found = saliency.attended(vit, torch.rand(2, 3, 32, 32), [-1])
    found[:, 0, 0].sum().backward()
    last = saliency.transformer(vit).blocks[-1].attn.qkv  # type: ignore[union-attr, index]
    queries_and_keys, values = last.weight.grad[:128], last.weight.grad[128:]
    assert float(queries_and_keys.abs().max()) > 0
    assert float(values.abs().max()) == 0  # the last block's values come after its attention
    assert not any(module._forward_hooks for module in vit.modules())


def test_the_gradient_of_the_map_is_that_of_finite_differences(vit: nn.Module) -> None:
    double, images = vit.double(), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    bias = saliency.transformer(double).blocks[1].attn.qkv.bias  # type: ignore[union-attr, index]
    weights = torch.rand(8, 8, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((saliency.attended(double, images)[1] * weights).sum(), bias)
    direction, values = torch.randn_like(bias), []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            bias += step * direction
            values.append(float((saliency.attended(double, images)[1] * weights).sum()))
            bias -= step * direction
    assert float(gradient @ direction) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_what_is_not_there_is_refused(vit: nn.Module) -> None:
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(InputError, match="blocks 0 to 5"):
        saliency.attended(vit, images, [6])
    with pytest.raises(InputError, match="name one at least"):
        saliency.attended(vit, images, [])
    with pytest.raises(InputError, match="heads 0 to 1"):
        saliency.attended(vit, images, None, [2])
    cnn = models.build("small_cnn", classes=5, channels=3, width=4, seed=0)
    with pytest.raises(InputError, match="no vision transformer"):
        saliency.attended(cnn, images)
    with pytest.raises(InputError, match="no layer 'conv9'"):
        saliency.grad_cam(cnn, images, torch.tensor([0]), "conv9")
    with pytest.raises(InputError, match="neither maps of channels nor tokens"):
        saliency.grad_cam(vit, images, torch.tensor([0]), "vit.head")
    with pytest.raises(InputError, match="64 tokens are no map"):
        saliency.grad_cam(vit, images, torch.tensor([0]), "vit.patch_embed")
    with pytest.raises(InputError, match="not a map of channels"):
        saliency.activated(vit, images, "vit.blocks.0.norm1")
    transformer = saliency.transformer(vit)
    transformer.cls_token = None  # type: ignore[assignment]
    with pytest.raises(InputError, match="no class token"):
        saliency.attended(vit, images)


def net() -> nn.Sequential:
    """A map of two channels and their means weighed: Grad-CAM has a closed form."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)).eval()


def test_grad_cam_of_a_mean_is_the_weighted_map() -> None:
    model, images, classes = net(), torch.rand(3, 3, 6, 6), torch.tensor([0, 3, 1])
    maps = model[0](images)
    weights = model[3].weight[classes] / 36  # type: ignore[index]
    expected = F.relu((weights[:, :, None, None] * maps).sum(1))
    torch.testing.assert_close(saliency.grad_cam(model, images, classes, "0"), expected.detach())


def test_grad_cam_of_a_transformer_is_on_its_patches_and_not_after_the_last_block(vit: nn.Module) -> None:
    images, classes = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    found = saliency.grad_cam(vit, images, classes, "vit.blocks.5.norm1")
    assert found.shape == (2, 8, 8)
    assert float(found.max()) > 0
    assert float(saliency.grad_cam(vit, images, classes, "vit.blocks.5").max()) == 0


def test_activation_attention_is_the_energy_of_the_map() -> None:
    model, images = net(), torch.rand(3, 3, 6, 6)
    logits, found = saliency.activated(model, images, "0")
    energy = (model[0](images) ** 2).sum(1)
    torch.testing.assert_close(logits, model(images))
    torch.testing.assert_close(found, energy / energy.sum((1, 2), keepdim=True))
