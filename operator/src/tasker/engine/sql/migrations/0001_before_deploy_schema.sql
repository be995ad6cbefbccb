-- The whole schema of the engine, as it is. `migrations/` builds the same step by step; a test holds the two equal.
-- The functions that work on it are in `functions/`, one story a file.
--
-- How it works, in one breath. A template revision is data: `templates`, its nodes in `definitions`, its arrows in
-- `definition_edges`. A run is one row in `tasks` and one row a step in `steps`. A step whose dependencies are all
-- satisfied gets a row in `ready_steps`, the queue. A worker takes it from there (`claim_steps`) under a lease with a
-- fence, and hands its outcome back (`settle_steps`); that call records the outcome, resolves the arrows that lead on,
-- puts steps that became ready into the queue or straight into the caller's hands, skips those that are not to run, and
-- moves the task. Nobody else need be alive for a run to go on. What only time can do (leases that ran out, retries that
-- are due, deadlines) is done by `sweep`, which any process may call as often as it likes.
--
-- Hot and cold. `ready_steps`, `leases` and `workers` are small and change all the time: rows are narrow, rewritten in
-- place where possible, and vacuumed early. `tasks` and `steps` change a few times a row: no index covers a column that
-- changes, and their pages have room for the changes, so these stay heap-only. The two logs are only ever appended to,
-- partitioned by day, and one day dropped by partition.
--
-- A step's id holds its task's: step_id = task_id * 2^20 + its place in the task. The steps of a task are one range of
-- the primary key, and no second index is needed. 2^20 is just above the limit of 1,000,000 steps a task. A definition's
-- id holds its template's in the same way, so that one column finds it.
--
-- An arrow of a run resolves once: it is satisfied when the step it comes from completes, and void when that is skipped, or
-- is a decision that chose others. A step counts the arrows that are open and those that are void. When none is open, a
-- standard step runs if none is void, a deferred convergence if not all are; else it is skipped, and its own are void.
--
-- A batchable step says how the work is divided. Its workers' node has no row of its own: each batch gets a row in
-- `step_batches` and a range of places behind the nodes, one a worker, and an arrow from that node is resolved when the batch
-- has nothing open any more.
--
-- Locks are taken in one order everywhere: worker, tasks by id, ready_steps, steps, leases. Whoever holds a task's row
-- may change its steps; the one exception, a claim, holds the step's row of `ready_steps`, which nobody else then has.
-- Before all of these come `concurrency_limits` and then `identities`, by name and key: who submits or registers waits for
-- them and holds nothing else yet. Whoever comes to a limit or an identity later passes over one that is held.
--
-- What users give (context, configuration, results) is json and not jsonb: it is never searched or compared here, and
-- comes back as it was written, to the last digit.
--
-- Hot tables carry no foreign keys: the functions are their only writers, and each key would cost a lookup a row.

create schema if not exists tasker;

create type tasker.task_state as enum (
    'pending', 'initializing', 'enqueuing_steps', 'steps_in_process', 'evaluating_results', 'waiting_for_dependencies',
    'waiting_for_retry', 'blocked_by_failures', 'complete', 'error', 'cancelled', 'resolved_manually'
);

create type tasker.task_event as enum (
    'start', 'ready_steps_found', 'no_steps_found', 'no_dependencies_ready', 'steps_enqueued', 'enqueue_failed',
    'step_settled', 'all_steps_successful', 'steps_running', 'retry_pending', 'permanent_failure', 'dependencies_ready',
    'retry_ready', 'give_up', 'step_resolved', 'rerun', 'manual_resolution', 'cancel'
);

create type tasker.step_state as enum (
    'pending', 'enqueued', 'in_progress', 'enqueued_for_orchestration', 'enqueued_as_error_for_orchestration',
    'waiting_for_retry', 'error', 'complete', 'cancelled', 'resolved_manually', 'skipped'
);

create type tasker.step_event as enum (
    'enqueue', 'start', 'submit_result', 'submit_error', 'lease_expired', 'released', 'complete', 'fail',
    'wait_for_retry', 'retry', 'reset_for_retry', 'cancel', 'resolve_manually', 'complete_manually', 'skip', 'rerun',
    'revive'
);

create type tasker.step_type as enum ('standard', 'decision', 'deferred_convergence', 'batchable', 'batch_worker');

-- What the failure of a batch's worker means once it has no attempt left.
create type tasker.failure_strategy as enum ('continue_on_failure', 'isolate', 'fail_fast');

-- When an arrow resolves: with its step; when a decision has chosen; never by itself (from a batchable to its workers'
-- node); or, from a batchable to what comes after its workers, only when there are none.
create type tasker.edge_kind as enum ('plain', 'choice', 'batch', 'without_batch');

