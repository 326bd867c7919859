"""Combinations that no paper tried: one method's objective with a term of others added."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from paperlib.methods import Batch, Method, Step
from paperlib.runs.files import InputError


class Added(NamedTuple):
    """A term of a method's loss, by the name that its `loss` gives it, and the weight it is added with."""

    name: str  # by which it is recorded: two methods may call their terms alike
    method: Method
    term: str
    weight: float


@dataclass(frozen=True)
class Combined:
    """A method with terms of others on top. Each keeps its own view of the batch: its augmentation, its attack, its pass.

    So a step costs nearly as much as the steps of all of them together.
    """

    base: Method
    added: tuple[Added, ...]

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L + Σ w · term: the base's terms, each that is added as "added <name>", and "total".

        Raises InputError where a method has no such term.
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
