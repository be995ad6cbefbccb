-- The sweep repairs what time has broken. It is idempotent, bounded, and does nothing while another one runs; workers
-- and operators all call it about once a second, so that it needs no leader. A run that somebody else holds is left to
-- the next one: it is not waited for, since all others would have to wait with it.

-- Puts steps whose retry is due back into the queue; the caller holds their tasks' rows. Returns how many.
create or replace function tasker.retry_steps(p_step_ids bigint[], p_actor text, p_now timestamptz)
returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
    v_due bigint[];
begin
    with due as (
        update tasker.steps set state = 'enqueued', enqueued_at = p_now, next_attempt_at = null
        where step_id = any (p_step_ids) and next_attempt_at <= p_now
        returning step_id
    )
    select array_agg(step_id) into v_due from due;
    if v_due is null then
        return 0;
    end if;
    insert into tasker.step_transitions (step_id, from_state, event, to_state, actor, at)
    select id, 'waiting_for_retry', 'retry', 'enqueued', p_actor, p_now from unnest(v_due) as due(id);

    with counted as (
        select tasker.task_of_step(id) as task_id, count(*)::integer as due from unnest(v_due) as due(id) group by 1
    ), before as (
        select t.task_id, t.state, c.due from counted c join tasker.tasks t on t.task_id = c.task_id
    ), moved as (
        update tasker.tasks t set state = 'steps_in_process', active_steps = t.active_steps + b.due,
            retrying_steps = t.retrying_steps - b.due
        from before b where t.task_id = b.task_id
        returning t.task_id, b.state
    )
    insert into tasker.task_transitions (task_id, from_state, event, to_state, actor, at)
    select m.task_id, hop.source, hop.event, hop.target, p_actor, p_now
    from moved m cross join (values
        (1, 'waiting_for_retry'::tasker.task_state, 'retry_ready'::tasker.task_event,
            'enqueuing_steps'::tasker.task_state),
        (2, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process')
    ) as hop(place, source, event, target)
    where m.state = 'waiting_for_retry'
    order by m.task_id, hop.place;

    perform tasker.queue_steps(v_due, p_now);
    return cardinality(v_due);
end $$;

-- Fails steps that waited in the queue longer than their template allows, without running them; the caller holds their
-- tasks' rows. The log shows the attempt that was never given to a worker as started and failed in one moment.
create or replace function tasker.expire_queued_steps(p_step_ids bigint[], p_actor text, p_now timestamptz)
returns integer language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
    v_nobody tasker.workers;
    v_taken bigint[];
    v_fences bigint[];
    v_failed integer;
begin
    with taken as (
        delete from tasker.ready_steps where step_id = any (p_step_ids) returning step_id
    )
    select array_agg(step_id) into v_taken from taken;
    if v_taken is null then
        return 0;
    end if;
    v_nobody.worker_id := 0;
    v_nobody.name := p_actor;
    perform 1 from tasker.start_steps(v_nobody, v_taken, p_now);
    select array_agg(step_id), array_agg(fence) into v_taken, v_fences
    from tasker.leases where step_id = any (v_taken);
    select count(*) into v_failed from tasker.apply_outcomes(p_actor, p_now, v_taken, v_fences,
        array_fill('error'::text, array[cardinality(v_taken)]),
        array_fill(jsonb_build_object('error_type', 'schedule_timeout', 'retryable', false, 'message',
            'no worker took the step within its scheduleTimeoutSeconds'), array[cardinality(v_taken)]))
    where kind = 'settled';
    return v_failed;
end $$;

-- Keeps partitions for the next eight days (of UTC), so that the default partitions stay empty. A partition is made as
-- a table of its own and then attached, since making it in place would stop all who write history meanwhile.
create or replace function tasker.ensure_partitions() returns integer language plpgsql
set lock_timeout = '2s' set timezone = 'UTC' as $$
declare
    v_parent text;
    v_day date;
    v_name text;
    v_created integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('tasker.partitions'));
    foreach v_parent in array array['task_transitions', 'step_transitions'] loop
        for v_day in select generate_series(current_date, current_date + 8, interval '1 day')::date loop
            v_name := v_parent || to_char(v_day, '_YYYYMMDD');
            if to_regclass('tasker.' || v_name) is null then
                execute format('create table tasker.%I (like tasker.%I including all)', v_name, v_parent);
                execute format('alter table tasker.%I attach partition tasker.%I for values from (%L) to (%L)',
                    v_parent, v_name, v_day::timestamptz, (v_day + 1)::timestamptz);
                v_created := v_created + 1;
            end if;
        end loop;
    end loop;
    return v_created;
