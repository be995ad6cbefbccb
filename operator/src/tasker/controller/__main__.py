"""`python -m tasker.controller`: the operator process. Configured by the environment; see `tasker.settings`."""

from __future__ import annotations

import sys

from tasker.controller.app import main

if __name__ == "__main__":
    sys.exit(main())
