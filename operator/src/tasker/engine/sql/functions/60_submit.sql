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
            max_steps_in_process_seconds, staleness_action, identity_strategy, identity_window_seconds, max_tasks)
        select p_namespace, p_name, p_version, p_revision, p_spec, json_array_length(p_steps), (
                select count(*) from json_array_elements(p_steps) as step where step ->> 'type' = 'batch_worker'),
            coalesce(l.on_failure, 'fail'), l.max_duration_seconds, l.max_blocked_seconds,
            l.max_waiting_for_dependencies_seconds, l.max_waiting_for_retry_seconds, l.max_steps_in_process_seconds,
            coalesce(l.staleness_action, 'dlq'), coalesce(p_spec #>> '{identity,strategy}', 'alwaysUnique'),
            (p_spec #>> '{identity,window_seconds}')::integer, (p_spec #>> '{concurrency,max_tasks}')::integer
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
    elsif tasker.current_template(p_namespace, p_name, null) <> v_template_id then
        update tasker.templates t set activated_at = clock_timestamp() where t.template_id = v_template_id;
    end if;
    perform tasker.limit_runs(p_namespace, p_name, t.max_tasks) from tasker.templates t where t.template_id = v_template_id;
    return query select v_template_id, v_created;
end $$;

-- The newest activated revision of a template, or of one version of it; null when there is none.
create or replace function tasker.current_template(p_namespace text, p_name text, p_version text)
returns bigint language sql stable as $$
    select template_id from tasker.templates
    where namespace = p_namespace and name = p_name and (p_version is null or version = p_version)
    order by activated_at desc limit 1
$$;

-- The revision that a request is for: the one it names, or else the one that is current.
create or replace function tasker.requested_template(p_namespace text, p_request json)
returns bigint language sql stable as $$
    select case when p_request ->> 'revision' is null
        then tasker.current_template(p_namespace, p_request ->> 'template_name', p_request ->> 'template_version')
        else (
            select template_id from tasker.templates
            where namespace = p_namespace and name = p_request ->> 'template_name' and revision = p_request ->> 'revision'
        ) end
$$;

-- Creates a run for each request (a JSON array of objects), all or none. A request whose origin_uid has a run already
-- gets that one back with created = false, so submitting again is harmless. One that is a duplicate by its identity_key
-- creates nothing either: duplicate is true, and the run is the one that holds the key. place counts the requests from 1.
create or replace function tasker.submit_tasks(p_namespace text, p_requests json)
returns table (place integer, task_uuid uuid, created boolean, duplicate boolean, origin_name text) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_actor_id integer := tasker.actor_id('submit');
    v_now timestamptz;
    v_missing record;
    v_template_ids bigint[];
    v_new_ids bigint[];
    v_new_uuids uuid[];
    v_limited text[];
    v_name text;
    v_keys text[];
    v_first integer[];
    v_wanted boolean[];
    v_holders uuid[];
    v_refused_for uuid[]; -- by place: the run of which a request is a duplicate
    v_lost uuid[];
    v_places integer[];
    v_task_ids bigint[];
begin
    select array_agg(tasker.requested_template(p_namespace, given.value) order by given.place),
        array_agg(nextval('tasker.task_ids')), array_agg(gen_random_uuid())
        into v_template_ids, v_new_ids, v_new_uuids
    from json_array_elements(p_requests) with ordinality as given(value, place);
    if array_position(v_template_ids, null) is not null then
        select request.value ->> 'template_name' as name, request.value ->> 'template_version' as version,
            request.value ->> 'revision' as revision into v_missing
        from (select p_requests -> (array_position(v_template_ids, null) - 1) as value) as request;
        raise exception 'no template % in namespace %', v_missing.name || coalesce(' revision ' || nullif(v_missing.revision, ''),
            ' version ' || v_missing.version, ''), p_namespace using errcode = 'TK001';
    end if;

    v_limited := coalesce(tasker.lock_limits(p_namespace, v_template_ids), '{}');

    perform from tasker.templates
    where template_id = any (v_template_ids) and identity_strategy <> 'alwaysUnique' limit 1;
    if found then
        -- Of the requests of one resource the first counts, and none when it has a run: that is no duplicate of its own.
        select array_agg(r.key order by r.place), array_agg(r.first order by r.place), array_agg(
            r.first = r.place and not exists (select from tasker.tasks t where t.origin_uid = r.origin_uid) order by r.place)
            into v_keys, v_first, v_wanted
        from (
            select place::integer, value ->> 'identity_key' as key, value ->> 'origin_uid' as origin_uid,
                min(place::integer) over (
                    partition by value ->> 'origin_uid', case when value ->> 'origin_uid' is null then place end) as first
            from json_array_elements(p_requests) with ordinality as given(value, place)
        ) as r;
        v_holders := tasker.take_identities(p_namespace, v_template_ids, v_keys, v_wanted, v_new_ids, v_new_uuids);
        select array_agg(nullif(v_holders[first.place], v_new_uuids[first.place]) order by first.n) into v_refused_for
        from unnest(v_first) with ordinality as first(place, n);
    end if;
    v_now := tasker.now();

    with request as materialized (
        select given.place::integer as place, r.*
        from json_array_elements(p_requests) with ordinality as given(value, place)
        cross join lateral json_to_record(given.value) as r(
            context json, priority smallint, correlation_id text,
            parent_correlation_id text, initiator text, source_system text, reason text, tags text[],
            suspended boolean, deadline_seconds double precision, origin_uid text, origin_name text)
        where v_refused_for[given.place] is null
    ), fresh as (
        insert into tasker.tasks (task_id, task_uuid, namespace, template_id, limited_as, state, holds, priority, next_place,
            total_steps, remaining_steps, active_steps, context, correlation_id, parent_correlation_id, initiator, source_system,
            reason, tags, origin_uid, origin_name, blocks_on_failure, limits_states, deadline, created_at, started_at)
        select v_new_ids[r.place], v_new_uuids[r.place], p_namespace, template.template_id, limit_.name,
            case when limit_.name is null then 'steps_in_process' else 'pending' end::tasker.task_state,
            case when r.suspended
                then array[case when r.origin_uid is null then 'person' else 'resource' end::tasker.hold] else '{}' end,
            coalesce(r.priority, 0), template.step_count, template.step_count - template.batch_worker_count,
            template.step_count - template.batch_worker_count,
            case when limit_.name is null then (
                select count(*) from tasker.definitions d
                where d.template_id = template.template_id and d.dependency_count = 0) else 0 end,
            coalesce(r.context, '{}'), coalesce(r.correlation_id, gen_random_uuid()::text), r.parent_correlation_id,
            r.initiator, r.source_system, r.reason, coalesce(r.tags, '{}'), r.origin_uid, r.origin_name,
            template.on_failure = 'block', template.limits_states,
            v_now + least(r.deadline_seconds, template.max_duration_seconds) * interval '1 second', v_now,
            case when limit_.name is null then v_now end
        from request r
        join tasker.templates template on template.template_id = v_template_ids[r.place]
        left join unnest(v_limited) as limit_(name) on limit_.name = template.name
        -- Two calls with the same origins wait for each other here, hence in one order.
        order by r.origin_uid, r.place
        on conflict (origin_uid) do nothing
        returning task_id
    )
    select array_agg(r.place), array_agg(fresh.task_id) into v_places, v_task_ids
    from fresh join unnest(v_new_ids) with ordinality as r(task_id, place) on r.task_id = fresh.task_id;

    if v_keys is not null and cardinality(v_task_ids) is distinct from cardinality(v_new_ids) then
        -- Another call has just created the run of one of these resources: this one's key is not its run's.
        with lost as (
            delete from tasker.identities held
            where held.task_id = any (v_new_ids) and held.task_id <> all (coalesce(v_task_ids, '{}'))
            returning held.task_uuid
        )
        select array_agg(task_uuid) into v_lost from lost;
        if v_lost && v_refused_for then
            raise exception 'the run that others of this call are duplicates of was not created: to be called again'
                using errcode = '40001';
        end if;
    end if;

    if v_task_ids is not null then
        -- Those of a run that waits for a place are queued when it is admitted.
        insert into tasker.steps (step_id, definition_id, attempts_allowed, state, open_edges, enqueued_at)
        select tasker.first_step_id(t.task_id) + d.position, d.definition_id, d.max_attempts,
            case when d.dependency_count = 0 and t.limited_as is null then 'enqueued' else 'pending' end::tasker.step_state,
            d.dependency_count, case when d.dependency_count = 0 and t.limited_as is null then v_now end
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id
        join tasker.definitions d on d.template_id = t.template_id
        where d.type <> 'batch_worker'
        order by t.task_id, d.position;

        insert into tasker.step_log (step_id, at, passage, actor_id)
        select tasker.first_step_id(t.task_id) + d.position, v_now, 'queued', v_actor_id
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id and t.limited_as is null
        join tasker.definitions d on d.template_id = t.template_id and d.dependency_count = 0;

        insert into tasker.task_log (task_id, at, passage, actor_id)
        select t.task_id, v_now,
            case when t.limited_as is null then 'submitted' else 'submitted_pending' end::tasker.task_passage, v_actor_id
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id;

        insert into tasker.timers (due_at, kind, task_id)
        select t.deadline, 'deadline', t.task_id
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id
        where t.deadline is not null;

        perform tasker.queue_steps(array_agg(tasker.first_step_id(t.task_id) + d.position), v_now)
        from unnest(v_task_ids) as fresh(task_id)
        join tasker.tasks t on t.task_id = fresh.task_id and t.limited_as is null
        join tasker.definitions d on d.template_id = t.template_id and d.dependency_count = 0;

        foreach v_name in array v_limited loop
            perform tasker.admit_at_once(p_namespace, v_name, cardinality(v_task_ids), 'submit');
        end loop;
    end if;

    return query
    select fresh.place, t.task_uuid, true, false, t.origin_name
    from unnest(v_places, v_task_ids) as fresh(place, task_id) join tasker.tasks t on t.task_id = fresh.task_id
    union all
    select given.place::integer, coalesce(own.task_uuid, v_refused_for[given.place]), false, own.task_id is null,
        case when own.task_id is null then holder.origin_name else own.origin_name end
    from json_array_elements(p_requests) with ordinality as given(value, place)
    left join tasker.tasks own on own.origin_uid = given.value ->> 'origin_uid'
    left join tasker.tasks holder on holder.task_uuid = v_refused_for[given.place]
    where given.place <> all (coalesce(v_places, '{}'));
end $$;
