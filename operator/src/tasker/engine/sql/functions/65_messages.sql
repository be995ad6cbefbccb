-- Messages: queues of JSON, delivered at least once. A message that is received is hidden from all others for a while, and
-- its receiver gets a receipt; the receipt is good until somebody else receives the message, for each reading draws a
-- new one. Whoever lost a message can therefore neither remove it nor hold it back, and whoever was late, but not too
-- late, need not have it done twice.
--
-- Messages are taken in the order in which they became visible: those that were sent first, first, and what came back
-- behind what had waited meanwhile, so that a message that always fails holds up nobody.
--
-- Locks: these functions lock rows of messages alone, several by id; receiving waits for nobody.

-- On which channel is notified of a queue. A channel's name has at most 63 bytes, a namespace and a queue may have as many
-- each. `tasker.messaging.postgres` computes the same; a test compares them.
create or replace function tasker.message_channel(p_namespace text, p_queue text) returns text
language sql immutable parallel safe as $$
    select 'tasker_messages_' || left(encode(sha256(convert_to(p_namespace || '/' || p_queue, 'UTF8')), 'hex'), 32)
$$;

-- Makes those of the queues that are missing. Returns how many were.
create or replace function tasker.ensure_queues(p_namespace text, p_queues text[]) returns integer language plpgsql as $$
declare
    v_made integer;
begin
    insert into tasker.message_queues (namespace, name, created_at)
    -- In one order: two that make the same queues wait for each other here.
    select p_namespace, name, tasker.now() from (select distinct unnest(p_queues) as name) as wanted order by name
    on conflict (namespace, name) do nothing;
    get diagnostics v_made = row_count;
    return v_made;
end $$;

-- The id of a queue; error TK010 when there is none of this name in the namespace.
create or replace function tasker.message_queue_id(p_namespace text, p_queue text) returns bigint
language plpgsql stable as $$
declare
    v_queue_id bigint;
begin
    select queue_id into v_queue_id from tasker.message_queues where namespace = p_namespace and name = p_queue;
    if not found then
        raise exception 'no queue % in namespace %', p_queue, p_namespace using errcode = 'TK010';
    end if;
    return v_queue_id;
end $$;

-- Tells who listens to the queues that there may be something; said twice in one transaction it is heard once.
create or replace function tasker.notify_queues(p_namespace text, p_queues text[]) returns void language sql as $$
    select pg_notify(tasker.message_channel(p_namespace, name), '') from unnest(p_queues) as told(name)
$$;

-- Stores messages, all or none; the arrays are parallel. Returns the ids in their order. p_notify: who listens is told by
-- the same commit, so that a message is never stored and its notification lost, or the reverse. It costs: commits that
-- notify wait for each other, in the whole server. Without it the caller hints afterwards, in a transaction that holds
-- nothing.
create or replace function tasker.send_messages(
    p_namespace text, p_queues text[], p_bodies json[], p_delays double precision[], p_notify boolean
) returns table (place integer, message_id bigint) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off as $$
declare
    v_now timestamptz := tasker.now();
    v_count integer := cardinality(p_queues);
    v_bytes bigint;
begin
    if v_count is null or cardinality(p_bodies) is distinct from v_count
        or cardinality(p_delays) is distinct from v_count
    then
        raise exception 'send_messages: the arrays differ in length' using errcode = 'TK005';
    end if;
    select max(octet_length(body::text)) into v_bytes from unnest(p_bodies) as given(body);
    if v_bytes > 1048576 then
        raise exception 'send_messages: a body of % bytes; at most 1048576 are allowed', v_bytes using errcode = 'TK005';
    end if;
    if p_notify then
        perform tasker.notify_queues(p_namespace, p_queues);
    end if;
    return query
    with queue as materialized (
        select name, tasker.message_queue_id(p_namespace, name) as queue_id
        from (select distinct unnest(p_queues) as name) as named
    ), given as materialized (
        select g.place::integer as place, nextval('tasker.message_ids') as message_id, g.name, g.body, g.delay
        from (
            select * from unnest(p_queues, p_bodies, p_delays) with ordinality as each(name, body, delay, place)
            order by each.place offset 0
        ) as g
    ), sent as (
        insert into tasker.messages (message_id, queue_id, visible_at, enqueued_at, body_bytes, body)
        select g.message_id, q.queue_id, v_now + g.delay * interval '1 second', v_now, octet_length(g.body::text), g.body
        from given g join queue q on q.name = g.name
        order by g.place
    )
    select g.place, g.message_id from given g order by g.place;
