-- Settling: what became of claimed steps is recorded, and the run goes on, in one transaction.
--
-- apply_outcomes is the only place where a claimed step leaves in_progress because of its work: settle_steps calls it
-- for a worker's outcomes, the sweep for leases that ran out. It goes in five strides: fence and record, resolve, choose
-- what the caller takes, advance the runs, hand out. An outcome whose fence is not current changes nothing.

-- A run's place among those that wait for a worker.
create or replace function tasker.order_at(p_task tasker.tasks) returns timestamptz language sql immutable as $$
    select p_task.created_at - p_task.priority * interval '6 seconds'
$$;

-- Makes steps ready: queue rows for those given (their state is enqueued already), unless their task is suspended,
-- and timers for those that may not wait for ever, be it for a place or for a worker.
create or replace function tasker.queue_steps(p_step_ids bigint[], p_now timestamptz) returns void language plpgsql as $$
begin
    with ready as materialized (
        select s.step_id, t.task_id, t.namespace, t.suspended, tasker.order_at(t) as order_at, d.callable,
            d.schedule_timeout_ms, d.worker_timeout_ms
        from unnest(p_step_ids) as given(step_id)
        join tasker.steps s on s.step_id = given.step_id
        join tasker.tasks t on t.task_id = tasker.task_of_step(s.step_id)
        join tasker.definitions d on d.definition_id = s.definition_id
    ), timed as (
        insert into tasker.timers (due_at, kind, task_id, step_id)
        select p_now + timer.ms * interval '1 millisecond', timer.kind, r.task_id, r.step_id
        from ready r
        cross join lateral (values
            ('schedule_timeout', r.schedule_timeout_ms), ('worker_missing', r.worker_timeout_ms / 2)) as timer(kind, ms)
        where timer.ms is not null
    )
    insert into tasker.ready_steps (step_id, namespace, callable, ready_at, order_at)
    select r.step_id, r.namespace, r.callable, p_now, r.order_at from ready r where not r.suspended;
end $$;

-- Why a run failed: the newest of its final failures.
create or replace function tasker.last_failure(p_task_id bigint) returns jsonb language plpgsql stable as $$
begin
    return (
        select jsonb_build_object('reason', 'steps_failed', 'step', tasker.step_name(d.name, d.definition_id, s.step_id),
            'error_type', f.error_type, 'message', f.message)
        from tasker.step_failures f
        join tasker.steps s on s.step_id = f.step_id
        join tasker.definitions d on d.definition_id = s.definition_id
        where f.task_id = p_task_id and f.final
        order by f.failure_id desc limit 1
    );
end $$;

-- Moves tasks on after some of their steps were settled, became ready or were skipped: counts, state, log. The caller
-- holds the tasks' rows. Returns how many became final.
create or replace function tasker.advance_tasks(
    p_actor_id integer, p_now timestamptz, p_settled tasker.settlement[], p_ready bigint[], p_skipped bigint[],
    p_cancelled tasker.cancellation[]
) returns integer language plpgsql as $$
declare
    v_finished integer;
