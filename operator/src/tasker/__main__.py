"""`python -m tasker`: the command line."""

from __future__ import annotations

from tasker.cli.main import main

if __name__ == "__main__":
    main()
