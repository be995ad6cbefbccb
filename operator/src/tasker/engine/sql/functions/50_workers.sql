-- Workers: one row each. All leases of a worker live by this row's lease_until, renewed every third of the lease time.

create or replace function tasker.register_worker(
    p_namespace text, p_worker text, p_pool text, p_slots integer, p_version text, p_callables text[],
    p_lease_seconds double precision, p_template_hash text default ''
) returns void language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := tasker.now();
begin
    insert into tasker.workers (name, actor_id, namespace, pool, slots, version, callables, lease_seconds, lease_until,
        registered_at)
    values (p_worker, tasker.actor_id(p_worker), p_namespace, p_pool, p_slots, p_version, p_callables, p_lease_seconds,
        v_now + p_lease_seconds * interval '1 second', v_now)
    on conflict (namespace, name) do update set
        pool = excluded.pool, slots = excluded.slots, version = excluded.version,
        callables = excluded.callables, lease_seconds = excluded.lease_seconds, lease_until = excluded.lease_until;
    perform tasker.offer_callables(p_namespace, p_pool, p_template_hash, p_callables, v_now);
end $$;

-- A process that begins under a name holds nothing yet: what an earlier one of that name (a container started anew in its
-- pod) has left expires at once. Called before the first register. Returns how many steps that were.
create or replace function tasker.expire_predecessor(p_namespace text, p_worker text) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_worker_id bigint;
    v_step_ids bigint[];
    v_fences bigint[];
begin
    select worker_id into v_worker_id from tasker.workers where namespace = p_namespace and name = p_worker for update;
    select array_agg(step_id), array_agg(fence) into v_step_ids, v_fences
    from tasker.leases where worker_id = v_worker_id;
    return tasker.expire_leases(p_worker, v_step_ids, v_fences, 'its process ended and was started anew');
end $$;

-- What the current templates of the worker's namespace need and this worker does not offer: said at its start.
create or replace function tasker.unhandled_callables(p_namespace text, p_worker text) returns setof text language sql stable as $$
    select distinct d.callable
    from tasker.workers w
    join lateral (
        select distinct on (t.name) t.template_id from tasker.templates t
        where t.namespace = w.namespace order by t.name, t.activated_at desc
    ) as newest on true
    join tasker.definitions d on d.template_id = newest.template_id
    where w.namespace = p_namespace and w.name = p_worker and d.callable <> all (w.callables)
    order by 1
$$;

-- Renews without waiting for the disk, and without any lock that a settlement holds or waits for. p_step_ids and p_fences
-- are the claims that the worker holds; those that are no longer its own come back in lost_fences.
--
-- What it has by the database's account and does not know of comes back as unknown: the answer that brought it was lost.
-- The worker gives it back (settle_steps, 'release'), for an attempt that never ran does not count. An answer may also
-- be on its way still, hence p_claiming_since: a moment before the oldest claim call that is under way began, taken from
-- the renewed_at of an earlier renewal, so that only this clock is read. Nothing claimed since then is unknown; null says
-- that no such moment is known yet.
create or replace function tasker.renew_worker(
    p_namespace text, p_worker text, p_step_ids bigint[], p_fences bigint[], p_claiming_since timestamptz
) returns table (
    known boolean, draining boolean, lost_fences bigint[], unknown_step_ids bigint[], unknown_fences bigint[],
    renewed_at timestamptz
) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := tasker.now();
    v_worker tasker.workers;
    v_known boolean;
begin
    perform set_config('synchronous_commit', 'off', true);
    update tasker.workers w set lease_until = v_now + w.lease_seconds * interval '1 second'
    where w.namespace = p_namespace and w.name = p_worker returning * into v_worker;
    v_known := found;
    return query
    select v_known, coalesce(v_worker.draining, false), (
            select coalesce(array_agg(held.fence), '{}')
            from unnest(p_step_ids, p_fences) as held(step_id, fence)
            left join tasker.leases l on l.step_id = held.step_id and l.fence = held.fence
            where l.step_id is null
        ), coalesce(unknown.step_ids, '{}'), coalesce(unknown.fences, '{}'), v_now
    from (
        select array_agg(l.step_id) as step_ids, array_agg(l.fence) as fences
        from tasker.leases l
        where l.worker_id = v_worker.worker_id and l.fence <> all (p_fences) and l.started_at < p_claiming_since
    ) as unknown;
end $$;

