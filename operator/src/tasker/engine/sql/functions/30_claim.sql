-- Claiming: a ready step goes into one worker's hands, under a lease with a new fence.
--
-- The attempt is counted here, so that a crash counts too. A claim that is lost with the server only means that the
-- step is delivered again, so claim_steps does not wait for the disk; settle_steps, which claims within its own
-- durable commit, does.

-- What workers call waits for a row that somebody else holds no longer than two seconds (error 55P03), and is then to be
-- called again: a session that was left open with a lock must not hold up a worker for ever.

-- Plans of these functions are made once a session and must be good whatever the statistics say, which lag behind a
-- burst: a template of 10,000 steps may come to a database that has only ever seen small ones. Hence rows are looked up
-- by their whole key in lateral subqueries with `offset 0`, which the planner neither reorders nor merges: the few rows
-- in hand always come first, and nothing reads all steps of a template.

-- Moves steps from enqueued to in_progress for a worker and returns all that its handlers need. The caller has made
-- sure that nobody else can take them: it deleted their rows of ready_steps, or made them ready in this transaction.
create or replace function tasker.start_steps(p_worker tasker.workers, p_step_ids bigint[], p_now timestamptz)
returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    insert into tasker.step_transitions (step_id, from_state, event, to_state, actor, at)
    select id, 'enqueued', 'start', 'in_progress', p_worker.name, p_now
    from unnest(p_step_ids) as claimed(id);

    return query
    with started as (
        update tasker.steps s set state = 'in_progress', attempts = s.attempts + 1, started_at = p_now
        where s.step_id = any (p_step_ids)
        returning s.step_id, s.template_id, s.template_position, s.step_uuid, s.attempts, s.enqueued_at, s.inputs
    ), leased as (
        insert into tasker.leases (step_id, worker_id, attempt, fence, started_at, timeout_at)
        select s.step_id, p_worker.worker_id, s.attempts, nextval('tasker.fences'), p_now, p_now + (
            select d.timeout_ms from tasker.template_steps d
            where d.template_id = s.template_id and d.position = s.template_position
        ) * interval '1 millisecond'
        from started s
        returning step_id, fence
    )
    select 'claim', s.step_id, leased.fence, t.task_uuid, s.step_uuid, t.namespace, template.name, template.version,
        d.name, d.callable, d.method, d.resolver, s.attempts, d.max_attempts, d.timeout_ms, t.deadline,
        t.correlation_id, s.enqueued_at, d.configuration, coalesce(s.inputs, '{}'), t.context,
        coalesce(needed.results, '{}'), null::integer, null::integer
    from leased
    join started s on s.step_id = leased.step_id
    cross join lateral (
        select * from tasker.template_steps f
        where f.template_id = s.template_id and f.position = s.template_position offset 0
    ) d
    cross join lateral (select * from tasker.tasks f where f.task_id = tasker.task_of_step(s.step_id) offset 0) t
    cross join lateral (select * from tasker.templates f where f.template_id = s.template_id offset 0) template
    cross join lateral (
        select jsonb_object_agg(ancestor.name, done.result) as results
        from unnest(d.result_positions) as needs(position)
        cross join lateral (
            select f.result from tasker.steps f
            where f.step_id = tasker.first_step_id(t.task_id) + needs.position offset 0
        ) done
        cross join lateral (
            select f.name from tasker.template_steps f
            where f.template_id = s.template_id and f.position = needs.position offset 0
        ) ancestor
    ) needed;
end $$;

-- Takes up to p_limit ready steps that this worker has handlers for, oldest first with priority counted as waiting.
create or replace function tasker.take_ready_steps(p_worker tasker.workers, p_limit integer, p_now timestamptz)
returns bigint[] language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
    v_step_ids bigint[];
begin
    with taken as (
        delete from tasker.ready_steps
        where step_id = any (array(
            select r.step_id from tasker.ready_steps r
            where r.namespace = p_worker.namespace and r.callable = any (p_worker.callables)
            order by r.order_at, r.step_id
            limit p_limit
            for update skip locked
        ))
        returning step_id
    )
    select array_agg(step_id) into v_step_ids from taken;
    return v_step_ids;
end $$;

-- Claims up to p_limit steps for a registered worker. Who is draining, unknown or asks for nothing gets nothing.
create or replace function tasker.claim_steps(p_worker text, p_limit integer)
returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s' as $$
declare
    v_now timestamptz := tasker.now();
    v_worker tasker.workers;
    v_step_ids bigint[];
begin
    -- Held to the end, so that a worker marked as draining has claimed all that it ever will. The weakest lock that
    -- keeps off who marks, expires or removes the worker, and the only one that lets it renew meanwhile.
    select * into v_worker from tasker.workers where name = p_worker and not draining and p_limit > 0 for key share;
    if not found then
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    v_step_ids := tasker.take_ready_steps(v_worker, p_limit, v_now);
    return query select * from tasker.start_steps(v_worker, v_step_ids, v_now);
end $$;