end $$;

-- Receives up to p_limit messages (at most 1,000), but no more than fit into 32 MiB together (one always does), and hides
-- them for a while. What others are just receiving is passed over. A receiving that is lost with the server only means that the
-- messages are delivered again, so it does not wait for the disk.
create or replace function tasker.receive_messages(
    p_namespace text, p_queue text, p_limit integer, p_visibility_seconds double precision
) returns table (
    message_id bigint, receipt uuid, body text, read_count integer, enqueued_at timestamptz, visible_at timestamptz,
    dead_from text, dead_reason text, dead_reads integer
) language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
#variable_conflict use_column
declare
    v_now timestamptz := tasker.now();
    v_queue_id bigint := tasker.message_queue_id(p_namespace, p_queue);
    v_limit integer := least(coalesce(p_limit, 0), 1000); -- null would be no limit
begin
    perform set_config('synchronous_commit', 'off', true);
    return query
    with due as materialized (
        select m.message_id, m.visible_at, m.body_bytes
        from tasker.messages m
        where m.queue_id = v_queue_id and m.visible_at <= v_now
        order by m.visible_at, m.message_id limit v_limit for update skip locked
    ), fitting as (
        select d.message_id, row_number() over in_order as place, sum(d.body_bytes) over in_order - d.body_bytes as before
        from due d window in_order as (order by d.visible_at, d.message_id)
    ), taken as (
        update tasker.messages m set read_count = m.read_count + 1, receipt = gen_random_uuid(),
            visible_at = v_now + p_visibility_seconds * interval '1 second'
        from fitting f
        where m.message_id = f.message_id and f.before < 33554432
        returning f.place, m.*
    )
    select t.message_id, t.receipt, t.body::text, t.read_count, t.enqueued_at, t.visible_at, t.dead_from, t.dead_reason,
        t.dead_reads
    from taken t order by t.place;
end $$;

-- Locks those of the messages whose receipts are still good. Returns their places in the arrays.
create or replace function tasker.hold_messages(p_namespace text, p_message_ids bigint[], p_receipts uuid[])
returns integer[] language sql
set enable_seqscan = off as $$
    select coalesce(array_agg(held.place::integer order by held.place), '{}')
    from (
        select given.place
        from unnest(p_message_ids, p_receipts) with ordinality as given(message_id, receipt, place)
        join tasker.messages m on m.message_id = given.message_id and m.receipt = given.receipt
        where exists (
            select from tasker.message_queues q where q.queue_id = m.queue_id and q.namespace = p_namespace
        )
        order by m.message_id for update of m
    ) as held
$$;

-- Removes messages. Returns the places of those that were removed: the others have been received by somebody else, or
-- were removed before.
create or replace function tasker.acknowledge_messages(p_namespace text, p_message_ids bigint[], p_receipts uuid[])
returns setof integer language plpgsql
set enable_seqscan = off as $$
declare
    v_places integer[] := tasker.hold_messages(p_namespace, p_message_ids, p_receipts);
begin
    delete from tasker.messages m where m.message_id = any (array(select p_message_ids[place] from unnest(v_places) place));
    return query select unnest(v_places);
end $$;

