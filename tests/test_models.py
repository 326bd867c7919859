from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from paperlib import models
from paperlib.models import external
from paperlib.models.batchnorm import BatchNorm2d
from paperlib.runs.files import InputError


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_parameter_counts_are_those_published() -> None:
    assert round(parameters(models.resnet18(10)) / 1e6, 2) == 11.17
    assert parameters(models.toy_net(32)) == 2 * 32 + 32 + 32 * 2 + 2
    # torchvision's ResNet-50 has the same blocks; stem (7×7 against 3×3) and head (1,000 classes against 10) differ.
    from torchvision.models import resnet50

    ours = parameters(models.resnet(models.Bottleneck, (3, 4, 6, 3), 10))
    assert ours == parameters(resnet50()) - 3 * 64 * (49 - 9) - 2049 * 990


@pytest.mark.parametrize(
    ("name", "width", "parameters_in_millions", "multiplications_in_millions"),
    [
        ("resnet18", 64, 11.17, 555),
        ("resnet18_bottleneck", 64, 13.96, 727),  # what RAAT's tables call ResNet-18
        ("preact_resnet18", 64, 11.17, 555),
        ("wide_resnet28", 160, 36.48, 5243),
    ],
)
def test_sizes_are_those_of_the_papers(
    name: str, width: int, parameters_in_millions: float, multiplications_in_millions: int
) -> None:
    model = models.build(name, classes=10, channels=3, width=width, seed=0).eval()
    assert round(parameters(model) / 1e6, 2) == parameters_in_millions
    with torch.device("meta"):
        shell = models.ARCHITECTURES[name](10, 3, width)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            shell.eval()(torch.empty(1, 3, 32, 32))
    # The published counts are of multiplications and leave the shortcuts' 1×1 convolutions in.
    assert abs(counter.get_total_flops() / 2e6 - multiplications_in_millions) < 2


def test_pre_activation_blocks_compute_the_papers_formula() -> None:
    """x + F(x) with F of batch norm, ReLU and convolution, twice (He et al. 2016, Figure 1b), written out."""

    def activated(x: Tensor, statistics: Tensor) -> Tensor:
        mean, var, weight, bias = (row.view(1, -1, 1, 1) for row in statistics)
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp_min(0)

    for inputs, width, stride in ((8, 16, 2), (8, 8, 1)):
        block = models.PreActBlock(inputs, width, stride).double().eval()
        rows = []
        for layer in (block.bn1, block.bn2):
            rows.append(torch.rand(4, layer.num_features, dtype=torch.float64) + 0.5)
            state = dict(zip(("running_mean", "running_var", "weight", "bias"), rows[-1], strict=True))
            layer.load_state_dict(state, strict=False)
        x = torch.randn(2, inputs, 6, 6, dtype=torch.float64)
        first = activated(x, rows[0])
        branch = F.conv2d(first, block.conv1.weight, stride=stride, padding=1)
        branch = F.conv2d(activated(branch, rows[1]), block.conv2.weight, padding=1)
        shortcut = x if stride == 1 else F.conv2d(first, block.shortcut.weight, stride=stride)
        torch.testing.assert_close(block(x), branch + shortcut)


