"""`python -m tasker_worker module…`: the worker process."""

from .process import leave_threads_behind, main

if __name__ == "__main__":
    code = main()
    leave_threads_behind(code)
    raise SystemExit(code)
