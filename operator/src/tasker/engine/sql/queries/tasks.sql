-- name: submit_tasks
-- Creates runs, all or none.
select task_uuid, created, duplicate, origin_name from tasker.submit_tasks(%(namespace)s, %(requests)s) order by place;

-- name: origins_with_run
-- Which of these resources have a run.
select origin_uid from tasker.tasks where origin_uid = any (%(origin_uids)s);

-- name: task_ids_by_uuid
-- The internal id of a run.
select task_id from tasker.tasks where task_uuid = %(task_uuid)s;

-- name: task_id_by_origin
-- The internal id of the run that a resource asked for.
select task_id from tasker.tasks where origin_uid = %(origin_uid)s and tasker.is_owner(%(installation)s);

-- name: cancel_task
-- Cancels a run for good.
select tasker.cancel_task(%(task_id)s, %(actor)s, %(reason)s);

-- name: suspend_task
-- Nothing new of a run starts.
select tasker.suspend_task(%(task_id)s, %(hold)s::tasker.hold, %(actor)s, %(reason)s);

-- name: resume_task
-- A suspended run goes on when nobody else holds it.
select tasker.resume_task(%(task_id)s, %(hold)s::tasker.hold, %(actor)s, %(reason)s);

-- name: reset_step
-- A step that failed, or waits for its retry, runs again at once.
select tasker.reset_step(%(task_id)s, %(step)s, %(actor)s, %(reason)s, %(deadline_seconds)s);

-- name: resolve_step
-- What depends on a step goes on without a result of it.
select tasker.resolve_step(%(task_id)s, %(step)s, %(actor)s, %(reason)s, %(deadline_seconds)s);

-- name: complete_step
-- A step gets a result by hand.
select tasker.complete_step(%(task_id)s, %(step)s, %(result)s, %(branches)s::text[], %(actor)s, %(reason)s,
    %(deadline_seconds)s);

-- name: skip_step
-- A step is left out, and what only it leads to.
select tasker.skip_step(%(task_id)s, %(step)s, %(actor)s, %(reason)s, %(deadline_seconds)s);

-- name: rerun_from
-- A run goes again from a step.
select tasker.rerun_from(%(task_id)s, %(step)s, %(actor)s, %(reason)s, %(deadline_seconds)s);

-- name: cancelled_because
-- Whether a run of a resource was cancelled for this reason.
select exists (
    select from tasker.tasks
    where task_id = %(task_id)s and state = 'cancelled' and origin_uid is not null and error ->> 'message' = %(reason)s
);

-- name: result_schema
-- What a step's result must be, as the template of its run says.
select d.result_schema
from tasker.tasks t join tasker.definitions d on d.template_id = t.template_id
where t.task_id = %(task_id)s and d.name = %(step)s;

-- name: open_task_ids_of_namespace
-- All runs of a namespace that have not ended.
select task_id from tasker.open_tasks where namespace = %(namespace)s and tasker.is_owner(%(installation)s);

-- name: open_origins
-- The resources whose runs have not ended.
select t.namespace, coalesce(t.origin_name, '') as name, t.origin_uid as uid, t.task_uuid
from tasker.open_tasks o join tasker.tasks t on t.task_id = o.task_id
where t.origin_uid is not null and (%(namespace)s::text is null or o.namespace = %(namespace)s)
    and tasker.is_owner(%(installation)s);