-- Marks a worker as draining: it gets no new step. False when there is no such worker.
create or replace function tasker.drain_worker(p_namespace text, p_worker text) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    -- The lock that a claim under way keeps off; the update alone would pass it by.
    perform from tasker.workers where namespace = p_namespace and name = p_worker for update;
    update tasker.workers set draining = true where namespace = p_namespace and name = p_worker;
    return found;
end $$;

-- Marks those of the given workers as draining that hold nothing, and returns their names. A claim holds the worker's
-- row to its end, so one that is seen idle here stays idle. One whose row is held is not idle, and is not waited for:
-- the others, whose rows are held here by then, could not renew.
create or replace function tasker.drain_idle_workers(p_namespace text, p_names text[]) returns setof text language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_ids bigint[];
begin
    select array_agg(worker_id) into v_ids from (
        select worker_id from tasker.workers
        where namespace = p_namespace and name = any (p_names) for update skip locked
    ) as locked;
    return query
    update tasker.workers w set draining = true
    where w.worker_id = any (v_ids) and not exists (select from tasker.leases l where l.worker_id = w.worker_id)
    returning w.name;
end $$;

-- Takes the mark back, for workers that are wanted after all.
create or replace function tasker.undrain_workers(p_namespace text, p_names text[]) returns setof text language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_ids bigint[];
begin
    select array_agg(worker_id) into v_ids from (
        select worker_id from tasker.workers
        where namespace = p_namespace and name = any (p_names) and draining order by worker_id for no key update
    ) as locked;
    return query
    update tasker.workers w set draining = false where w.worker_id = any (v_ids) returning w.name;
end $$;

-- Ends a worker that leaves by itself: what it still holds is released unharmed. Returns how many steps that were.
create or replace function tasker.deregister_worker(p_namespace text, p_worker text) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_worker_id bigint;
    v_step_ids bigint[];
    v_fences bigint[];
    v_released integer := 0;
begin
    select worker_id into v_worker_id from tasker.workers where namespace = p_namespace and name = p_worker for update;
    if not found then
        return 0;
    end if;
    select array_agg(step_id), array_agg(fence) into v_step_ids, v_fences
    from tasker.leases where worker_id = v_worker_id;
    if v_step_ids is not null then
        select cardinality(v_step_ids) - count(*) filter (where kind = 'stale') into v_released
        from tasker.apply_outcomes(tasker.actor_id(p_worker), v_step_ids, v_fences,
            array_fill('release'::text, array[cardinality(v_step_ids)]));
    end if;
    delete from tasker.workers where worker_id = v_worker_id;
    return v_released;
end $$;

-- Ends leases whose holder is not going to settle them; null for none. Returns how many were current.
create or replace function tasker.expire_leases(
    p_actor text, p_step_ids bigint[], p_fences bigint[], p_reason text, p_error_type text default 'worker_crash_loop'
) returns integer language plpgsql as $$
declare
    v_count integer := cardinality(p_step_ids);
    v_messages text[];
    v_stale integer;
begin
    if p_step_ids is null then
        return 0;
    end if;
    select array_agg(format('worker %s was lost during attempt %s: %s', coalesce(w.name, 'unknown'), l.attempt, p_reason)
            order by given.place) into v_messages
    from unnest(p_step_ids) with ordinality as given(step_id, place)
    left join tasker.leases l on l.step_id = given.step_id
    left join tasker.workers w on w.worker_id = l.worker_id;
    select count(*) filter (where kind = 'stale') into v_stale
    from tasker.apply_outcomes(tasker.actor_id(p_actor), p_step_ids, p_fences, array_fill('expire'::text, array[v_count]),
        p_messages => v_messages, p_error_types => array_fill(p_error_type, array[v_count]));
    return v_count - v_stale;
end $$;

-- Ends workers that are gone, with the reason: their leases expire at once. Returns how many steps they held.
create or replace function tasker.expire_workers(
    p_actor text, p_worker_ids bigint[], p_reason text, p_error_type text default 'worker_crash_loop'
) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_gone bigint[];
    v_step_ids bigint[];
    v_fences bigint[];
    v_expired integer;
begin
    select array_agg(worker_id) into v_gone from (
        select worker_id from tasker.workers where worker_id = any (p_worker_ids) order by worker_id for update
    ) as locked;
    select array_agg(step_id), array_agg(fence) into v_step_ids, v_fences
    from tasker.leases where worker_id = any (v_gone);
    v_expired := tasker.expire_leases(p_actor, v_step_ids, v_fences, p_reason, p_error_type);
    delete from tasker.workers where worker_id = any (v_gone);
    return v_expired;
end $$;
