"""Tables of a run, drawn from its state. Used by `progress`."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasker_dev.run_state import PoolRun, RunState, TaskRun

_STYLES = {"complete": "green", "error": "red", "cancelled": "yellow"}


def live_view(state: RunState, now: float) -> RenderableType:
    """What is shown while a run goes on."""
    title = Text(f"{now:5.1f} s", style="dim")
    return Group(title, _pools_table(state), tasks_table(state, now))


def tasks_table(state: RunState, now: float) -> Table:
    """Each Task: its state beside the expected one, steps done, the time it took, and what there is to say."""
    table = _table("Task", "State", "Expected", "Steps", "Took", "")
    table.columns[4].justify = "right"
    for task in state.tasks.values():
        table.add_row(
            task.name,
            Text(task.state, style=_STYLES.get(task.state, "")),
            Text(task.expected, style="" if task.as_expected or not task.is_ended else "bold red"),
            task.progress,
            _seconds(task, now),
            Text(task.reason, style="dim"),
        )
    return table


def _pools_table(state: RunState) -> Table:
    table = _table("WorkerPool", "Desired", "Ready", "Queued", "Running", "")
    for pool in state.pools.values():
        table.add_row(
            pool.name,
            str(pool.desired),
            str(pool.ready),
            str(pool.queued),
            str(pool.running),
            Text(pool.reason, style="dim"),
        )
    return table


def scale_table(pool: PoolRun) -> Table:
    """When and why the number of workers changed."""
    table = _table("At", "Workers", "Why")
    for change in pool.history:
        why = Text(pool.whys.get(change.after, ""), style="dim")
        table.add_row(f"{change.at:.1f} s", f"{change.before} → {change.after}", why)
    return table


def scale_line(pool: PoolRun) -> str:
    """`0 → 3 → 0`."""
    return " → ".join(str(level) for level in pool.levels())


def _seconds(task: TaskRun, now: float) -> str:
    seconds = task.seconds(now)
    return "" if seconds is None else f"{seconds:.1f} s"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
