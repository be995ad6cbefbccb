-- The engine's functions as a worker calls them. Each statement is a transaction of its own.

-- name: contract
-- Which contracts the database's functions serve.
select oldest, current from tasker.contract()

-- name: register_worker
-- Makes the worker known with what it offers; repeated when that changes or when the database has forgotten it.
select tasker.register_worker(%s, %s, %s, %s::int, %s, %s::text[], %s::double precision, %s)

-- name: expire_predecessor
-- Gives up what an earlier process of this name has left.
select tasker.expire_predecessor(%s, %s)

-- name: unhandled_callables
-- What the namespace's templates need and this worker does not offer.
select tasker.unhandled_callables(%s, %s)

-- name: claim_steps
-- Takes ready steps when nothing is there to settle.
select kind, step_id, fence, task_uuid, step_uuid, namespace, template_name, template_version, step_name, step_type,
    callable, method, resolver, attempt, max_attempts, timeout_ms, deadline, correlation_id, ready_at, configuration,
    inputs, context, dependency_results, results_left, condition, result_schema, dependents, batch, checkpoint, ready_left,
    tasks_finished
from tasker.claim_steps(%s, %s, %s::int)

-- name: settle_steps
-- Records outcomes and takes new steps. The arrays of numbers, truth values and outcomes come as array literals, those
-- of texts as they are; what no outcome of the call needs is null as a whole.
select kind, step_id, fence, task_uuid, step_uuid, namespace, template_name, template_version, step_name, step_type,
    callable, method, resolver, attempt, max_attempts, timeout_ms, deadline, correlation_id, ready_at, configuration,
    inputs, context, dependency_results, results_left, condition, result_schema, dependents, batch, checkpoint, ready_left,
    tasks_finished
from tasker.settle_steps(%s, %s, %s::bigint[], %s::bigint[], %s::text[], %b::text[]::json[], %b::text[]::json[],
    %b::text[], %b::text[], %b::text[], %b::text[], %s::boolean[], %s::bigint[], %s::int)

-- name: create_batches
-- Settles a batchable step with one worker for each of the inputs, and takes new steps.
select kind, step_id, fence, task_uuid, step_uuid, namespace, template_name, template_version, step_name, step_type,
    callable, method, resolver, attempt, max_attempts, timeout_ms, deadline, correlation_id, ready_at, configuration,
    inputs, context, dependency_results, results_left, condition, result_schema, dependents, batch, checkpoint, ready_left,
    tasks_finished
from tasker.create_batches(%s, %s, %s::bigint, %s::bigint, %s::json, %s::json, %b::text[], %s::bigint[], %s::bigint[],
    %b::text[]::json[], %s::boolean, %s::int)

-- name: read_results
-- Results of steps before a claimed one, which did not fit its claim; no rows when the lease is gone.
select step_name, result from tasker.read_results(%s, %s, %s::bigint, %s::bigint, %s::text[])

-- name: read_batch_results
-- A page of the results of a batch's workers, by their places; no rows when the lease is gone.
select place, step_name, result
from tasker.read_batch_results(%s, %s, %s::bigint, %s::bigint, %s, %s::int, %s::int)

-- name: save_checkpoint
-- Keeps how far an attempt has come; false when the lease is gone.
select tasker.save_checkpoint(%s, %s, %s::bigint, %s::bigint, %s::json)

-- name: deregister_worker
-- Releases what the worker still holds and forgets it.
select tasker.deregister_worker(%s, %s)

-- name: renew_worker
-- Keeps the worker's leases alive, tells which of the given ones are gone and which others there are.
select known, draining, lost_fences, unknown_step_ids, unknown_fences, renewed_at
from tasker.renew_worker(%s, %s, %s::bigint[], %s::bigint[], %s::timestamptz)

-- name: sweep
-- One pass of repairs; no rows when another worker is at it.
select repair, repaired from tasker.sweep(%s::int)

-- name: listen_ready
-- Hints that steps became ready arrive on this session from now on.
listen tasker_ready

-- name: notify
-- Tells other sessions on a channel that there is something to look at. A hint need not wait for the disk, nor for long
-- for others that notify.
select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '2s', true), pg_notify(%s, '')
