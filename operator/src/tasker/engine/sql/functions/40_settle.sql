-- Settling: what became of claimed steps is recorded, and the run goes on, in one transaction.
--
-- Lateral subqueries with `offset 0` look rows up by their whole key, for the reason told in 30_claim.sql.
--
-- apply_outcomes is the only place where a claimed step leaves in_progress because of its work: settle_steps calls it
-- for a worker's outcomes, the sweep for leases that ran out. An outcome whose fence is not current changes nothing.

do $$ begin
    create type tasker.settlement as (
        step_id bigint, fence bigint, task_id bigint, template_id bigint, template_position integer, attempt integer,
        outcome text, state tasker.step_state, retry_at timestamptz, error jsonb
    );
exception when duplicate_object then null;
end $$;

-- A run's place among those that wait for a worker.
create or replace function tasker.order_at(p_task tasker.tasks) returns timestamptz language sql immutable as $$
    select p_task.created_at - p_task.priority * interval '6 seconds'
$$;

-- Makes steps ready: queue rows for those given (their state is enqueued already), unless their task is suspended,
-- and a timer for those that may not wait for ever.
create or replace function tasker.queue_steps(p_step_ids bigint[], p_now timestamptz) returns void language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    insert into tasker.ready_steps (step_id, namespace, callable, priority, ready_at, order_at)
    select s.step_id, t.namespace, d.callable, t.priority, p_now, tasker.order_at(t)
    from unnest(p_step_ids) as ready(id)
    cross join lateral (select * from tasker.steps f where f.step_id = ready.id offset 0) s
    cross join lateral (select * from tasker.tasks f where f.task_id = tasker.task_of_step(s.step_id) offset 0) t
    cross join lateral (
        select * from tasker.template_steps f
        where f.template_id = s.template_id and f.position = s.template_position offset 0
    ) d
    where not t.suspended;

    insert into tasker.timers (due_at, kind, task_id, step_id, attempts)
    select p_now + d.schedule_timeout_ms * interval '1 millisecond', 'schedule_timeout',
        tasker.task_of_step(s.step_id), s.step_id, s.attempts
    from unnest(p_step_ids) as ready(id)
    cross join lateral (select * from tasker.steps f where f.step_id = ready.id offset 0) s
    cross join lateral (
        select * from tasker.template_steps f
        where f.template_id = s.template_id and f.position = s.template_position offset 0
    ) d
    where d.schedule_timeout_ms is not null;
end $$;

-- Moves tasks on after some of their steps were settled or failed: counts, state, log.
-- The arrays are parallel, one entry a task, and the caller holds the tasks' rows. Returns how many became final.
create or replace function tasker.advance_tasks(
    p_actor_id integer, p_now timestamptz, p_task_ids bigint[], p_completed integer[], p_failed integer[],
    p_retrying integer[], p_enqueued integer[]
) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_finished integer;
begin
    with counted as (
        select t.task_id,
            t.remaining_steps - c.completed as remaining,
            t.active_steps - c.completed - c.failed - c.retrying + c.enqueued as active,
            t.retrying_steps + c.retrying as retrying,
            t.failed_steps + c.failed as failed,
            c.enqueued
        from unnest(p_task_ids, p_completed, p_failed, p_retrying, p_enqueued)
            as c(task_id, completed, failed, retrying, enqueued)
        join tasker.tasks t on t.task_id = c.task_id
    ), judged as (
        select *, case
            when remaining = 0 then 'complete'
            when active > 0 then 'steps_in_process'
            when retrying > 0 then 'waiting_for_retry'
            when failed > 0 then 'error'
            else 'waiting_for_dependencies' end::tasker.task_state as state
        from counted
    ), moved as (
        update tasker.tasks t set
            state = j.state, remaining_steps = j.remaining, active_steps = j.active, retrying_steps = j.retrying,
            failed_steps = j.failed,
            completed_at = case when j.state in ('complete', 'error') then p_now end,
            error = case when j.state = 'error' then (
                select jsonb_build_object('reason', 'steps_failed', 'step', (
                        select d.name from tasker.steps s
                        join tasker.template_steps d on d.template_id = s.template_id and d.position = s.template_position
                        where s.step_id = f.step_id
                    ), 'error_type', f.error_type, 'message', f.message)
                from tasker.step_failures f
                where f.task_id = j.task_id and f.final
                order by f.failure_id desc limit 1
            ) end
        from judged j where t.task_id = j.task_id
        returning t.task_id, t.state, j.enqueued
    ), finished as (
        select task_id from moved where state in ('complete', 'error')
    ), forgotten as (
        delete from tasker.timers x using finished f where x.task_id = f.task_id
    ), logged as (
        insert into tasker.task_log (task_id, at, passage, actor_id)
        select m.task_id, p_now, case m.state
            when 'complete' then 'completed'
            when 'steps_in_process' then case when m.enqueued > 0 then 'moved_on' else 'kept_running' end
            when 'waiting_for_retry' then 'left_to_retries'
            when 'error' then 'failed'
            else 'left_waiting' end::tasker.task_passage, p_actor_id
        from moved m
    )
    select count(*) into v_finished from finished;
    return v_finished;