@pytest.mark.parametrize("name", sorted(set(models.ARCHITECTURES) - models.SIZED))
def test_a_stem_of_stride_two_halves_the_image_and_normalisation_is_the_first_layer(name: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    small, half = (
        models.build(name, classes=7, channels=3, width=8, seed=0, normalisation=kind, stem_stride=2).eval()
        for kind in ("none", "half")
    )
    assert small(images).shape == (2, 7)
    assert [part.shape[-1] for part in map(small[:2], [images])] == [16]
    torch.testing.assert_close(half(images), small(2 * images - 1))


def test_networks_of_one_size_say_what_they_cannot_take() -> None:
    for name, size, width in (("mlp", 28, 8), ("vit", 32, 64), ("vit", 64, 32), ("vit_conv", 16, 32),
                              ("vit_conv", 32, 64), ("vit_conv", 64, 32), ("vit14", 28, 64)):  # fmt: skip
        model = models.build(name, classes=7, channels=1, width=width, seed=0, size=size).eval()
        assert model(torch.rand(2, 1, size, size)).shape == (2, 7)
    layers = [
        module
        for module in models.build("mlp", classes=7, channels=1, width=8, seed=0, size=28)
        if hasattr(module, "weight")
    ]
    assert [tuple(layer.weight.shape) for layer in layers] == [(8, 784), (8, 8), (7, 8)]
    for changes, message in (
        ({"name": "vit", "width": 48}, "vit of width 48 for images of 32 px: width must be a multiple of 32"),
        ({"name": "vit", "width": 64, "size": 28}, "the size one of 8"),
        ({"name": "vit_conv", "width": 32, "size": 48}, "the size one of 8 by a power of two"),
        ({"name": "vit14", "width": 96, "size": 224}, "width must be a multiple of 64, the size one of 14"),
        ({"name": "mlp", "stem_stride": 2}, "stem_stride = 2: mlp has no first convolution"),
    ):
        settings = {"classes": 3, "channels": 1, "width": 8, "seed": 0, **changes}
        with pytest.raises(InputError, match=message):
            models.build(**settings)  # type: ignore[arg-type]


def test_the_papers_transformer_is_timms_with_other_patches() -> None:
    import timm

    with torch.device("meta"):  # shapes alone: 86 million weights stay undrawn
        ours = models.build("vit14", classes=100, channels=3, width=768, seed=0, size=224)
        theirs = timm.create_model("vit_base_patch16_224", patch_size=14, img_size=224, num_classes=100)
    shapes = [tuple(weight.shape) for weight in theirs.parameters()]
    assert [tuple(weight.shape) for weight in ours.parameters()] == shapes
    assert (1, 257, 768) in shapes


def test_every_token_of_the_convolutional_stem_sees_its_own_place() -> None:
    stem = models.build("vit_conv", classes=3, channels=3, width=32, seed=0, size=32).vit.patch_embed.eval()  # type: ignore[union-attr]
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    found = stem(image)
    assert found.shape == (1, 64, 32)
    (gradient,) = torch.autograd.grad(found.view(1, 8, 8, 32)[0, 2, 5].sum(), image)
    mass = gradient[0].abs().sum(0)
    # Cell (2, 5) of 4 × 4 pixels and the convolutions' reach around it; the norm's statistics spread a little everywhere.
    assert float(mass[6:13, 17:25].sum() / mass.sum()) > 0.5


def test_residual_blocks_compute_what_torchvisions_do() -> None:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    x = torch.randn(2, 8, 6, 6)
    basic = models.BasicBlock(8, 16, 2)
    theirs = BasicBlock(8, 16, 2, nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)))
    theirs.load_state_dict({key.replace("shortcut", "downsample"): value for key, value in basic.state_dict().items()})
    torch.testing.assert_close(basic(x), theirs(x))
    deep = models.Bottleneck(8, 4, 1)
    theirs = Bottleneck(8, 4, 1, nn.Sequential(nn.Conv2d(8, 16, 1, 1, bias=False), nn.BatchNorm2d(16)))
    theirs.load_state_dict({key.replace("shortcut", "downsample"): value for key, value in deep.state_dict().items()})
    torch.testing.assert_close(deep(x), theirs(x))


def test_inputs_in_the_unit_box_become_plus_minus_one() -> None:
    first = models.small_cnn(10, statistics=models.NORMALISATIONS["half"])[0]
    torch.testing.assert_close(first(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)).flatten(), torch.tensor([-1.0, 0, 1]))


