-- The sweep repairs what time has broken. It is idempotent, bounded, and does nothing while another one runs; workers
-- and operators all call it about once a second, so that it needs no leader. A run that somebody else holds is left to
-- the next one: it is not waited for, since all others would have to wait with it.
--
-- Each kind of repair is two functions: due_… finds what is to be repaired, repair_… does it and returns how much it did.
-- A kind that fails takes nothing back of the others. What it found is then tried one by one, and what fails again is
-- parked for a while with the reason, so that it keeps nothing else from being repaired.

-- Puts steps whose retry is due back into the queue; the caller holds their tasks' rows. Returns how many.
create or replace function tasker.retry_steps(p_step_ids bigint[], p_actor_id integer, p_now timestamptz)
returns integer language plpgsql as $$
declare
    v_placed bigint[] := tasker.take_places(array(
        select s.step_id from tasker.steps s where s.step_id = any (p_step_ids) and s.next_attempt_at <= p_now));
    v_due bigint[];
begin
    with due as (
        update tasker.steps set state = 'enqueued', enqueued_at = p_now, next_attempt_at = null
        where step_id = any (v_placed)
        returning step_id
    )
    select array_agg(step_id) into v_due from due;
    if v_due is null then
        return 0;
    end if;
    insert into tasker.step_log (step_id, at, passage, actor_id)
    select id, p_now, 'retried', p_actor_id from unnest(v_due) as due(id);

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
    insert into tasker.task_log (task_id, at, passage, actor_id)
    select m.task_id, p_now, 'retried', p_actor_id from moved m where m.state = 'waiting_for_retry';

    perform tasker.queue_steps(v_due, p_now);
    return cardinality(v_due);
end $$;

-- Fails steps that waited in the queue longer than their template allows, without running them, with an error type and
-- message that say for what; the caller holds their tasks' rows. The log shows the attempt that was never given to a worker as started and failed in one moment.
create or replace function tasker.expire_queued_steps(
    p_step_ids bigint[], p_actor text, p_now timestamptz, p_error_type text, p_message text
) returns integer language plpgsql as $$
declare
    v_nobody tasker.workers;
    v_taken bigint[];
    v_fences bigint[];
begin
    with taken as (
        delete from tasker.ready_steps where step_id = any (p_step_ids) returning step_id
    )
    select array_agg(step_id) into v_taken from taken;
    if v_taken is null then
        return 0;
    end if;
    v_nobody.worker_id := 0;
    v_nobody.actor_id := tasker.actor_id(p_actor);
    perform 1 from tasker.start_steps(v_nobody, v_taken, null, p_now);
    select array_agg(step_id), array_agg(fence) into v_taken, v_fences
    from tasker.leases where step_id = any (v_taken);
    perform from tasker.apply_outcomes(v_nobody.actor_id, v_taken, v_fences,
        array_fill('fail'::text, array[cardinality(v_taken)]),
        p_error_types => array_fill(p_error_type, array[cardinality(v_taken)]),
        p_messages => array_fill(p_message, array[cardinality(v_taken)]),
        p_retryable => array_fill(false, array[cardinality(v_taken)]));
    return cardinality(v_taken);
end $$;

-- Keeps partitions for the next eight days (of UTC), so that the default partitions stay empty, and for each day of which
-- there are rows in one: nobody may have looked for days. A partition is made as a table of its own and then attached,
-- since making it in place would stop all who write history meanwhile. Returns how many were made.
create or replace function tasker.ensure_partitions() returns integer language plpgsql
set lock_timeout = '2s' set timezone = 'UTC' as $$
declare
    v_parent text;
    v_day date;
    v_days date[];
    v_name text;
    v_strays boolean;
    v_created integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('tasker.partitions'));
    foreach v_parent in array array['task_log', 'step_log'] loop
        execute format('select exists (select from tasker.%I)', v_parent || '_default') into v_strays;
        if v_strays then
            -- Rows of a day cannot be in the default partition while that day's is attached: it goes, with a new one in
            -- its place, and they are inserted again. Nobody writes history meanwhile.
            execute format('alter table tasker.%I detach partition tasker.%I', v_parent, v_parent || '_default');
            execute format('alter table tasker.%I rename to %I', v_parent || '_default', v_parent || '_strays');
            execute format('create table tasker.%I partition of tasker.%I default', v_parent || '_default', v_parent);
            execute format('select array_agg(distinct (at at time zone ''UTC'')::date) from tasker.%I', v_parent || '_strays')
                into v_days;
        end if;
        for v_day in
            select generate_series(current_date, current_date + 8, interval '1 day')::date union select unnest(v_days) order by 1
        loop
            v_name := v_parent || to_char(v_day, '_YYYYMMDD');
            if to_regclass('tasker.' || v_name) is null then
                execute format('create table tasker.%I (like tasker.%I including all)', v_name, v_parent);
                execute format('alter table tasker.%I attach partition tasker.%I for values from (%L) to (%L)',
                    v_parent, v_name, v_day::timestamptz, (v_day + 1)::timestamptz);
                v_created := v_created + 1;
            end if;
        end loop;
        if v_strays then
            execute format('insert into tasker.%I select * from tasker.%I', v_parent, v_parent || '_strays');
            execute format('drop table tasker.%I', v_parent || '_strays');
        end if;
        v_days := null;
    end loop;
    return v_created;
