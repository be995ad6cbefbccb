-- What people (and deadlines) do to a run. Each is one function, records who and why, and takes locks in the one order.

-- Cancels the steps from one to before the next, all of one run, that have not ended: claims of them become void. The caller
-- holds the run's row, counts them there, and sees to timers. Tells how many these were, and in which states.
create or replace function tasker.cancel_steps(
    p_first bigint, p_next bigint, p_actor_id integer, p_now timestamptz, p_metadata json
) returns tasker.cancellation language plpgsql as $$
declare
    v_cancelled tasker.cancellation;
begin
    delete from tasker.ready_steps where step_id >= p_first and step_id < p_next;
    -- The states before the change are what the log has to show, hence the self-join.
    with open_steps as (
        select step_id, state from tasker.steps
        where step_id >= p_first and step_id < p_next
            and state in ('pending', 'enqueued', 'in_progress', 'waiting_for_retry')
    ), stopped as (
        update tasker.steps s set state = 'cancelled', completed_at = p_now, next_attempt_at = null
        from open_steps o where s.step_id = o.step_id
        returning s.step_id, o.state
    ), ended as (
        delete from tasker.leases where step_id >= p_first and step_id < p_next returning *
    ), logged as (
        insert into tasker.step_log (log_id, step_id, at, passage, actor_id, attempt, beginning, began_by, began_at, metadata)
        select coalesce(e.log_id, nextval('tasker.step_log_ids')), s.step_id, p_now,
            ('cancelled_' || s.state)::tasker.step_passage, p_actor_id, e.attempt, e.beginning,
            nullif(e.actor_id, p_actor_id), e.started_at, p_metadata
        from stopped s left join ended e on e.step_id = s.step_id
    )
    select tasker.task_of_step(p_first), count(*), count(*) filter (where state in ('enqueued', 'in_progress')),
        count(*) filter (where state = 'waiting_for_retry') into v_cancelled
    from stopped;
    return v_cancelled;
end $$;

-- Ends a run: what has not ended is cancelled, and nothing of it is timed any more. Returns how many steps that were. The
-- caller holds the task's row.
create or replace function tasker.stop_steps(
    p_task_id bigint, p_actor_id integer, p_now timestamptz, p_metadata json
) returns integer language plpgsql as $$
begin
    delete from tasker.timers where task_id = p_task_id;
    return (tasker.cancel_steps(
        tasker.first_step_id(p_task_id), tasker.first_step_id(p_task_id + 1), p_actor_id, p_now, p_metadata)).every;
end $$;

-- Cancels a run for good. False when it had ended already.
create or replace function tasker.cancel_task(p_task_id bigint, p_actor text, p_reason text)
returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_now timestamptz;
    v_task tasker.tasks;
    v_stopped integer;
begin
    select * into v_task from tasker.tasks where task_id = p_task_id and completed_at is null for no key update;
    if not found then
        return false;
    end if;
    v_now := tasker.now();
    v_stopped := tasker.stop_steps(p_task_id, v_actor_id, v_now, json_build_object('reason', p_reason));
    update tasker.tasks set state = 'cancelled', completed_at = v_now, active_steps = 0, retrying_steps = 0,
        remaining_steps = remaining_steps - v_stopped, cancelled_steps = cancelled_steps + v_stopped,
        error = jsonb_build_object('reason', 'cancelled', 'message', p_reason)
    where task_id = p_task_id;
    insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
    values (p_task_id, v_now, ('cancelled_' || v_task.state)::tasker.task_passage, v_actor_id,
        jsonb_build_object('reason', p_reason));
    return true;
end $$;

-- Ends a run in error for a reason of its own (its deadline passed): what has not ended is cancelled.
create or replace function tasker.fail_task(p_task_id bigint, p_actor text, p_reason text, p_message text)
returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_now timestamptz;
    v_task tasker.tasks;
    v_stopped integer;
begin
    select * into v_task from tasker.tasks where task_id = p_task_id and completed_at is null for no key update;
    if not found then
        return false;
    end if;
    v_now := tasker.now();
    v_stopped := tasker.stop_steps(p_task_id, v_actor_id, v_now, json_build_object('reason', p_reason));
    update tasker.tasks set state = 'error', completed_at = v_now, active_steps = 0, retrying_steps = 0,
        remaining_steps = remaining_steps - v_stopped, cancelled_steps = cancelled_steps + v_stopped,
        error = jsonb_build_object('reason', p_reason, 'message', p_message)
    where task_id = p_task_id;
    insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
    values (p_task_id, v_now, case v_task.state
        when 'pending' then 'failed_pending'
        when 'steps_in_process' then 'failed'
        when 'waiting_for_retry' then 'failed_retrying'
        when 'waiting_for_dependencies' then 'failed_waiting'
        when 'blocked_by_failures' then 'failed_blocked' end::tasker.task_passage, v_actor_id,
        jsonb_build_object('reason', p_reason));
    return true;
end $$;

-- Holds a run back: what runs may end, nothing new starts. The resource that asked for it and people each have a hold of
-- their own. False when it had ended or was held so already.
create or replace function tasker.suspend_task(p_task_id bigint, p_hold tasker.hold, p_actor text, p_reason text)
returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
begin
    update tasker.tasks set holds = array_append(holds, p_hold)
    where task_id = p_task_id and completed_at is null and p_hold <> all (holds);
    if not found then
        return false;
    end if;
    delete from tasker.ready_steps
    where step_id >= tasker.first_step_id(p_task_id) and step_id < tasker.first_step_id(p_task_id + 1);
    insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
    values (p_task_id, tasker.now(), 'held', v_actor_id, jsonb_build_object('hold', p_hold, 'reason', p_reason));
    return true;
end $$;

-- Takes a hold back. When it was the last, steps that are ready and not in anybody's hands go into the queue. False when
-- the run had ended or was not held so.
create or replace function tasker.resume_task(p_task_id bigint, p_hold tasker.hold, p_actor text, p_reason text)
returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_suspended boolean;
    v_now timestamptz;
begin
    update tasker.tasks set holds = array_remove(holds, p_hold)
    where task_id = p_task_id and completed_at is null and p_hold = any (holds)
    returning suspended into v_suspended;
    if not found then
        return false;
    end if;
    v_now := tasker.now();
    insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
    values (p_task_id, v_now, 'let_go', v_actor_id, jsonb_build_object('hold', p_hold, 'reason', p_reason));
    if not v_suspended then
        perform tasker.queue_steps(array_agg(step_id), v_now)
        from tasker.steps
        where step_id >= tasker.first_step_id(p_task_id) and step_id < tasker.first_step_id(p_task_id + 1)
            and state = 'enqueued';
    end if;
    return true;
end $$;
