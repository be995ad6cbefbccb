-- Claiming: a ready step goes into one worker's hands, under a lease with a new fence.
--
-- The attempt is counted here, so that a crash counts too. A claim that is lost with the server only means that the
-- step is delivered again, so claim_steps does not wait for the disk; settle_steps, which claims within its own
-- durable commit, does.

-- What workers call waits for a row that somebody else holds no longer than two seconds (error 55P03), and is then to be
-- called again: a session that was left open with a lock must not hold up a worker for ever.

-- Plans of these functions are made once a session and must be good whatever the statistics say, which lag behind a
-- burst: a template of 10,000 steps may come to a database that has only ever seen small ones. Hence every function that
-- is called from outside sets that plans are generic and rows are looked up by index, one by one from the few in hand;
-- the functions it calls run, and are planned, under its settings.

-- A fence that nobody has had and nobody can guess: 62 random bits. A sequence would not do, for a crash may set it back to
-- where it was before claims that were not on the disk yet, and two workers would hold the same fence.
create or replace function tasker.new_fence() returns bigint language sql volatile as $$
    select ('x' || left(uuid, 8) || right(uuid, 8))::bit(64)::bigint & 4611686018427387903 -- between them are fixed bits
    from (select gen_random_uuid()::text as uuid) as drawn
$$;

-- How many bytes of results one of so many claims of a call may carry: 8 MiB, and 32 MiB all of them together.
create or replace function tasker.result_budget(p_claims integer) returns integer language sql immutable as $$
    select least(8388608, 33554432 / p_claims)
$$;

-- Moves steps from enqueued or pending to in_progress for a worker and returns all that its handlers need. The caller has
-- made sure that nobody else can take them: it deleted their rows of ready_steps, or made them ready in this transaction:
-- those are p_handed_out, which no log shows in the queue.
--
-- Results that are over the budget are named only, so that no claim grows beyond what a connection can carry.
create or replace function tasker.start_steps(
    p_worker tasker.workers, p_step_ids bigint[], p_handed_out bigint[], p_now timestamptz
) returns setof tasker.worker_row language plpgsql as $$
begin
    return query
    with started as (
        update tasker.steps s set state = 'in_progress', attempts = s.attempts + 1, started_at = p_now,
            open_edges = 0, enqueued_at = coalesce(s.enqueued_at, p_now)
        where s.step_id = any (p_step_ids)
        returning s.step_id, s.definition_id, s.step_uuid, s.attempts, s.attempts_allowed, s.enqueued_at, s.inputs,
            s.checkpoint
    ), prepared as materialized (
        select s.step_id, s.step_uuid, s.attempts, s.attempts_allowed, s.enqueued_at, s.inputs, s.checkpoint,
            tasker.new_fence() as fence, tasker.step_name(d.name, d.definition_id, s.step_id) as name, d.definition_id,
            d.template_id, d.type, d.callable, d.method, d.resolver, d.configuration, d.condition, d.result_schema,
            d.result_positions, d.batch_positions, d.batch, d.timeout_ms
        from started s join tasker.definitions d on d.definition_id = s.definition_id
    ), leased as (
        insert into tasker.leases (step_id, worker_id, fence, started_at, timeout_at, attempt, beginning, actor_id)
        select p.step_id, p_worker.worker_id, p.fence, p_now, p_now + p.timeout_ms * interval '1 millisecond', p.attempts,
            case when p.step_id = any (p_handed_out) then 'handed_out' else 'claimed' end::tasker.step_beginning,
            p_worker.actor_id
        from prepared p
    )
    select 'claim', p.step_id, p.fence, t.task_uuid, p.step_uuid, t.namespace, template.name, template.version,
        p.name, p.type, p.callable, p.method, p.resolver, p.attempts::integer, p.attempts_allowed::integer, p.timeout_ms,
        t.deadline, t.correlation_id, p.enqueued_at, p.configuration, coalesce(p.inputs, '{}'), t.context,
        coalesce(needed.results, '{}'), needed.results_left, p.condition, p.result_schema,
        case when p.type = 'decision' then tasker.dependents(p.definition_id) end, p.batch, p.checkpoint,
        null::integer, null::integer
    from prepared p
    join tasker.tasks t on t.task_id = tasker.task_of_step(p.step_id)
    join tasker.templates template on template.template_id = p.template_id
    cross join lateral (
        select json_object_agg(each.name, each.result) filter (where each.fits) as results,
            array_agg(each.name) filter (where not each.fits) as results_left
        from (
            select done.name, done.result, sum(done.result_bytes) over (rows unbounded preceding)
                <= tasker.result_budget(cardinality(p_step_ids)) as fits
            from (
                select ancestor.name, done.result, done.result_bytes
                from unnest(p.result_positions) as needs(position)
                join tasker.steps done on done.step_id = tasker.first_step_id(t.task_id) + needs.position
                join tasker.definitions ancestor on ancestor.definition_id = done.definition_id
                where done.result_bytes is not null
                union all
                select one.name, one.result, one.result_bytes
                from tasker.batch_results(t.task_id, p.template_id, p.batch_positions, 0, 100) as one
                where p.batch_positions is not null
            ) as done(name, result, result_bytes)
        ) as each
    ) as needed;
end $$;

