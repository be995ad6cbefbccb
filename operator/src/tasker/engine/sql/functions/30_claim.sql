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

-- A fence that nobody has had and nobody can guess: 62 random bits. A sequence would not do, for a crash may set it back to
-- where it was before claims that were not on the disk yet, and two workers would hold the same fence.
create or replace function tasker.new_fence() returns bigint language sql volatile as $$
    select ('x' || left(uuid, 8) || right(uuid, 8))::bit(64)::bigint & 4611686018427387903 -- between them are fixed bits
    from (select gen_random_uuid()::text as uuid) as drawn
$$;

-- Moves steps from enqueued to in_progress for a worker and returns all that its handlers need. The caller has made
-- sure that nobody else can take them: it deleted their rows of ready_steps, or made them ready in this transaction:
-- those are p_handed_out, which no log shows in the queue.
create or replace function tasker.start_steps(
    p_worker tasker.workers, p_actor_id integer, p_step_ids bigint[], p_handed_out bigint[], p_now timestamptz
) returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return query
    with started as (
        update tasker.steps s set state = 'in_progress', attempts = s.attempts + 1, started_at = p_now,
            unmet_dependencies = 0, enqueued_at = coalesce(s.enqueued_at, p_now)
        where s.step_id = any (p_step_ids)
        returning s.step_id, s.template_id, s.template_position, s.step_uuid, s.attempts, s.enqueued_at, s.inputs
    ), logged as (
        insert into tasker.step_log (step_id, at, passage, actor_id, attempt)
        select s.step_id, p_now,
            case when s.step_id = any (p_handed_out) then 'handed_out' else 'claimed' end::tasker.step_passage,
            p_actor_id, s.attempts
        from started s
    ), leased as (
        insert into tasker.leases (step_id, worker_id, attempt, fence, started_at, timeout_at)
        select s.step_id, p_worker.worker_id, s.attempts, tasker.new_fence(), p_now, p_now + (
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
        select json_object_agg(ancestor.name, done.result) as results
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

-- Takes up to p_limit ready steps that this worker has handlers for, in order. Callables are looked up one by one, so that
-- steps which it has no handler for cost it nothing, however many stand before its own. What is first in order is found
-- without a lock and then locked; what others have taken meanwhile is passed over, and the next looked for.
create or replace function tasker.take_ready_steps(p_worker tasker.workers, p_limit integer) returns bigint[]
language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
    v_wanted integer := p_limit;
    v_first bigint[];
    v_last_order_at timestamptz := '-infinity';
    v_last_step_id bigint := 0;
    v_taken bigint[];
    v_all bigint[];
begin
    loop
        select array_agg(f.step_id order by f.order_at, f.step_id), max(f.order_at) into v_first, v_last_order_at
        from (
            select r.step_id, r.order_at
            from unnest(p_worker.callables) as own(callable)
            cross join lateral (
                select q.step_id, q.order_at from tasker.ready_steps q
                where q.namespace = p_worker.namespace and q.callable = own.callable
                    and (q.order_at, q.step_id) > (v_last_order_at, v_last_step_id)
                order by q.order_at, q.step_id limit v_wanted
            ) r
            order by r.order_at, r.step_id limit v_wanted
        ) f;
        exit when v_first is null;
        with taken as (
            delete from tasker.ready_steps
            where step_id = any (array(
                select r.step_id from tasker.ready_steps r where r.step_id = any (v_first) for update skip locked
            ))
            returning step_id
        )
        select array_agg(step_id) into v_taken from taken;
        v_all := v_all || v_taken;
        exit when cardinality(v_first) < v_wanted or cardinality(v_all) = p_limit;
        v_last_step_id := v_first[v_wanted];
        v_wanted := p_limit - coalesce(cardinality(v_all), 0);
    end loop;
    return v_all;
end $$;

-- Claims up to p_limit steps for a registered worker. A draining or unknown worker gets nothing.
create or replace function tasker.claim_steps(p_namespace text, p_worker text, p_limit integer)
returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s' as $$
declare
    v_worker tasker.workers;
    v_step_ids bigint[];
begin
    if coalesce(p_limit, 0) < 1 then
        return;
    end if;
    -- Held to the end, so that a worker marked as draining has claimed all that it ever will. The weakest lock that
    -- keeps off who marks, expires or removes the worker, and the only one that lets it renew meanwhile.
    select * into v_worker from tasker.workers
    where namespace = p_namespace and name = p_worker and not draining for key share;
    if not found then
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    v_step_ids := tasker.take_ready_steps(v_worker, p_limit);
    if v_step_ids is not null then
        return query select * from tasker.start_steps(
            v_worker, tasker.actor_id(p_worker), v_step_ids, null, tasker.now());
    end if;
end $$;