-- name: summaries
-- All that a resource's status shows, for runs given by the uid of their resource or by their own.
select t.origin_uid, t.namespace, t.origin_name, t.task_uuid, template.name as template_name,
    template.version as template_version, template.revision, t.state::text as state, t.holds::text[] as holds, t.created_at,
    t.started_at, t.completed_at, t.total_steps, t.remaining_steps, t.active_steps, t.retrying_steps, t.failed_steps,
    t.cancelled_steps, t.skipped_steps, t.tolerated_steps, t.error,
    case when t.state = 'pending' then (
        select jsonb_build_object('max_tasks', l.max_tasks, 'taken', tasker.admitted_runs(l.namespace, l.template_name))
        from tasker.concurrency_limits l where l.namespace = t.namespace and l.template_name = t.limited_as
    ) end as waiting_for_place,
    case when t.completed_at is null then t.stale ->> 'message' end as stale,
    coalesce((
        select jsonb_agg(jsonb_build_object('callable', missing.callable, 'steps', missing.steps, 'since', missing.since))
        from (
            select r.callable, count(*) as steps, min(r.ready_at) as since
            from tasker.ready_steps r
            where r.step_id >= tasker.first_step_id(t.task_id) and r.step_id < tasker.first_step_id(t.task_id + 1)
            group by r.callable
            having min(r.ready_at) < tasker.now() - %(no_worker_seconds)s * interval '1 second'
                and not exists (
                    select from tasker.workers w
                    where w.namespace = t.namespace and r.callable = any (w.callables)
                        and not w.draining and w.lease_until >= tasker.now()
                )
            order by since, r.callable limit 20
        ) as missing
    ), '[]') as waiting_for_worker,
    (select count(*) from tasker.leases l
        where l.step_id >= tasker.first_step_id(t.task_id) and l.step_id < tasker.first_step_id(t.task_id + 1)) as running_steps,
    coalesce((
        select jsonb_agg(jsonb_build_object('step', recent.name, 'attempt', recent.attempt, 'error_type',
            recent.error_type, 'message', recent.message, 'final', recent.final, 'at', recent.at))
        from (
            select tasker.step_name(d.name, d.definition_id, s.step_id) as name, f.attempt, f.error_type, left(f.message, 1024) as message, f.final, f.at
            from tasker.step_failures f
            join tasker.steps s on s.step_id = f.step_id
            join tasker.definitions d on d.definition_id = s.definition_id
            where f.task_id = t.task_id
            order by f.failure_id desc limit 20
        ) as recent
    ), '[]') as failures,
    case when t.state = 'complete' then (
        select case when coalesce(sum(leaf.result_bytes), 0) <= %(leaf_results_limit)s
            then coalesce(json_object_agg(leaf.name, leaf.result), '{}') end
        from (
            select d.name, s.result, s.result_bytes
            from tasker.definitions d
            join tasker.steps s on s.step_id = tasker.first_step_id(t.task_id) + d.position
            where d.template_id = t.template_id and d.is_leaf and s.state <> 'skipped'
        ) as leaf
    ) end as leaf_results
from tasker.tasks t
join tasker.templates template on template.template_id = t.template_id
where t.origin_uid = any (%(origin_uids)s) or t.task_uuid = any (%(task_uuids)s);

-- name: changes_place
-- Where a new reader of the log begins: what is committed now is behind it.
select pg_current_snapshot()::text as snapshot, tasker.server_timeline() as timeline, tasker.now() as at;

-- name: changes
-- Resources whose runs moved since a place, and the place to go on from. What a reader has not seen is what was written
-- by transactions that were under way at its place, or began later; what of these is visible now is new. So nothing is
-- passed over that commits late, and a transaction that stays open, whoever's it is, holds back only its own rows.
--
-- A claim moves no run but changes what is running, so runs with a lease since the place count too, with two seconds for
-- claims that were not committed then.
with moved as (
    select x.task_id
    from tasker.task_log x
    where x.transaction_id >= pg_snapshot_xmax(%(snapshot)s::text::pg_snapshot)
        and x.transaction_id < pg_snapshot_xmax(pg_current_snapshot()) -- all that can be seen; the planner knows a range
    union
    select x.task_id
    from pg_snapshot_xip(%(snapshot)s::text::pg_snapshot) as under_way(transaction_id)
    cross join lateral (
        select f.task_id from tasker.task_log f where f.transaction_id = under_way.transaction_id offset 0
    ) x
    union
    select tasker.task_of_step(l.step_id)
    from tasker.leases l
    where l.started_at >= %(since)s::timestamptz - interval '2 seconds'
)
select pg_current_snapshot()::text as snapshot, tasker.server_timeline() as timeline, tasker.now() as at,
    pg_snapshot_xmax(pg_current_snapshot()) < pg_snapshot_xmax(%(snapshot)s::text::pg_snapshot) as went_back,
    array(
        select t.origin_uid
        from moved
        cross join lateral (select * from tasker.tasks f where f.task_id = moved.task_id offset 0) t
        where t.origin_uid is not null
    ) as origin_uids;

-- name: origins_taken_up
-- Resources whose runs went on after they had ended, whatever became of them.
select origin_uid from tasker.tasks where taken_up_at is not null and origin_uid is not null;

-- name: origins_waiting_for_worker
-- Resources whose runs have a ready step that no worker offers to run, those that have waited longest first.
select t.origin_uid
from tasker.unoffered_callables(%(seconds)s) missing
join tasker.ready_steps r on r.namespace = missing.namespace and r.callable = missing.callable
join tasker.tasks t on t.task_id = tasker.task_of_step(r.step_id)
where r.ready_at < tasker.now() - %(seconds)s * interval '1 second' and t.origin_uid is not null
group by t.origin_uid order by min(r.ready_at) limit %(limit)s;

-- name: finished_count
-- How many of the given runs have ended.
select count(*) as finished from tasker.tasks where task_uuid = any (%(task_uuids)s) and completed_at is not null;
