"""GFA / DeepDefense: gradients that point along the features (arXiv 2511.13749, "DeepDefense: Layer-Wise Gradient-Feature
Alignment for Building Robust Neural Networks").

Only the abstract and summaries of the paper can be had, no code. What they say: the cosine between a layer's input and the
gradient of the loss there is raised, at the first layer (FIRST) or the first three (DEEP), beside an MSE task loss, with a
reported value near 0.93. What they leave open, and what is done here:

- The sign. "α L_MSE − β GFA" with GFA called the penalty 1 − cos would push gradients away from the features. It makes
  sense with GFA the cosine: −β cos = β (1 − cos) − β. That is minimised here, as the second summary's steps have it.
  The literal sign, −β (1 − cos), is `literal=True`.
- A layer is a linear map or convolution, in the order in which the forward pass meets them; FIRST's input is the image as
  the first of them sees it, normalised if the network normalises.
- The cosine is that of each image, all else flattened. Its features are differentiated too, not held fixed.
- MSE is on the raw outputs against one-hot labels, the mean over classes (`task="mse"`); on the softmax, or cross-entropy,
  by choice.
- Batch norm uses the statistics of the batch, in the one forward pass that both terms share. There the gradient at an image
  includes what that image does to the others through the statistics: what is aligned is not quite what an attack meets.
- β is one each layer, and rises from zero over the share `ramp` of the steps; with `aim` only what is missing to that mean
  cosine counts, so β is how fast it is approached and not how far beyond it is pushed.
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
    """Each image's task loss, N, and cos(∇_h L, h) at the input h of each of L layers, L×N, of images N×….

    The model is used in the mode it is in; with batch norm in training mode the gradient is of the whole batch's loss. A
    gradient however small has a direction, one of exactly zero the cosine 0. `create_graph` makes the cosines
    differentiable with respect to the weights. Raises InputError when a layer is not there or its input cannot be
    differentiated.
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
    """Vectors N×… over their own largest entry: a direction survives single precision, however small it is."""
    largest = vectors.detach().flatten(1).abs().amax(1)
    return vectors / each_image(largest.where(largest > 0, 1.0), vectors)


@dataclass(frozen=True)
class GFA:
    """The task loss and the misalignment of gradients with features: FIRST with one layer, DEEP with three."""

    layers: tuple[str, ...]  # by name, see `geometry.weighted_layers`
    weights: tuple[float, ...]  # β of each layer
    alpha: float = 1.0  # α
    task: Task = "mse"
    aim: float | None = None  # mean cosine that is aimed at; None: as high as it goes
    ramp: float = 0.0  # share of the steps over which β rises from zero
    literal: bool = False  # α L − β (1 − cos), the formula as the summary prints it

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.weights) or not self.layers:
            raise InputError(f"{len(self.layers)} layers but {len(self.weights)} weights; one β each, and one at least")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """α L + Σ_l β_l (1 − cos(∇_h L, h)), means over images: terms "task", "misalignment", a cosine a layer, "total"."""
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
        # GFA, Critical path, step 5: L_total = L_task + β Σ L_GFA; by default with α, and with −β if literal
        total = self.alpha * task + (-rise if self.literal else rise) * misalignment
        return {"task": task, "misalignment": misalignment, **recorded, "total": total}

    def measure(self, model: nn.Module, data: ImageSet) -> dict[str, float]:
        """The mean cosine at each layer, in evaluation mode."""
        return _means(model, data, self.layers, self.task)


@dataclass(frozen=True)
class Watched:
    """Another method, whose cosines are recorded over training as GFA's are."""

    method: Method
    layers: tuple[str, ...]
    task: Task = "mse"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The method's own."""
        return self.method.loss(model, batch, step)

    def measure(self, model: nn.Module, data: ImageSet) -> dict[str, float]:
        """The mean cosine at each layer."""
        return _means(model, data, self.layers, self.task)


def _means(model: nn.Module, data: ImageSet, layers: Sequence[str], task: Task) -> dict[str, float]:
    found = cosines(model, data, layers, task).mean(1)
    return {f"validation cosine {name}": float(value) for name, value in zip(layers, found, strict=True)}


class RadialTwin(nn.Module):
    """A model with `size` times the mean square of a layer's input added to every output.

    Its decisions, margins and cross-entropy are the model's own, so it is exactly as robust. But the squared error of its
    outputs rises along that input faster than in any other direction: for a large `size` the cosine goes to 1. A control
    of ours, not of the paper: high alignment by itself is worth nothing.
    """

    def __init__(self, model: nn.Module, layer: str, size: float = 100.0) -> None:
        super().__init__()
        self.model, self.layer, self.size = model, layer, size

    def forward(self, x: Tensor) -> Tensor:
        """Outputs N×C of images N×…"""
        with layer_inputs(self.model, [self.layer]) as inputs:
            logits = outputs(self.model, x)
        return logits + self.size * inputs[self.layer].square().flatten(1).mean(1, keepdim=True)


def check_differentiable_twice(model: nn.Module, images: Tensor, layers: Sequence[str], task: Task = "mse") -> None:
    """Raise InputError, saying why and what helps, where the alignment of a model on images N×… cannot be trained.

    A copy is tried on two images, in training mode. Fused attention, for one, has no second derivative on a CPU.
    """
    probe = copy.deepcopy(model).train()
    few = images[:2]
    labels = torch.zeros(len(few), dtype=torch.long, device=few.device)
    weights = [weight for weight in probe.parameters() if weight.requires_grad]
    try:
        _, cosines = aligned(probe, few, labels, layers, task, create_graph=True)
        cosines.sum().backward()  # as training does: `autograd.grad` of the weights would pass by a cut in the graph
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the model cannot be differentiated twice ({str(error).splitlines()[0]}). Attention must not be fused (timm: "
            "timm.layers.set_fused_attn(False) before the model is built), and custom functions need a second derivative"
        ) from error
    if all(weight.grad is None for weight in weights):
        raise InputError("the alignment does not depend on the weights: is the gradient detached somewhere in the model?")


def cosines(model: nn.Module, data: ImageSet, layers: Sequence[str], task: Task = "mse", chunk: int = 250) -> Tensor:
    """cos(∇_h L, h) of every image at every layer: L×N on the CPU, the model in evaluation mode."""
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for start in range(0, len(data), chunk):
            images = as_float(data.images[start : start + chunk]).to(device)
            labels = data.labels[start : start + chunk].to(device)
            found.append(aligned(model, images, labels, layers, task)[1].detach().cpu())
    return torch.cat(found, 1)
