"""What every test stands on: quiet threads, a steady hypothesis profile, and the optional data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before numpy or torch is loaded: two busy thread pools on few cores cost more than they compute.
for _name, _value in (
    ("OMP_NUM_THREADS", "1"),
    ("GOMP_SPINCOUNT", "0"),
    ("OMP_WAIT_POLICY", "passive"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("HF_HUB_OFFLINE", "1"),
):
    os.environ.setdefault(_name, _value)

settings.register_profile(
    "isogloss",
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("isogloss")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real corpora and models, which is not part of the repository."""
    named = os.environ.get("ISOGLOSS_DATA")
    if not named:
        pytest.skip("ISOGLOSS_DATA is unset: it names a folder of real corpora and models")
    path = Path(named)
    if not path.is_dir():
        pytest.skip(f"ISOGLOSS_DATA={named} is not a folder")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none is left to one process at the end; and skip what
    needs a CUDA device where there is none.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