end $$;

-- Steps of the given runs that are enqueued with neither a row of ready_steps nor a lease, and have been for a while.
-- A run's steps are read only when its count of active steps says that some are missing.
create or replace function tasker.find_lost_steps(p_task_ids bigint[], p_now timestamptz)
returns bigint[] language sql stable
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
    select array_agg(s.step_id)
    from unnest(p_task_ids) as looked_at(task_id)
    join tasker.tasks t on t.task_id = looked_at.task_id
    join tasker.steps s on s.step_id >= tasker.first_step_id(t.task_id) and s.step_id < tasker.first_step_id(t.task_id + 1)
    where not t.suspended and t.active_steps > (
            select count(*) from tasker.ready_steps r
            where r.step_id >= tasker.first_step_id(t.task_id) and r.step_id < tasker.first_step_id(t.task_id + 1)
        ) + (
            select count(*) from tasker.leases l
            where l.step_id >= tasker.first_step_id(t.task_id) and l.step_id < tasker.first_step_id(t.task_id + 1)
        )
        and s.state = 'enqueued' and s.enqueued_at < p_now - interval '5 seconds'
        and not exists (select from tasker.ready_steps r where r.step_id = s.step_id)
$$;

create or replace function tasker.sweep(p_limit integer)
returns table (repair text, repaired integer) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
    v_now timestamptz := tasker.now();
    v_actor constant text := 'sweep';
    v_workers bigint[];
    v_left_steps bigint[];
    v_left_fences bigint[];
    v_overdue_steps bigint[];
    v_overdue_fences bigint[];
    v_retry_timers bigint[];
    v_retry_steps bigint[];
    v_queue_timers bigint[];
    v_queue_tasks bigint[];
    v_queued_steps bigint[];
    v_deadlines bigint[];
    v_looked_at bigint[];
    v_lost bigint[];
    v_tasks bigint[];
    v_left integer;
    v_gone integer;
    v_overdue integer;
    v_retried integer;
    v_untaken integer;
    v_late integer;