-- Results of the workers of a run's batches, in order of their places after the given one: of each of the nodes the newest
-- batch.
create or replace function tasker.batch_results(
    p_task_id bigint, p_template_id bigint, p_positions integer[], p_after integer, p_limit integer
) returns table (place integer, name text, state tasker.step_state, result json, result_bytes integer)
language plpgsql stable as $$
begin
    return query
    select tasker.place_of(s.step_id), tasker.step_name(d.name, d.definition_id, s.step_id), s.state, s.result,
        s.result_bytes
    from unnest(p_positions) as node(position)
    join tasker.definitions d on d.definition_id = tasker.first_definition_id(p_template_id) + node.position
    cross join lateral (
        select b.first_place, b.size from tasker.step_batches b
        where b.task_id = p_task_id and b.definition_id = d.definition_id
        order by b.first_place desc limit 1
    ) as batch
    join tasker.steps s on s.step_id >= tasker.first_step_id(p_task_id) + greatest(batch.first_place, p_after + 1)
        and s.step_id < tasker.first_step_id(p_task_id) + batch.first_place + batch.size
    where s.result_bytes is not null
    order by s.step_id limit p_limit;
end $$;

-- The steps that a node leads to, by name.
create or replace function tasker.dependents(p_definition_id bigint) returns text[] language sql stable as $$
    select array_agg(d.name order by d.position)
    from tasker.definition_edges e join tasker.definitions d on d.definition_id = e.to_definition_id
    where e.from_definition_id = p_definition_id
$$;

-- Results of steps before the given one, for who holds it by this fence; none when that is old.
create or replace function tasker.read_results(
    p_namespace text, p_worker text, p_step_id bigint, p_fence bigint, p_names text[]
) returns table (step_name text, result json) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return query
    select ancestor.name, done.result
    from tasker.leases l
    join tasker.workers w on w.worker_id = l.worker_id
    join tasker.steps s on s.step_id = l.step_id
    join tasker.definitions d on d.definition_id = s.definition_id
    cross join lateral unnest(d.result_positions) as needs(position)
    join tasker.steps done
        on done.step_id = tasker.first_step_id(tasker.task_of_step(p_step_id)) + needs.position
    join tasker.definitions ancestor on ancestor.definition_id = done.definition_id
    where l.step_id = p_step_id and l.fence = p_fence and w.namespace = p_namespace and w.name = p_worker
        and done.result_bytes is not null and ancestor.name = any (p_names);
end $$;

-- A page of the results of a batch's workers, for who holds the step by this fence: of the batch_worker node of this name
-- among the steps before it, after the given place (0 at first). Failed workers have none and are left out. A name that is
-- no such node's is refused: it would look like a batch of which nothing came.
create or replace function tasker.read_batch_results(
    p_namespace text, p_worker text, p_step_id bigint, p_fence bigint, p_node text, p_after integer, p_limit integer
) returns table (place integer, step_name text, result json) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return query
    select one.place, one.name, one.result
    from tasker.leases l
    join tasker.workers w on w.worker_id = l.worker_id
    join tasker.steps s on s.step_id = l.step_id
    join tasker.definitions d on d.definition_id = s.definition_id
    cross join lateral tasker.batch_results(tasker.task_of_step(p_step_id), d.template_id, array(
        select node.position from tasker.definitions node
        where node.template_id = d.template_id and node.name = p_node and node.position = any (d.batch_positions)
    ), p_after, least(p_limit, 1000)) as one
    where l.step_id = p_step_id and l.fence = p_fence and w.namespace = p_namespace and w.name = p_worker
    order by one.place;
    if not found and exists (
        select from tasker.leases l
        join tasker.workers w on w.worker_id = l.worker_id
        join tasker.steps s on s.step_id = l.step_id
        join tasker.definitions d on d.definition_id = s.definition_id
        where l.step_id = p_step_id and l.fence = p_fence and w.namespace = p_namespace and w.name = p_worker
            and not exists (
                select from tasker.definitions node
                where node.template_id = d.template_id and node.name = p_node and node.position = any (d.batch_positions))
    ) then
        raise exception 'there is no batch_worker % before this step', p_node using errcode = 'TK005';
    end if;
end $$;

-- Keeps how far the attempt has come, for the next one: up to 64 KiB. False when the fence is not current.
create or replace function tasker.save_checkpoint(
    p_namespace text, p_worker text, p_step_id bigint, p_fence bigint, p_checkpoint json
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if octet_length(p_checkpoint::text) > 65536 then
        raise exception 'a checkpoint may have 65536 bytes, not %', octet_length(p_checkpoint::text)
            using errcode = 'TK005';
    end if;
    -- The run is held, as by whoever else changes its steps: who ends the attempt comes before this or after.
    perform from tasker.tasks where task_id = tasker.task_of_step(p_step_id) for no key update;
    perform from tasker.leases l join tasker.workers w on w.worker_id = l.worker_id
    where l.step_id = p_step_id and l.fence = p_fence and w.namespace = p_namespace and w.name = p_worker;
    if not found then
        return false;
    end if;
    update tasker.steps set checkpoint = p_checkpoint where step_id = p_step_id;
    return true;
end $$;

-- Takes up to p_limit ready steps that this worker has handlers for, in order. Callables are looked up one by one, so that
-- steps which it has no handler for cost it nothing, however many stand before its own. What is first in order is found
-- without a lock and then locked; what others have taken meanwhile is passed over, and the next looked for.
create or replace function tasker.take_ready_steps(p_worker tasker.workers, p_limit integer) returns bigint[]
language plpgsql as $$
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
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
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
        return query select * from tasker.start_steps(v_worker, v_step_ids, null, tasker.now());
    end if;
end $$;
