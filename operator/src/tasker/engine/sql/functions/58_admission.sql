-- Which runs there may be: no second one with a key that is held (spec.identity), and of a template no more under way than
-- it allows (spec.concurrency).
--
-- A limit is a row of concurrency_limits, and who admits runs holds it. Runs end without it: the number of those under way
-- is counted when it is needed and only ever falls meanwhile, so it is never more than was counted. A submission waits for
-- the row, before it takes any other lock. The end of a run and the sweep pass over a row that somebody holds: they hold
-- tasks by then, and what they pass over is done by the holder, by the next end, or by the next sweep.

-- The limit of a template from now on, which is that of the revision that was just activated. The first one marks the runs
-- that are under way, which count from now on; a run that is being submitted at this moment is not among them.
create or replace function tasker.limit_runs(p_namespace text, p_template_name text, p_max_tasks integer)
returns void language plpgsql as $$
declare
    v_open bigint[];
begin
    perform from tasker.concurrency_limits where namespace = p_namespace and template_name = p_template_name;
    if found then
        update tasker.concurrency_limits set max_tasks = p_max_tasks
        where namespace = p_namespace and template_name = p_template_name and max_tasks is distinct from p_max_tasks;
        return;
    elsif p_max_tasks is null then
        return;
    end if;
    insert into tasker.concurrency_limits (namespace, template_name, max_tasks)
    values (p_namespace, p_template_name, p_max_tasks);
    select array_agg(task_id) into v_open from (
        select t.task_id
        from tasker.open_tasks o join tasker.tasks t on t.task_id = o.task_id
        where o.namespace = p_namespace and t.completed_at is null and t.template_id in (
            select own.template_id from tasker.templates own
            where own.namespace = p_namespace and own.name = p_template_name)
        order by t.task_id for no key update of t
    ) as locked;
    update tasker.tasks set limited_as = p_template_name where task_id = any (v_open);
    insert into tasker.limited_tasks (task_id, namespace, template_name, admitted, order_at)
    select t.task_id, t.namespace, p_template_name, true, tasker.order_at(t) from tasker.tasks t where t.task_id = any (v_open);
end $$;

-- Waits for the limits of these templates and holds them. Returns the names of those that have one.
create or replace function tasker.lock_limits(p_namespace text, p_template_ids bigint[]) returns text[]
language plpgsql as $$
declare
    v_names text[];
begin
    select array_agg(template_name) into v_names from (
        select l.template_name from tasker.concurrency_limits l
        where l.namespace = p_namespace and l.template_name = any (array(
            select t.name from tasker.templates t where t.template_id = any (p_template_ids)))
        order by l.template_name for no key update
    ) as locked;
    return v_names;
end $$;

-- How many runs of a limited template hold a place.
create or replace function tasker.admitted_runs(p_namespace text, p_template_name text) returns integer
language sql stable as $$
    select count(*)::integer from tasker.limited_tasks
    where namespace = p_namespace and template_name = p_template_name and admitted
$$;

-- Admits as many runs of a template as there are places, at most p_limit, in the order of their steps in the queue; of
-- p_task_ids unless that is null. A run that is held back waits on without holding up those behind it. Returns how many.
create or replace function tasker.admit_tasks(
    p_namespace text, p_template_name text, p_task_ids bigint[], p_limit integer, p_actor text
) returns integer language plpgsql as $$
declare
    v_actor_id integer;
    v_max_tasks integer;
    v_places integer := p_limit;
    v_task_ids bigint[];
    v_ready bigint[];
    v_now timestamptz;