begin
    with counted as (
        -- done: no longer remains; active, retrying and failed by how much these change.
        select task_id, sum(done)::integer as done, sum(skipped)::integer as skipped, sum(active)::integer as active,
            sum(retrying)::integer as retrying, sum(failed)::integer as failed, bool_or(ready) as ready,
            sum(tolerated)::integer as tolerated, sum(cancelled)::integer as cancelled
        from (
            select tasker.task_of_step(d.step_id) as task_id,
                (d.state in ('complete', 'skipped') or d.is_tolerated)::integer as done,
                (d.state = 'skipped')::integer as skipped, -1 as active,
                (d.state = 'waiting_for_retry')::integer as retrying,
                (d.state = 'error' and not d.is_tolerated)::integer as failed, false as ready,
                d.is_tolerated::integer as tolerated, 0 as cancelled
            from unnest(p_settled) d where d.outcome <> 'release'
            union all
            select tasker.task_of_step(id), 0, 0, 1, 0, 0, true, 0, 0 from unnest(p_ready) as ready(id)
            union all
            select tasker.task_of_step(id), 1, 1, 0, 0, 0, false, 0, 0 from unnest(p_skipped) as skipped(id)
            union all
            select c.task_id, c.every, 0, -c.active, -c.retrying, 0, false, 0, c.every from unnest(p_cancelled) c
        ) as each_step
        group by task_id
    ), moved as (
        update tasker.tasks t set
            state = case
                when t.remaining_steps = c.done then 'complete'
                when t.active_steps + c.active > 0 then 'steps_in_process'
                when t.retrying_steps + c.retrying > 0 then 'waiting_for_retry'
                when t.failed_steps + c.failed > 0 then
                    case when t.blocks_on_failure then 'blocked_by_failures' else 'error' end
                else 'waiting_for_dependencies' end::tasker.task_state,
            remaining_steps = t.remaining_steps - c.done,
            active_steps = t.active_steps + c.active,
            retrying_steps = t.retrying_steps + c.retrying,
            failed_steps = t.failed_steps + c.failed,
            skipped_steps = t.skipped_steps + c.skipped,
            tolerated_steps = t.tolerated_steps + c.tolerated,
            cancelled_steps = t.cancelled_steps + c.cancelled,
            completed_at = case when t.remaining_steps = c.done or c.active + t.active_steps = 0
                and t.retrying_steps + c.retrying = 0 and t.failed_steps + c.failed > 0 and not t.blocks_on_failure
                then p_now end,
            error = case when t.remaining_steps > c.done and c.active + t.active_steps = 0
                and t.retrying_steps + c.retrying = 0 and t.failed_steps + c.failed > 0
                then tasker.last_failure(t.task_id) end
        from counted c where t.task_id = c.task_id
        returning t.task_id, t.state, c.ready
    ), finished as (
        select task_id from moved where state in ('complete', 'error')
    ), forgotten as (
        delete from tasker.timers x using finished f where x.task_id = f.task_id
    ), logged as (
        insert into tasker.task_log (task_id, at, passage, actor_id)
        select m.task_id, p_now, case m.state
            when 'complete' then 'completed'
            when 'steps_in_process' then case when m.ready then 'moved_on' else 'kept_running' end
            when 'waiting_for_retry' then 'left_to_retries'
            when 'error' then 'failed'
            when 'blocked_by_failures' then 'blocked'
            else 'left_waiting' end::tasker.task_passage, p_actor_id
        from moved m
    )
    select count(*) into v_finished from finished;
    return v_finished;
end $$;

-- Resolves arrows where some are void: counts down the given steps, skips those that are not to run, and what only they lead
-- to, to any depth. Returns the steps that are ready now, enqueued but in nobody's hands, and those skipped.
create or replace function tasker.skip_through(
    p_actor_id integer, p_now timestamptz, p_step_ids bigint[], p_satisfied integer[], p_void integer[],
    out ready bigint[], out skipped bigint[]
) language plpgsql as $$
declare
    v_step_ids bigint[] := p_step_ids;
    v_satisfied integer[] := p_satisfied;
    v_void integer[] := p_void;
    v_ready bigint[];
    v_skipped bigint[];
begin
    loop
        with judged as (
            select s.step_id, s.open_edges - r.satisfied - r.void as open_edges, s.void_edges + r.void as void_edges, case
                when s.open_edges > r.satisfied + r.void then 'pending'
                when s.void_edges + r.void = 0 then 'enqueued'
                when d.type = 'deferred_convergence' and s.void_edges + r.void < d.dependency_count then 'enqueued'
                else 'skipped' end::tasker.step_state as state
            from unnest(v_step_ids, v_satisfied, v_void) as r(step_id, satisfied, void)
            join tasker.steps s on s.step_id = r.step_id
            join tasker.definitions d on d.definition_id = s.definition_id
            where s.state = 'pending'
        ), counted as (
            update tasker.steps s set open_edges = j.open_edges, void_edges = j.void_edges, state = j.state,
                enqueued_at = case when j.state = 'enqueued' then p_now end,
                completed_at = case when j.state = 'skipped' then p_now end
            from judged j where s.step_id = j.step_id
            returning s.step_id, s.state
        ), logged as (
            insert into tasker.step_log (step_id, at, passage, actor_id)
            select c.step_id, p_now, 'skipped_pending', p_actor_id from counted c where c.state = 'skipped'
        )
        select array_agg(c.step_id) filter (where c.state = 'enqueued'), array_agg(c.step_id) filter (where c.state = 'skipped')
        into v_ready, v_skipped from counted c;
        ready := ready || v_ready;
        exit when v_skipped is null;
        skipped := skipped || v_skipped;
        select array_agg(r.step_id), array_agg(0), array_agg(r.void) into v_step_ids, v_satisfied, v_void
        from (
            select tasker.first_step_id(tasker.task_of_step(s.step_id)) + tasker.place_of(e.to_definition_id) as step_id,
                count(*)::integer as void
            from unnest(v_skipped) as gone(step_id)
            join tasker.steps s on s.step_id = gone.step_id
            join tasker.definition_edges e on e.from_definition_id = s.definition_id and e.kind <> 'batch'
            where not tasker.is_of_batch(s.definition_id, s.step_id)
            group by 1
        ) as r;
        exit when v_step_ids is null;
    end loop;
