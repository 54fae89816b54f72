"""Every test begins without Hydra; no power is lost."""

from collections.abc import Iterator

import pytest
from hydra.core.global_hydra import GlobalHydra


@pytest.fixture(autouse=True)
def _no_hydra_and_no_power_loss(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    GlobalHydra.instance().clear()
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield
    GlobalHydra.instance().clear()
