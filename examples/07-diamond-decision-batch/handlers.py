"""A diamond one of whose sides is a batch: a decision chooses between doing all at once and dividing the work.

One class with all capabilities has every handler as a method, and the template says which method a step calls. All of
them only compute, so they may safely run twice.
"""

from tasker_worker import StepContext, StepHandler, StepResult
from tasker_worker.batch import BatchableMixin
from tasker_worker.decision import Decision, DecisionMixin

AT_ONCE_UP_TO = 10
WORKERS = 8


class Squares(DecisionMixin, BatchableMixin, StepHandler):
    """Adds up the squares of the numbers from 0 to below `count`."""

    handler_name = "squares"

    def call(self, context: StepContext) -> StepResult:
        """The beginning: how many numbers there are."""
        return self.success({"count": int(context.get_input("count", 0))})

    def choose_side(self, context: StepContext) -> Decision:
        """Few numbers are done at once; many are divided, and audited beside that; none are nobody's work."""
        count = context.get_dependency_field("count_numbers", "count")
        if count == 0:
            return self.decision_no_branches("there are no numbers")
        if count <= AT_ONCE_UP_TO:
            return self.decision_success("square_at_once", {"count": count})
        return self.decision_success(["divide_numbers", "audit"], {"count": count})

    def square_at_once(self, context: StepContext) -> StepResult:
        """One side: all numbers in one step."""
        count = context.get_dependency_field("count_numbers", "count")
        return self.success({"sum": sum(number * number for number in range(count))})

    def divide_numbers(self, context: StepContext) -> StepResult:
        """The other side: a worker for each range of numbers."""
        count = context.get_dependency_field("count_numbers", "count")
        return self.batch_success("square_numbers", self.create_cursor_configs(count, WORKERS))

    def square_numbers(self, context: StepContext) -> StepResult:
        """One range of them."""
        if nothing_to_do := self.handle_no_op_worker(context):
            return nothing_to_do
        cursor = self.get_batch_worker_inputs(context).cursor
        assert isinstance(cursor.start_cursor, int)
        assert isinstance(cursor.end_cursor, int)
        numbers = range(cursor.start_cursor, cursor.end_cursor)
        return self.batch_worker_success(len(numbers), results=[sum(number * number for number in numbers)])

    def audit(self, context: StepContext) -> StepResult:
        """Beside the batch: what its sum has to be, by the formula."""
        last = context.get_dependency_field("count_numbers", "count") - 1
        return self.success({"expected": last * (last + 1) * (2 * last + 1) // 6})

    def join_sides(self, context: StepContext) -> StepResult:
        """The end: it waits for the sides that were chosen, and for all workers of the batch."""
        if (at_once := context.get_dependency_field("square_at_once", "sum")) is not None:
            return self.success({"sum": at_once, "workers": 0, "audited": False})
        total, workers = 0, 0
        for page in context.batch_results("square_numbers"):
            total += sum(result["results"][0] for result in page.values())
            workers += len(page)
        audited = context.get_dependency_field("audit", "expected") == total
        return self.success({"sum": total, "workers": workers, "audited": audited})
