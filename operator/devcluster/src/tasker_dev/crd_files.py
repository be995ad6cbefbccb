"""Where the CRDs are: in an installed distribution beside the package, in a checkout at its root."""

from __future__ import annotations

from pathlib import Path

import tasker
from tasker.errors import ConfigurationError


def crd_folder() -> Path:
    """The folder with one YAML file a kind. Raises `ConfigurationError` when the installation lacks it."""
    package = Path(tasker.__file__).parent
    packaged, checkout = package / "crds", package.parents[2] / "crds"
    for folder in (packaged, checkout):
        if (folder / "tasks.yaml").is_file():
            return folder
    raise ConfigurationError(f"the CRDs are missing: neither {packaged} nor {checkout} has them")
