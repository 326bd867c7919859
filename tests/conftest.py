from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("same", derandomize=True, deadline=None)  # a random test has a seed
hypothesis.settings.load_profile("same")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of its own: the repository's notebooks, no data, no runs."""
    (tmp_path / "notebooks").symlink_to(REPOSITORY / "notebooks")
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    monkeypatch.setattr("paperlib.runs.tidy.rooms", lambda: tmp_path / "tmp")
    return tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole notebooks first: they take longest, and several processes share the rest better."""
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)
