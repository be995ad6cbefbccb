-- name: demand
-- Queue and work in hand for each of the given pools. A queued step counts for the pools whose workers have ever
-- offered its callable, and for every pool of its namespace when none has.
with asked as (
    select * from unnest(%(namespaces)s::text[], %(pools)s::text[]) as asked(namespace, pool)
), queue as (
    select namespace, callable, count(*) as queued, min(ready_at) as oldest
    from tasker.ready_steps where namespace = any (%(namespaces)s::text[]) group by namespace, callable
), waiting as (
    select a.namespace, a.pool, sum(q.queued) as queued, min(q.oldest) as oldest
    from asked a join queue q on q.namespace = a.namespace
    where exists (select from tasker.pool_callables c
            where c.namespace = a.namespace and c.pool = a.pool and c.callable = q.callable)
        or not exists (select from tasker.pool_callables c join asked other on other.namespace = c.namespace
            and other.pool = c.pool where c.namespace = a.namespace and c.callable = q.callable)
    group by a.namespace, a.pool
), hands as (
    select w.namespace, w.pool, count(distinct w.worker_id) as workers,
        count(distinct w.worker_id) filter (where w.draining) as draining, count(l.step_id) as running
    from tasker.workers w left join tasker.leases l using (worker_id)
    where w.namespace = any (%(namespaces)s::text[]) group by w.namespace, w.pool
)
select a.namespace, a.pool, coalesce(w.queued, 0)::bigint as queued, coalesce(h.running, 0) as running,
    coalesce(extract(epoch from tasker.now() - w.oldest), 0)::double precision as oldest_ready_seconds,
    coalesce(h.workers, 0) as live_workers, coalesce(h.draining, 0) as draining_workers
from asked a
left join waiting w using (namespace, pool)
left join hands h using (namespace, pool);

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
    select worker_id from tasker.workers where namespace = %(namespace)s and name = any (%(names)s)), %(reason)s) as expired;

-- name: sweep
-- Repairs what time has broken.
select repair, repaired from tasker.sweep(%(limit)s);

-- name: hint_ready
-- Wakes idle workers.
select pg_notify('tasker_ready', '');
