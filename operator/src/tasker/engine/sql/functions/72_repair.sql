-- Repairing a run: what people do to single steps, and a run that goes again from one of its steps.
--
-- Each action goes in the same strides: hold the run, then what may claim the step; read the time; refuse what does not fit;
-- take the run up, which it needs when it had ended; change the steps; count their arrows anew; let the run go on, which
-- advance_tasks judges as after any outcome. Who did it and why is in the log of every step that is changed by it, and in
-- the run's.
--
-- A run that is taken up again has all back that its end cancelled: it could not come to its end without.
--
-- The workers of a batch have no names here: they are its batchable step's. What would have to make a batch anew, or bring a
-- part of one back, is refused.
--
-- Errors: TK020 there is no such step, TK021 it is not in a state for that, or what was given does not fit, TK022 there is
-- no such run.

-- Holds a run.
create or replace function tasker.hold_run(p_task_id bigint) returns tasker.tasks language plpgsql as $$
declare
    v_task tasker.tasks;
begin
    select * into v_task from tasker.tasks where task_id = p_task_id for no key update;
    if not found then
        raise exception 'there is no such run' using errcode = 'TK022';
    end if;
    return v_task;
end $$;

create or replace function tasker.find_step(p_task tasker.tasks, p_step_name text) returns bigint language plpgsql stable as $$
declare
    v_node tasker.definitions;
begin
    select * into v_node from tasker.definitions where template_id = p_task.template_id and name = p_step_name;
    if not found then
        raise exception 'task % has no step %', p_task.task_uuid, p_step_name using errcode = 'TK020';
    end if;
    if v_node.type = 'batch_worker' then
        raise exception 'step % stands for the workers of a batch: nothing can be done to it alone', p_step_name
            using errcode = 'TK021';
    end if;
    return tasker.first_step_id(p_task.task_id) + v_node.position;
end $$;

-- What was divided into a batch cannot be undone: refuses when one of the given steps of a run has made one.
create or replace function tasker.refuse_divided(p_task tasker.tasks, p_step_ids bigint[]) returns void
language plpgsql stable as $$
declare
    v_name text;
begin
    select d.name into v_name
    from tasker.step_batches b
    join tasker.steps s on s.step_id = b.batchable_step_id
    join tasker.definitions d on d.definition_id = s.definition_id
    where b.task_id = p_task.task_id and b.batchable_step_id = any (p_step_ids) limit 1;
    if found then
        raise exception 'step % of task % has made its batch, which cannot be made anew', v_name, p_task.task_uuid
            using errcode = 'TK021';
    end if;
end $$;

-- Keeps workers from claiming the steps of a run that is held: they leave the queue, once claims under way are through.
-- What is read of the steps after this stays true.
create or replace function tasker.unqueue_steps(p_step_ids bigint[]) returns void language sql as $$
    delete from tasker.ready_steps where step_id = any (p_step_ids)
$$;

-- Attempts are counted for ever, and so must fit.
create or replace function tasker.more_attempts(p_from integer, p_more integer) returns smallint language plpgsql immutable as $$
begin
    if p_from + p_more > 32767 then
        raise exception 'a step can have no more than 32767 attempts' using errcode = 'TK021';
    end if;
    return p_from + p_more;
end $$;

-- A run in which something is changed is in process from here until it is judged anew. One that had ended goes on, with a
-- new deadline when the old one has passed.
create or replace function tasker.take_up_task(
    p_task tasker.tasks, p_reruns boolean, p_actor_id integer, p_now timestamptz, p_metadata jsonb,
    p_deadline_seconds double precision
) returns void language plpgsql as $$
declare
    v_deadline timestamptz := coalesce(p_now + p_deadline_seconds * interval '1 second', p_task.deadline);