begin
    if not pg_try_advisory_xact_lock(hashtext('tasker.sweep')) then
        return;
    end if;

    -- First all that is to be repaired is found, then the tasks concerned are locked in one go and in order, except those
    -- that somebody else holds, then the repairs are made: each of them alone would take its tasks in order, but not all
    -- of them after each other.

    -- Workers that did not renew in time.
    select array_agg(worker_id) into v_workers from (
        select worker_id from tasker.workers where lease_until < v_now limit p_limit for update skip locked
    ) as late;
    -- Attempts far over their time, whose worker should have ended them and did not.
    select array_agg(step_id), array_agg(fence) into v_overdue_steps, v_overdue_fences from (
        select step_id, fence from tasker.leases
        where timeout_at < v_now - tasker.setting('timeout_grace_seconds', 60) * interval '1 second'
        limit p_limit
    ) as overdue;
    -- Retries that are due.
    select array_agg(timer_id), array_agg(step_id) into v_retry_timers, v_retry_steps from (
        select timer_id, step_id from tasker.timers where due_at <= v_now and kind = 'retry' order by due_at limit p_limit
    ) as due;
    -- Steps that waited too long in the queue. A timer says nothing about a step that has left the queue since, and
    -- perhaps come back: released, tried again, or its run was suspended.
    select array_agg(due.timer_id), array_agg(due.task_id), array_agg(d.step_id)
        into v_queue_timers, v_queue_tasks, v_queued_steps
    from (
        select timer_id, task_id, step_id, due_at from tasker.timers
        where due_at <= v_now and kind = 'schedule_timeout' order by due_at limit p_limit
    ) as due
    left join lateral (
        select r.step_id
        from tasker.ready_steps r
        cross join lateral (select * from tasker.steps f where f.step_id = r.step_id offset 0) s
        cross join lateral (
            select * from tasker.template_steps f
            where f.template_id = s.template_id and f.position = s.template_position offset 0
        ) d
        where r.step_id = due.step_id
            and r.ready_at + d.schedule_timeout_ms * interval '1 millisecond' <= due.due_at
    ) d on true;
    -- Runs past their deadline.
    select array_agg(task_id) into v_deadlines from (
        select task_id from tasker.timers where due_at <= v_now and kind = 'deadline' order by due_at limit p_limit
    ) as due;
    -- Steps that could run and are in nobody's hands. There should never be one; a hundred open runs are looked at each
    -- time, in turn, and from the first again after the last.
    select array_agg(task_id) into v_looked_at from (
        select task_id from tasker.tasks
        where completed_at is null and task_id > tasker.setting('sweep_cursor', 0)::bigint
        order by task_id limit 100
    ) as looked_at;
    insert into tasker.settings (key, value)
    values ('sweep_cursor', to_jsonb(coalesce(v_looked_at[100], 0)))
    on conflict (key) do update set value = excluded.value where settings.value <> excluded.value;
    v_lost := tasker.find_lost_steps(v_looked_at, v_now);

    select array_agg(task_id) into v_tasks from (
        select task_id from tasker.tasks
        where task_id in (
            select tasker.task_of_step(step_id) from tasker.leases where worker_id = any (v_workers)
            union select tasker.task_of_step(id)
                from unnest(v_overdue_steps || v_retry_steps || v_lost) as given(id)
            union select id from unnest(v_queue_tasks || v_deadlines) as given(id)
        )
        order by task_id for no key update skip locked
    ) as locked;

    select array_agg(step_id), array_agg(fence) into v_left_steps, v_left_fences from tasker.leases
    where worker_id = any (v_workers) and tasker.task_of_step(step_id) = any (v_tasks);
    v_left := tasker.expire_leases(v_actor, v_left_steps, v_left_fences, 'its lease was not renewed in time');
    delete from tasker.workers w
    where worker_id = any (v_workers) and not exists (select from tasker.leases l where l.worker_id = w.worker_id);
    get diagnostics v_gone = row_count;

    select array_agg(step_id), array_agg(fence) into v_overdue_steps, v_overdue_fences
    from unnest(v_overdue_steps, v_overdue_fences) as overdue(step_id, fence)
    where tasker.task_of_step(step_id) = any (v_tasks);
    v_overdue := tasker.expire_leases(
        v_actor, v_overdue_steps, v_overdue_fences, 'the attempt is far over its timeout');

    select array_agg(timer_id), array_agg(step_id) into v_retry_timers, v_retry_steps
    from unnest(v_retry_timers, v_retry_steps) as due(timer_id, step_id)
    where tasker.task_of_step(step_id) = any (v_tasks);
    v_retried := tasker.retry_steps(v_retry_steps, v_actor, v_now);
    delete from tasker.timers where timer_id = any (v_retry_timers);

    select array_agg(timer_id) into v_queue_timers
    from unnest(v_queue_timers, v_queue_tasks) as due(timer_id, task_id) where task_id = any (v_tasks);
    select array_agg(id) into v_queued_steps
    from unnest(v_queued_steps) as queued(id) where tasker.task_of_step(id) = any (v_tasks);
    v_untaken := tasker.expire_queued_steps(v_queued_steps, v_actor, v_now);
    delete from tasker.timers where timer_id = any (v_queue_timers);

    select count(*) into v_late from unnest(v_deadlines) as late(task_id)
    where task_id = any (v_tasks)
        and tasker.fail_task(task_id, v_actor, 'deadline_exceeded', 'the task passed its deadline');

    -- Looked for again among the tasks that are held now: a step may have been queued meanwhile.
    v_lost := tasker.find_lost_steps(array(
        select distinct tasker.task_of_step(id) from unnest(v_lost) as lost(id)
        where tasker.task_of_step(id) = any (v_tasks)), v_now);
    perform tasker.queue_steps(v_lost, v_now);

    return query
    select made.repair, made.repaired from (values ('leases_expired', v_left), ('workers_expired', v_gone),
        ('attempts_timed_out', v_overdue), ('retries_due', v_retried), ('schedule_timeouts', v_untaken),
        ('deadlines_passed', v_late), ('lost_steps_requeued', cardinality(v_lost))) as made(repair, repaired)
    where made.repaired > 0;

    if to_regclass('tasker.step_transitions'
        || to_char((clock_timestamp() + interval '7 days') at time zone 'UTC', '_YYYYMMDD')) is null
    then
        begin
            return query select 'partitions_created', tasker.ensure_partitions();
        exception when lock_not_available then
            null; -- a long read of the history is in the way; there are days left to try again
        end;
    end if;
end $$;
