"""A CSV file of orders is divided into batches, each of which adds up its rows; a report adds up the batches.

The handlers make the file themselves, in the temporary directory of each worker: it stands for one that all workers
reach, on a volume or in an object store. They only read it otherwise, so they may safely run twice.
"""

import csv
import itertools
import tempfile
from pathlib import Path

from tasker_worker import PermanentError, StepContext, StepResult, inputs, step_handler
from tasker_worker.batch import (
    BatchAggregation,
    batch_analyzer,
    batch_success,
    batch_worker,
    batch_worker_success,
    checkpoint,
    create_cursor_ranges,
)
from tasker_worker.types import RustBatchWorkerInputs

ROWS = 100_000
CHECKPOINT_EVERY = 1_000


def orders_csv(rows: int, poisoned_row: int | None) -> Path:
    """The file: order 0, 1, 2 and so on, each with an amount of money. The poisoned row has none that is a number."""
    path = Path(tempfile.gettempdir()) / f"orders-{rows}-{poisoned_row}.csv"
    if not path.exists():
        # Written under another name first, for several threads and processes may come here at once.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, newline="", delete=False) as file:
            writer = csv.writer(file)
            writer.writerow(["order", "amount"])
            for row in range(rows):
                cents = row * 37 % 9973
                writer.writerow([row, "a lot" if row == poisoned_row else f"{cents // 100}.{cents % 100:02d}"])
        Path(file.name).replace(path)
    return path


@batch_analyzer("analyze_orders")
@inputs("rows", "poisoned_row")
def analyze_orders(context: StepContext, rows: int = ROWS, poisoned_row: int | None = None) -> StepResult:
    """One batch for every `batchSize` rows of the template. A file without rows makes no batches."""
    with orders_csv(rows, poisoned_row).open() as lines:
        found = sum(1 for _ in lines) - 1
    batch = context.batch_config
    return batch_success(batch["worker_template"], create_cursor_ranges(found, batch["batch_size"]), {"rows": found})


@batch_worker("add_up_orders")
@inputs("rows", "poisoned_row")
def add_up_orders(
    batch: RustBatchWorkerInputs, context: StepContext, rows: int = ROWS, poisoned_row: int | None = None
) -> StepResult:
    """The amount of one batch's rows. An attempt that follows another goes on from its last checkpoint."""
    start, end = batch.cursor.start_cursor, batch.cursor.end_cursor
    assert isinstance(start, int)
    assert isinstance(end, int)
    row, cents = start, 0
    earlier = context.checkpoint
    if earlier is not None and isinstance(earlier.cursor, int) and isinstance(earlier.accumulated, dict):
        row, cents = earlier.cursor, int(str(earlier.accumulated["cents"]))
    with orders_csv(rows, poisoned_row).open(newline="") as file:
        for order, amount in itertools.islice(csv.reader(file), row + 1, end + 1):
            try:
                units, hundredths = amount.split(".")
                cents += int(units) * 100 + int(hundredths)
            except ValueError:
                raise PermanentError(f"order {order}: the amount {amount!r} is no number") from None
            row += 1
            if row % CHECKPOINT_EVERY == 0 and not checkpoint(row, row - start, {"cents": cents}):
                break  # the step is not this worker's any more
    return batch_worker_success(end - start, results=[cents], last_cursor=end)


@step_handler("report")
def report(context: StepContext) -> dict[str, object]:
    """What all batches that succeeded have come to. The others have no result, and are not in it."""
    aggregation = BatchAggregation()
    cents = 0
    for page in context.batch_results("add_up_orders"):
        aggregation.add_page(page.values())
        cents += sum(result["results"][0] for result in page.values() if "results" in result)
    counted = aggregation.result()
    return {
        "orders": counted.total_processed,
        "batches": counted.batch_count,
        "amount": f"{cents // 100}.{cents % 100:02d}",
    }
