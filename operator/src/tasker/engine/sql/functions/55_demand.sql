-- Who could run what waits: what pools are known to offer, and what nobody offers.

-- Notes what a worker of a pod template offers, in place of what the one before it of the same template did: a tag may
-- have got another image. Other templates are forgotten after a month, for a pool that went back to one knows it still.
-- Rows are taken in one order, so that workers that register at the same time wait for each other and never in a circle.
create or replace function tasker.offer_callables(
    p_namespace text, p_pool text, p_template_hash text, p_callables text[], p_now timestamptz
) returns void language plpgsql as $$
begin
    perform 1 from tasker.pool_callables
    where namespace = p_namespace and pool = p_pool
    order by template_hash, callable for update;
    delete from tasker.pool_callables
    where namespace = p_namespace and pool = p_pool and (
        template_hash = p_template_hash and callable <> all (p_callables)
        or offered_at < p_now - interval '30 days');
    insert into tasker.pool_callables (namespace, pool, template_hash, callable, offered_at)
    select p_namespace, p_pool, p_template_hash, callable, p_now from unnest(p_callables) as offered(callable)
    group by callable order by callable
    on conflict (namespace, pool, template_hash, callable) do update set offered_at = excluded.offered_at;
end $$;

-- Which of the waiting callables each pool should have workers for. A pool is asked about under its current pod template;
-- null: the one whose worker registered last. What its workers offer is its demand. Before the first has registered
-- nobody knows what they will offer: then what workers of an earlier template offered, and what no other pool offers, is
-- its demand too. So a new handler gets its first worker from zero, and a handler that nobody has keeps none up.
create or replace function tasker.pool_demand(p_namespaces text[], p_pools text[], p_template_hashes text[])
returns table (namespace text, pool text, queued bigint, oldest timestamptz) language sql stable as $$
    with asked as (
        select a.namespace, a.pool, coalesce(a.template_hash, (
            select c.template_hash from tasker.pool_callables c
            where c.namespace = a.namespace and c.pool = a.pool order by c.offered_at desc limit 1
        )) as template_hash
        from unnest(p_namespaces, p_pools, p_template_hashes) as a(namespace, pool, template_hash)
    ), known as (
        select a.*, exists (
            select from tasker.pool_callables c
            where c.namespace = a.namespace and c.pool = a.pool and c.template_hash = a.template_hash
        ) as registered
        from asked a
    ), queue as (
        select r.namespace, r.callable, count(*) as queued, min(r.ready_at) as oldest
        from tasker.ready_steps r where r.namespace = any (p_namespaces) group by r.namespace, r.callable
    ), judged as (
        select k.namespace, k.pool, k.registered, q.callable, q.queued, q.oldest, exists (
            select from tasker.pool_callables c
            where c.namespace = k.namespace and c.pool = k.pool and c.callable = q.callable
                and (c.template_hash = k.template_hash or not k.registered)
        ) as offers
        from known k join queue q on q.namespace = k.namespace
    ), compared as (
        select j.*, bool_or(j.offers) over (partition by j.namespace, j.callable) as offered_by_any from judged j
    )
    select c.namespace, c.pool, sum(c.queued)::bigint, min(c.oldest)
    from compared c
    where c.offers or not c.registered and not c.offered_by_any
    group by c.namespace, c.pool
$$;

-- Callables that have waited for longer than the given time and that no worker offers which is alive and takes steps:
-- how many steps wait for each, and since when the oldest.
create or replace function tasker.unoffered_callables(p_seconds double precision)
returns table (namespace text, callable text, steps bigint, since timestamptz) language sql stable as $$
    with waiting as (
        select r.namespace, r.callable, count(*) as steps, min(r.ready_at) as since
        from tasker.ready_steps r
        group by r.namespace, r.callable
    )
    select w.namespace, w.callable, w.steps, w.since
    from waiting w
    where w.since < tasker.now() - p_seconds * interval '1 second' and not exists (
        select from tasker.workers each
        where each.namespace = w.namespace and w.callable = any (each.callables)
            and not each.draining and each.lease_until >= tasker.now()
    )
$$;