begin
    perform from tasker.limited_tasks
    where namespace = p_namespace and template_name = p_template_name and not admitted limit 1;
    if not found then
        return 0;
    end if;
    select max_tasks into v_max_tasks from tasker.concurrency_limits
    where namespace = p_namespace and template_name = p_template_name for no key update skip locked;
    if not found then
        return 0;
    end if;
    if v_max_tasks is not null then
        v_places := least(p_limit, v_max_tasks - tasker.admitted_runs(p_namespace, p_template_name));
    end if;
    if v_places <= 0 then
        return 0;
    end if;
    select array_agg(task_id) into v_task_ids from (
        select t.task_id
        from tasker.limited_tasks w join tasker.tasks t on t.task_id = w.task_id
        where w.namespace = p_namespace and w.template_name = p_template_name and not w.admitted
            and t.state = 'pending' and not t.suspended and case when p_task_ids is null
                then not tasker.is_parked('admissions', t.task_id, tasker.now()) else t.task_id = any (p_task_ids) end
        order by w.order_at, w.task_id limit v_places
        for no key update of t skip locked
    ) as first;
    if v_task_ids is null then
        return 0;
    end if;
    v_actor_id := tasker.actor_id(p_actor);
    v_now := tasker.now();

    update tasker.limited_tasks set admitted = true where task_id = any (v_task_ids);
    with ready as (
        update tasker.steps s set state = 'enqueued', enqueued_at = v_now
        from unnest(v_task_ids) as admitted(task_id)
        where s.step_id >= tasker.first_step_id(admitted.task_id)
            and s.step_id < tasker.first_step_id(admitted.task_id + 1)
            and s.state = 'pending' and s.open_edges = 0
        returning s.step_id
    ), logged as (
        insert into tasker.step_log (step_id, at, passage, actor_id)
        select step_id, v_now, 'queued', v_actor_id from ready
    )
    select array_agg(step_id) into v_ready from ready;
    with counted as (
        select tasker.task_of_step(id) as task_id, count(*)::integer as ready from unnest(v_ready) as ready(id) group by 1
    ), started as (
        update tasker.tasks t set state = 'steps_in_process', started_at = v_now, active_steps = c.ready
        from counted c where t.task_id = c.task_id
        returning t.task_id
    )
    insert into tasker.task_log (task_id, at, passage, actor_id, metadata)
    select task_id, v_now, 'admitted', v_actor_id,
        case when v_max_tasks is not null then jsonb_build_object('max_tasks', v_max_tasks) end
    from started;
    perform tasker.queue_steps(v_ready, v_now);
    return cardinality(v_task_ids);
end $$;

-- The same in the transaction that submits runs or ends one. That is not to fail because another run cannot be admitted: the
-- sweep tries that again, and parks the one that it fails with.
create or replace function tasker.admit_at_once(
    p_namespace text, p_template_name text, p_limit integer, p_actor text
) returns void language plpgsql as $$
begin
    perform tasker.admit_tasks(p_namespace, p_template_name, null, p_limit, p_actor);
exception when others then
    raise warning 'no run of template % in namespace % is admitted now: %', p_template_name, p_namespace, sqlerrm;
end $$;

-- Runs that wait although there is a place: their template allows more by now, somebody let them go, or whoever's end gave
-- the place up passed over the limit. Of one template a tenth, in any order of templates: one may have very many.
create or replace function tasker.due_admissions(p_limit integer, p_now timestamptz) returns bigint[]
language plpgsql stable as $$
begin
    return (
        select array_agg(task_id) from (
            select waiting.task_id
            from (
                select l.*
                from tasker.concurrency_limits l
                cross join lateral (
                    select from tasker.limited_tasks w
                    where w.namespace = l.namespace and w.template_name = l.template_name and not w.admitted limit 1
                ) as any_that_waits
                order by random()
            ) l
            cross join lateral (
                select t.task_id
                from tasker.limited_tasks w join tasker.tasks t on t.task_id = w.task_id
                where w.namespace = l.namespace and w.template_name = l.template_name and not w.admitted
                    and not t.suspended and not tasker.is_parked('admissions', t.task_id, p_now)
                order by w.order_at, w.task_id
                limit greatest(least(p_limit / 10 + 1, coalesce(
                    l.max_tasks - tasker.admitted_runs(l.namespace, l.template_name), p_limit)), 0)
            ) as waiting
            limit p_limit
        ) as due);
end $$;

