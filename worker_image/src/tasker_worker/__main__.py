"""`python -m tasker_worker module…`: the worker process."""

from .process import main

if __name__ == "__main__":
    raise SystemExit(main())