end $$;

-- What the given outcomes are called when they are decisions of steps that cannot decide so: the reason for each that is
-- refused, and the places of what is chosen for the others.
create or replace function tasker.judge_decisions(
    p_step_ids bigint[], p_outcomes text[], p_branches text[], out chosen text[], out refused text[]
) language sql stable as $$
    select array_agg(each.places order by each.place), array_agg(case
            when each.type is null then null
            when each.type <> 'decision' then format('step %s is no decision', each.name)
            when each.wanted > tasker.setting('steps_a_decision', 100) then format(
                'decision %s chose %s steps; %s are the most', each.name, each.wanted, tasker.setting('steps_a_decision', 100))
            when each.unknown is not null then format('decision %s chose %s, which %s', each.name, each.unknown,
                'does not depend on it directly')
        end order by each.place)
    from (
        select given.place, d.name, d.type, found.places::text as places, found.unknown, found.wanted
        from unnest(p_step_ids, p_outcomes, p_branches) with ordinality as given(step_id, outcome, branches, place)
        left join tasker.steps s on s.step_id = given.step_id and given.outcome = 'decide'
        left join tasker.definitions d on d.definition_id = s.definition_id
        cross join lateral (
            select coalesce(array_agg(branch.position) filter (where branch.position is not null), '{}') as places,
                min(name.value) filter (where branch.position is null) as unknown, count(*) as wanted
            from (select distinct unnest(string_to_array(given.branches, ','))) as name(value)
            left join lateral (
                select b.position from tasker.definitions b
                join tasker.definition_edges e on e.from_definition_id = d.definition_id
                    and e.to_definition_id = b.definition_id
                where b.template_id = d.template_id and b.name = name.value
            ) as branch on true
        ) as found
    ) as each
$$;

-- Time is read when all locks are held: whoever waited for them comes after what he waited for.
create or replace function tasker.apply_outcomes(
    p_actor_id integer, p_step_ids bigint[], p_fences bigint[], p_outcomes text[], p_results json[] default null,
    p_metadata json[] default null, p_branches text[] default null, p_error_types text[] default null,
    p_messages text[] default null, p_tracebacks text[] default null, p_retryable boolean[] default null,
    p_retry_after_ms bigint[] default null, p_worker tasker.workers default null, p_claim_limit integer default 0,
    p_batch_inputs json[] default null, p_is_no_op boolean default false
) returns setof tasker.worker_row language plpgsql as $$
declare
    v_now timestamptz;
    v_outcomes text[] := p_outcomes;
    v_error_types text[] := p_error_types;
    v_messages text[] := p_messages;
    v_retryable boolean[] := p_retryable;
    v_chosen text[];
    v_refused text[];
    v_settled tasker.settlement[];
    v_any_of_batch boolean;
    v_created bigint[];
    v_refilled bigint[];
    v_closed bigint[];
    v_cancelled tasker.cancellation[];
    v_reached bigint[];
    v_satisfied integer[];
    v_void integer[];
    v_any_void boolean;
    v_ready bigint[];
    v_skipped bigint[];
    v_head_step_id bigint;
    v_kept bigint[];
    v_taken bigint[];
    v_queued bigint[];
    v_due bigint[];
    v_finished integer := 0;
    v_answer tasker.worker_row;
