-- Submitting: templates become rows once, runs become rows in one call however many there are.

-- Stores a template revision and makes it the one that new tasks get. The same revision again only activates it.
-- p_steps is an array of the nodes in order of position; p_edges one of [from, to] pairs of positions.
create or replace function tasker.register_template(
    p_namespace text, p_name text, p_version text, p_revision text, p_spec json, p_steps json, p_edges json,
    p_lifecycle json default '{}'
) returns table (template_id bigint, created boolean) language plpgsql as $$
#variable_conflict use_column
declare
    v_template_id bigint;
    v_created boolean := false;
begin
    -- One registration of a name at a time, so that two operators cannot both insert its parts.
    perform pg_advisory_xact_lock(hashtext('tasker.template/' || p_namespace || '/' || p_name));
    select t.template_id into v_template_id from tasker.templates t
    where t.namespace = p_namespace and t.name = p_name and t.revision = p_revision;
    if not found then
        insert into tasker.templates (namespace, name, version, revision, spec, step_count, batch_worker_count, on_failure,
            max_duration_seconds, max_blocked_seconds, max_waiting_for_dependencies_seconds, max_waiting_for_retry_seconds,
            max_steps_in_process_seconds, staleness_action)
        select p_namespace, p_name, p_version, p_revision, p_spec, json_array_length(p_steps), (
                select count(*) from json_array_elements(p_steps) as step where step ->> 'type' = 'batch_worker'),
            coalesce(l.on_failure, 'fail'), l.max_duration_seconds, l.max_blocked_seconds,
            l.max_waiting_for_dependencies_seconds, l.max_waiting_for_retry_seconds, l.max_steps_in_process_seconds,
            coalesce(l.staleness_action, 'dlq')
        from json_to_record(p_lifecycle) as l(
            on_failure tasker.failure_rule, max_duration_seconds integer, max_blocked_seconds integer,
            max_waiting_for_dependencies_seconds integer, max_waiting_for_retry_seconds integer,
            max_steps_in_process_seconds integer, staleness_action tasker.staleness_action)
        returning templates.template_id into v_template_id;
        insert into tasker.definitions (definition_id, template_id, position, name, type, callable, method, resolver,
            configuration, condition, result_schema, dependency_count, is_leaf, result_positions, batch_positions, batch,
            worker_position, parallelism, failure_strategy, max_attempts, backoff, base_ms, max_ms, jitter, timeout_ms,
            schedule_timeout_ms, worker_timeout_ms)
        select tasker.first_definition_id(v_template_id) + step.place - 1, v_template_id, step.place - 1, s.name,
            coalesce(s.type, 'standard'), s.callable, s.method, s.resolver, s.configuration, s.condition, s.result_schema,
            s.dependency_count, s.is_leaf, s.result_positions, s.batch_positions, s.batch, s.worker_position,
            s.parallelism, s.failure_strategy, s.max_attempts, s.backoff, s.base_ms, s.max_ms, s.jitter, s.timeout_ms,
            s.schedule_timeout_ms, s.worker_timeout_ms
        from json_array_elements(p_steps) with ordinality as step(value, place)
        cross join lateral json_to_record(step.value) as s(
            name text, type tasker.step_type, callable text, method text, resolver text, configuration json,
            condition text, result_schema json, dependency_count integer, is_leaf boolean, result_positions integer[],
            batch_positions integer[], batch json, worker_position integer, parallelism integer,
            failure_strategy tasker.failure_strategy, max_attempts integer, backoff tasker.backoff, base_ms integer,
            max_ms integer, jitter double precision, timeout_ms integer, schedule_timeout_ms integer,
            worker_timeout_ms bigint);
        with edge as (
            select d.definition_id, d.type, tasker.first_definition_id(v_template_id) + d.worker_position as worker_id,
                tasker.first_definition_id(v_template_id) + (given ->> 1)::integer as to_definition_id
            from json_array_elements(p_edges) as given
            join tasker.definitions d
                on d.definition_id = tasker.first_definition_id(v_template_id) + (given ->> 0)::integer
        )
        insert into tasker.definition_edges (from_definition_id, to_definition_id, kind)
        select e.definition_id, e.to_definition_id, case
            when e.type = 'decision' then 'choice'
            when e.to_definition_id = e.worker_id then 'batch'
            else 'plain' end::tasker.edge_kind
        from edge e
        union all
        select b.definition_id, after.to_definition_id, 'without_batch'
        from edge b join edge after on after.definition_id = b.worker_id
        where b.to_definition_id = b.worker_id;
        v_created := true;
    else
        if tasker.current_template(p_namespace, p_name, null) <> v_template_id then
            update tasker.templates t set activated_at = clock_timestamp() where t.template_id = v_template_id;
        end if;
    end if;
    return query select v_template_id, v_created;
end $$;

-- The newest activated revision of a template, or of one version of it; null when there is none.
create or replace function tasker.current_template(p_namespace text, p_name text, p_version text)
returns bigint language sql stable as $$
    select template_id from tasker.templates
    where namespace = p_namespace and name = p_name and (p_version is null or version = p_version)
    order by activated_at desc limit 1
