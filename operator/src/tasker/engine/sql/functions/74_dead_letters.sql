-- Dead letters: what a person should look at. Every step that fails for good makes one, in the transaction that settles it,
-- unless it is a worker of a batch that goes on without it (continue_on_failure); so does a run that a limit of its template has found to be stale (76_lifecycle.sql), and a person who wants one.
--
-- A step, or a run as itself, has at most one that is open: when it fails again that one tells of it. Rows of dead_letters
-- are locked last, after those of the run.

-- What was to be seen when it was made. p_step_id may be null.
create or replace function tasker.dead_letter_snapshot(p_task_id bigint, p_step_id bigint) returns json
language plpgsql stable as $$
begin
    return (
        select json_build_object(
            'task', json_build_object('task_uuid', t.task_uuid, 'template_name', template.name,
                'template_version', template.version, 'revision', template.revision, 'state', t.state,
                'correlation_id', t.correlation_id, 'created_at', t.created_at, 'deadline', t.deadline,
                'total_steps', t.total_steps, 'remaining_steps', t.remaining_steps, 'active_steps', t.active_steps,
                'retrying_steps', t.retrying_steps, 'failed_steps', t.failed_steps,
                'cancelled_steps', t.cancelled_steps, 'skipped_steps', t.skipped_steps),
            'step', (
                select json_build_object('step_uuid', s.step_uuid, 'name', tasker.step_name(d.name, d.definition_id, s.step_id),
                    'type', d.type, 'callable', d.callable,
                    'state', s.state, 'attempts', s.attempts, 'attempts_allowed', s.attempts_allowed,
                    'enqueued_at', s.enqueued_at, 'started_at', s.started_at)
                from tasker.steps s join tasker.definitions d on d.definition_id = s.definition_id
                where s.step_id = p_step_id),
            'failures', coalesce((
                select json_agg(json_build_object('step', tasker.step_name(d.name, d.definition_id, s.step_id),
                    'attempt', f.attempt, 'error_type', f.error_type,
                    'message', left(f.message, 1024), 'final', f.final, 'at', f.at) order by f.failure_id desc)
                from (
                    select * from (
                        select * from tasker.step_failures of_step where of_step.step_id = p_step_id
                        order by of_step.failure_id desc limit 5
                    ) as newest_of_step
                    union all
                    select * from (
                        select * from tasker.step_failures of_task where of_task.task_id = p_task_id and p_step_id is null
                        order by of_task.failure_id desc limit 5
                    ) as newest_of_task
                ) as f
                join tasker.steps s on s.step_id = f.step_id
                join tasker.definitions d on d.definition_id = s.definition_id
            ), '[]'))
        from tasker.tasks t join tasker.templates template on template.template_id = t.template_id
        where t.task_id = p_task_id
    );
end $$;

-- Opens a dead letter for each (task, step), or tells of it in the one that is open. The arrays are parallel, a step may be
-- null; the caller holds the tasks' rows. Returns the entries.
create or replace function tasker.open_dead_letters(
    p_task_ids bigint[], p_step_ids bigint[], p_reasons tasker.dead_letter_reason[], p_actor_id integer, p_now timestamptz,
    p_notes text default null
) returns setof uuid language plpgsql as $$
begin
    return query
    with opened as (
        insert into tasker.dead_letters (namespace, task_id, step_id, reason, snapshot, created_at, updated_at)
        select t.namespace, t.task_id, given.step_id, given.reason,
            tasker.dead_letter_snapshot(t.task_id, given.step_id), p_now, p_now
        from unnest(p_task_ids, p_step_ids, p_reasons) as given(task_id, step_id, reason)
        join tasker.tasks t on t.task_id = given.task_id
        order by given.task_id, given.step_id
        on conflict (task_id, step_id) where state in ('open', 'investigating')
        do update set reason = case when excluded.reason = 'manual' then dead_letters.reason else excluded.reason end,
            snapshot = excluded.snapshot, updated_at = excluded.updated_at
        returning entry_id, entry_uuid, state
    ), told as (
        insert into tasker.dead_letter_changes (entry_id, at, state, actor_id, notes)
        select o.entry_id, p_now, o.state, p_actor_id, p_notes from opened o
    )
    select o.entry_uuid from opened o;
end $$;

-- Those of the settled steps that failed for good. Outcomes are told by parallel arrays; a settlement is found in them by
-- step and fence.
create or replace function tasker.bury_failed_steps(
    p_actor_id integer, p_now timestamptz, p_settled tasker.settlement[], p_step_ids bigint[], p_fences bigint[],
    p_error_types text[], p_retryable boolean[]
) returns void language plpgsql as $$
begin
    perform tasker.open_dead_letters(array_agg(tasker.task_of_step(failed.step_id)), array_agg(failed.step_id),
        array_agg(failed.reason), p_actor_id, p_now)
    from (
        select distinct on (d.step_id) d.step_id, case
            when d.outcome = 'expire' then 'worker_crash_loop'
            when given.error_type in ('schedule_timeout', 'worker_unavailable') then 'worker_unavailable'
            when given.retryable is false then 'permanent_failure'
            else 'max_retries_exceeded' end::tasker.dead_letter_reason as reason
        from unnest(p_settled) d
        join unnest(p_step_ids, p_fences, p_error_types, p_retryable) as given(step_id, fence, error_type, retryable)
            on given.step_id = d.step_id and given.fence = d.fence
        where d.state = 'error' and (not d.is_tolerated or exists (
            select from tasker.definitions node
            where node.definition_id = d.definition_id and node.failure_strategy = 'isolate'))
    ) as failed
    having count(*) > 0;