begin
    perform from tasker.tasks
    where task_id in (select tasker.task_of_step(id) from unnest(p_step_ids) as given(id))
    order by task_id for no key update;
    v_now := tasker.now();

    if 'decide' = any (p_outcomes) then
        select chosen, refused into v_chosen, v_refused
        from tasker.judge_decisions(p_step_ids, p_outcomes, p_branches);
        v_error_types := coalesce(v_error_types, array_fill(null::text, array[cardinality(p_outcomes)]));
        v_messages := coalesce(v_messages, array_fill(null::text, array[cardinality(p_outcomes)]));
        v_retryable := coalesce(v_retryable, array_fill(null::boolean, array[cardinality(p_outcomes)]));
        for place in 1 .. cardinality(v_refused) loop
            if v_refused[place] is not null then
                v_outcomes[place] := 'fail';
                v_error_types[place] := 'DecisionError';
                v_messages[place] := v_refused[place];
                v_retryable[place] := false;
            end if;
        end loop;
    end if;

    with fenced as (
        delete from tasker.leases l
        using unnest(p_step_ids, p_fences, v_outcomes, p_results, p_metadata, v_chosen, v_error_types, v_messages,
            p_tracebacks, v_retryable, p_retry_after_ms) as given(step_id, fence, outcome, result, metadata, chosen,
            error_type, message, traceback, retryable, retry_after_ms)
        where l.step_id = given.step_id and l.fence = given.fence
        returning l.log_id, l.started_at, l.beginning, l.actor_id, given.*
    ), recorded as (
        update tasker.steps s set
            state = case
                when f.outcome in ('complete', 'decide', 'batch') then 'complete'
                when f.outcome = 'skip' then 'skipped'
                when f.outcome = 'release' then 'enqueued'
                when s.attempts < s.attempts_allowed and f.retryable is not false then 'waiting_for_retry'
                else 'error' end::tasker.step_state,
            attempts = s.attempts - (f.outcome in ('release', 'skip'))::integer,
            enqueued_at = case when f.outcome = 'release' then v_now else s.enqueued_at end,
            completed_at = case when f.outcome in ('complete', 'decide', 'batch', 'skip') then v_now end,
            next_attempt_at = case when f.outcome in ('fail', 'expire') and s.attempts < s.attempts_allowed
                and f.retryable is not false then v_now + case
                    when f.outcome = 'fail' then tasker.step_retry_delay(s.definition_id, s.attempts, f.retry_after_ms)
                    else interval '0' end end,
            settled_fence = case when f.outcome in ('release', 'expire') then s.settled_fence else f.fence end,
            result = case when f.outcome in ('complete', 'decide', 'batch') then coalesce(f.result, 'null') end,
            result_bytes = case when f.outcome in ('complete', 'decide', 'batch')
                then octet_length(coalesce(f.result::text, 'null')) end,
            chosen = case when f.outcome = 'decide' then f.chosen::integer[] end,
            metadata = f.metadata,
            error = case
                when f.outcome in ('fail', 'expire') then json_build_object('error_type', f.error_type, 'message',
                    left(f.message, 8192), 'retryable', f.retryable is not false, 'retry_after_ms', f.retry_after_ms)
                when f.outcome = 'release' then s.error end
        from fenced f where s.step_id = f.step_id
        returning s.step_id, f.fence, s.definition_id, s.state, s.next_attempt_at, s.attempts_allowed, f.outcome, f.chosen,
            f.error_type, f.message, f.traceback, f.log_id, f.started_at, f.beginning, f.actor_id,
            s.attempts + (f.outcome in ('release', 'skip'))::integer as attempt
    ), logged as (
        insert into tasker.step_log (log_id, step_id, at, passage, actor_id, attempt, beginning, began_by, began_at, metadata)
        select r.log_id, r.step_id, v_now, case
            when r.state = 'complete' then 'completed'
            when r.state = 'skipped' then 'skipped_in_progress'
            when r.state = 'enqueued' then 'released'
            when r.state = 'error' then 'failed'
            when r.outcome = 'expire' then 'lost'
            else 'failed_to_retry' end::tasker.step_passage,
            p_actor_id, r.attempt, r.beginning, nullif(r.actor_id, p_actor_id), r.started_at,
            case when r.state in ('error', 'waiting_for_retry') then json_build_object('error_type', r.error_type) end
        from recorded r
    ), failed as (
        insert into tasker.step_failures (task_id, step_id, attempt, error_type, message, traceback, final, at)
        select tasker.task_of_step(r.step_id), r.step_id, r.attempt, coalesce(r.error_type, 'HandlerError'),
            left(coalesce(r.message, ''), 8192), left(r.traceback, 16384), r.state = 'error', v_now
        from recorded r where r.state in ('error', 'waiting_for_retry')
    )
    select array_agg(row(r.step_id, r.fence, r.definition_id, r.outcome, r.state, r.next_attempt_at,
        r.state = 'error' and tasker.is_tolerated(r.definition_id, r.step_id), r.chosen::integer[])::tasker.settlement),
        bool_or(tasker.is_of_batch(r.definition_id, r.step_id))
        into v_settled, v_any_of_batch
    from recorded r;

    if cardinality(v_settled) is distinct from cardinality(p_step_ids) then
        for v_answer.step_id, v_answer.fence in
            select given.step_id, given.fence
            from unnest(p_step_ids, p_fences, p_outcomes) as given(step_id, fence, outcome)
            left join tasker.steps s on s.step_id = given.step_id
            where (coalesce(s.settled_fence <> given.fence, true) or given.outcome in ('release', 'expire'))
                and not exists (
                    select from unnest(v_settled) d where d.step_id = given.step_id and d.fence = given.fence)
        loop
            v_answer.kind := 'stale';
            return next v_answer;
        end loop;
    end if;

    if v_settled is not null then
        if v_outcomes && array['fail', 'expire'] then
            insert into tasker.timers (due_at, kind, task_id, step_id)
            select d.retry_at, 'retry', tasker.task_of_step(d.step_id), d.step_id
            from unnest(v_settled) d where d.retry_at > v_now;
            select array_agg(d.step_id) into v_due
            from unnest(v_settled) d where d.retry_at <= v_now;
        end if;

        if v_any_of_batch then
            select refilled, due, closed, cancelled into v_refilled, v_due, v_closed, v_cancelled
            from tasker.settle_batch_workers(p_actor_id, v_now, v_settled, v_due);
        end if;
        if 'batch' = any (v_outcomes) then
            v_created := tasker.create_batch(v_settled[1], p_batch_inputs, p_is_no_op, v_now);
        end if;

        -- What the arrows lead to is counted down; what has none open any more is ready, or skipped. The caller may take what
        -- is ready: then it starts in one change of its row.
        if v_closed is not null or v_outcomes && array['complete', 'decide', 'batch', 'skip'] then
            select array_agg(r.step_id), array_agg(r.satisfied), array_agg(r.void), bool_or(r.void + s.void_edges > 0),
                array_agg(r.step_id) filter (where s.open_edges = r.satisfied)
                into v_reached, v_satisfied, v_void, v_any_void, v_ready
            from (
                select arrow.step_id, (count(*) filter (where arrow.satisfied))::integer as satisfied,
                    (count(*) filter (where not arrow.satisfied))::integer as void
                from (
                    select tasker.first_step_id(tasker.task_of_step(d.step_id)) + tasker.place_of(e.to_definition_id) as step_id,
                        d.state = 'complete' and (e.kind = 'plain' or e.kind = 'choice'
                            and coalesce(tasker.place_of(e.to_definition_id) = any (d.chosen), false)) as satisfied
                    from unnest(v_settled) d
                    join tasker.definition_edges e on e.from_definition_id = d.definition_id
                    where d.state in ('complete', 'skipped') and e.kind <> 'batch'
                        and (e.kind <> 'without_batch' or d.outcome <> 'batch')
                        and not tasker.is_of_batch(d.definition_id, d.step_id)
                    union all
                    select tasker.first_step_id(tasker.task_of_step(closed.step_id)) + tasker.place_of(e.to_definition_id), true
                    from unnest(v_closed) as closed(step_id)
                    join tasker.steps last on last.step_id = closed.step_id
                    join tasker.definition_edges e on e.from_definition_id = last.definition_id
                ) as arrow
                group by arrow.step_id
            ) r
            join tasker.steps s on s.step_id = r.step_id
            where s.state = 'pending';
            if v_any_void then
                select ready, skipped into v_ready, v_skipped
                from tasker.skip_through(p_actor_id, v_now, v_reached, v_satisfied, v_void);
                v_reached := null;
            end if;
        end if;

        v_ready := v_ready || v_refilled || v_created;
        -- The caller takes of these what nothing that waits in the queue comes before.
        if p_claim_limit > 0 and v_ready is not null then
            with head as materialized (
                select q.order_at, q.step_id
                from unnest(p_worker.callables) as own(callable)
                cross join lateral (
                    select h.order_at, h.step_id from tasker.ready_steps h
                    where h.namespace = p_worker.namespace and h.callable = own.callable
                    order by h.order_at, h.step_id limit 1
                ) q
                order by q.order_at, q.step_id limit 1
            )
            select array_agg(ready.step_id), (select step_id from head) into v_kept, v_head_step_id
            from (
                select s.step_id
                from unnest(v_ready) as r(step_id)
                join tasker.steps s on s.step_id = r.step_id
                join tasker.tasks t on t.task_id = tasker.task_of_step(s.step_id)
                join tasker.definitions d on d.definition_id = s.definition_id
                where d.callable = any (p_worker.callables) and t.namespace = p_worker.namespace and not t.suspended
                    and coalesce((tasker.order_at(t), s.step_id) < (select h.order_at, h.step_id from head h), true)
                order by tasker.order_at(t), s.step_id
                limit p_claim_limit
            ) as ready;
        end if;

        if v_reached is not null
            and (v_kept is null or cardinality(v_reached) > cardinality(v_kept) or not v_reached <@ v_kept)
        then
            update tasker.steps s set
                open_edges = s.open_edges - r.satisfied,
                state = case when s.open_edges = r.satisfied then 'enqueued' else s.state end,
                enqueued_at = case when s.open_edges = r.satisfied then v_now end
            from unnest(v_reached, v_satisfied) as r(step_id, satisfied)
            where s.step_id = r.step_id and s.step_id <> all (coalesce(v_kept, '{}'));
        end if;

        v_finished := tasker.advance_tasks(p_actor_id, v_now, v_settled, v_ready, v_skipped, v_cancelled);
        if v_outcomes && array['fail', 'expire'] then
            perform tasker.bury_failed_steps(
                p_actor_id, v_now, v_settled, p_step_ids, p_fences, v_error_types, v_retryable);
        end if;
        -- A retry without delay (an expired lease, backoff none) need not wait for a sweep.
        if v_due is not null then
            perform tasker.retry_steps(v_due, p_actor_id, v_now);
        end if;

        -- What it does not take goes into the queue, and what was released.
        if cardinality(v_ready) is distinct from cardinality(v_kept) or 'release' = any (v_outcomes) then
            insert into tasker.step_log (step_id, at, passage, actor_id)
            select id, v_now, 'queued', p_actor_id from unnest(v_ready) as ready(id)
            where id <> all (coalesce(v_kept, '{}'));
            select array_agg(id) into v_queued from (
                select id from unnest(v_ready) as ready(id) where id <> all (coalesce(v_kept, '{}'))
                union all
                select d.step_id from unnest(v_settled) d where d.outcome = 'release'
            ) as waiting;
            if v_queued is not null then
                perform tasker.queue_steps(v_queued, v_now);
            end if;
        end if;
    end if;

    if p_claim_limit > coalesce(cardinality(v_kept), 0)
        and (v_ready is null or v_head_step_id is not null or v_queued is not null) -- else it was just seen to be empty
    then
        v_taken := tasker.take_ready_steps(p_worker, p_claim_limit - coalesce(cardinality(v_kept), 0));
    end if;
    if v_kept is not null or v_taken is not null then
        return query select * from tasker.start_steps(p_worker, v_kept || v_taken, v_kept, v_now);
    end if;

    v_answer := null;
    v_answer.kind := 'summary';
    v_answer.ready_left := coalesce(cardinality(v_queued), 0) + coalesce(cardinality(v_due), 0);
    if v_taken is not null and v_answer.ready_left > 0 then
        select count(*) into v_answer.ready_left
        from unnest(v_queued || v_due) as queued(id) where id <> all (v_taken);
    end if;
    v_answer.tasks_finished := v_finished;
    return next v_answer;
