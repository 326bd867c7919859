"""Combinations that no paper tried: one method's objective with a term of others added."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from paperlib.files import InputError
from paperlib.methods import Batch, Method, Step


class Added(NamedTuple):
    """A term of a method's loss, by the name that its `loss` gives it, and the weight it is added with."""

    method: Method
    term: str
    weight: float


@dataclass(frozen=True)
class Combined:
    """A method with terms of others on top. Each keeps its own view of the batch: its augmentation, its attack, its pass.

    So a step costs as much as the steps of all of them together.
    """

    base: Method
    added: tuple[Added, ...]

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L + Σ w · term: the base's terms, those added by their names, and "total".

        Raises InputError where a method has no such term.
        """
        terms = dict(self.base.loss(model, batch, step))
        for method, name, weight in self.added:
            others = method.loss(model, batch, step)
            if name not in others or name == "total":
                known = ", ".join(term for term in others if term != "total")
                raise InputError(f"{type(method).__name__} has no term {name!r}; it has {known}")
            terms["total"] = terms["total"] + weight * others[name]
            terms[f"added {name}"] = others[name].detach()
        return terms