end $$;

-- What became of a step that had failed deals with its dead letter: it runs again, is to be done no more, or is over with
-- its run. Called when the transaction that did so ends.
create or replace function tasker.close_dead_letter(p_step_id bigint) returns void language plpgsql as $$
declare
    v_entry_id bigint;
    v_state tasker.dead_letter_state;
    v_now timestamptz := tasker.now();
begin
    select case
        when s.state in ('complete', 'resolved_manually', 'skipped') then 'resolved'
        when s.state = 'cancelled' then 'discarded'
        else 'put_back' end::tasker.dead_letter_state into v_state
    from tasker.steps s where s.step_id = p_step_id and s.state <> 'error'; -- it may have failed again at once
    update tasker.dead_letters set state = v_state, updated_at = v_now
    where task_id = tasker.task_of_step(p_step_id) and step_id = p_step_id and state in ('open', 'investigating')
        and reason <> 'manual' and v_state is not null
    returning entry_id into v_entry_id;
    if found then
        insert into tasker.dead_letter_changes (entry_id, at, state, actor_id, notes)
        values (v_entry_id, v_now, v_state, coalesce((
            select l.actor_id from tasker.step_log l where l.step_id = p_step_id order by l.log_id desc limit 1
        ), tasker.actor_id('sweep')), 'its step was dealt with');
    end if;
end $$;

-- What a person makes of an entry, and why: takes it up, lays it back, or has done with it; null is a note alone. The run is
-- not touched. Null when there is no such entry, false when somebody has done with it already.
create or replace function tasker.change_dead_letter(
    p_entry_uuid uuid, p_state tasker.dead_letter_state, p_actor text, p_notes text
) returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_entry tasker.dead_letters;
    v_now timestamptz;
begin
    if p_state = 'put_back' then
        raise exception 'an entry is put back by put_back_dead_letter' using errcode = 'TK005';
    end if;
    select * into v_entry from tasker.dead_letters where entry_uuid = p_entry_uuid for no key update;
    if not found then
        return null;
    end if;
    if p_state is not null and v_entry.state not in ('open', 'investigating') then
        return false;
    end if;
    v_now := tasker.now();
    update tasker.dead_letters set state = coalesce(p_state, state), updated_at = v_now
    where entry_id = v_entry.entry_id;
    insert into tasker.dead_letter_changes (entry_id, at, state, actor_id, notes)
    values (v_entry.entry_id, v_now, coalesce(p_state, v_entry.state), v_actor_id, p_notes);
    return true;
end $$;

-- A person has one made of a run, or of a step of it by name. Null when there is no such step.
create or replace function tasker.add_dead_letter(p_task_id bigint, p_step_name text, p_actor text, p_notes text)
returns uuid language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_step_id bigint;
begin
    perform from tasker.tasks where task_id = p_task_id for no key update;
    if p_step_name is not null then
        select tasker.first_step_id(t.task_id) + d.position into v_step_id
        from tasker.tasks t join tasker.definitions d on d.template_id = t.template_id and d.name = p_step_name
        where t.task_id = p_task_id;
        if not found then
            return null;
        end if;
    end if;
    return (
        select tasker.open_dead_letters(array[p_task_id], array[v_step_id],
            array['manual']::tasker.dead_letter_reason[], v_actor_id, tasker.now(), p_notes)
    );
end $$;

-- The step of an entry runs again, with as many attempts more as its template gives it. Null when there is no such entry,
-- false when somebody has done with it already; refused (TK002) where nothing of it can run again.
create or replace function tasker.put_back_dead_letter(p_entry_uuid uuid, p_actor text, p_notes text)
returns boolean language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_actor_id integer := tasker.actor_id(p_actor);
    v_entry tasker.dead_letters;
    v_step_name text;
    v_of_batch boolean;
    v_now timestamptz;
begin
    select * into v_entry from tasker.dead_letters where entry_uuid = p_entry_uuid;
    if not found then
        return null;
    end if;
    perform from tasker.tasks where task_id = v_entry.task_id for no key update;
    select * into v_entry from tasker.dead_letters where entry_id = v_entry.entry_id for no key update;
    if v_entry.state not in ('open', 'investigating') then
        return false;
    end if;
    if v_entry.step_id is null then
        raise exception 'the entry is of the whole run, which has no step to put back' using errcode = 'TK021';
    end if;
    select tasker.step_name(d.name, d.definition_id, s.step_id), tasker.is_of_batch(d.definition_id, s.step_id)
        into v_step_name, v_of_batch
    from tasker.steps s join tasker.definitions d on d.definition_id = s.definition_id where s.step_id = v_entry.step_id;
    if v_of_batch then
        raise exception 'step % is a worker of a batch, which does not run again by itself', v_step_name
            using errcode = 'TK021';
    end if;
    v_now := tasker.now();
    update tasker.dead_letters set state = 'put_back', updated_at = v_now where entry_id = v_entry.entry_id;
    insert into tasker.dead_letter_changes (entry_id, at, state, actor_id, notes)
    values (v_entry.entry_id, v_now, 'put_back', v_actor_id, p_notes);
    if not tasker.reset_step(v_entry.task_id, v_step_name, p_actor, p_notes) then
        raise exception 'step % is in the queue or runs already', v_step_name using errcode = 'TK021';
    end if;
    return true;
end $$;