end $$;

-- Records a worker's outcomes and claims up to p_claim_limit steps for it in the same commit. The arrays are parallel; of
-- those that come after the outcomes any may be null as a whole. An outcome is
--   'complete', with a result;
--   'decide', with a result and the names of the steps to run, joined by commas: the other dependents are skipped;
--   'skip': its condition was false, and the attempt does not count;
--   'fail', with error type, message, traceback, whether it may be tried again, and after how long;
--   'release', which gives the attempt back.
-- Calling it again with the same arguments changes nothing. What was settled under another fence, or by somebody else,
-- comes back as stale. When one of the runs is held by somebody else for two seconds, none of the outcomes is recorded
-- (error 55P03): the caller then hands them in run by run.
create or replace function tasker.settle_steps(
    p_namespace text, p_worker text, p_step_ids bigint[], p_fences bigint[], p_outcomes text[], p_results json[],
    p_metadata json[], p_branches text[], p_error_types text[], p_messages text[], p_tracebacks text[],
    p_retryable boolean[], p_retry_after_ms bigint[], p_claim_limit integer
) returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_worker tasker.workers;
    v_claim_limit integer := greatest(p_claim_limit, 0); -- null is 0 as well
    v_count integer := cardinality(p_step_ids);
begin
    if v_count is null or cardinality(p_fences) is distinct from v_count
        or cardinality(p_outcomes) is distinct from v_count or cardinality(p_results) <> v_count
        or cardinality(p_metadata) <> v_count or cardinality(p_branches) <> v_count
        or cardinality(p_error_types) <> v_count or cardinality(p_messages) <> v_count
        or cardinality(p_tracebacks) <> v_count or cardinality(p_retryable) <> v_count
        or cardinality(p_retry_after_ms) <> v_count
    then
        raise exception 'settle_steps: the arrays differ in length' using errcode = 'TK005';
    end if;
    if not p_outcomes <@ array['complete', 'decide', 'skip', 'fail', 'release'] then
        raise exception 'settle_steps: unknown outcome %', (
            select coalesce(outcome, 'null') from unnest(p_outcomes) as given(outcome)
            where outcome is null or outcome not in ('complete', 'decide', 'skip', 'fail', 'release') limit 1
        ) using errcode = 'TK005';
    end if;
    if v_claim_limit > 0 then
        -- Taken before any other lock, and held, for the same reason as in claim_steps. None: it is given nothing.
        select * into v_worker from tasker.workers
        where namespace = p_namespace and name = p_worker and not draining for key share;
    end if;
    return query select * from tasker.apply_outcomes(
        coalesce(v_worker.actor_id, tasker.actor_id(p_worker)), p_step_ids, p_fences, p_outcomes, p_results, p_metadata,
        p_branches, p_error_types, p_messages, p_tracebacks, p_retryable, p_retry_after_ms, v_worker,
        case when v_worker.worker_id is null then 0 else v_claim_limit end);