end $$;

-- Time is read when all locks are held: whoever waited for them comes after what he waited for.
create or replace function tasker.apply_outcomes(
    p_actor text, p_step_ids bigint[], p_fences bigint[], p_outcomes text[], p_payloads json[],
    p_worker tasker.workers default null, p_claim_limit integer default 0
) returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_now timestamptz;
    v_settled tasker.settlement[];
    v_reached bigint[];
    v_satisfied integer[];
    v_ready bigint[];
    v_head_order_at timestamptz;
    v_head_step_id bigint;
    v_kept bigint[];
    v_taken bigint[];
    v_queued bigint[];
    v_due bigint[];
    v_finished integer := 0;
begin
    perform from tasker.tasks
    where task_id in (select tasker.task_of_step(id) from unnest(p_step_ids) as given(id))
    order by task_id for no key update;
    v_now := tasker.now();

    with fenced as (
        delete from tasker.leases l
        using unnest(p_step_ids, p_fences, p_outcomes, p_payloads) as given(step_id, fence, outcome, payload)
        where l.step_id = given.step_id and l.fence = given.fence
        returning l.step_id, l.fence, given.outcome, given.payload
    ), judged as (
        select f.step_id, f.fence, f.outcome, f.payload, s.template_id, s.template_position, s.attempts,
            case f.outcome
                when 'success' then 'complete'
                when 'release' then 'enqueued'
                else case
                    when s.attempts < d.max_attempts
                        and (f.outcome = 'expired' or coalesce((f.payload ->> 'retryable')::boolean, true))
                    then 'waiting_for_retry' else 'error' end
            end::tasker.step_state as state,
            case f.outcome
                when 'expired' then v_now
                when 'error' then v_now + tasker.retry_delay(d.backoff, d.base_ms, d.max_ms, d.jitter, s.attempts,
                    (f.payload ->> 'retry_after_ms')::numeric)
            end as retry_at,
            case when f.outcome in ('error', 'expired') then f.payload::jsonb end as error
        from fenced f
        cross join lateral (select * from tasker.steps g where g.step_id = f.step_id offset 0) s
        cross join lateral (
            select * from tasker.template_steps f
            where f.template_id = s.template_id and f.position = s.template_position offset 0
        ) d
    ), recorded as (
        update tasker.steps s set
            state = j.state,
            attempts = s.attempts - (j.outcome = 'release')::integer,
            enqueued_at = case when j.outcome = 'release' then v_now else s.enqueued_at end,
            completed_at = case when j.state = 'complete' then v_now end,
            next_attempt_at = case when j.state = 'waiting_for_retry' then j.retry_at end,
            result = case when j.state = 'complete' then coalesce(j.payload -> 'result', 'null') end,
            metadata = j.payload -> 'metadata',
            error = coalesce(j.error - 'traceback', case when j.outcome = 'release' then s.error end)
        from judged j where s.step_id = j.step_id
        returning row(s.step_id, j.fence, tasker.task_of_step(s.step_id), j.template_id, j.template_position, j.attempts,
            j.outcome, j.state, case when j.state = 'waiting_for_retry' then j.retry_at end,
            j.error)::tasker.settlement as settlement
    )
    select array_agg(settlement) into v_settled from recorded;

    return query
    select case when d.step_id is null then 'stale' else 'settled' end, given.step_id, given.fence,
        null::uuid, null::uuid, null::text, null::text, null::text, null::text, null::text, null::text, null::text,
        null::integer, null::integer, null::integer, null::timestamptz, null::text, null::timestamptz,
        null::json, null::json, null::json, null::json, null::integer, null::integer
    from unnest(p_step_ids, p_fences) as given(step_id, fence)
    left join unnest(v_settled) d on d.step_id = given.step_id and d.fence = given.fence;

    if v_settled is not null then
        insert into tasker.step_log (step_id, at, passage, actor_id, attempt, metadata)
        select d.step_id, v_now, case d.outcome
            when 'success' then 'completed'
            when 'release' then 'released'
            else case when d.state = 'error' then 'failed' when d.outcome = 'expired' then 'lost'
                else 'failed_to_retry' end
            end::tasker.step_passage, v_actor_id, d.attempt,
            case when d.error is not null then jsonb_build_object('error_type', d.error ->> 'error_type') end
        from unnest(v_settled) d;

        if exists (select from unnest(v_settled) d where d.error is not null) then
            insert into tasker.step_failures (task_id, step_id, attempt, error_type, message, traceback, final, at)
            select d.task_id, d.step_id, d.attempt, coalesce(d.error ->> 'error_type', 'HandlerError'),
                left(coalesce(d.error ->> 'message', ''), 8192), left(d.error ->> 'traceback', 16384),
                d.state = 'error', v_now
            from unnest(v_settled) d where d.error is not null;

            insert into tasker.timers (due_at, kind, task_id, step_id, attempts)
            select d.retry_at, 'retry', d.task_id, d.step_id, d.attempt
            from unnest(v_settled) d where d.retry_at > v_now;
            select array_agg(d.step_id) into v_due
            from unnest(v_settled) d where d.retry_at <= v_now;
        end if;

        -- Dependents count down; those that reach zero are ready. What of these the caller can take, and nothing that waits
        -- in the queue comes before, goes straight into its hands.
        select array_agg(r.step_id), array_agg(r.satisfied),
            array_agg(r.step_id) filter (where r.satisfied = s.unmet_dependencies)
            into v_reached, v_satisfied, v_ready
        from (
            select tasker.first_step_id(d.task_id) + e.to_position as step_id, count(*)::integer as satisfied
            from unnest(v_settled) d
            join tasker.template_edges e on e.template_id = d.template_id and e.from_position = d.template_position
            where d.state = 'complete'
            group by 1
        ) r
        cross join lateral (select * from tasker.steps f where f.step_id = r.step_id offset 0) s
        where s.state = 'pending';

        if p_claim_limit > 0 and v_ready is not null then
            select q.order_at, q.step_id into v_head_order_at, v_head_step_id
            from unnest(p_worker.callables) as own(callable)
            cross join lateral (
                select h.order_at, h.step_id from tasker.ready_steps h
                where h.namespace = p_worker.namespace and h.callable = own.callable
                order by h.order_at, h.step_id limit 1
            ) q
            order by q.order_at, q.step_id limit 1;
            select array_agg(ready.id) into v_kept from (
                select s.step_id as id
                from unnest(v_ready) as r(id)
                cross join lateral (select * from tasker.steps f where f.step_id = r.id offset 0) s
                cross join lateral (
                    select * from tasker.tasks f where f.task_id = tasker.task_of_step(s.step_id) offset 0
                ) t
                cross join lateral (
                    select * from tasker.template_steps f
                    where f.template_id = s.template_id and f.position = s.template_position offset 0
                ) d
                where d.callable = any (p_worker.callables) and t.namespace = p_worker.namespace and not t.suspended
                    and (v_head_step_id is null
                        or (tasker.order_at(t), s.step_id) < (v_head_order_at, v_head_step_id))
                order by tasker.order_at(t), s.step_id
                limit p_claim_limit
            ) as ready;
        end if;

        update tasker.steps s set
            unmet_dependencies = s.unmet_dependencies - r.satisfied,
            state = case when s.unmet_dependencies = r.satisfied then 'enqueued' else s.state end,
            enqueued_at = case when s.unmet_dependencies = r.satisfied then v_now end
        from unnest(v_reached, v_satisfied) as r(step_id, satisfied)
        where s.step_id = r.step_id and s.step_id <> all (coalesce(v_kept, '{}'));

        select tasker.advance_tasks(v_actor_id, v_now, array_agg(task_id), array_agg(completed), array_agg(failed),
            array_agg(retrying), array_agg(enqueued)) into v_finished
        from (
            select task_id, sum(completed)::integer as completed, sum(failed)::integer as failed,
                sum(retrying)::integer as retrying, sum(enqueued)::integer as enqueued
            from (
                select d.task_id, (d.state = 'complete')::integer as completed, (d.state = 'error')::integer as failed,
                    (d.state = 'waiting_for_retry')::integer as retrying, 0 as enqueued
                from unnest(v_settled) d where d.outcome <> 'release'
                union all
                select tasker.task_of_step(id), 0, 0, 0, 1 from unnest(v_ready) as ready(id)
            ) as each_step
            group by task_id
        ) as each_task;
        -- A retry without delay (an expired lease, backoff none) need not wait for a sweep.
        if v_due is not null then
            perform tasker.retry_steps(v_due, v_actor_id, v_now);
        end if;

        -- What it does not take goes into the queue, and what was released.
        select array_agg(id) into v_queued from (
            select id from unnest(v_ready) as ready(id) where id <> all (coalesce(v_kept, '{}'))
            union all
            select d.step_id from unnest(v_settled) d where d.outcome = 'release'
        ) as waiting;
        if v_queued is not null then
            insert into tasker.step_log (step_id, at, passage, actor_id)
            select id, v_now, 'queued', v_actor_id from unnest(v_ready) as ready(id)
            where id <> all (coalesce(v_kept, '{}'));
            perform tasker.queue_steps(v_queued, v_now);
        end if;
    end if;

    if p_claim_limit > coalesce(cardinality(v_kept), 0)
        and (v_ready is null or v_head_step_id is not null or v_queued is not null) -- else it was just seen to be empty
    then
        v_taken := tasker.take_ready_steps(p_worker, p_claim_limit - coalesce(cardinality(v_kept), 0));
    end if;
    if v_kept is not null or v_taken is not null then
        return query select * from tasker.start_steps(p_worker, v_actor_id, v_kept || v_taken, v_kept, v_now);
    end if;

    return query
    select 'summary', null::bigint, null::bigint, null::uuid, null::uuid, null::text, null::text, null::text,
        null::text, null::text, null::text, null::text, null::integer, null::integer, null::integer,
        null::timestamptz, null::text, null::timestamptz, null::json, null::json, null::json, null::json,
        (select count(*)::integer from unnest(v_queued || v_due) as queued(id) where id <> all (coalesce(v_taken, '{}'))),
        v_finished;
