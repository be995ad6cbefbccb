-- name: ensure_queues
-- Makes those of the queues that are missing.
select tasker.ensure_queues(%(namespace)s, %(queues)s);

-- name: send_messages
-- Stores messages, all or none.
select message_id
from tasker.send_messages(
    %(namespace)s, %(queues)s::text[], %(bodies)s::text[]::json[], %(delays)s::double precision[], %(notify)s
)
order by place;

-- name: notify_queues
-- Wakes who listens to the queues.
select tasker.notify_queues(%(namespace)s, %(queues)s);

-- name: receive_messages
-- Receives messages and hides them.
select message_id, receipt, body, read_count, enqueued_at, visible_at, dead_from, dead_reason, dead_reads
from tasker.receive_messages(%(namespace)s, %(queue)s, %(limit)s, %(visibility_seconds)s);

-- name: acknowledge_messages
-- Removes messages.
select place from tasker.acknowledge_messages(%(namespace)s, %(message_ids)s, %(receipts)s) as place;

-- name: return_messages
-- Gives messages back.
select place from tasker.return_messages(%(namespace)s, %(message_ids)s, %(receipts)s, %(delay_seconds)s) as place;

-- name: extend_messages
-- Keeps messages hidden.
select place
from tasker.extend_messages(%(namespace)s, %(message_ids)s, %(receipts)s, %(visibility_seconds)s) as place;

-- name: bury_messages
-- Moves messages that nobody can handle into another queue.
select place
from tasker.bury_messages(%(namespace)s, %(message_ids)s, %(receipts)s, %(dead_queue)s, %(reasons)s) as place;

-- name: queue_stats
-- How a queue stands.
select queue, available, in_flight, delayed, oldest_seconds
from tasker.queue_stats(%(namespace)s, %(queues)s, %(limit)s);

-- name: message_clock
-- The time by which messages become visible.
select tasker.now();