create type tasker.hold as enum ('resource', 'person');

-- What becomes of a run that only a person can help.
create type tasker.failure_rule as enum ('fail', 'block');

-- What happens when a run is in one state for too long.
create type tasker.staleness_action as enum ('dlq', 'error', 'none');

create type tasker.dead_letter_reason as enum (
    'staleness_timeout', 'max_retries_exceeded', 'permanent_failure', 'worker_crash_loop', 'worker_unavailable', 'manual',
    'dependency_cycle_detected'
);

-- open and investigating: somebody is to look at it, or does; the others: it has been dealt with.
create type tasker.dead_letter_state as enum ('open', 'investigating', 'resolved', 'discarded', 'put_back');

create type tasker.backoff as enum ('none', 'linear', 'exponential', 'fibonacci');

-- What one transaction makes of a row: a named path of moves. `tasker.model.transitions` says of which; the view
-- tasker.task_hops or tasker.step_hops shows them, and no other can be written into a log.

create type tasker.task_passage as enum (
    'submitted', 'submitted_empty', 'submitted_waiting', 'submitted_pending', 'admitted', 'moved_on', 'kept_running',
    'completed', 'left_to_retries', 'left_waiting', 'blocked', 'failed', 'retried', 'failed_pending', 'failed_retrying',
    'failed_waiting', 'failed_blocked', 'freed', 'taken_up',
    'run_again_cancelled', 'run_again_complete', 'run_again_error', 'woken', 'cancelled_blocked_by_failures',
    'cancelled_enqueuing_steps', 'cancelled_evaluating_results',
    'cancelled_initializing', 'cancelled_pending', 'cancelled_steps_in_process',
    'cancelled_waiting_for_dependencies', 'cancelled_waiting_for_retry', 'resolved_blocked_by_failures',
    'resolved_enqueuing_steps', 'resolved_error', 'resolved_evaluating_results', 'resolved_initializing',
    'resolved_pending', 'resolved_steps_in_process', 'resolved_waiting_for_dependencies',
    'resolved_waiting_for_retry', 'held', 'let_go', 'found_stale', 'repaired'
);

create type tasker.step_passage as enum (
    'queued', 'completed', 'refused', 'released', 'lost', 'failed_to_retry', 'failed',
    'retried', 'reset', 'cancelled_enqueued', 'cancelled_enqueued_as_error_for_orchestration',
    'cancelled_enqueued_for_orchestration', 'cancelled_error', 'cancelled_in_progress', 'cancelled_pending',
    'cancelled_waiting_for_retry', 'resolved_enqueued', 'resolved_enqueued_as_error_for_orchestration',
    'resolved_enqueued_for_orchestration', 'resolved_error', 'resolved_in_progress', 'resolved_pending',
    'resolved_waiting_for_retry', 'completed_by_hand_enqueued',
    'completed_by_hand_enqueued_as_error_for_orchestration', 'completed_by_hand_enqueued_for_orchestration',
    'completed_by_hand_error', 'completed_by_hand_in_progress', 'completed_by_hand_pending',
    'completed_by_hand_waiting_for_retry', 'skipped_enqueued', 'skipped_error', 'skipped_in_progress', 'skipped_pending',
    'skipped_waiting_for_retry', 'rerun_cancelled', 'rerun_complete', 'rerun_error', 'rerun_resolved_manually',
    'rerun_skipped', 'revived_cancelled'
);

-- How an attempt may begin: out of the queue, or straight from the call that made it ready.
create type tasker.step_beginning as enum ('claimed', 'handed_out');

-- From which state to which a row may therefore go.