begin
    if p_task.state = 'resolved_manually' or p_task.state in ('complete', 'cancelled') and not p_reruns
        or p_task.state not in ('steps_in_process', 'waiting_for_dependencies', 'waiting_for_retry', 'blocked_by_failures')
            and p_task.completed_at is null
    then
        raise exception 'task % is %', p_task.task_uuid, p_task.state || case when p_task.state in ('complete', 'cancelled')
            then ': it can only be run again from one of its steps' else '' end using errcode = 'TK021';
    end if;
    if v_deadline <= p_now then
        raise exception 'the deadline of task % passed at % UTC: it needs a new one', p_task.task_uuid,
            to_char(v_deadline at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') using errcode = 'TK021';
    end if;
    -- One that was cancelled while it waited for its place begins here.
    update tasker.tasks set state = 'steps_in_process', completed_at = null, error = null, deadline = v_deadline,
        started_at = coalesce(started_at, p_now),
        taken_up_at = case when completed_at is null then taken_up_at else p_now end
    where task_id = p_task.task_id;
    if p_task.completed_at is not null or p_deadline_seconds is not null then
        delete from tasker.timers where task_id = p_task.task_id and kind = 'deadline';
        insert into tasker.timers (due_at, kind, task_id)
        select v_deadline, 'deadline', p_task.task_id where v_deadline is not null;
    end if;
    insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
    values (p_task.task_id, p_now, case p_task.state
        when 'steps_in_process' then 'repaired'
        when 'waiting_for_dependencies' then 'woken'
        when 'waiting_for_retry' then 'retried'
        when 'blocked_by_failures' then 'freed'
        else case when p_reruns then 'run_again_' || p_task.state else 'taken_up' end
        end::tasker.task_passage, p_actor_id, p_metadata);
end $$;

-- Ends what is under way of the given steps of a run: claims become void, and nobody waits for a retry.
create or replace function tasker.interrupt_steps(
    p_step_ids bigint[], p_actor_id integer, p_now timestamptz, p_metadata json
) returns void language sql as $$
    -- The states before the change are what the log has to show, hence the self-join.
    with under_way as (
        select s.step_id, s.state from tasker.steps s
        where s.step_id = any (p_step_ids) and s.state in ('enqueued', 'in_progress', 'waiting_for_retry')
    ), stopped as (
        update tasker.steps s set state = 'cancelled', completed_at = p_now, next_attempt_at = null
        from under_way u where s.step_id = u.step_id
        returning s.step_id, u.state
    ), ended as (
        delete from tasker.leases where step_id = any (p_step_ids) returning *
    )
    insert into tasker.step_log (log_id, step_id, at, passage, actor_id, attempt, beginning, began_by, began_at, metadata)
    select coalesce(e.log_id, nextval('tasker.step_log_ids')), s.step_id, p_now,
        ('cancelled_' || s.state)::tasker.step_passage, p_actor_id, e.attempt, e.beginning, nullif(e.actor_id, p_actor_id),
        e.started_at, p_metadata
    from stopped s left join ended e on e.step_id = s.step_id;
    delete from tasker.timers where task_id = tasker.task_of_step(p_step_ids[1]) and step_id = any (p_step_ids);
$$;

-- Sends steps that have ended or failed back to where they began, with all their attempts beside those that they had.
-- Returns how many. p_passage is 'rerun' or 'revived'.
create or replace function tasker.send_back_steps(
    p_step_ids bigint[], p_passage text, p_actor_id integer, p_now timestamptz, p_metadata json
) returns integer language plpgsql as $$
declare
    v_count integer;
begin
    with ended as (
        select s.step_id, s.state, case when s.attempts = 0 then s.attempts_allowed
            else greatest(s.attempts_allowed, tasker.more_attempts(s.attempts, d.max_attempts)) end as attempts_allowed
        from unnest(p_step_ids) as given(step_id)
        join tasker.steps s on s.step_id = given.step_id
        join tasker.definitions d on d.definition_id = s.definition_id
        where s.state <> 'pending'
    ), sent_back as (
        update tasker.steps s set state = 'pending', attempts_allowed = e.attempts_allowed, enqueued_at = null,
            started_at = null, completed_at = null, result = null, result_bytes = null, chosen = null, metadata = null,
            error = null, checkpoint = null
        from ended e where s.step_id = e.step_id
        returning s.step_id, e.state
    ), logged as (
        insert into tasker.step_log (step_id, at, passage, actor_id, metadata)
        select b.step_id, p_now, (p_passage || '_' || b.state)::tasker.step_passage, p_actor_id, p_metadata
        from sent_back b
    )
    select count(*) into v_count from sent_back;
    return v_count;
end $$;

-- The steps of a run that its end cancelled; none of a run that has not ended.
create or replace function tasker.cancelled_steps(p_task tasker.tasks) returns bigint[] language plpgsql stable as $$
declare
    v_cancelled bigint[];
    v_of_batch boolean;
begin
    if p_task.completed_at is not null and p_task.cancelled_steps > 0 then
        select array_agg(s.step_id), bool_or(tasker.is_of_batch(s.definition_id, s.step_id)) into v_cancelled, v_of_batch
        from tasker.steps s
        where s.step_id >= tasker.first_step_id(p_task.task_id) and s.step_id < tasker.first_step_id(p_task.task_id + 1)
            and s.state = 'cancelled';
        if v_of_batch then
            raise exception 'task % was stopped within a batch, which cannot be brought back', p_task.task_uuid
                using errcode = 'TK021';
        end if;
    end if;
    return v_cancelled;
end $$;

-- Counts the arrows of pending steps anew, from the steps that they come from. Returns those that have none open.
create or replace function tasker.count_arrows(p_step_ids bigint[]) returns bigint[] language plpgsql as $$
declare
    v_free bigint[];
begin
    with counted as (
        select s.step_id, arrows.open, arrows.void
        from unnest(p_step_ids) as given(step_id)
        join tasker.steps s on s.step_id = given.step_id
        cross join lateral (
            select count(*) filter (where arrow.is_open) as open,
                count(*) filter (where arrow.is_void and not arrow.is_open) as void
            from (
                -- An arrow from the workers of a batch: their batchable has not ended, the batch is open, or there is none.
                select parent.state not in ('complete', 'resolved_manually', 'skipped') or coalesce(batch.open > 0, false)
                        as is_open,
                    parent.state = 'skipped' or d.type = 'batch_worker' and batch.open is null
                        or e.kind = 'choice' and tasker.place_of(s.step_id) <> all (coalesce(parent.chosen, '{}')) as is_void
                from tasker.definition_edges e
                join tasker.definitions d on d.definition_id = e.from_definition_id
                left join tasker.definition_edges divided
                    on d.type = 'batch_worker' and divided.to_definition_id = d.definition_id and divided.kind = 'batch'
                left join lateral (
                    select b.open from tasker.step_batches b
                    where d.type = 'batch_worker' and b.task_id = tasker.task_of_step(s.step_id)
                        and b.definition_id = d.definition_id
                    order by b.first_place desc limit 1
                ) as batch on true
                join tasker.steps parent on parent.step_id = tasker.first_step_id(tasker.task_of_step(s.step_id))
                    + tasker.place_of(coalesce(divided.from_definition_id, e.from_definition_id))
                where e.to_definition_id = s.definition_id and e.kind in ('plain', 'choice')
            ) as arrow
        ) as arrows
        where s.state = 'pending'
    ), changed as (
        update tasker.steps s set open_edges = c.open, void_edges = c.void
        from counted c where s.step_id = c.step_id
        returning s.step_id, s.open_edges
    )
    select array_agg(c.step_id) filter (where c.open_edges = 0) into v_free from changed c;
    return v_free;
end $$;

-- The run goes on after people changed it: p_changed are pending steps whose arrows may have resolved, p_ready steps that were
-- put into the state enqueued. p_step stands for the whole: it is counted as active, and here becomes what p_state says.
create or replace function tasker.go_on(
    p_actor_id integer, p_now timestamptz, p_step tasker.steps, p_state tasker.step_state, p_changed bigint[],
    p_ready bigint[], out ready bigint[], out skipped bigint[]
) language plpgsql as $$
declare
    v_free bigint[] := tasker.count_arrows(p_changed);
    v_none integer[];
    v_settled tasker.settlement;
begin
    if v_free is not null then
        v_none := array_fill(0, array[cardinality(v_free)]);
        select through.ready, through.skipped into ready, skipped
        from tasker.skip_through(p_actor_id, p_now, v_free, v_none, v_none) as through;
        insert into tasker.step_log (step_id, at, passage, actor_id)
        select id, p_now, 'queued', p_actor_id from unnest(ready) as now_ready(id);
    end if;
    ready := ready || p_ready;
    v_settled.step_id := p_step.step_id;
    v_settled.definition_id := p_step.definition_id;
    v_settled.outcome := 'by_hand';
    v_settled.state := p_state;
    v_settled.is_tolerated := false;
    perform tasker.advance_tasks(p_actor_id, p_now, array[v_settled], ready, skipped, null);
    if ready is not null then
        perform tasker.queue_steps(ready, p_now);
    end if;
end $$;

-- Counts a run's steps anew, one of which is pending and counts as active.
create or replace function tasker.recount_steps(p_task_id bigint) returns void language sql as $$
    update tasker.tasks t set remaining_steps = c.remaining, active_steps = c.active + 1, retrying_steps = c.retrying,
        failed_steps = c.failed, cancelled_steps = c.cancelled, skipped_steps = c.skipped
    from (
        select count(*) filter (where state not in ('complete', 'resolved_manually', 'cancelled', 'skipped')
                and not (state = 'error' and tasker.is_tolerated(definition_id, step_id))) as remaining,
            count(*) filter (where state in ('enqueued', 'in_progress')) as active,
            count(*) filter (where state = 'waiting_for_retry') as retrying,
            count(*) filter (where state = 'error' and not tasker.is_tolerated(definition_id, step_id)) as failed,
            count(*) filter (where state = 'cancelled') as cancelled,
            count(*) filter (where state = 'skipped') as skipped
        from tasker.steps
        where step_id >= tasker.first_step_id(p_task_id) and step_id < tasker.first_step_id(p_task_id + 1)
    ) as c
    where t.task_id = p_task_id
$$;

-- Counts a step of the given state as active, and as many revived as remaining.
create or replace function tasker.count_as_active(p_task_id bigint, p_state tasker.step_state, p_revived integer)
returns void language sql as $$
    update tasker.tasks set
        active_steps = active_steps + (p_state not in ('enqueued', 'in_progress'))::integer,
        retrying_steps = retrying_steps - (p_state = 'waiting_for_retry')::integer,
        failed_steps = failed_steps - (p_state = 'error')::integer,
        remaining_steps = remaining_steps + p_revived, cancelled_steps = cancelled_steps - p_revived
    where task_id = p_task_id
$$;

-- Lets a step that failed for good, or waits for its retry, run again at once, with all its attempts beside those that it
-- had. False when it is in the queue or in a worker's hands.
create or replace function tasker.reset_step(
    p_task_id bigint, p_step_name text, p_actor text, p_reason text, p_deadline_seconds double precision default null
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_task tasker.tasks := tasker.hold_run(p_task_id);
    v_step_id bigint := tasker.find_step(v_task, p_step_name);
    v_now timestamptz := tasker.now();
    v_metadata json := json_build_object('action', 'reset', 'step', p_step_name, 'reason', p_reason);
    v_step tasker.steps;
    v_revived bigint[];
begin
    select * into v_step from tasker.steps where step_id = v_step_id;
    if v_step.state in ('enqueued', 'in_progress') then
        return false;
    end if;
    if v_step.state not in ('error', 'waiting_for_retry') then
        raise exception 'step % of task % is %: only one that failed or waits for its retry is reset', p_step_name,
            v_task.task_uuid, v_step.state using errcode = 'TK021';
    end if;
    perform tasker.take_up_task(v_task, false, v_actor_id, v_now, v_metadata::jsonb, p_deadline_seconds);
    v_revived := tasker.cancelled_steps(v_task);
    perform tasker.count_as_active(p_task_id, v_step.state,
        tasker.send_back_steps(v_revived, 'revived', v_actor_id, v_now, v_metadata));
    update tasker.steps s set state = 'enqueued', enqueued_at = v_now, next_attempt_at = null,
        attempts_allowed = tasker.more_attempts(s.attempts_allowed, d.max_attempts)
    from tasker.definitions d where s.step_id = v_step_id and d.definition_id = s.definition_id;
    delete from tasker.timers where task_id = p_task_id and step_id = v_step_id;
    insert into tasker.step_log (step_id, at, passage, actor_id, metadata)
    values (v_step_id, v_now, case v_step.state when 'error' then 'reset' else 'retried' end::tasker.step_passage,
        v_actor_id, v_metadata);
    perform tasker.go_on(v_actor_id, v_now, v_step, 'enqueued', v_revived, array[v_step_id]);
    return true;
end $$;

-- Ends a step by hand: 'resolved_manually' without a result, 'complete' with one, 'skipped' as if it were not to run.
-- A claim of it becomes void. False when it is so already.
create or replace function tasker.end_step(
    p_task_id bigint, p_step_name text, p_state tasker.step_state, p_actor text, p_metadata json,
    p_deadline_seconds double precision, p_result json default null, p_branches text[] default null
) returns boolean language plpgsql as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_task tasker.tasks := tasker.hold_run(p_task_id);
    v_step_id bigint := tasker.find_step(v_task, p_step_name);
    v_now timestamptz;
    v_step tasker.steps;
    v_type tasker.step_type;
    v_chosen text[];
    v_refused text[];
    v_revived bigint[];
begin
    perform tasker.unqueue_steps(array[v_step_id]);
    v_now := tasker.now();
    select * into v_step from tasker.steps where step_id = v_step_id;
    if v_step.state = p_state and p_state <> 'complete' then
        return false;
    end if;
    if v_step.state in ('complete', 'cancelled', 'resolved_manually', 'skipped') then
        raise exception 'step % of task % is %: the task can only be run again from it', p_step_name, v_task.task_uuid,
            v_step.state using errcode = 'TK021';
    end if;
    if p_state = 'complete' then
        select d.type into v_type from tasker.definitions d where d.definition_id = v_step.definition_id;
        if v_type = 'batchable' then
            raise exception 'step % divides work into a batch, which only its handler can: resolve or skip it for none',
                p_step_name using errcode = 'TK021';
        end if;
        if v_type = 'decision' and p_branches is null then
            raise exception 'step % is a decision: which steps it chooses is needed, or that it chooses none', p_step_name
                using errcode = 'TK021';
        end if;
        if p_branches is not null then
            select chosen, refused into v_chosen, v_refused from tasker.judge_decisions(
                array[v_step_id], array['decide'], array[array_to_string(p_branches, ',')]);
            if v_refused[1] is not null then
                raise exception '%', v_refused[1] using errcode = 'TK021';
            end if;
        end if;
    end if;
    perform tasker.take_up_task(v_task, false, v_actor_id, v_now, p_metadata::jsonb, p_deadline_seconds);
    v_revived := tasker.cancelled_steps(v_task);
    perform tasker.count_as_active(p_task_id, v_step.state,
        tasker.send_back_steps(v_revived, 'revived', v_actor_id, v_now, p_metadata));
    with ended as (
        delete from tasker.leases where step_id = v_step_id returning *
    )
    insert into tasker.step_log (log_id, step_id, at, passage, actor_id, attempt, beginning, began_by, began_at, metadata)
    select coalesce(e.log_id, nextval('tasker.step_log_ids')), v_step_id, v_now, (case p_state
            when 'complete' then 'completed_by_hand_' when 'skipped' then 'skipped_' else 'resolved_' end
            || v_step.state)::tasker.step_passage,
        v_actor_id, e.attempt, e.beginning, nullif(e.actor_id, v_actor_id), e.started_at, p_metadata
    from (values (1)) as always left join ended e on true;
    update tasker.steps set state = p_state, completed_at = v_now, next_attempt_at = null, open_edges = 0,
        result = case when p_state = 'complete' then coalesce(p_result, 'null') end,
        result_bytes = case when p_state = 'complete' then octet_length(coalesce(p_result::text, 'null')) end,
        chosen = v_chosen[1]::integer[], error = case when p_state <> 'complete' then error end
    where step_id = v_step_id;
    delete from tasker.timers where task_id = p_task_id and step_id = v_step_id;
    perform tasker.go_on(v_actor_id, v_now, v_step,
        case p_state when 'skipped' then 'skipped' else 'complete' end::tasker.step_state, v_revived || array(
            select tasker.first_step_id(p_task_id) + tasker.place_of(e.to_definition_id)
            from tasker.definition_edges e where e.from_definition_id = v_step.definition_id
        ), null);
    return true;
end $$;

-- Declares a step dealt with: what depends on it goes on, without a result of it. Of a decision no branch is chosen, and of a
-- batchable step no batch is made.
create or replace function tasker.resolve_step(
    p_task_id bigint, p_step_name text, p_actor text, p_reason text, p_deadline_seconds double precision default null
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return tasker.end_step(p_task_id, p_step_name, 'resolved_manually', p_actor,
        json_build_object('action', 'resolve', 'step', p_step_name, 'reason', p_reason), p_deadline_seconds);
end $$;

-- Gives a step the result that its handler would have returned; a decision needs the names of the steps to run too, which
-- may be none. A batchable step cannot be. Whether the result is what the resultSchema asks for is for the caller to check.
create or replace function tasker.complete_step(
    p_task_id bigint, p_step_name text, p_result json, p_branches text[], p_actor text, p_reason text,
    p_deadline_seconds double precision default null
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return tasker.end_step(p_task_id, p_step_name, 'complete', p_actor, json_build_object('action', 'complete',
        'step', p_step_name, 'reason', p_reason, 'branches', p_branches), p_deadline_seconds, p_result, p_branches);
end $$;

-- Leaves a step out, and all that only it leads to.
create or replace function tasker.skip_step(
    p_task_id bigint, p_step_name text, p_actor text, p_reason text, p_deadline_seconds double precision default null
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return tasker.end_step(p_task_id, p_step_name, 'skipped', p_actor,
        json_build_object('action', 'skip', 'step', p_step_name, 'reason', p_reason), p_deadline_seconds);
end $$;

-- A step and all that depends on it, directly or not.
create or replace function tasker.steps_from(p_step_id bigint) returns bigint[] language sql stable as $$
    with recursive reached(definition_id) as (
        select s.definition_id from tasker.steps s where s.step_id = p_step_id
        union
        select e.to_definition_id from reached r join tasker.definition_edges e on e.from_definition_id = r.definition_id
    )
    select array_agg(tasker.first_step_id(tasker.task_of_step(p_step_id)) + tasker.place_of(r.definition_id)
        order by r.definition_id)
    from reached r
$$;

-- Has a run go again from a step: it and all that depends on it are as if they had not run, but for their history and their
-- attempts; claims of them become void. Works for runs that have ended, too, but not for one that was resolved as a whole.
-- Returns how many steps went back, 0 when none of them had gone anywhere yet.
create or replace function tasker.rerun_from(
    p_task_id bigint, p_step_name text, p_actor text, p_reason text, p_deadline_seconds double precision default null
) returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_task tasker.tasks := tasker.hold_run(p_task_id);
    v_step_id bigint := tasker.find_step(v_task, p_step_name);
    v_affected bigint[] := tasker.steps_from(v_step_id);
    v_now timestamptz;
    v_metadata json := json_build_object('action', 'rerun', 'step', p_step_name, 'reason', p_reason);
    v_step tasker.steps;
    v_count integer;
    v_skipped bigint[];
begin
    perform tasker.unqueue_steps(v_affected);
    v_now := tasker.now();
    if not exists (
        select from unnest(v_affected) as given(step_id) join tasker.steps s on s.step_id = given.step_id
        where s.state <> 'pending')
    then
        return 0;
    end if;
    perform tasker.refuse_divided(v_task, v_affected);
    perform tasker.take_up_task(v_task, true, v_actor_id, v_now, v_metadata::jsonb, p_deadline_seconds);
    perform tasker.interrupt_steps(v_affected, v_actor_id, v_now, v_metadata);
    v_count := tasker.send_back_steps(v_affected, 'rerun', v_actor_id, v_now, v_metadata)
        + tasker.send_back_steps(tasker.cancelled_steps(v_task), 'revived', v_actor_id, v_now, v_metadata);
    perform tasker.recount_steps(p_task_id);
    select * into v_step from tasker.steps where step_id = v_step_id;
    -- Those that were revived are pending by now, and nothing is harmed by counting for others what is so already.
    select skipped into v_skipped from tasker.go_on(v_actor_id, v_now, v_step, 'pending', case
        when v_task.cancelled_steps = 0 then v_affected
        else array(
            select s.step_id from tasker.steps s
            where s.step_id >= tasker.first_step_id(p_task_id) and s.step_id < tasker.first_step_id(p_task_id + 1)
                and s.state = 'pending')
        end, null);
    if v_step_id = any (v_skipped) then
        raise exception 'step % of task % is left out because of what comes before it: run it again from there',
            p_step_name, v_task.task_uuid using errcode = 'TK021';
    end if;
    return v_count;
end $$;
