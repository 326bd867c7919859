"""`audit.benchmark` against a closed form, and what `doctor` says of the machine."""

import pytest
import torch
from torch import nn

from paperlib import audit
from paperlib.data import ImageSet
from paperlib.runs.files import InputError
from paperlib.studies import doctor

EPS = 0.06


def linear_model_and_images() -> tuple[nn.Module, ImageSet]:
    """A linear classifier of four classes, and images far enough from 0 and 1 that the box never counts."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(4, 12, generator=generator))
        model[1].bias.zero_()
    images = 0.2 + 0.6 * torch.rand(120, 3, 2, 2, generator=generator)
    labels = model(images).argmax(1)
    labels[::10] = (labels[::10] + 1) % 4  # some that are wrong without attack
    return model, ImageSet(images, labels, ("a", "b", "c", "d"))


def test_a_benchmark_has_the_exact_accuracies_of_a_linear_model() -> None:
    model, data = linear_model_and_images()
    weight, logits = model[1].weight.detach(), model(data.images).detach()
    margins = logits.gather(1, data.labels[:, None]) - logits
    worst = EPS * (weight[data.labels][:, None] - weight).abs().sum(2)  # what ε can take from each difference of logits
    right = (margins > worst) | (torch.arange(4) == data.labels[:, None])
    found = audit.benchmark(model, data, eps=EPS)
    assert found.images == 120
    assert found.clean == pytest.approx(float((logits.argmax(1) == data.labels).float().mean()))
    assert found.robust == pytest.approx(float(right.all(1).float().mean()))
    assert 0 < found.robust < found.clean
    assert found.robust_interval[0] < found.robust < found.robust_interval[1]
    assert found.audit.verdict == "no sign of masking"


def test_a_benchmark_refuses_what_it_cannot_measure() -> None:
    model, data = linear_model_and_images()
    with pytest.raises(InputError, match="eps"):
        audit.benchmark(model, data, eps=-1.0)
    with pytest.raises(InputError, match="count = 0"):
        audit.benchmark(model, data, eps=EPS, count=0)


def test_the_doctor_scales_the_reference_by_the_rate_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "rate", lambda dtype: doctor.RATE / 2)  # a machine of half the speed
    told = dict(line.split(maxsplit=1) for line in doctor.lines())
    assert set(told) == {
        "machine", "versions", "processor", "GPU", "disk", "data", "speed", "quick", "laptop", "gpu", "paper"
    }  # fmt: skip
    assert told["quick"].startswith(f"about {sum(doctor.QUICK.values()) * 2 / 60:.0f} minutes on one core")
    assert torch.__version__ in told["versions"]


def test_a_rate_is_of_steps_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.05)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    assert doctor.rate(torch.float32) > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