create function tasker.task_jump_is_legal(source tasker.task_state, target tasker.task_state)
returns boolean language sql immutable parallel safe as $$
    select case source
        when 'pending' then target in ('initializing', 'enqueuing_steps', 'steps_in_process', 'waiting_for_dependencies',
            'complete', 'error', 'cancelled', 'resolved_manually')
        when 'initializing' then target in ('enqueuing_steps', 'steps_in_process', 'waiting_for_dependencies',
            'complete', 'error', 'cancelled', 'resolved_manually')
        when 'enqueuing_steps' then target in ('steps_in_process', 'error', 'cancelled', 'resolved_manually')
        when 'steps_in_process' then target in ('evaluating_results', 'enqueuing_steps', 'waiting_for_dependencies',
            'waiting_for_retry', 'blocked_by_failures', 'complete', 'error', 'cancelled', 'resolved_manually')
        when 'evaluating_results' then target in ('enqueuing_steps', 'steps_in_process', 'waiting_for_dependencies',
            'waiting_for_retry', 'blocked_by_failures', 'complete', 'error', 'cancelled', 'resolved_manually')
        when 'waiting_for_dependencies' then target in ('evaluating_results', 'enqueuing_steps', 'steps_in_process',
            'waiting_for_retry', 'blocked_by_failures', 'complete', 'error', 'cancelled', 'resolved_manually')
        when 'waiting_for_retry' then target in ('enqueuing_steps', 'steps_in_process', 'error', 'cancelled',
            'resolved_manually')
        when 'blocked_by_failures' then target in ('evaluating_results', 'enqueuing_steps', 'steps_in_process',
            'waiting_for_dependencies', 'waiting_for_retry', 'complete', 'error', 'cancelled', 'resolved_manually')
        when 'error' then target in ('evaluating_results', 'enqueuing_steps', 'steps_in_process',
            'waiting_for_dependencies', 'waiting_for_retry', 'blocked_by_failures', 'complete', 'cancelled',
            'resolved_manually')
        when 'complete' then target in ('evaluating_results', 'enqueuing_steps', 'steps_in_process',
            'waiting_for_dependencies', 'waiting_for_retry', 'blocked_by_failures', 'error', 'cancelled',
            'resolved_manually')
        when 'cancelled' then target in ('evaluating_results', 'enqueuing_steps', 'steps_in_process',
            'waiting_for_dependencies', 'waiting_for_retry', 'blocked_by_failures', 'complete', 'error',
            'resolved_manually')
        else false
    end
$$;

create function tasker.step_jump_is_legal(source tasker.step_state, target tasker.step_state)
returns boolean language sql immutable parallel safe as $$
    select case source
        when 'pending' then target in ('enqueued', 'in_progress', 'complete', 'cancelled', 'resolved_manually', 'skipped')
        when 'enqueued' then target in ('in_progress', 'complete', 'cancelled', 'resolved_manually', 'skipped')
        when 'in_progress' then target in ('enqueued', 'enqueued_for_orchestration',
            'enqueued_as_error_for_orchestration', 'waiting_for_retry', 'error', 'complete', 'cancelled',
            'resolved_manually', 'skipped')
        when 'enqueued_for_orchestration' then target in ('error', 'complete', 'cancelled', 'resolved_manually')
        when 'enqueued_as_error_for_orchestration' then target in ('waiting_for_retry', 'error', 'complete', 'cancelled',
            'resolved_manually')
        when 'waiting_for_retry' then target in ('enqueued', 'in_progress', 'complete', 'cancelled', 'resolved_manually',
            'skipped')
        when 'error' then target in ('pending', 'enqueued', 'in_progress', 'complete', 'cancelled', 'resolved_manually',
            'skipped')
        when 'complete' then target = 'pending'
        when 'cancelled' then target = 'pending'
        when 'resolved_manually' then target = 'pending'
        when 'skipped' then target = 'pending'
        else false
    end
$$;

create function tasker.refuse_move() returns trigger language plpgsql as $$
begin
    raise exception '% cannot go from % to %', tg_argv[0], case when tg_op = 'INSERT' then 'nothing' else old.state::text end,
        new.state using errcode = 'TK002', hint = 'The legal moves are in the state tables of the documentation.';
end $$;

-- Limits of states are timed by triggers, since many functions move runs; runs without limits pay for the look at a flag.

create function tasker.forget_stale() returns trigger language plpgsql as $$
begin
    new.stale := null;
    return new;
end $$;

create function tasker.time_state() returns trigger language plpgsql as $$
begin
    perform tasker.arm_state_limit(new.task_id, new.template_id, new.state);
    return null;
end $$;

create table tasker.settings (
    key text primary key,
    value jsonb not null
);
comment on table tasker.settings is 'Limits and switches of the engine; a missing row means the default.';

