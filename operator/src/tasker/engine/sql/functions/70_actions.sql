-- What people (and deadlines) do to a run. Each is one function, records who and why, and takes locks in the one order.

-- Ends a run: what has not ended is cancelled, claims become void. The caller holds the task's row.
create or replace function tasker.stop_steps(p_task_id bigint, p_actor text, p_now timestamptz, p_metadata jsonb)
returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
    v_first bigint := tasker.first_step_id(p_task_id);
    v_next bigint := tasker.first_step_id(p_task_id + 1);
    v_stopped integer;
begin
    delete from tasker.ready_steps where step_id >= v_first and step_id < v_next;
    delete from tasker.timers where task_id = p_task_id;
    -- The states before the change are what the log has to show, hence the self-join.
    with open_steps as (
        select step_id, state from tasker.steps
        where step_id >= v_first and step_id < v_next
            and state in ('pending', 'enqueued', 'in_progress', 'waiting_for_retry')
    ), stopped as (
        update tasker.steps s set state = 'cancelled', completed_at = p_now, next_attempt_at = null
        from open_steps o where s.step_id = o.step_id
        returning s.step_id, o.state
    ), logged as (
        insert into tasker.step_transitions (step_id, from_state, event, to_state, actor, at, metadata)
        select step_id, state, 'cancel', 'cancelled', p_actor, p_now, p_metadata from stopped
    )
    select count(*) into v_stopped from stopped;
    delete from tasker.leases where step_id >= v_first and step_id < v_next;
    return v_stopped;
end $$;

-- Cancels a run for good. False when it had ended already.
create or replace function tasker.cancel_task(p_task_id bigint, p_actor text, p_reason text)
returns boolean language plpgsql as $$
declare
    v_now timestamptz := tasker.now();
    v_task tasker.tasks;
    v_stopped integer;
begin
    select * into v_task from tasker.tasks where task_id = p_task_id and completed_at is null for no key update;
    if not found then
        return false;
    end if;
    v_stopped := tasker.stop_steps(p_task_id, p_actor, v_now, jsonb_build_object('reason', p_reason));
    update tasker.tasks set state = 'cancelled', completed_at = v_now, active_steps = 0, retrying_steps = 0,
        remaining_steps = remaining_steps - v_stopped, cancelled_steps = v_stopped,
        error = jsonb_build_object('reason', 'cancelled', 'message', p_reason)
    where task_id = p_task_id;
    insert into tasker.task_transitions (task_id, from_state, event, to_state, actor, at, metadata)
    values (p_task_id, v_task.state, 'cancel', 'cancelled', p_actor, v_now, jsonb_build_object('reason', p_reason));
    return true;
end $$;

-- Ends a run in error for a reason of its own (its deadline passed): what has not ended is cancelled.
create or replace function tasker.fail_task(p_task_id bigint, p_actor text, p_reason text, p_message text)
returns boolean language plpgsql as $$
declare
    v_now timestamptz := tasker.now();
    v_task tasker.tasks;
    v_stopped integer;
begin
    select * into v_task from tasker.tasks where task_id = p_task_id and completed_at is null for no key update;
    if not found then
        return false;
    end if;
    v_stopped := tasker.stop_steps(p_task_id, p_actor, v_now, jsonb_build_object('reason', p_reason));
    update tasker.tasks set state = 'error', completed_at = v_now, active_steps = 0, retrying_steps = 0,
        remaining_steps = remaining_steps - v_stopped, cancelled_steps = v_stopped,
        error = jsonb_build_object('reason', p_reason, 'message', p_message)
    where task_id = p_task_id;
    insert into tasker.task_transitions (task_id, from_state, event, to_state, actor, at, metadata)
    select p_task_id, hop.source, hop.event, hop.target, p_actor, v_now, jsonb_build_object('reason', p_reason)
    from (values
        (1, 'waiting_for_retry'::tasker.task_state, 'retry_ready'::tasker.task_event,
            'enqueuing_steps'::tasker.task_state, v_task.state = 'waiting_for_retry'),
        (2, 'enqueuing_steps', 'enqueue_failed', 'error', v_task.state = 'waiting_for_retry'),
        (1, 'steps_in_process', 'step_settled', 'evaluating_results', v_task.state = 'steps_in_process'),
        (1, 'waiting_for_dependencies', 'dependencies_ready', 'evaluating_results',
            v_task.state = 'waiting_for_dependencies'),
        (2, 'evaluating_results', 'permanent_failure', 'blocked_by_failures',
            v_task.state in ('steps_in_process', 'waiting_for_dependencies')),
        (3, 'blocked_by_failures', 'give_up', 'error',
            v_task.state in ('steps_in_process', 'waiting_for_dependencies', 'blocked_by_failures'))
    ) as hop(place, source, event, target, taken)
    where hop.taken
    order by hop.place;
    return true;
end $$;

-- Suspends a run: what runs may end, nothing new starts. False when it had ended or was suspended already.
create or replace function tasker.suspend_task(p_task_id bigint) returns boolean language plpgsql as $$
begin
    update tasker.tasks set suspended = true where task_id = p_task_id and completed_at is null and not suspended;
    if not found then
        return false;
    end if;
    delete from tasker.ready_steps
    where step_id >= tasker.first_step_id(p_task_id) and step_id < tasker.first_step_id(p_task_id + 1);
    return true;
end $$;

-- Lets a suspended run go on: steps that are ready and not in anybody's hands go into the queue.
create or replace function tasker.resume_task(p_task_id bigint) returns boolean language plpgsql as $$
begin
    update tasker.tasks set suspended = false where task_id = p_task_id and completed_at is null and suspended;
    if not found then
        return false;
    end if;
    perform tasker.queue_steps(array_agg(step_id), tasker.now())
    from tasker.steps
    where step_id >= tasker.first_step_id(p_task_id) and step_id < tasker.first_step_id(p_task_id + 1)
        and state = 'enqueued';
    return true;
end $$;