create or replace function tasker.repair_admissions(p_task_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_template record;
    v_admitted integer := 0;
begin
    for v_template in
        select t.namespace, t.limited_as, array_agg(t.task_id) as task_ids
        from tasker.tasks t where t.task_id = any (p_task_ids) group by t.namespace, t.limited_as
    loop
        v_admitted := v_admitted + tasker.admit_tasks(
            v_template.namespace, v_template.limited_as, v_template.task_ids, cardinality(v_template.task_ids), p_actor);
    end loop;
    return v_admitted;
end $$;

-- Takes the keys of runs that are about to be created, the arrays being parallel: for those that are wanted, of revisions
-- that have one. Returns for each the run that holds its key: its own, or the other of which it is a duplicate; null where
-- none was taken. Whoever comes at the same moment with the same key waits until this transaction has ended.
create or replace function tasker.take_identities(
    p_namespace text, p_template_ids bigint[], p_keys text[], p_wanted boolean[], p_task_ids bigint[], p_task_uuids uuid[]
) returns uuid[] language plpgsql as $$
declare
    v_template_name text;
    v_strategy text;
    v_holders uuid[];
begin
    select t.name, t.identity_strategy into v_template_name, v_strategy
    from tasker.templates t
    where t.identity_strategy <> 'alwaysUnique' and t.template_id = any (array(
        select request.template_id from unnest(p_template_ids, p_keys, p_wanted) as request(template_id, key, wanted)
        where request.key is null and request.wanted)) limit 1;
    if found then
        raise exception 'a run of template % needs an identity_key: its identity is %', v_template_name, v_strategy
            using errcode = 'TK006';
    end if;

    -- Of equal keys in one call the first is taken. A key whose time is over goes to whoever comes.
    insert into tasker.identities as held (namespace, template_name, key, task_id, task_uuid, until)
    select p_namespace, first.name, first.key, first.task_id, first.task_uuid, first.until
    from (
        select distinct on (t.name, request.key) t.name, request.key, request.task_id, request.task_uuid,
            tasker.now() + t.identity_window_seconds * interval '1 second' as until
        from unnest(p_template_ids, p_keys, p_wanted, p_task_ids, p_task_uuids) with ordinality
            as request(template_id, key, wanted, task_id, task_uuid, place)
        -- Looked up one by one, as the keys below: statistics know nothing of the first requests.
        cross join lateral (select * from tasker.templates f where f.template_id = request.template_id offset 0) t
        where request.wanted and t.identity_strategy <> 'alwaysUnique'
        order by t.name, request.key, request.place
    ) as first
    order by first.name, first.key -- two calls with the same keys wait for each other here, hence in one order
    on conflict (namespace, template_name, key) do update
        set task_id = excluded.task_id, task_uuid = excluded.task_uuid, until = excluded.until
        where held.until <= tasker.now();

    select array_agg((
            select held.task_uuid from tasker.identities held
            where held.namespace = p_namespace and held.template_name = t.name and held.key = request.key
                and request.wanted and t.identity_strategy <> 'alwaysUnique'
        ) order by request.place) into v_holders
    from unnest(p_template_ids, p_keys, p_wanted) with ordinality as request(template_id, key, wanted, place)
    cross join lateral (select * from tasker.templates f where f.template_id = request.template_id offset 0) t;
    return v_holders;
end $$;

create or replace function tasker.due_identities_expired(p_limit integer, p_now timestamptz) returns bigint[]
language sql stable as $$
    select array_agg(identity_id) from (
        select identity_id from tasker.identities where until <= p_now order by until limit p_limit
    ) as over
$$;

create or replace function tasker.repair_identities_expired(p_identity_ids bigint[], p_actor text) returns integer
language plpgsql as $$
declare
    v_gone integer;
begin
    delete from tasker.identities where identity_id = any (array(
        select identity_id from tasker.identities
        where identity_id = any (p_identity_ids) and until <= tasker.now() for update skip locked));
    get diagnostics v_gone = row_count;
    return v_gone;
end $$;
