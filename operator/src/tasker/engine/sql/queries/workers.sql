-- name: demand
-- Queue and work in hand for each of the given pools.
with asked as (
    select * from unnest(%(namespaces)s::text[], %(pools)s::text[]) as asked(namespace, pool)
), held as (
    select w.namespace, w.pool, count(distinct w.worker_id) as workers,
        count(distinct w.worker_id) filter (where w.draining) as draining, count(l.step_id) as running
    from tasker.workers w left join tasker.leases l using (worker_id)
    group by w.namespace, w.pool
)
select a.namespace, a.pool, coalesce(d.queued, 0)::bigint as queued, coalesce(h.running, 0) as running,
    coalesce(extract(epoch from tasker.now() - d.oldest), 0)::double precision as oldest_ready_seconds,
    coalesce(h.workers, 0) as live_workers, coalesce(h.draining, 0) as draining_workers
from asked a
left join tasker.pool_demand(%(namespaces)s::text[], %(pools)s::text[], %(template_hashes)s::text[]) d
    using (namespace, pool)
left join held h using (namespace, pool);

-- name: unoffered_callables
-- Callables that wait for a worker that would offer them.
select namespace, callable, steps, since
from tasker.unoffered_callables(%(seconds)s) order by since, namespace, callable;

-- name: workers
-- The workers of a namespace with what they have in hand.
select w.name, w.pool, w.slots, w.version, w.draining, w.lease_until, count(l.step_id) as running
from tasker.workers w left join tasker.leases l using (worker_id)
where w.namespace = %(namespace)s
group by w.worker_id order by w.name;

-- name: drain_idle_workers
-- Marks those of the given workers as draining that hold nothing.
select * from tasker.drain_idle_workers(%(namespace)s, %(names)s);

-- name: drain_pool
-- Marks every worker of a pool as draining, busy ones too: they take nothing more and leave when their hands are empty.
update tasker.workers set draining = true
where namespace = %(namespace)s and pool = %(pool)s and not draining returning name;

-- name: undrain_workers
-- Takes the mark back.
select * from tasker.undrain_workers(%(namespace)s, %(names)s);

-- name: expire_workers
-- Ends workers that are gone.
select tasker.expire_workers(%(actor)s, array(
    select worker_id from tasker.workers where namespace = %(namespace)s and name = any (%(names)s)),
    %(reason)s, %(error_type)s) as expired;

-- name: sweep
-- Repairs what time has broken.
select repair, repaired from tasker.sweep(%(limit)s);

-- name: hint_ready
-- Wakes idle workers.
select pg_notify('tasker_ready', '');
