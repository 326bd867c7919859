"""Combinations that no paper tried: one method's loss plus terms of other methods."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from paperlib.methods import Batch, Method, Step
from paperlib.runs.files import InputError


class Added(NamedTuple):
    """A term of a method's loss and the weight that it is added with."""

    name: str  # to record it by: terms of two methods may have the same name
    method: Method
    term: str  # its name in the method's loss
    weight: float


@dataclass(frozen=True)
class Combined:
    """A method plus terms of others. Each has its own augmentation, attack and forward pass.

    A step costs almost the sum of the methods' steps.
    """

    base: Method
    added: tuple[Added, ...]

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L + Σ w · term: the base's terms, the added ones as "added <name>", and "total".

        Raises InputError if a method has no such term.
        """
        terms = dict(self.base.loss(model, batch, step))
        for name, method, term, weight in self.added:
            others = method.loss(model, batch, step)
            if term not in others or term == "total":
                known = ", ".join(other for other in others if other != "total")
                raise InputError(f"{type(method).__name__} has no term {term!r}; it has {known}")
            terms["total"] = terms["total"] + weight * others[term]
            terms[f"added {name}"] = others[term].detach()
        return terms
