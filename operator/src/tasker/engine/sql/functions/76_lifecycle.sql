-- The limits that a template sets its runs: how long they may take, be in one state, and wait for a worker. Each is a timer
-- that the sweep (80_sweep.sql) looks at; a template without limits arms none.
--
-- Being in a state is measured from the last thing that happened in the run, since a run under way comes back to
-- steps_in_process with every outcome. While somebody holds a run back its time in a state does not count.

-- How long a run may be in a state, in seconds; null is for ever.
create or replace function tasker.state_limit(p_template tasker.templates, p_state tasker.task_state) returns integer
language sql immutable as $$
    select case p_state
        when 'steps_in_process' then p_template.max_steps_in_process_seconds
        when 'waiting_for_dependencies' then p_template.max_waiting_for_dependencies_seconds
        when 'waiting_for_retry' then p_template.max_waiting_for_retry_seconds
        when 'blocked_by_failures' then p_template.max_blocked_seconds end
$$;

-- The limit's name in a template.
create or replace function tasker.state_limit_name(p_state tasker.task_state) returns text
language sql immutable as $$
    select 'lifecycle.' || case p_state
        when 'steps_in_process' then 'maxStepsInProcessSeconds'
        when 'waiting_for_dependencies' then 'maxWaitingForDependenciesSeconds'
        when 'waiting_for_retry' then 'maxWaitingForRetrySeconds'
        when 'blocked_by_failures' then 'maxBlockedSeconds' end
$$;

-- A run that has come into a state: the timer of the one before goes, that of this one begins.
create or replace function tasker.arm_state_limit(p_task_id bigint, p_template_id bigint, p_state tasker.task_state)
returns void language plpgsql as $$
begin
    delete from tasker.timers where task_id = p_task_id and kind = 'state_limit';
    insert into tasker.timers (due_at, kind, task_id)
    select tasker.now() + tasker.state_limit(template, p_state) * interval '1 second', 'state_limit', p_task_id
    from tasker.templates template
    where template.template_id = p_template_id and tasker.state_limit(template, p_state) is not null;
end $$;

-- When something last happened in a run; being held back, or found stale, is nothing.
create or replace function tasker.last_moved_at(p_task_id bigint) returns timestamptz language plpgsql stable as $$
begin
    return (
        select at from tasker.task_log
        where task_id = p_task_id and passage not in ('held', 'found_stale') order by log_id desc limit 1
    );
end $$;

create or replace function tasker.due_state_limits_passed(p_limit integer, p_now timestamptz) returns bigint[]
language plpgsql stable as $$
begin
    return tasker.due_timers('state_limit', 'state_limits_passed', p_limit, p_now);
end $$;

-- A blocked run ends. Any other is dealt with as its template says: it ends (error), or is told of, once until it moves
-- again, and has a dead letter too (dlq). Returns how many ended or were told of.
create or replace function tasker.repair_state_limits_passed(p_timer_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(
        select task_id from tasker.timers where timer_id = any (p_timer_ids)));
    v_actor_id integer := tasker.actor_id(p_actor);
    v_now timestamptz := tasker.now();
    v_repaired integer := 0;
    v_task tasker.tasks;
    v_template tasker.templates;
    v_limit integer;
    v_since timestamptz;
    v_message text;
begin
    for v_task in
        with gone as (
            delete from tasker.timers where timer_id = any (p_timer_ids) and task_id = any (v_tasks) returning task_id
        )
        select t.* from gone join tasker.tasks t on t.task_id = gone.task_id where t.completed_at is null order by t.task_id
    loop
        select * into v_template from tasker.templates where template_id = v_task.template_id;
        v_limit := tasker.state_limit(v_template, v_task.state);
        v_since := case when v_task.suspended then v_now else tasker.last_moved_at(v_task.task_id) end;
        v_message := format('nothing has happened for %s s in %s (%s)', v_limit, v_task.state,
            tasker.state_limit_name(v_task.state));
        if v_since + v_limit * interval '1 second' > v_now then
            insert into tasker.timers (due_at, kind, task_id)
            values (v_since + v_limit * interval '1 second', 'state_limit', v_task.task_id);
        elsif v_task.state = 'blocked_by_failures' then
            v_message := format('nobody has helped it for %s s (%s): step %s failed: %s: %s', v_limit,
                tasker.state_limit_name(v_task.state), v_task.error ->> 'step', v_task.error ->> 'error_type',
                v_task.error ->> 'message');
            perform tasker.fail_task(v_task.task_id, p_actor, 'blocked_too_long', v_message);
            v_repaired := v_repaired + 1;
        elsif v_template.staleness_action = 'error' then
            perform tasker.fail_task(v_task.task_id, p_actor, 'staleness_timeout', v_message);
            v_repaired := v_repaired + 1;
        else
            insert into tasker.timers (due_at, kind, task_id)
            values (v_now + v_limit * interval '1 second', 'state_limit', v_task.task_id);
            if v_task.stale is null then
                update tasker.tasks set stale = jsonb_build_object('state', v_task.state, 'since', v_since, 'message', v_message)
                where task_id = v_task.task_id;
                insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
                values (v_task.task_id, v_now, 'found_stale', v_actor_id, jsonb_build_object('message', v_message));
                if v_template.staleness_action = 'dlq' then
                    perform from tasker.open_dead_letters(array[v_task.task_id], array[null::bigint],
                        array['staleness_timeout']::tasker.dead_letter_reason[], v_actor_id, v_now, v_message);
                end if;
                v_repaired := v_repaired + 1;
            end if;
        end if;
    end loop;
    return v_repaired;
