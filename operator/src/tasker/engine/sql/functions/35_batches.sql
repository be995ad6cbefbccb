-- Batches: the workers of a batchable step, one range of places each batch. Whoever holds the run's row may change them.
--
-- No more than `parallelism` of a batch are queued or held at once; one that waits for its retry is neither. When one of these
-- ends, the next takes its place: a retry whose time has come, else the next that was never in the queue.

-- Whether a step is a batch's worker: its place is none of its node's.
create or replace function tasker.is_of_batch(p_definition_id bigint, p_step_id bigint) returns boolean
language sql immutable as $$
    select tasker.place_of(p_definition_id) <> tasker.place_of(p_step_id)
$$;

-- Whether a run can be complete although this step has failed for good.
create or replace function tasker.is_tolerated(p_definition_id bigint, p_step_id bigint) returns boolean
language plpgsql stable as $$
begin
    return tasker.is_of_batch(p_definition_id, p_step_id) and (
        select d.failure_strategy <> 'fail_fast' from tasker.definitions d where d.definition_id = p_definition_id);
end $$;

-- The batch that a worker is of: its first place.
create or replace function tasker.batch_of(p_step_id bigint) returns integer language plpgsql stable as $$
begin
    return (
        select b.first_place from tasker.step_batches b
        where b.task_id = tasker.task_of_step(p_step_id) and b.first_place <= tasker.place_of(p_step_id)
        order by b.first_place desc limit 1);
end $$;

-- Creates the workers that a batchable step asked for, one for each of the inputs. Returns those that may run at once: they
-- are enqueued, and in nobody's hands.
create or replace function tasker.create_batch(
    p_batchable tasker.settlement, p_inputs json[], p_is_no_op boolean, p_now timestamptz
) returns bigint[] language plpgsql as $$
declare
    v_task_id bigint := tasker.task_of_step(p_batchable.step_id);
    v_size integer := cardinality(p_inputs);
    v_node tasker.definitions;
    v_worker tasker.definitions;
    v_first_place integer;
    v_at_once integer;
    v_ready bigint[];
begin
    select * into v_node from tasker.definitions where definition_id = p_batchable.definition_id;
    select * into v_worker from tasker.definitions
    where definition_id = tasker.first_definition_id(v_node.template_id) + v_node.worker_position;
    v_at_once := least(v_size, v_node.parallelism);
    update tasker.tasks set next_place = next_place + v_size, total_steps = total_steps + v_size,
        remaining_steps = remaining_steps + v_size
    where task_id = v_task_id
    returning next_place - v_size into v_first_place;
    insert into tasker.step_batches (task_id, first_place, size, batchable_step_id, definition_id, strategy, is_no_op,
        parallelism, next_place, at_once, open)
    values (v_task_id, v_first_place, v_size, p_batchable.step_id, v_worker.definition_id, v_node.failure_strategy,
        p_is_no_op, coalesce(v_node.parallelism, v_size), v_first_place + v_at_once, v_at_once, v_size);
    with created as (
        insert into tasker.steps (step_id, definition_id, attempts_allowed, state, open_edges, enqueued_at, inputs)
        select tasker.first_step_id(v_task_id) + v_first_place + each.place - 1, v_worker.definition_id,
            v_worker.max_attempts, case when each.place <= v_at_once then 'enqueued' else 'pending' end::tasker.step_state,
            0, case when each.place <= v_at_once then p_now end, each.inputs
        from unnest(p_inputs) with ordinality as each(inputs, place)
        returning step_id, state
    )
    select array_agg(step_id) into v_ready from created where state = 'enqueued';
    return v_ready;
end $$;

-- Counts what became of batches' workers, ends batches that fail as a whole, and gives places that are free to the next.
-- p_due are steps whose retry need not wait. Returns those that may run now and were never in the queue, the retries that are
-- due now, and of each batch that has nothing open any more the last worker.
create or replace function tasker.settle_batch_workers(
    p_actor_id integer, p_now timestamptz, p_settled tasker.settlement[], p_due bigint[],
    out refilled bigint[], out due bigint[], out closed bigint[], out cancelled tasker.cancellation[]
) language plpgsql as $$
declare
    v_batch record;
    v_room integer;
    v_ids bigint[];
