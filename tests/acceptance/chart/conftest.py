"""The real helm, and the objects of every row of `support.chart.MATRIX`."""

from __future__ import annotations

import pytest

from support.chart import MATRIX, render
from support.helm import Helm, Manifest, helm

__all__ = ["helm"]


@pytest.fixture(params=sorted(MATRIX))
def rendered(request: pytest.FixtureRequest, helm: Helm) -> list[Manifest]:
    """The objects of each row of the matrix in turn."""
    return render(helm, request.param)