$$;

-- Creates a run for each request (a JSON array of objects), all or none. A request whose origin_uid has a run already
-- gets that one back with created = false, so submitting again is harmless. place counts the requests from 1.
create or replace function tasker.submit_tasks(p_namespace text, p_requests json)
returns table (place integer, task_uuid uuid, created boolean) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_actor_id integer := tasker.actor_id('submit');
    v_now timestamptz := tasker.now();
    v_missing record;
    v_places integer[];
    v_task_ids bigint[];
begin
    select request ->> 'template_name' as name, request ->> 'template_version' as version into v_missing
    from json_array_elements(p_requests) as request
    where tasker.current_template(p_namespace, request ->> 'template_name', request ->> 'template_version') is null;
    if found then
        raise exception 'no template % in namespace %',
            v_missing.name || coalesce(' version ' || v_missing.version, ''), p_namespace using errcode = 'TK001';
    end if;

    with request as materialized (
        select given.place::integer as place, nextval('tasker.task_ids') as task_id, r.*,
            tasker.current_template(p_namespace, r.template_name, r.template_version) as template_id
        from json_array_elements(p_requests) with ordinality as given(value, place)
        cross join lateral json_to_record(given.value) as r(
            template_name text, template_version text, context json, priority smallint, correlation_id text,
            parent_correlation_id text, initiator text, source_system text, reason text, tags text[],
            suspended boolean, deadline_seconds double precision, origin_uid text, origin_name text)
    ), fresh as (
        insert into tasker.tasks (task_id, task_uuid, namespace, template_id, state, holds, priority, next_place, total_steps,
            remaining_steps, active_steps, context, correlation_id, parent_correlation_id, initiator, source_system,
            reason, tags, origin_uid, origin_name, blocks_on_failure, limits_states, deadline, created_at, started_at)
        select r.task_id, gen_random_uuid(), p_namespace, r.template_id, 'steps_in_process',
            case when r.suspended
                then array[case when r.origin_uid is null then 'person' else 'resource' end::tasker.hold] else '{}' end,
            coalesce(r.priority, 0), template.step_count, template.step_count - template.batch_worker_count,
            template.step_count - template.batch_worker_count,
            (select count(*) from tasker.definitions d
                where d.template_id = r.template_id and d.dependency_count = 0),
            coalesce(r.context, '{}'), coalesce(r.correlation_id, gen_random_uuid()::text), r.parent_correlation_id,
            r.initiator, r.source_system, r.reason, coalesce(r.tags, '{}'), r.origin_uid, r.origin_name,
            template.on_failure = 'block', template.limits_states,
            v_now + least(r.deadline_seconds, template.max_duration_seconds) * interval '1 second', v_now, v_now
        from request r join tasker.templates template on template.template_id = r.template_id
        -- Two calls with the same origins wait for each other here, hence in one order.
        order by r.origin_uid, r.place
        on conflict (origin_uid) do nothing
        returning task_id
    )
    select array_agg(r.place), array_agg(r.task_id) into v_places, v_task_ids
    from request r join fresh on fresh.task_id = r.task_id;

    if v_task_ids is not null then
        insert into tasker.steps (step_id, definition_id, attempts_allowed, state, open_edges, enqueued_at)
        select tasker.first_step_id(t.task_id) + d.position, d.definition_id, d.max_attempts,
            case when d.dependency_count = 0 then 'enqueued' else 'pending' end::tasker.step_state,
            d.dependency_count, case when d.dependency_count = 0 then v_now end
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id
        join tasker.definitions d on d.template_id = t.template_id
        where d.type <> 'batch_worker'
        order by t.task_id, d.position;

        insert into tasker.step_log (step_id, at, passage, actor_id)
        select tasker.first_step_id(t.task_id) + d.position, v_now, 'queued', v_actor_id
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id
        join tasker.definitions d on d.template_id = t.template_id and d.dependency_count = 0;

        insert into tasker.task_log (task_id, at, passage, actor_id)
        select task_id, v_now, 'submitted', v_actor_id from unnest(v_task_ids) as fresh(task_id);

        insert into tasker.timers (due_at, kind, task_id)
        select t.deadline, 'deadline', t.task_id
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id
        where t.deadline is not null;

        perform tasker.queue_steps(array_agg(tasker.first_step_id(t.task_id) + d.position), v_now)
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id
        join tasker.definitions d on d.template_id = t.template_id and d.dependency_count = 0;
    end if;

    return query
    select fresh.place, t.task_uuid, true
    from unnest(v_places, v_task_ids) as fresh(place, task_id) join tasker.tasks t on t.task_id = fresh.task_id
    union all
    select given.place::integer, t.task_uuid, false
    from json_array_elements(p_requests) with ordinality as given(value, place)
    join tasker.tasks t on t.origin_uid = given.value ->> 'origin_uid'
    where given.place <> all (coalesce(v_places, '{}'));
end $$;