begin
    due := p_due;
    for v_batch in
        with counted as (
            select tasker.task_of_step(d.step_id) as task_id, tasker.batch_of(d.step_id) as first_place,
                (count(*) filter (where d.outcome <> 'release'))::integer as freed,
                (count(*) filter (where d.state in ('complete', 'skipped') or d.is_tolerated))::integer as gone,
                (count(*) filter (where d.state = 'error'))::integer as failed
            from unnest(p_settled) d
            where tasker.is_of_batch(d.definition_id, d.step_id)
            group by 1, 2
        )
        update tasker.step_batches b set at_once = b.at_once - c.freed, open = b.open - c.gone, failed = b.failed + c.failed
        from counted c where b.task_id = c.task_id and b.first_place = c.first_place
        returning b.*, c.failed > 0 and b.strategy = 'fail_fast' as fails, c.gone > 0 and b.open = 0 as is_closed
    loop
        if v_batch.is_closed then
            closed := closed || (tasker.first_step_id(v_batch.task_id) + v_batch.first_place);
        elsif v_batch.fails then
            cancelled := cancelled || tasker.cancel_batch(
                v_batch.task_id, v_batch.first_place, v_batch.size, p_actor_id, p_now);
            due := array(select id from unnest(due) as each(id) where not (tasker.task_of_step(id) = v_batch.task_id
                and tasker.place_of(id) between v_batch.first_place and v_batch.first_place + v_batch.size - 1));
        else
            v_room := v_batch.parallelism - v_batch.at_once;
            if v_room > 0 and v_batch.due > 0 then
                -- They stay counted as due until retry_steps takes them.
                select array_agg(step_id) into v_ids from (
                    select s.step_id from tasker.steps s
                    where s.step_id >= tasker.first_step_id(v_batch.task_id) + v_batch.first_place
                        and s.step_id < tasker.first_step_id(v_batch.task_id) + v_batch.next_place
                        and s.state = 'waiting_for_retry' and s.next_attempt_at <= p_now and s.step_id <> all (coalesce(p_due, '{}'))
                    order by s.next_attempt_at, s.step_id limit least(v_room, v_batch.due)
                ) as waiting;
                if v_ids is not null then
                    update tasker.step_batches b set due = b.due - cardinality(v_ids)
                    where b.task_id = v_batch.task_id and b.first_place = v_batch.first_place;
                    due := v_ids || due;
                    v_room := v_room - cardinality(v_ids);
                end if;
            end if;
            if v_room > 0 then
                with filled as (
                    update tasker.steps s set state = 'enqueued', enqueued_at = p_now
                    where s.step_id >= tasker.first_step_id(v_batch.task_id) + v_batch.next_place
                        and s.step_id < tasker.first_step_id(v_batch.task_id)
                            + least(v_batch.next_place + v_room, v_batch.first_place + v_batch.size)
                    returning s.step_id
                )
                select array_agg(step_id) into v_ids from filled;
                if v_ids is not null then
                    update tasker.step_batches b set next_place = b.next_place + cardinality(v_ids),
                        at_once = b.at_once + cardinality(v_ids)
                    where b.task_id = v_batch.task_id and b.first_place = v_batch.first_place;
                    refilled := refilled || v_ids;
                end if;
            end if;
        end if;
    end loop;
    if cardinality(due) = 0 then
        due := null;
    end if;
end $$;

-- Ends the workers of a batch that have not ended; the caller holds the run's row, and counts them there.
create or replace function tasker.cancel_batch(
    p_task_id bigint, p_first_place integer, p_size integer, p_actor_id integer, p_now timestamptz
) returns tasker.cancellation language plpgsql as $$
declare
    v_first bigint := tasker.first_step_id(p_task_id) + p_first_place;
    v_cancelled tasker.cancellation;