end $$;

-- Since when workers have been able to reach the database: since its start, or the end of the last gap between sweeps.
-- Sweeps come every second as long as anybody reaches it.
create or replace function tasker.reachable_since() returns timestamptz language sql stable as $$
    select greatest(pg_postmaster_start_time(), (
        select (value #>> '{}')::timestamptz from tasker.settings where key = 'reachable_since'))
$$;

-- Notes that a sweep takes place, every few seconds, and how long there was none when that was long.
create or replace function tasker.note_sweep(p_now timestamptz) returns void language plpgsql as $$
declare
    v_last timestamptz := (select (value #>> '{}')::timestamptz from tasker.settings where key = 'swept_at');
begin
    if p_now - v_last < interval '5 seconds' then
        return;
    end if;
    insert into tasker.settings (key, value) values ('swept_at', to_jsonb(p_now))
    on conflict (key) do update set value = excluded.value;
    if p_now - v_last > interval '15 seconds' then
        insert into tasker.settings (key, value) values ('reachable_since', to_jsonb(p_now))
        on conflict (key) do update set value = excluded.value;
    end if;
end $$;

-- Locks those of the given runs that nobody else holds, in order, and returns them. Time is to be read after it.
create or replace function tasker.lock_free_tasks(p_task_ids bigint[]) returns bigint[] language plpgsql as $$
declare
    v_locked bigint[];
begin
    select array_agg(task_id) into v_locked from (
        select task_id from tasker.tasks where task_id = any (p_task_ids) order by task_id for no key update skip locked
    ) as locked;
    return v_locked;
end $$;

create or replace function tasker.is_parked(p_kind text, p_id bigint, p_now timestamptz) returns boolean
language sql stable as $$
    select exists (select from tasker.parked_repairs p where p.kind = p_kind and p.id = p_id and p.until > p_now)
$$;

-- Workers that did not renew in time, those that hold steps or those that hold none. After the server was away nobody
-- could renew: for half a lease from then on nobody is late.
create or replace function tasker.due_workers(p_holding boolean, p_repair text, p_limit integer, p_now timestamptz)
returns bigint[] language sql stable as $$
    select array_agg(worker_id) from (
        select w.worker_id from tasker.workers w
        where w.lease_until < p_now and p_now > tasker.reachable_since() + w.lease_seconds / 2 * interval '1 second'
            and exists (select from tasker.leases l where l.worker_id = w.worker_id) = p_holding
            and not tasker.is_parked(p_repair, w.worker_id, p_now)
        limit p_limit
    ) as late
$$;

create or replace function tasker.due_leases_expired(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$ select tasker.due_workers(true, 'leases_expired', p_limit, p_now) $$;

create or replace function tasker.repair_leases_expired(p_worker_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_workers bigint[];
    v_tasks bigint[];
    v_step_ids bigint[];
    v_fences bigint[];
begin
    select array_agg(worker_id) into v_workers from (
        select worker_id from tasker.workers where worker_id = any (p_worker_ids) for update skip locked
    ) as locked;
    v_tasks := tasker.lock_free_tasks(array(
        select tasker.task_of_step(step_id) from tasker.leases where worker_id = any (v_workers)));
    select array_agg(l.step_id), array_agg(l.fence) into v_step_ids, v_fences
    from tasker.leases l join tasker.workers w on w.worker_id = l.worker_id
    where l.worker_id = any (v_workers) and w.lease_until < tasker.now()
        and tasker.task_of_step(l.step_id) = any (v_tasks);
    return tasker.expire_leases(p_actor, v_step_ids, v_fences, 'its lease was not renewed in time');
end $$;

create or replace function tasker.due_workers_expired(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$ select tasker.due_workers(false, 'workers_expired', p_limit, p_now) $$;

create or replace function tasker.repair_workers_expired(p_worker_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_locked bigint[];
    v_gone integer;
begin
    select array_agg(worker_id) into v_locked from (
        select worker_id from tasker.workers
        where worker_id = any (p_worker_ids) and lease_until < tasker.now() for update skip locked
    ) as locked;
    delete from tasker.workers w
    where worker_id = any (v_locked) and not exists (select from tasker.leases l where l.worker_id = w.worker_id);
    get diagnostics v_gone = row_count;
    return v_gone;
end $$;

-- Attempts far over their time, whose worker should have ended them and did not, though it could reach the database.
create or replace function tasker.due_attempts_timed_out(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$
    select array_agg(step_id) from (
        select step_id from tasker.leases
        where greatest(timeout_at, tasker.reachable_since())
                < p_now - tasker.setting('timeout_grace_seconds', 60) * interval '1 second'
            and not tasker.is_parked('attempts_timed_out', step_id, p_now)
        limit p_limit
    ) as overdue
$$;

create or replace function tasker.repair_attempts_timed_out(p_step_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(select tasker.task_of_step(id) from unnest(p_step_ids) as given(id)));
    v_step_ids bigint[];
    v_fences bigint[];
begin
    select array_agg(step_id), array_agg(fence) into v_step_ids, v_fences from tasker.leases
    where step_id = any (p_step_ids) and tasker.task_of_step(step_id) = any (v_tasks)
        and timeout_at < tasker.now() - tasker.setting('timeout_grace_seconds', 60) * interval '1 second';
    return tasker.expire_leases(p_actor, v_step_ids, v_fences, 'the attempt is far over its timeout');
end $$;

-- Timers of a kind that are due: a retry, a run past its deadline, a step that may have waited too long in the queue.
create or replace function tasker.due_timers(p_timer_kind text, p_repair text, p_limit integer, p_now timestamptz)
returns bigint[] language sql stable as $$
    select array_agg(timer_id) from (
        select timer_id from tasker.timers
        where due_at <= p_now and kind = p_timer_kind and not tasker.is_parked(p_repair, timer_id, p_now)
        order by due_at limit p_limit
    ) as due
$$;

create or replace function tasker.due_retries_due(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$ select tasker.due_timers('retry', 'retries_due', p_limit, p_now) $$;

create or replace function tasker.repair_retries_due(p_timer_ids bigint[], p_actor text) returns integer language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(
        select task_id from tasker.timers where timer_id = any (p_timer_ids)));
    v_step_ids bigint[];
begin
    with gone as (
        delete from tasker.timers where timer_id = any (p_timer_ids) and task_id = any (v_tasks) returning step_id
    )
    select array_agg(step_id) into v_step_ids from gone;
    return tasker.retry_steps(v_step_ids, tasker.actor_id(p_actor), tasker.now());
end $$;

create or replace function tasker.due_schedule_timeouts(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$ select tasker.due_timers('schedule_timeout', 'schedule_timeouts', p_limit, p_now) $$;

-- A timer says nothing about a step that has left the queue since, and perhaps come back: released, tried again, or its
-- run was suspended.
create or replace function tasker.repair_schedule_timeouts(p_timer_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(
        select task_id from tasker.timers where timer_id = any (p_timer_ids)));
    v_step_ids bigint[];
begin
    with due as (
        delete from tasker.timers where timer_id = any (p_timer_ids) and task_id = any (v_tasks)
        returning step_id, due_at
    )
    select array_agg(r.step_id) into v_step_ids
    from due
    join tasker.ready_steps r on r.step_id = due.step_id
    join tasker.steps s on s.step_id = r.step_id
    join tasker.definitions d on d.definition_id = s.definition_id
    where r.ready_at + d.schedule_timeout_ms * interval '1 millisecond' <= due.due_at;
    return tasker.expire_queued_steps(v_step_ids, p_actor, tasker.now(), 'schedule_timeout',
        'no worker took the step within its scheduleTimeoutSeconds');
end $$;

create or replace function tasker.due_deadlines_passed(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$ select tasker.due_timers('deadline', 'deadlines_passed', p_limit, p_now) $$;

create or replace function tasker.repair_deadlines_passed(p_timer_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(
        select task_id from tasker.timers where timer_id = any (p_timer_ids)));
    v_late integer;
begin
    select count(*) into v_late from unnest(v_tasks) as late(task_id)
    where tasker.fail_late_task(task_id, p_actor);
    return v_late;
end $$;

-- Steps of the given runs that are enqueued with neither a row of ready_steps nor a lease, and have been for a while.
-- A run's steps are read only when its count of active steps says that some are missing.
create or replace function tasker.find_lost_steps(p_task_ids bigint[], p_now timestamptz)
returns bigint[] language sql stable as $$
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

-- Steps that could run and are in nobody's hands. There should never be one; a hundred open runs are looked at each
-- time, in turn, and from the first again after the last.
create or replace function tasker.due_lost_steps_requeued(p_limit integer, p_now timestamptz) returns bigint[]
language plpgsql as $$
declare
    v_looked_at bigint[];
begin
    select array_agg(task_id order by task_id) into v_looked_at from (
        select task_id from tasker.open_tasks
        where task_id > tasker.setting('sweep_cursor', 0)::bigint
        order by task_id limit 100
    ) as looked_at;
    insert into tasker.settings (key, value)
    values ('sweep_cursor', to_jsonb(coalesce(v_looked_at[100], 0)))
    on conflict (key) do update set value = excluded.value where settings.value <> excluded.value;
    return (
        select array_agg(id) from (
            select id from unnest(tasker.find_lost_steps(v_looked_at, p_now)) as lost(id)
            where not tasker.is_parked('lost_steps_requeued', id, p_now) limit p_limit
        ) as found);
end $$;

-- Looked for again among the runs that are held now: a step may have been queued meanwhile.
create or replace function tasker.repair_lost_steps_requeued(p_step_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_tasks bigint[] := tasker.lock_free_tasks(array(select tasker.task_of_step(id) from unnest(p_step_ids) as given(id)));
    v_now timestamptz := tasker.now();
    v_lost bigint[];
begin
    select array_agg(id) into v_lost
    from unnest(tasker.find_lost_steps(v_tasks, v_now)) as lost(id) where id = any (p_step_ids);
    perform tasker.queue_steps(v_lost, v_now);
    return cardinality(v_lost);
end $$;

create or replace function tasker.sweep(p_limit integer)
returns table (repair text, repaired integer) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '2s'
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_now timestamptz := tasker.now();
    v_actor constant text := 'sweep';
    v_repair text;
    v_ids bigint[];
    v_id bigint;
    v_one integer;
    v_repaired integer;
    v_parked integer := 0;
begin
    if not pg_try_advisory_xact_lock(hashtext('tasker.sweep')) then
        return;
    end if;
    perform tasker.note_sweep(v_now);

    foreach v_repair in array array['leases_expired', 'workers_expired', 'attempts_timed_out', 'retries_due',
        'schedule_timeouts', 'workers_awaited', 'deadlines_passed', 'state_limits_passed', 'admissions',
        'lost_steps_requeued', 'identities_expired']
    loop
        v_repaired := 0;
        v_ids := null;
        begin
            execute format('select tasker.%I($1, $2)', 'due_' || v_repair) into v_ids using p_limit, v_now;
            if v_ids is not null then
                execute format('select tasker.%I($1, $2)', 'repair_' || v_repair) into v_repaired using v_ids, v_actor;
            end if;
        exception
            when lock_not_available or deadlock_detected or serialization_failure then
                null; -- the next one
            when others then
                if v_ids is null then
                    raise warning 'the sweep does not find what is due (%): %', v_repair, sqlerrm;
                else
                    foreach v_id in array v_ids loop
                        begin
                            execute format('select tasker.%I($1, $2)', 'repair_' || v_repair)
                                into v_one using array[v_id], v_actor;
                            v_repaired := v_repaired + coalesce(v_one, 0);
                        exception
                            when lock_not_available or deadlock_detected or serialization_failure then
                                null;
                            when others then
                                insert into tasker.parked_repairs (kind, id, reason, since, until)
                                values (v_repair, v_id, sqlerrm, v_now, v_now + interval '5 minutes')
                                on conflict (kind, id) do update set reason = excluded.reason, until = excluded.until;
                                v_parked := v_parked + 1;
                        end;
                    end loop;
                end if;
        end;
        if v_repaired > 0 then
            return query select v_repair, v_repaired;
        end if;
    end loop;

    if v_parked > 0 then
        return query select 'repairs_parked', v_parked;
    end if;
    delete from tasker.parked_repairs where until < v_now - interval '1 hour';

    if to_regclass('tasker.step_log'
        || to_char((clock_timestamp() + interval '7 days') at time zone 'UTC', '_YYYYMMDD')) is null
    then
        begin
            return query select 'partitions_created', tasker.ensure_partitions();
        exception
            when lock_not_available then
                null; -- a long read of the history is in the way; there are days left to try again
            when others then
                raise warning 'the sweep cannot make partitions: %', sqlerrm;
        end;
    end if;
end $$;
