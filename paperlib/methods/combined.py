"""Combinations that no paper tried: the loss of one method plus terms of other methods."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from paperlib.methods import Batch, Method, Step
from paperlib.runs.files import InputError


class Added(NamedTuple):
    """A term of a method's loss and its weight in the sum."""

    name: str  # the name it is recorded under, since terms of two methods may have the same name
    method: Method
    term: str  # the term's name in the method's loss
    weight: float


@dataclass(frozen=True)
class Combined:
    """A method plus terms of other methods. Each method has its own augmentation, attack and forward pass.

    A step costs almost as much as one step of each method together.
    """

    base: Method
    added: tuple[Added, ...]

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return L + Σ w · term as "total", the base's terms, and the added terms as "added <name>".

        Raises InputError if a method has no term of the given name.
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