end $$;

-- Settles a batchable step: one worker for each of the inputs, named by their order. ids tell the batches apart; from and to
-- (exclusive) are those of integer cursors, null for others. p_is_no_op: there is no work, and the one worker stands for that.
-- What cannot be is the step's failure, with the reason. Answers as settle_steps does.
create or replace function tasker.create_batches(
    p_namespace text, p_worker text, p_step_id bigint, p_fence bigint, p_result json, p_metadata json, p_ids text[],
    p_from bigint[], p_to bigint[], p_inputs json[], p_is_no_op boolean, p_claim_limit integer
) returns setof tasker.worker_row language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_worker tasker.workers;
    v_claim_limit integer := greatest(p_claim_limit, 0);
    v_count integer := cardinality(p_inputs);
    v_fault text;
begin
    if v_count is null or cardinality(p_ids) is distinct from v_count or cardinality(p_from) is distinct from v_count
        or cardinality(p_to) is distinct from v_count
    then
        raise exception 'create_batches: the arrays differ in length' using errcode = 'TK005';
    end if;
    if v_claim_limit > 0 then
        select * into v_worker from tasker.workers
        where namespace = p_namespace and name = p_worker and not draining for key share;
    end if;
    v_fault := tasker.batch_fault(p_step_id, p_ids, p_from, p_to, p_is_no_op);
    return query select * from tasker.apply_outcomes(
        coalesce(v_worker.actor_id, tasker.actor_id(p_worker)), array[p_step_id], array[p_fence],
        array[case when v_fault is null then 'batch' else 'fail' end], p_results => array[p_result],
        p_metadata => array[p_metadata], p_error_types => array['BatchError'], p_messages => array[v_fault],
        p_retryable => array[v_fault is null], p_worker => v_worker,
        p_claim_limit => case when v_worker.worker_id is null then 0 else v_claim_limit end,
        p_batch_inputs => p_inputs, p_is_no_op => p_is_no_op);
end $$;