end $$;

-- Ends a run that is past its deadline, which is the template's maxDurationSeconds where that is the earlier: then it has a
-- dead letter as well, when that is what the template wants of stale runs.
create or replace function tasker.fail_late_task(p_task_id bigint, p_actor text) returns boolean language plpgsql as $$
declare
    v_task tasker.tasks;
    v_template tasker.templates;
    v_too_long boolean;
    v_message text := 'the task passed its deadline';
begin
    select * into v_task from tasker.tasks where task_id = p_task_id;
    select * into v_template from tasker.templates where template_id = v_task.template_id;
    v_too_long := coalesce(v_task.deadline = v_task.created_at + v_template.max_duration_seconds * interval '1 second', false);
    if v_too_long then
        v_message := format('the task took longer than %s s (lifecycle.maxDurationSeconds)', v_template.max_duration_seconds);
    end if;
    if not tasker.fail_task(p_task_id, p_actor, 'deadline_exceeded', v_message) then
        return false;
    end if;
    if v_too_long and v_template.staleness_action = 'dlq' then
        perform from tasker.open_dead_letters(array[p_task_id], array[null::bigint],
            array['staleness_timeout']::tasker.dead_letter_reason[], tasker.actor_id(p_actor), tasker.now(), v_message);
    end if;
    return true;
end $$;

-- Ready steps whose callable may have no worker, those that were just made ready and those that were found without one.
create or replace function tasker.due_workers_awaited(p_limit integer, p_now timestamptz) returns bigint[]
language plpgsql stable as $$
begin
    return tasker.due_timers('worker_missing', 'workers_awaited', p_limit, p_now)
        || tasker.due_timers('worker_still_missing', 'workers_awaited', p_limit, p_now);
end $$;

-- A step fails when twice, half of its time apart, no worker offered its callable: one look alone might come while a pool's
-- workers are replaced. A worker whose lease has run out counts until the sweep has given it up. Returns how many failed.
create or replace function tasker.repair_workers_awaited(p_timer_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(
        select task_id from tasker.timers where timer_id = any (p_timer_ids)));
    v_now timestamptz := tasker.now();
    v_step_ids bigint[];
begin
    with due as (
        delete from tasker.timers where timer_id = any (p_timer_ids) and task_id = any (v_tasks)
        returning task_id, step_id, kind, due_at
    ), waiting as materialized (
        select due.task_id, due.step_id, due.kind, d.worker_timeout_ms / 2 * interval '1 millisecond' as half, exists (
            select from tasker.workers w
            where w.namespace = r.namespace and r.callable = any (w.callables) and not w.draining
        ) as offered
        from due
        join tasker.ready_steps r on r.step_id = due.step_id
        join tasker.steps s on s.step_id = r.step_id
        join tasker.definitions d on d.definition_id = s.definition_id
        -- As with schedule_timeouts: one that left the queue and came back has a timer of its own.
        where r.ready_at + d.worker_timeout_ms / 2 * interval '1 millisecond' <= due.due_at
    ), looked_at_again as (
        insert into tasker.timers (due_at, kind, task_id, step_id)
        select v_now + w.half, case when w.offered then 'worker_missing' else 'worker_still_missing' end, w.task_id, w.step_id
        from waiting w where w.offered or w.kind = 'worker_missing'
    )
    select array_agg(w.step_id) into v_step_ids
    from waiting w where not w.offered and w.kind = 'worker_still_missing';
    return tasker.expire_queued_steps(v_step_ids, p_actor, v_now, 'worker_unavailable',
        'no worker offered its callable for lifecycle.maxWaitingForWorkerSeconds');
end $$;
