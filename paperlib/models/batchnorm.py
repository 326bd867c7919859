"""Batch normalisation whose second derivative costs two fused passes.

Losses on input gradients (PAG, GFA) differentiate the backward pass. PyTorch runs batch norm's second derivative as a long
chain of elementwise operations, which took more than half of the step. The closed form needs the fused first derivative
once more and one weighted sum; `benchmarks/` measures the speedup.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from paperlib.runs import distributed

aten = torch.ops.aten


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with the same state and results, but faster to differentiate twice in training mode."""

    synchronised = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise N×C×H×W over N, H and W, or by the running statistics in evaluation mode."""
        if self.training and self.synchronised and distributed.world() > 1:
            return self._over_all_processes(input)
        if not len(input):  # this process's part of the batch is empty
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if not self.training or not torch.is_grad_enabled():
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        found: Tensor = _Forward.apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
        )
        return found

    def _over_all_processes(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of the images of all processes; a process may have no images."""
        mean, var, momentum, batches = self.running_mean, self.running_var, self.momentum, self.num_batches_tracked
        assert mean is not None
        assert var is not None
        assert momentum is not None
        assert batches is not None
        x = input if input.dtype == torch.float64 else input.float()
        own = x.new_full((1,), x.numel() / x.shape[1])
        *sums, count = distributed.summed(torch.cat([x.sum((0, 2, 3)), own])).split([x.shape[1], 1])
        centred = x - (sums[0] / count)[:, None, None]
        variance = distributed.summed(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            batches.add_(1)
            mean.lerp_((sums[0] / count).to(mean), momentum)
            var.lerp_((variance * count / (count - 1)).to(var), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        found: Tensor = (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
        return found


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Let batch norm in training mode use the statistics of the images of all processes within the context."""
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm2d)]
    for layer in layers:
        layer.synchronised = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.synchronised


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
    ) -> Tensor:
        y, batch_mean, scale = aten.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, batch_mean, scale)
        ctx.eps = eps
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_Backward.apply(*grads, *ctx.saved_tensors, ctx.eps), None, None, None, None


def _fused(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    dy = dy.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    found: tuple[Tensor, ...] = aten.native_batch_norm_backward(
        dy, x, weight, None, None, mean, scale, True, eps, [True, True, True]
    )
    return found


class _Backward(torch.autograd.Function):
    """dx = γ s P(dy) with s = 1/√(var + ε), x̂ = s (x − mean), P(u) = u − mean(u) − x̂ mean(u x̂), means over N, H, W."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        dx, dweight, dbias = _fused(dy, x, weight, mean, scale, eps)
        ctx.save_for_backward(dy, x, weight, mean, scale, dx, dweight, dbias)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return dx, dweight, dbias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, v: Tensor | None, of_dweight: Tensor | None, of_dbias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Differentiate L = Σ v·dx: ∂L/∂dy = γ s P(v), because P is self-adjoint. With a = mean(v x̂), b = mean(dy x̂) and
        S = Σ v P(dy), ∂L/∂γ = s S and ∂L/∂x = −s (b γ s P(v) + a γ s P(dy)) − γ s² S x̂ / n.
        """
        if of_dweight is not None or of_dbias is not None:
            raise NotImplementedError("second derivatives of batch norm through its parameters' gradients")
        if v is None:
            return (None,) * 6
        dy, x, weight, mean, scale, dx, dweight, dbias = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        of_dy, v_xhat, v_sum = _fused(v, x, weight, mean, scale, ctx.eps)
        a, b = v_xhat / n, dweight / n
        total = torch.einsum("nchw,nchw->c", v, dy).to(weight.dtype) - v_sum * dbias / n - v_xhat * b
        k = weight * scale**3 * total / n  # γ s² S x̂ / n = k (x − mean)

        def per_channel(values: Tensor) -> Tensor:
            return values.view(1, -1, 1, 1).to(x.dtype)

        of_x = torch.addcmul(per_channel(k * mean), x, per_channel(-k))
        of_x.addcmul_(of_dy, per_channel(-scale * b)).addcmul_(dx, per_channel(-scale * a))
        return of_dy, of_x, scale * total, None, None, None


# Folding ---------------------------------------------------------------------------------------------------------------


def folded(model: nn.Module) -> nn.Module:
    """Return a copy with each batch norm, as in evaluation mode, folded into the convolution or linear layer before it.

    The outputs are equal up to rounding. The identity replaces each folded batch norm, so the model's code stays valid.
    Returns the model itself if torch.fx cannot trace it or if it has no such pair of layers.
    """
    pairs = _pairs(model)
    if not pairs:
        return model
    copy = deepcopy(model)
    for before, after in pairs:
        layer, norm = copy.get_submodule(before), cast(nn.BatchNorm2d, copy.get_submodule(after))
        fused: nn.Module
        if isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            fused = fuse_conv_bn_eval(cast(nn.Conv2d, layer), norm)
        copy.set_submodule(before, fused)
        copy.set_submodule(after, nn.Identity())
    return copy


class _Whole(fx.Tracer):
    """A tracer for which every batch norm is a leaf, including subclasses of PyTorch's such as ours."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return names of layers and the batch norm directly after them, each called once, with no other use of the output."""
    try:
        nodes = _Whole().trace(deepcopy(model)).nodes
    except Exception:  # control flow, copying and the model's own checks raise different types
        return []
    called = Counter(str(node.target) for node in nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    found = []
    for node in nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        names = str(source.target), str(node.target)
        layer, norm = (model.get_submodule(name) for name in names)
        if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d) or type(layer) not in (nn.Conv2d, nn.Linear):
            continue
        hooked = any(one._forward_hooks or one._forward_pre_hooks or one.training for one in (layer, norm))
        once = all(called[name] == 1 and name not in read for name in names)
        if once and not hooked and norm.running_mean is not None:
            found.append(names)
    return found
