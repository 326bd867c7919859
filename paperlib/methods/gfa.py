"""GFA / DeepDefense: align gradients with features (arXiv 2511.13749, "DeepDefense: Layer-Wise Gradient-Feature Alignment
for Building Robust Neural Networks").

Only the abstract and two summaries are available, no code. Equations are cited from the second summary, by its headings.
The method adds to an MSE task loss a penalty on 1 − cos between a layer's input and the loss's gradient at that input.
FIRST penalises the first layer, DEEP the first three; the reported cosine is near 0.93. Choices where the texts are open:

- Sign: "α L_MSE − β GFA" (Method Summary) with GFA = 1 − cos would turn gradients away from the features. "L_task + β Σ
  L_GFA" (Critical path, step 5) aligns them and is the default. `literal=True` is the former sign.
- Layers are linear maps and convolutions, in the order of the forward pass. FIRST's input is the image, normalised if the
  network normalises.
- The cosine is computed for each image, over all flattened features. Gradients also flow through the features.
- MSE is the mean over classes of the squared difference between raw outputs and one-hot labels (`task="mse"`). MSE of the
  softmax and cross-entropy are options.
- Both terms share one forward pass, with the batch's statistics in batch norm. So the gradient at an image includes its
  effect on the other images. An attack runs in evaluation mode and sees a slightly different gradient.
- β is set for each layer and rises from zero over the share `ramp` of the steps. With `aim`, only the shortfall of the mean
  cosine from `aim` is penalised.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.attacks import each_image, evaluating
from paperlib.data import ImageSet, as_float
from paperlib.geometry import cosine, layer_inputs
from paperlib.methods import Batch, Method, Step, outputs
from paperlib.methods.baselines import Task, task_loss
from paperlib.runs import distributed
from paperlib.runs.files import InputError


def aligned(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[str],
    task: Task = "mse",
    *,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the task loss N of images N×…, and cos(∇_h L, h) at the input h of each of L layers, L×N.

    The model's mode is not changed. With batch norm in training mode, the gradient is that of the whole batch's loss. Very
    small gradients of the squared error keep their direction; a gradient of exactly zero has cosine 0. `create_graph` makes
    the cosines differentiable with respect to the weights. Raises InputError if a layer does not exist or its input has no
    gradient.
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        with layer_inputs(model, layers) as inputs:
            logits = outputs(model, leaf)
        each = task_loss(logits, labels, task)
        if cut := [name for name in layers if not inputs[name].requires_grad]:
            raise InputError(f"the input of layer {cut[0]!r} is cut off from the image: nothing can be aligned there")
        features = [inputs[name] for name in layers]
        # GFA, Critical path, step 3: ∇_h L_task with respect to the input h of each layer
        gradients = torch.autograd.grad(each.sum(), features, create_graph=create_graph, retain_graph=True)
        cosines = [
            cosine(_scaled(gradient), _scaled(feature)) for gradient, feature in zip(gradients, features, strict=True)
        ]
    return each, torch.stack(cosines)


def _scaled(vectors: Tensor) -> Tensor:
    """Divide vectors N×… by their largest absolute entry, so that small vectors keep their direction in float32."""
    largest = vectors.detach().flatten(1).abs().amax(1)
    return vectors / each_image(largest.where(largest > 0, 1.0), vectors)


@dataclass(frozen=True)
class GFA:
    """Task loss plus misalignment of gradients and features: FIRST with one layer, DEEP with three."""

    layers: tuple[str, ...]  # by name, see `geometry.weighted_layers`
    weights: tuple[float, ...]  # β of each layer
    alpha: float = 1.0  # α
    task: Task = "mse"
    aim: float | None = None  # target of the mean cosine; None means 1
    ramp: float = 0.0  # share of the steps over which β rises from zero
    literal: bool = False  # α L − β (1 − cos), as printed in the Method Summary

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.weights) or not self.layers:
            raise InputError(f"{len(self.layers)} layers but {len(self.weights)} weights; one β each, and one at least")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return α L + Σ_l β_l (1 − cos(∇_h L, h)), means over images: terms "task", "misalignment", cosines, "total"."""
        each, cosines = aligned(model, batch.augment(batch.images), batch.labels, self.layers, self.task, create_graph=True)
        task, means = each.mean(), cosines.mean(1)
        if self.aim is None:
            # GFA, Critical path, step 4: L_GFA = 1 − ⟨∇_h L, h⟩ / (‖∇_h L‖ ‖h‖)
            missing = 1 - means
        else:
            missing = (self.aim - means) * (distributed.overall(means.detach(), len(each)) < self.aim)
        rise = min(1.0, (step.index + 1) / (self.ramp * step.total)) if self.ramp else 1.0
        misalignment = (means.new_tensor(self.weights) * missing).sum()
        recorded = {f"cosine {name}": mean.detach() for name, mean in zip(self.layers, means, strict=True)}
        # GFA, Critical path, step 5: L_total = L_task + β Σ L_GFA; here: α L_task, and −β if literal
        total = self.alpha * task + (-rise if self.literal else rise) * misalignment
        return {"task": task, "misalignment": misalignment, **recorded, "total": total}

    def measure(self, model: nn.Module, data: ImageSet) -> dict[str, float]:
        """Return the mean cosine at each layer, in evaluation mode."""
        return _means(model, data, self.layers, self.task)


