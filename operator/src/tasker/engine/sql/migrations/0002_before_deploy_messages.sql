-- Messages: queues of JSON for whoever wants to tell somebody something. `functions/65_messages.sql` works on them, and
-- is their only writer. Steps do not travel here but in ready_steps.

create table tasker.message_queues (
    queue_id bigint generated always as identity primary key,
    namespace text not null check (namespace ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$' and length(namespace) <= 63),
    name text not null check (name ~ '^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$' and length(name) <= 63),
    created_at timestamptz not null,
    unique (namespace, name)
);

create sequence tasker.message_ids;

create table tasker.messages (
    message_id bigint primary key,
    queue_id bigint not null,
    -- Until then nobody receives it: it is delayed, or in somebody's hands.
    visible_at timestamptz not null,
    read_count integer not null default 0 check (read_count >= 0),
    -- Whose hands: new at each reading, drawn at random; null while in nobody's.
    receipt uuid,
    enqueued_at timestamptz not null,
    -- Of the text in UTF-8, so that a reader's budget is counted without reading the text.
    body_bytes integer not null check (body_bytes <= 1048576),
    body json not null,
    -- Of a message that was given up: the queue it came from, why, and after how many readings.
    dead_from text,
    dead_reason text check (length(dead_reason) <= 1024),
    dead_reads integer,
    constraint messages_are_dead_or_not
        check ((dead_from is null) = (dead_reason is null) and (dead_from is null) = (dead_reads is null))
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
create index messages_in_order on tasker.messages (queue_id, visible_at, message_id);
comment on table tasker.messages is 'A row lives from send to acknowledgement.';