create table tasker.migrations (
    name text primary key,
    checksum text not null,
    -- Of the server that applied it.
    release text not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table tasker.migrations is 'What was applied, with the checksum of its text and by which release; the functions are one entry.';

create table tasker.templates (
    template_id bigint generated always as identity primary key,
    namespace text not null,
    name text not null,
    version text not null,
    revision text not null,
    spec json not null,
    -- Of nodes, and of those among them that have no step of their own.
    step_count integer not null check (step_count > 0),
    batch_worker_count integer not null default 0 check (batch_worker_count >= 0),
    on_failure tasker.failure_rule not null default 'fail',
    -- How long a run may take, and be in a state; null is for ever.
    max_duration_seconds integer check (max_duration_seconds > 0),
    max_blocked_seconds integer check (max_blocked_seconds > 0),
    max_waiting_for_dependencies_seconds integer check (max_waiting_for_dependencies_seconds > 0),
    max_waiting_for_retry_seconds integer check (max_waiting_for_retry_seconds > 0),
    max_steps_in_process_seconds integer check (max_steps_in_process_seconds > 0),
    staleness_action tasker.staleness_action not null default 'dlq',
    limits_states boolean not null generated always as (num_nonnulls(max_blocked_seconds,
        max_waiting_for_dependencies_seconds, max_waiting_for_retry_seconds, max_steps_in_process_seconds) > 0) stored,
    -- What tells two runs apart. A revision with a key is given one with every request.
    identity_strategy text not null default 'alwaysUnique'
        check (identity_strategy in ('strict', 'callerProvided', 'alwaysUnique')),
    -- How long a run holds its key; null: as long as its row is there.
    identity_window_seconds integer check (identity_window_seconds > 0),
    -- How many runs of the name may be under way, when this is its current revision.
    max_tasks integer check (max_tasks > 0),
    created_at timestamptz not null default clock_timestamp(),
    -- The newest activation of a name is what a new task gets; going back to an older text activates its revision anew.
    activated_at timestamptz not null default clock_timestamp(),
    unique (namespace, name, revision),
    constraint templates_with_a_step_to_begin_with check (batch_worker_count < step_count)
);
create index templates_by_activation on tasker.templates (namespace, name, activated_at desc);
comment on table tasker.templates is 'Template revisions. A revision never changes.';

create function tasker.first_definition_id(template_id bigint) returns bigint language sql immutable parallel safe as $$
    select template_id << 20
$$;

create table tasker.definitions (
    definition_id bigint primary key,
    template_id bigint not null references tasker.templates on delete cascade,
    -- The place of its step in a run.
    position integer not null check (position between 0 and 1048575),
    name text not null check (length(name) between 1 and 63),
    type tasker.step_type not null,
    callable text not null,
    method text not null,
    resolver text,
    configuration json not null,
    -- CEL over context and results; false: the step is skipped. The worker evaluates it.
    condition text,
    -- JSON Schema of the result. The worker checks it.
    result_schema json,
    dependency_count integer not null check (dependency_count >= 0),
    is_leaf boolean not null,
    -- Steps whose results a claim carries: all ancestors when they are few, else the direct parents.
    result_positions integer[] not null,
    -- Nodes of batch workers among these; null when there are none.
    batch_positions integer[],
    -- Of a batchable step: what its handler is told, and what the engine keeps to.
    batch json,
    worker_position integer,
    parallelism integer check (parallelism > 0),
    failure_strategy tasker.failure_strategy,
    max_attempts integer not null check (max_attempts between 1 and 100),
    backoff tasker.backoff not null,
    base_ms integer not null check (base_ms >= 0),
    max_ms integer not null check (max_ms >= 0),
    jitter double precision not null check (jitter between 0 and 1),
    timeout_ms integer not null check (timeout_ms > 0),
    schedule_timeout_ms integer check (schedule_timeout_ms > 0),
    -- How long it may be ready while no worker offers its callable.
    worker_timeout_ms bigint check (worker_timeout_ms > 0),
    unique (template_id, name),
    constraint definitions_tell_their_template
        check (definition_id = tasker.first_definition_id(template_id) + position)
);
comment on table tasker.definitions is 'The nodes of template revisions.';
comment on column tasker.definitions.max_attempts is '1 for a step that is not retryable.';

create table tasker.definition_edges (
    from_definition_id bigint not null references tasker.definitions on delete cascade,
    to_definition_id bigint not null,
    kind tasker.edge_kind not null,
    primary key (from_definition_id, to_definition_id, kind)
);
create index definition_edges_by_target on tasker.definition_edges (to_definition_id);

create sequence tasker.task_ids;

create table tasker.tasks (
    task_id bigint primary key,
    task_uuid uuid not null unique,
    namespace text not null,
    template_id bigint not null references tasker.templates,
    -- The template's name when how many of its runs may be under way is limited; null when it never was. Such a run is
    -- pending until it is admitted, which is when it starts, and then holds its place to its end.
    limited_as text,
    state tasker.task_state not null default 'pending',
    -- Who holds the run back; it goes on when nobody does.
    holds tasker.hold[] not null default '{}',
    suspended boolean not null generated always as (cardinality(holds) > 0) stored,
    priority smallint not null default 0 check (priority between -100 and 100),
    -- Of its template: whether a run that has failed waits for a person, and whether its time in states is limited.
    blocks_on_failure boolean not null default false,
    limits_states boolean not null default false,
    -- What the sweep found when it was in one state for too long; gone with the next change of the row.
    stale jsonb,
    -- Counts of steps; pending = remaining - active - retrying - failed.
    total_steps integer not null check (total_steps > 0),
    remaining_steps integer not null,
    active_steps integer not null default 0 check (active_steps >= 0),
    retrying_steps integer not null default 0 check (retrying_steps >= 0),
    failed_steps integer not null default 0 check (failed_steps >= 0),
    cancelled_steps integer not null default 0 check (cancelled_steps >= 0),
    skipped_steps integer not null default 0 check (skipped_steps >= 0),
    -- Batch workers that failed for good where that is put up with: they do not remain.
    tolerated_steps integer not null default 0 check (tolerated_steps >= 0),
    -- Where the next batch's workers go.
    next_place integer not null,
    context json not null default '{}' check (json_typeof(context) = 'object'),
    error jsonb,
    correlation_id text not null,
    parent_correlation_id text,
    initiator text,
    source_system text,
    reason text,
    tags text[] not null default '{}',
    -- The resource that asked for this run, when one did: at most one run each.
    origin_uid text unique,
    origin_name text,
    deadline timestamptz,
    created_at timestamptz not null,
    started_at timestamptz,
    completed_at timestamptz,
    -- When it last went on after it had ended.
    taken_up_at timestamptz,
    constraint tasks_end_with_a_time
        check ((completed_at is not null) = (state in ('complete', 'error', 'cancelled', 'resolved_manually'))),
    constraint tasks_counts_add_up
        check (remaining_steps <= total_steps and active_steps + retrying_steps + failed_steps <= remaining_steps),
    constraint tasks_complete_when_nothing_remains check (state <> 'complete' or remaining_steps = 0),
    constraint tasks_go_on_once_started check (started_at is not null or state = 'pending' or completed_at is not null)
) with (fillfactor = 50);
create index tasks_by_template on tasker.tasks (template_id);
create index tasks_taken_up on tasker.tasks (task_id) where taken_up_at is not null;
create table tasker.open_tasks (
    task_id bigint primary key,
    namespace text not null
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
comment on table tasker.open_tasks is
    'Runs that have not ended. An index over tasks would have every end of a run written into all indexes of that table.';
create function tasker.note_open() returns trigger language plpgsql as $$
begin
    if new.completed_at is null then
        insert into tasker.open_tasks (task_id, namespace) values (new.task_id, new.namespace) on conflict do nothing;
    else
        delete from tasker.open_tasks where task_id = new.task_id;
    end if;
    return null;
end $$;
create trigger tasks_note_begin after insert on tasker.tasks for each row
    when (new.completed_at is null) execute function tasker.note_open();
create trigger tasks_note_end after update on tasker.tasks for each row
    when ((old.completed_at is null) <> (new.completed_at is null)) execute function tasker.note_open();
create trigger tasks_refuse_move after update on tasker.tasks for each row
    when (old.state <> new.state and not tasker.task_jump_is_legal(old.state, new.state))
    execute function tasker.refuse_move('a task');
create trigger tasks_refuse_start after insert on tasker.tasks for each row
    when (new.state <> 'pending' and not tasker.task_jump_is_legal('pending', new.state))
    execute function tasker.refuse_move('a task');

create trigger tasks_forget_stale before update on tasker.tasks for each row
    when (old.stale is not null and new.stale is not distinct from old.stale)
    execute function tasker.forget_stale();
create trigger tasks_time_first_state after insert on tasker.tasks for each row
    when (new.limits_states) execute function tasker.time_state();
create trigger tasks_time_state after update on tasker.tasks for each row
    when (new.limits_states and old.state <> new.state) execute function tasker.time_state();

create table tasker.concurrency_limits (
    namespace text not null,
    template_name text not null,
    -- Of the revision that was activated last; null: no longer limited.
    max_tasks integer check (max_tasks > 0),
    primary key (namespace, template_name)
) with (fillfactor = 50);
comment on table tasker.concurrency_limits is
    'Templates whose runs are limited in number, or once were. Whoever admits runs of one holds its row: so the count is exact.';

create table tasker.limited_tasks (
    task_id bigint primary key,
    namespace text not null,
    template_name text not null,
    -- It holds a place; else it waits for one.
    admitted boolean not null,
    -- When its turn comes, as in ready_steps.
    order_at timestamptz not null
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
create index limited_tasks_in_order on tasker.limited_tasks (namespace, template_name, admitted, order_at, task_id);
comment on table tasker.limited_tasks is 'Runs that have not ended, of templates in concurrency_limits.';

-- The place of a run that ends is taken at once, by whatever ended it. One that was taken up again holds one again, whether
-- or not there is one.
create function tasker.note_limited() returns trigger language plpgsql as $$
begin
    if new.completed_at is null then
        insert into tasker.limited_tasks (task_id, namespace, template_name, admitted, order_at)
        values (new.task_id, new.namespace, new.limited_as, new.started_at is not null, tasker.order_at(new));
    else
        delete from tasker.limited_tasks where task_id = new.task_id;
        perform tasker.admit_at_once(new.namespace, new.limited_as, 100, 'admission');
    end if;
    return null;
end $$;
create trigger tasks_note_limited_begin after insert on tasker.tasks for each row
    when (new.limited_as is not null and new.completed_at is null) execute function tasker.note_limited();
create trigger tasks_note_limited_end after update on tasker.tasks for each row
    when (new.limited_as is not null and (old.completed_at is null) <> (new.completed_at is null))
    execute function tasker.note_limited();

create table tasker.identities (
    identity_id bigint generated always as identity unique,
    namespace text not null,
    template_name text not null,
    key text not null check (length(key) <= 512),
    -- The run that holds it.
    task_id bigint not null,
    task_uuid uuid not null,
    -- Null: held as long as the run's row is there.
    until timestamptz,
    primary key (namespace, template_name, key)
);
create index identities_by_task on tasker.identities (task_id);
create index identities_by_end on tasker.identities (until) where until is not null;
comment on table tasker.identities is 'Which run holds which key of a template: another with the same key is a duplicate.';

create function tasker.forget_identities() returns trigger language plpgsql as $$
begin
    delete from tasker.identities i using gone where i.task_id = gone.task_id and i.until is null;
    return null;
end $$;
create trigger tasks_forget_identities after delete on tasker.tasks referencing old table as gone
    for each statement execute function tasker.forget_identities();

create table tasker.steps (
    step_id bigint primary key,
    definition_id bigint not null,
    step_uuid uuid not null default gen_random_uuid(),
    -- Those of the definition, and what people gave it beside.
    attempts_allowed smallint not null check (attempts_allowed > 0),
    attempts smallint not null default 0,
    state tasker.step_state not null default 'pending',
    -- Arrows to it that have not resolved, and those that are void.
    open_edges integer not null check (open_edges >= 0),
    void_edges integer not null default 0 check (void_edges >= 0),
    enqueued_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    next_attempt_at timestamptz,
    -- Of the last outcome that a worker handed in: said again, it is known and not stale.
    settled_fence bigint,
    result_bytes integer,
    -- Of a decision that is complete: the places of the steps that it chose; null is none.
    chosen integer[],
    inputs json,
    result json,
    metadata json,
    error json,
    checkpoint json,
    constraint steps_attempts_check check (attempts between 0 and attempts_allowed),
    constraint steps_end_with_a_time
        check ((completed_at is not null) = (state in ('complete', 'cancelled', 'resolved_manually', 'skipped'))),
    constraint steps_wait_for_dependencies
        check (open_edges = 0 or state in ('pending', 'cancelled', 'resolved_manually', 'complete', 'skipped')),
    constraint steps_retry_at_a_time check ((next_attempt_at is not null) = (state = 'waiting_for_retry'))
) with (fillfactor = 50);
create trigger steps_refuse_move after update on tasker.steps for each row
    when (old.state <> new.state and not tasker.step_jump_is_legal(old.state, new.state))
    execute function tasker.refuse_move('a step');
create trigger steps_refuse_start after insert on tasker.steps for each row
    when (new.state <> 'pending' and not tasker.step_jump_is_legal('pending', new.state))
    execute function tasker.refuse_move('a step');

create function tasker.first_step_id(task_id bigint) returns bigint language sql immutable parallel safe as $$
    select task_id << 20
$$;

create function tasker.task_of_step(step_id bigint) returns bigint language sql immutable parallel safe as $$
    select step_id >> 20
$$;

create function tasker.place_of(id bigint) returns integer language sql immutable parallel safe as $$
    select (id & 1048575)::integer
$$;

create table tasker.step_batches (
    task_id bigint not null,
    first_place integer not null,
    size integer not null check (size > 0),
    batchable_step_id bigint not null,
    -- Of the workers.
    definition_id bigint not null,
    strategy tasker.failure_strategy not null,
    -- It stands for no work at all.
    is_no_op boolean not null,
    parallelism integer not null check (parallelism > 0),
    -- The first that was never in the queue.
    next_place integer not null check (next_place between first_place and first_place + size),
    at_once integer not null check (at_once between 0 and parallelism),
    -- Retries whose time has come and that wait for a place.
    due integer not null default 0 check (due >= 0),
    open integer not null check (open between 0 and size),
    failed integer not null default 0 check (failed between 0 and size),
    primary key (task_id, first_place)
) with (fillfactor = 70);
comment on table tasker.step_batches is
    'The workers of a batchable step: a range of places. at_once are queued or held, open neither done nor failed for good.';

create view tasker.step_edges as
    select t.task_id, tasker.first_step_id(t.task_id) + tasker.place_of(e.from_definition_id) as from_step_id,
        tasker.first_step_id(t.task_id) + tasker.place_of(e.to_definition_id) as to_step_id
    from tasker.tasks t
    join tasker.definition_edges e on e.from_definition_id >= tasker.first_definition_id(t.template_id)
        and e.from_definition_id < tasker.first_definition_id(t.template_id + 1)
    where e.kind in ('plain', 'choice', 'batch');
comment on view tasker.step_edges is 'The arrows of every run: those of its template.';

create table tasker.ready_steps (
    step_id bigint primary key,
    namespace text not null,
    callable text not null,
    ready_at timestamptz not null,
    -- When the run was created, moved by priority: one point is worth six seconds, so that nothing waits for ever. The same
    -- for all steps of a run: runs that began earlier end earlier.
    order_at timestamptz not null
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
create index ready_steps_in_order on tasker.ready_steps (namespace, callable, order_at, step_id);
comment on table tasker.ready_steps is 'The queue: a row lives from ready to claim.';

create sequence tasker.step_log_ids;

create table tasker.leases (
    step_id bigint primary key,
    worker_id bigint not null,
    -- New at each claim, drawn at random.
    fence bigint not null,
    -- Of the row that the end of the attempt writes.
    log_id bigint not null default nextval('tasker.step_log_ids'),
    started_at timestamptz not null,
    timeout_at timestamptz not null,
    attempt smallint not null,
    beginning tasker.step_beginning not null,
    actor_id integer not null
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
create index leases_by_worker on tasker.leases (worker_id);
comment on table tasker.leases is 'A row lives from claim to settle; it is current as long as it is here.';

create table tasker.workers (
    worker_id bigint generated always as identity primary key,
    name text not null check (length(name) between 1 and 128),
    actor_id integer not null,
    namespace text not null,
    pool text not null,
    slots integer not null check (slots > 0),
    version text not null,
    callables text[] not null,
    draining boolean not null default false,
    lease_seconds double precision not null check (lease_seconds > 0),
    lease_until timestamptz not null,
    registered_at timestamptz not null,
    unique (namespace, name)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

create table tasker.pool_callables (
    namespace text not null,
    pool text not null,
    -- The pod template that the worker was made from; empty for a worker that no pool made.
    template_hash text not null,
    callable text not null,
    offered_at timestamptz not null,
    primary key (namespace, pool, template_hash, callable)
);
comment on table tasker.pool_callables is
    'What the newest worker of each pod template of a pool offered, for a month: tells whose demand a step is.';

create table tasker.timers (
    timer_id bigint generated always as identity primary key,
    due_at timestamptz not null,
    kind text not null check (kind in (
        'retry', 'deadline', 'schedule_timeout', 'state_limit', 'worker_missing', 'worker_still_missing')),
    task_id bigint not null,
    step_id bigint
);
create index timers_by_time on tasker.timers (kind, due_at);
create index timers_by_task on tasker.timers (task_id);

create table tasker.parked_repairs (
    kind text not null,
    -- Of the worker, step or timer.
    id bigint not null,
    reason text not null,
    since timestamptz not null,
    until timestamptz not null,
    primary key (kind, id)
);
comment on table tasker.parked_repairs is 'What the sweep could not repair, with the reason and when it is tried again.';

create table tasker.step_failures (
    failure_id bigint generated always as identity primary key,
    task_id bigint not null,
    step_id bigint not null,
    attempt integer not null,
    error_type text not null,
    message text not null,
    traceback text,
    final boolean not null,
    at timestamptz not null
);
create index step_failures_by_task on tasker.step_failures (task_id, failure_id desc);
create index step_failures_by_step on tasker.step_failures (step_id, failure_id desc);
comment on table tasker.step_failures is 'Every failed attempt, for people: newest first in a task''s status.';

-- Who did something: a worker, the sweep, a person. Kept for the history, which holds the number.
create table tasker.actors (
    actor_id integer generated always as identity primary key,
    name text not null unique check (length(name) <= 512)
);
insert into tasker.actors (name) values ('submit'), ('sweep'), ('admission');

create table tasker.dead_letters (
    entry_id bigint generated always as identity primary key,
    entry_uuid uuid not null unique default gen_random_uuid(),
    namespace text not null,
    task_id bigint not null,
    -- Null for one of the run itself.
    step_id bigint,
    reason tasker.dead_letter_reason not null,
    state tasker.dead_letter_state not null default 'open',
    -- What the run and the step were like when it was made, or failed again while it was open.
    snapshot json not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);
create unique index dead_letters_once_open on tasker.dead_letters (task_id, step_id) nulls not distinct
    where state in ('open', 'investigating');
create index dead_letters_by_task on tasker.dead_letters (task_id, entry_id);
create index dead_letters_by_namespace on tasker.dead_letters (namespace, entry_id);
create index dead_letters_by_state on tasker.dead_letters (state, reason, namespace, entry_id);
comment on table tasker.dead_letters is
    'What a person should look at: steps that failed for good, and runs that went wrong without one.';

create table tasker.dead_letter_changes (
    change_id bigint generated always as identity primary key,
    entry_id bigint not null references tasker.dead_letters on delete cascade,
    at timestamptz not null,
    state tasker.dead_letter_state not null,
    actor_id integer not null,
    notes text
);
create index dead_letter_changes_by_entry on tasker.dead_letter_changes (entry_id, change_id);
comment on table tasker.dead_letter_changes is 'The history of each dead letter: who found, did or noted what.';

-- Whoever makes something else of a failed step has dealt with its dead letter. Looked at when the transaction ends, since
-- only its end tells who did it.
create function tasker.leave_error() returns trigger language plpgsql as $$
begin
    perform tasker.close_dead_letter(new.step_id);
    return null;
end $$;
create constraint trigger steps_leave_error after update on tasker.steps deferrable initially deferred for each row
    when (old.state = 'error' and new.state <> 'error')
    execute function tasker.leave_error();

-- History: one row a passage; the views task_transitions and step_transitions unfold each into its moves. No primary key:
-- it would have to hold the time, and nothing looks a row up by one. A log's order is log_id; transaction_id lets a
-- reader follow the log without missing a row that commits late.

create sequence tasker.task_log_ids;
create table tasker.task_log (
    log_id bigint not null default nextval('tasker.task_log_ids'),
    task_id bigint not null,
    at timestamptz not null,
    transaction_id xid8 not null default pg_current_xact_id(),
    passage tasker.task_passage not null,
    actor_id integer not null,
    metadata jsonb
) partition by range (at);
create index task_log_by_task on tasker.task_log (task_id, log_id);
create index task_log_by_transaction on tasker.task_log (transaction_id, task_id);
create table tasker.task_log_default partition of tasker.task_log default;

create table tasker.step_log (
    log_id bigint not null default nextval('tasker.step_log_ids'),
    step_id bigint not null,
    at timestamptz not null,
    passage tasker.step_passage not null,
    actor_id integer not null,
    -- Of the attempt that it ends; null where it ends none.
    attempt smallint,
    beginning tasker.step_beginning,
    -- Null when it was the one who ended it.
    began_by integer,
    began_at timestamptz,
    metadata json
) partition by range (at);
create index step_log_by_step on tasker.step_log (step_id, log_id);
create table tasker.step_log_default partition of tasker.step_log default;

create function tasker.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'history is only ever appended to' using errcode = 'TK004';
end $$;
create trigger task_log_append_only before update or delete on tasker.task_log
    for each row execute function tasker.refuse_change();
create trigger step_log_append_only before update or delete on tasker.step_log
    for each row execute function tasker.refuse_change();

-- What the functions hand to each other. An outcome that was recorded:
create type tasker.settlement as (
    step_id bigint,
    fence bigint,
    definition_id bigint,
    outcome text,
    state tasker.step_state,
    retry_at timestamptz,
    is_tolerated boolean,           -- a batch's worker that failed for good, and the batch puts up with it
    chosen integer[]                -- of a decision: places of the steps that are to run
);

-- How many steps of a run were cancelled with their batch, and what these were.
create type tasker.cancellation as (task_id bigint, every integer, active integer, retrying integer);

-- What claim_steps and settle_steps answer with; a column that a kind of row does not have is null.
create type tasker.worker_row as (
    kind text,                      -- stale, claim, summary
    step_id bigint,
    fence bigint,
    task_uuid uuid,
    step_uuid uuid,
    namespace text,
    template_name text,
    template_version text,
    step_name text,
    step_type tasker.step_type,
    callable text,
    method text,
    resolver text,
    attempt integer,
    max_attempts integer,
    timeout_ms integer,
    deadline timestamptz,
    correlation_id text,
    ready_at timestamptz,
    configuration json,
    inputs json,
    context json,
    dependency_results json,
    results_left text[],            -- steps whose results did not fit: read_results has them
    condition text,
    result_schema json,
    dependents text[],              -- what a decision may choose
    batch json,                     -- how a batchable step is to divide
    checkpoint json,                -- what an earlier attempt has saved
    ready_left integer,             -- summary: became ready and was not handed to the caller
    tasks_finished integer          -- summary: reached a final state in this call
);

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