def test_weights_follow_from_the_seed_alone_and_leave_the_generator() -> None:
    before = torch.get_rng_state()
    one, two, other = (models.build("small_cnn", classes=4, channels=1, width=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(one.parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)  # batch norm begins with ones and zeros


def test_weights_come_back_and_those_of_another_architecture_are_refused(tmp_path: Path) -> None:
    model = models.resnet18(3, width=4)
    models.save_weights(model, tmp_path / "w.safetensors")
    back = models.load_weights(models.resnet18(3, width=4), tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    with pytest.raises(InputError, match=r"w\.safetensors: weights of another architecture"):
        models.load_weights(models.resnet18(3, width=8), tmp_path / "w.safetensors")


def test_published_robust_networks_are_read_and_pickled_code_is_not_run(tmp_path: Path) -> None:
    model = models.resnet(models.Bottleneck, (3, 4, 6, 3), 10, statistics=models.CIFAR10_STATISTICS).eval()
    stored = {f"module.model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model": {**stored, "module.normalizer.new_mean": torch.zeros(3)}, "epoch": 3}, tmp_path / "linf.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(external.load_robust_resnet50(tmp_path / "linf.pt")(images), model(images))
        save_file(model.state_dict(), tmp_path / "linf.safetensors")  # as anyone would
        assert torch.equal(external.load_robust_resnet50(tmp_path / "linf.safetensors")(images), model(images))

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"^[^\n]*cannot be read as weights alone \([^\n]*\); it should be whole[^\n]*$"):
        external.load_robust_resnet50(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {"conv1.weight": torch.ones(1)}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a ResNet-50"):
        external.load_robust_resnet50(tmp_path / "other.pt")


@pytest.mark.parametrize("size", [8, 9])
def test_a_projection_is_a_strided_convolution(size: int) -> None:
    ours = models.Projection(4, 8, 2).double()
    x = torch.randn(3, 4, size, size, dtype=torch.float64, requires_grad=True)
    theirs = F.conv2d(x, ours.weight, stride=2)
    torch.testing.assert_close(ours(x), theirs)
    probe = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad((ours(x) * probe).sum(), [x, ours.weight]),
        torch.autograd.grad((theirs * probe).sum(), [x, ours.weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


# Batch norm's own second derivative --------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_equals_pytorchs_to_the_second_derivative(memory_format: torch.memory_format) -> None:
    ours, theirs = BatchNorm2d(4).double(), nn.BatchNorm2d(4).double()
    nn.init.uniform_(ours.weight, 0.5, 2)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    data = torch.randn(5, 4, 3, 2, dtype=torch.float64).contiguous(memory_format=memory_format)
    probe, direction = torch.randn_like(data), torch.randn_like(data)
    results = []
    for layer in (ours, theirs):
        x = data.clone().requires_grad_(True)
        y = layer(x)
        (gradient,) = torch.autograd.grad((y.sin() * probe).sum(), x, create_graph=True)
        loss = (gradient * direction).cos().sum() + (y**3).sum()
        results.append([y, gradient, *torch.autograd.grad(loss, [x, layer.weight, layer.bias])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(data), theirs(data))


def test_batch_norm_passes_finite_differences_twice() -> None:
    layer = BatchNorm2d(2).double()

    def normalise(x: Tensor) -> Tensor:
        return layer(x)

    data = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalise, data)
    assert torch.autograd.gradgradcheck(normalise, data)


def test_what_batch_norm_cannot_differentiate_is_an_error() -> None:
    layer = BatchNorm2d(2)
    loss = layer(torch.randn(4, 2, 3, 3)).pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="parameters' gradients"):
        gradient.sum().backward()


def test_wrn_is_initialised_as_in_raats_code() -> None:
    model = models.build("wide_resnet28", classes=10, channels=3, width=32, seed=0)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            fan = module.out_channels * module.kernel_size[0] ** 2
            assert float(module.weight.std() * (fan / 2) ** 0.5) == pytest.approx(1, rel=0.1)
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