@dataclass(frozen=True)
class Watched:
    """Another method whose GFA cosines are recorded over training."""

    method: Method
    layers: tuple[str, ...]
    task: Task = "mse"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return the other method's terms."""
        return self.method.loss(model, batch, step)

    def measure(self, model: nn.Module, data: ImageSet) -> dict[str, float]:
        """Return the mean cosine at each layer, in evaluation mode."""
        return _means(model, data, self.layers, self.task)


def _means(model: nn.Module, data: ImageSet, layers: Sequence[str], task: Task) -> dict[str, float]:
    found = cosines(model, data, layers, task).mean(1)
    return {f"validation cosine {name}": float(value) for name, value in zip(layers, found, strict=True)}


class RadialTwin(nn.Module):
    """A control, not in the paper: a model with `size` times the mean square of a layer's input added to every output.

    Decisions, margins and cross-entropy stay the same, so it is exactly as robust as the model. But its squared error rises
    fastest along that input: for large `size` the cosine goes to 1. So high alignment alone does not imply robustness.
    """

    def __init__(self, model: nn.Module, layer: str, size: float = 100.0) -> None:
        super().__init__()
        self.model, self.layer, self.size = model, layer, size

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs N×C for images N×…."""
        with layer_inputs(self.model, [self.layer]) as inputs:
            logits = outputs(self.model, x)
        return logits + self.size * inputs[self.layer].square().flatten(1).mean(1, keepdim=True)


def check_differentiable_twice(model: nn.Module, images: Tensor, layers: Sequence[str], task: Task = "mse") -> None:
    """Raise InputError, with reason and remedy, if the alignment of a model on images N×… cannot be trained.

    Tests a copy in training mode on two images. For example, fused attention has no second derivative on a CPU.
    """
    probe = copy.deepcopy(model).train()
    few = images[:2]
    labels = torch.zeros(len(few), dtype=torch.long, device=few.device)
    weights = [weight for weight in probe.parameters() if weight.requires_grad]
    try:
        _, cosines = aligned(probe, few, labels, layers, task, create_graph=True)
        cosines.sum().backward()  # as in training, because `autograd.grad` would not notice a cut in the graph
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the model cannot be differentiated twice ({str(error).splitlines()[0]}). Attention must not be fused (timm: "
            "timm.layers.set_fused_attn(False) before the model is built), and custom functions need a second derivative"
        ) from error
    if all(weight.grad is None for weight in weights):
        raise InputError("the alignment does not depend on the weights: is the gradient detached somewhere in the model?")


def cosines(model: nn.Module, data: ImageSet, layers: Sequence[str], task: Task = "mse", chunk: int = 250) -> Tensor:
    """Return cos(∇_h L, h) of every image at every layer, L×N on the CPU, with the model in evaluation mode."""
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for start in range(0, len(data), chunk):
            images = as_float(data.images[start : start + chunk]).to(device)
            labels = data.labels[start : start + chunk].to(device)
            found.append(aligned(model, images, labels, layers, task)[1].detach().cpu())
    return torch.cat(found, 1)