begin
    delete from tasker.timers where task_id = p_task_id and step_id >= v_first and step_id < v_first + p_size;
    v_cancelled := tasker.cancel_steps(
        v_first, v_first + p_size, p_actor_id, p_now, '{"reason": "another worker of its batch failed"}');
    update tasker.step_batches b set at_once = 0, due = 0, next_place = b.first_place + b.size,
        open = b.open - v_cancelled.every
    where b.task_id = p_task_id and b.first_place = p_first_place;
    return v_cancelled;
end $$;

-- Of steps whose retry is due those that may be queued now: of a batch no more than there is room for. The others are counted,
-- and go on when a place is free.
create or replace function tasker.take_places(p_step_ids bigint[]) returns bigint[] language plpgsql as $$
declare
    v_taken bigint[];
begin
    with asked as (
        select s.step_id, tasker.task_of_step(s.step_id) as task_id,
            case when tasker.is_of_batch(s.definition_id, s.step_id) then tasker.batch_of(s.step_id) end as first_place
        from tasker.steps s where s.step_id = any (p_step_ids)
    ), placed as (
        select a.step_id, b.task_id, b.first_place, b.task_id is null or b.at_once + row_number() over (
                partition by b.task_id, b.first_place order by a.step_id) <= b.parallelism as fits
        from asked a
        left join tasker.step_batches b on b.task_id = a.task_id and b.first_place = a.first_place
    ), counted as (
        select task_id, first_place, count(*) filter (where fits) as taken, count(*) filter (where not fits) as left_over
        from placed where task_id is not null group by task_id, first_place
    ), noted as (
        update tasker.step_batches b set at_once = b.at_once + c.taken, due = b.due + c.left_over
        from counted c where b.task_id = c.task_id and b.first_place = c.first_place
    )
    select array_agg(step_id) into v_taken from placed where fits;
    return v_taken;
end $$;

-- Why a batchable step cannot be divided so; null when it can.
create or replace function tasker.batch_fault(
    p_step_id bigint, p_ids text[], p_from bigint[], p_to bigint[], p_is_no_op boolean
) returns text language plpgsql stable as $$
declare
    v_node tasker.definitions;
    v_count integer := cardinality(p_ids);
    v_place integer;
    v_found record;
begin
    select d.* into v_node from tasker.steps s join tasker.definitions d on d.definition_id = s.definition_id
    where s.step_id = p_step_id;
    if v_node.type is distinct from 'batchable' then
        return format('step %s is not batchable', v_node.name);
    elsif v_count = 0 or p_is_no_op and v_count <> 1 then
        return format('step %s made %s batches; there is at least one, and just one without work', v_node.name, v_count);
    elsif v_count > tasker.setting('batches_a_step', 10000) then
        return format('step %s made %s batches; %s are the most', v_node.name, v_count, tasker.setting('batches_a_step', 10000));
    end if;
    select t.next_place into v_place from tasker.tasks t where t.task_id = tasker.task_of_step(p_step_id);
    if v_place + v_count > tasker.setting('steps_a_task', 1000000) then
        return format('step %s made %s batches, and its task would have more than %s steps', v_node.name, v_count,
            tasker.setting('steps_a_task', 1000000));
    end if;
    select id into v_found from unnest(p_ids) as each(id) group by id having count(*) > 1 or id is null limit 1;
    if found then
        return format(case when v_found.id is null then 'step %s made a batch without an id'
            else 'step %s made more than one batch %s' end, v_node.name, v_found.id);
    end if;
    select c.id, c.before into v_found from (
        select id, starts, ends, lag(ends) over cursors as earlier_ends, lag(id) over cursors as before
        from unnest(p_ids, p_from, p_to) as each(id, starts, ends)
        where starts is not null and ends is not null
        window cursors as (order by starts, ends)
    ) as c where c.starts < c.earlier_ends limit 1;
    if found then
        return format('step %s made batches %s and %s overlap', v_node.name, v_found.before, v_found.id);
    end if;
    return null;
end $$;