-- Gives messages back, to be received again after p_delay_seconds (0: at once). Returns the places of those that were.
create or replace function tasker.return_messages(
    p_namespace text, p_message_ids bigint[], p_receipts uuid[], p_delay_seconds double precision
) returns setof integer language plpgsql
set enable_seqscan = off as $$
declare
    v_places integer[] := tasker.hold_messages(p_namespace, p_message_ids, p_receipts);
    v_now timestamptz := tasker.now();
begin
    perform set_config('synchronous_commit', 'off', true);
    update tasker.messages m set receipt = null, visible_at = v_now + p_delay_seconds * interval '1 second'
    where m.message_id = any (array(select p_message_ids[place] from unnest(v_places) place));
    return query select unnest(v_places);
end $$;

-- Keeps messages hidden for so long from now on. Returns the places of those that were still the caller's.
create or replace function tasker.extend_messages(
    p_namespace text, p_message_ids bigint[], p_receipts uuid[], p_visibility_seconds double precision
) returns setof integer language plpgsql
set enable_seqscan = off as $$
declare
    v_places integer[] := tasker.hold_messages(p_namespace, p_message_ids, p_receipts);
    v_now timestamptz := tasker.now();
begin
    perform set_config('synchronous_commit', 'off', true);
    update tasker.messages m set visible_at = v_now + p_visibility_seconds * interval '1 second'
    where m.message_id = any (array(select p_message_ids[place] from unnest(v_places) place));
    return query select unnest(v_places);
end $$;

-- Moves messages that nobody can handle into another queue of the namespace, each with a reason (its first 1,024
-- characters): in one step, so that none is lost or there twice. Returns the places of those that were moved.
create or replace function tasker.bury_messages(
    p_namespace text, p_message_ids bigint[], p_receipts uuid[], p_dead_queue text, p_reasons text[]
) returns setof integer language plpgsql
set enable_seqscan = off as $$
declare
    v_dead_queue_id bigint := tasker.message_queue_id(p_namespace, p_dead_queue);
    v_places integer[] := tasker.hold_messages(p_namespace, p_message_ids, p_receipts);
    v_now timestamptz := tasker.now();
begin
    update tasker.messages m set queue_id = v_dead_queue_id, visible_at = v_now, receipt = null, read_count = 0,
        dead_from = q.name, dead_reason = left(p_reasons[held.place], 1024), dead_reads = m.read_count
    from unnest(v_places) as held(place), tasker.message_queues q
    where m.message_id = p_message_ids[held.place] and q.queue_id = m.queue_id;
    return query select unnest(v_places);
end $$;

-- How many messages of a queue can be received, are in somebody's hands, and are delayed; and since when the one has
-- waited that would be received next. Counts end at p_limit, the last two together.
create or replace function tasker.queue_stats(p_namespace text, p_queues text[], p_limit integer)
returns table (queue text, available bigint, in_flight bigint, delayed bigint, oldest_seconds double precision)
language plpgsql
set enable_seqscan = off set enable_bitmapscan = off as $$ -- in order, and so only as many as are counted
declare
    v_now timestamptz := tasker.now();
begin
    return query
    select asked.name, ready.count, hidden.in_flight, hidden.delayed,
        extract(epoch from v_now - ready.since)::double precision
    from unnest(p_queues) as asked(name)
    cross join lateral (select tasker.message_queue_id(p_namespace, asked.name) as queue_id offset 0) as known
    cross join lateral (
        select count(*) as count, min(first.visible_at) as since
        from (
            select m.visible_at from tasker.messages m
            where m.queue_id = known.queue_id and m.visible_at <= v_now order by m.visible_at limit p_limit
        ) as first
    ) as ready
    cross join lateral (
        select count(first.receipt) as in_flight, count(*) - count(first.receipt) as delayed
        from (
            select m.receipt from tasker.messages m
            where m.queue_id = known.queue_id and m.visible_at > v_now order by m.visible_at limit p_limit
        ) as first
    ) as hidden;
end $$;