end $$;

-- Records a worker's outcomes and claims up to p_claim_limit steps for it in the same commit. The arrays are parallel.
-- An outcome is 'success' with {"result", "metadata"}, 'error' with {"error_type", "message", "retryable",
-- "retry_after_ms", "traceback", "metadata"}, or 'release', which gives the attempt back. Calling it again with the
-- same arguments changes nothing: all come back as stale. When one of the runs is held by somebody else for two seconds,
-- none of the outcomes is recorded (error 55P03): the caller then hands them in run by run.
create or replace function tasker.settle_steps(
    p_namespace text, p_worker text, p_step_ids bigint[], p_fences bigint[], p_outcomes text[], p_payloads json[],
    p_claim_limit integer
) returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s' as $$
declare
    v_worker tasker.workers;
    v_claim_limit integer := greatest(p_claim_limit, 0); -- null is 0 as well
    v_count integer := cardinality(p_step_ids);
    v_wrong text;
begin
    if v_count is null or cardinality(p_fences) is distinct from v_count
        or cardinality(p_outcomes) is distinct from v_count or cardinality(p_payloads) is distinct from v_count
    then
        raise exception 'settle_steps: the arrays differ in length' using errcode = 'TK005';
    end if;
    select outcome into v_wrong from unnest(p_outcomes) as given(outcome)
    where outcome is null or outcome not in ('success', 'error', 'release');
    if found then
        raise exception 'settle_steps: unknown outcome %', coalesce(v_wrong, 'null') using errcode = 'TK005';
    end if;
    if v_claim_limit > 0 then
        -- Taken before any other lock, and held, for the same reason as in claim_steps. None: it is given nothing.
        select * into v_worker from tasker.workers
        where namespace = p_namespace and name = p_worker and not draining for key share;
    end if;
    return query select * from tasker.apply_outcomes(
        p_worker, p_step_ids, p_fences, p_outcomes, p_payloads, v_worker, v_claim_limit);
end $$;
