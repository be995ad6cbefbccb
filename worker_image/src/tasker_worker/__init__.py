"""The SDK: write step handlers, and run them in a worker.

A person writing a step needs the names here; the rest stands in submodules: `decision`, `errors`, `registry`,
`logging`, `lifecycle`, `testing`.
"""

from ._version import __version__
from .context import StepContext
from .errors import ErrorType, PermanentError, RetryableError
from .handler import StepHandler, depends_on, inputs, step_handler
from .registry import HandlerRegistry
from .result import StepResult
from .worker import Worker

__all__ = [
    "ErrorType",
    "HandlerRegistry",
    "PermanentError",
    "RetryableError",
    "StepContext",
    "StepHandler",
    "StepResult",
    "Worker",
    "__version__",
    "depends_on",
    "inputs",
    "step_handler",
]
