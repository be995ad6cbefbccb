"""What a handler learns about its step. Made by the executor for each attempt, and by `tasker_worker.testing`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, overload

from pydantic import TypeAdapter

from .batch_pages import BatchPages, BatchResultSource
from .claims import Claim
from .errors import ConfigurationError
from .jsontext import encode
from .types import Checkpoint

Model = TypeVar("Model")


class AttemptHost(BatchResultSource, Protocol):
    """Who runs an attempt, as far as its handler asks for something. From any thread."""

    def heartbeat(self, detail: object) -> None: ...
    def save_checkpoint(self, checkpoint: str) -> None: ...


class StepContext:
    """One attempt at one step: who it is, what it was given, and whether it should stop.

    Reading is cheap and parsed once; treat what it returns as read-only. It may be used from any thread.
    """

    __slots__ = (
        "_checkpoint",
        "_claim",
        "_configuration",
        "_context",
        "_dependency_results",
        "_host",
        "_inputs",
        "_started_at",
        "cancelled",
    )

    def __init__(self, claim: Claim, host: AttemptHost | None = None) -> None:
        self._claim = claim
        self._host = host
        self._checkpoint: str | Checkpoint | None = claim.checkpoint
        self._configuration = claim.configuration
        self._inputs = claim.inputs
        self._context = claim.context
        self._dependency_results = claim.dependency_results
        self._started_at: datetime | None = None
        #: True once the attempt has lost its right to settle (task cancelled, lease lost, timed out, worker leaving).
        #: What the handler returns from then on is not recorded; it should stop as soon as it can.
        self.cancelled = False

    def add_results(self, results: Mapping[str, str]) -> None:
        """Add results that the claim was too small for, JSON texts by step name; before anybody has read any."""
        if results:
            before = self.json_texts()[1].strip().removeprefix("{").removesuffix("}").strip()
            added = [f"{json.dumps(name)}:{text}" for name, text in results.items()]
            self._dependency_results = "{" + ",".join([before, *added] if before else added) + "}"

    def json_texts(self) -> tuple[str, str]:
        """The task's input and the dependency results as JSON."""
        context, results = self._context, self._dependency_results
        return (
            context if isinstance(context, str) else json.dumps(context),
            results if isinstance(results, str) else json.dumps(results),
        )

    def begin(self) -> None:
        """Called by whoever runs the handler, when it starts: the attempt's timeout counts from here."""
        self._started_at = datetime.now(UTC)

    def __repr__(self) -> str:
        return f"<StepContext of step {self.step_name!r}, task {self.task_uuid}, attempt {self.attempt}>"

    @property
    def task_uuid(self) -> str:
        return self._claim.task_uuid

    @property
    def step_uuid(self) -> str:
        return self._claim.step_uuid

    @property
    def step_name(self) -> str:
        return self._claim.step_name

    @property
    def namespace(self) -> str:
        return self._claim.namespace

    @property
    def template_name(self) -> str:
        return self._claim.template_name

    @property
    def template_version(self) -> str:
        return self._claim.template_version

    @property
    def correlation_id(self) -> str:
        return self._claim.correlation_id

    @property
    def attempt(self) -> int:
        """1 for the first try."""
        return self._claim.attempt

    @property
    def retry_count(self) -> int:
        """How many tries came before this one; 0 for the first."""
        return self._claim.attempt - 1

    @property
    def max_retries(self) -> int:
        """How many tries may follow the first."""
        return self._claim.max_attempts - 1

    @property
    def is_retry(self) -> bool:
        return self._claim.attempt > 1

    @property
    def is_last_retry(self) -> bool:
        """No further try follows when this one fails."""
        return self._claim.attempt >= self._claim.max_attempts

    @property
    def task_context(self) -> dict[str, Any]:
        """The task's input, whole."""
        if type(self._context) is str:
            self._context = json.loads(self._context)
        return self._context  # type: ignore[return-value]  # parsed just above

    @property
    def step_inputs(self) -> dict[str, Any]:
        """What was laid down for this one step when it was created; empty for standard steps."""
        if type(self._inputs) is str:
            self._inputs = json.loads(self._inputs)
        return self._inputs  # type: ignore[return-value]

    @property
    def step_config(self) -> dict[str, Any]:
        """`handler.initialization` of the template."""
        if type(self._configuration) is str:
            self._configuration = json.loads(self._configuration)
        return self._configuration  # type: ignore[return-value]

    @property
    def batch_config(self) -> dict[str, Any]:
        """How the template says to divide, for a batchable step: `batch_size`, `parallelism` (None for all at once),
        `cursor_field`, `worker_template` and `failure_strategy`; empty for other steps.
        """
        return json.loads(self._claim.batch) if self._claim.batch is not None else {}

    @property
    def dependency_results(self) -> dict[str, Any]:
        """Results by step name: of all steps before this one when they are at most 100, else of its direct parents.

        Steps that were skipped have none.
        """
        if type(self._dependency_results) is str:
            self._dependency_results = json.loads(self._dependency_results)
        return self._dependency_results  # type: ignore[return-value]

    @property
    def deadline(self) -> datetime | None:
        """When this attempt must be over: its timeout or the task's deadline, whichever comes first.

        None only outside of a worker, where nothing measures the attempt.
        """
        if self._started_at is None:
            return self._claim.deadline
        timeout = self._started_at + timedelta(milliseconds=self._claim.timeout_ms)
        return timeout if self._claim.deadline is None else min(timeout, self._claim.deadline)

    @property
    def seconds_left(self) -> float:
        """Seconds to the deadline, never below 0; infinite when there is none."""
        deadline = self.deadline
        return float("inf") if deadline is None else max(0.0, (deadline - datetime.now(UTC)).total_seconds())

    def get_input(self, key: str, default: Any = None) -> Any:
        """An input by name: the step's own when it has it, else the task's."""
        if key in self.step_inputs:
            return self.step_inputs[key]
        return self.task_context.get(key, default)

    @overload
    def get_dependency_result(self, step: str) -> Any: ...
    @overload
    def get_dependency_result(self, step: str, model: type[Model]) -> Model | None: ...
    def get_dependency_result(self, step: str, model: type[Model] | None = None) -> Any:
        """The result of a step before this one, as `model` when one is given; None when there is none.

        Raises pydantic.ValidationError when the result does not fit the model.
        """
        result = self.dependency_results.get(step)
        return result if model is None or result is None else TypeAdapter(model).validate_python(result)

    def get_dependency_field(self, step: str, *path: str | int) -> Any:
        """A value inside a dependency's result, by keys and indexes; None where the path leads nowhere."""
        value = self.dependency_results.get(step)
        for key in path:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
                value = value[key]
            else:
                return None
        return value

    def get_all_dependency_results(self, prefix: str) -> list[Any]:
        """Results of all steps whose name starts with `prefix`, in the order of their names."""
        results = self.dependency_results
        return [results[name] for name in sorted(results) if name.startswith(prefix)]

    def get_config(self, key: str, default: Any = None) -> Any:
        """A value of the step's configuration."""
        return self.step_config.get(key, default)

    def heartbeat(self, detail: object = None) -> bool:
        """Tell how far the work is; `detail` is shown beside the step in `/health/detailed`.

        Returns False when the handler should stop (see `cancelled`), so that a loop may read
        ``while context.heartbeat(done): …``. The lease needs no heartbeat: the worker renews it by itself.
        """
        if self._host is not None:
            self._host.heartbeat(detail)
        return not self.cancelled

    @property
    def checkpoint(self) -> Checkpoint | None:
        """How far the work is: the last that this attempt has saved, else an earlier one; None when none has.

        Raises pydantic.ValidationError for one that a worker in another language saved in a shape of its own.
        """
        kept = self._checkpoint
        if isinstance(kept, str):
            kept = self._checkpoint = Checkpoint.model_validate_json(kept)
        return kept

    def save_checkpoint(self, checkpoint: Checkpoint, /) -> None:
        """Keep how far the work is, for the next attempt should this one not come to its end. Returns at once.

        It is written beside the handler; of several that follow quickly the newest is enough. `cancelled` tells when it
        could not be kept since the step is not this attempt's any more. Raises ConfigurationError outside of a worker
        and of `tasker_worker.testing`, where nothing keeps checkpoints.
        """
        self._asked_host(f"nothing keeps the checkpoints of step {self.step_name!r}").save_checkpoint(
            encode(checkpoint)
        )
        self._checkpoint = checkpoint

    def batch_results(self, node: str, *, page_size: int = 100) -> BatchPages:
        """The results of all workers of a batch before this step, by the name of the `batch_worker` in the template.

        In pages of at most `page_size` (1 to 1,000) results by step name, for a handler in a thread
        (``for page in context.batch_results("work")``) and for an async one (``async for page in …``). Raises
        ValueError for another `page_size`, ConfigurationError where there is nobody to ask; for reading see
        `BatchPages`.
        """
        host = self._asked_host(f"there is nobody to ask for the results of {node!r}")
        return BatchPages(host, node, page_size)

    def _asked_host(self, otherwise: str) -> AttemptHost:
        if self._host is None:
            raise ConfigurationError(otherwise)
        return self._host
