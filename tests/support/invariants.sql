-- What must always hold of the rows of runs (I1 to I5, I8 and I12 of the engine's design). Each query returns one column
-- `violation`, one row for everything that is wrong, nothing when all is well. All are read in one snapshot.

-- name: I1_an_open_run_has_something_to_wait_for
-- A step in the queue, in somebody's hands or waiting for the time of its retry; or the run is suspended, blocked until a
-- person acts, or waits for a place among those of its template.
select format('task %s is %s and waits for nothing', t.task_id, t.state) as violation
from tasker.tasks t
where t.completed_at is null and not t.suspended and t.state <> 'blocked_by_failures'
    and not (t.state = 'pending' and exists (
        select from tasker.concurrency_limits l where l.namespace = t.namespace and l.template_name = t.limited_as))
    and not exists (select from tasker.ready_steps r where tasker.task_of_step(r.step_id) = t.task_id)
    and not exists (select from tasker.leases l where tasker.task_of_step(l.step_id) = t.task_id)
    and not exists (select from tasker.timers x where x.task_id = t.task_id and x.kind = 'retry');

-- name: I1_an_open_run_with_a_deadline_has_its_timer
-- One, for that time.
select format('task %s has the deadline %s and timers for %s', t.task_id, coalesce(t.deadline::text, 'never'), timed.due_at)
    as violation
from tasker.tasks t
cross join lateral (
    select coalesce(array_agg(x.due_at), '{}') as due_at from tasker.timers x
    where x.task_id = t.task_id and x.kind = 'deadline'
) as timed
where timed.due_at <> case when t.completed_at is null and t.deadline is not null then array[t.deadline] else '{}' end;

-- name: I1_a_step_is_where_its_state_says
-- In the queue exactly when enqueued in a run that is not suspended; held exactly when in progress; a timer for a retry.
select format('step %s is %s with %s rows of ready_steps, %s leases and %s retry timers; its task is %s', s.step_id,
    s.state, count(r.step_id), count(l.step_id), count(x.step_id), t.state) as violation
from tasker.steps s
join tasker.tasks t on t.task_id = tasker.task_of_step(s.step_id)
left join tasker.ready_steps r on r.step_id = s.step_id
left join tasker.leases l on l.step_id = s.step_id
left join tasker.timers x on x.step_id = s.step_id and x.kind = 'retry' and x.due_at = s.next_attempt_at
group by s.step_id, t.task_id
having (count(r.step_id) > 0) <> (s.state = 'enqueued' and not t.suspended and t.completed_at is null)
    or (count(l.step_id) > 0) <> (s.state = 'in_progress')
    or (count(x.step_id) > 0) <> (s.state = 'waiting_for_retry' and t.completed_at is null)
        and not (count(x.step_id) = 0 and tasker.is_of_batch(s.definition_id, s.step_id))
    or s.state in ('enqueued_for_orchestration', 'enqueued_as_error_for_orchestration')
    or t.completed_at is not null and s.state in ('enqueued', 'in_progress', 'waiting_for_retry');

-- name: I1_the_counts_of_a_run_are_those_of_its_steps
-- And its state is the one that these counts mean.
with counted as (
    select tasker.task_of_step(step_id) as task_id, count(*) as total,
        count(*) filter (where state in ('enqueued', 'in_progress')) as active,
        count(*) filter (where state = 'waiting_for_retry') as retrying,
        count(*) filter (where state = 'error' and not tasker.is_tolerated(definition_id, step_id)) as failed,
        count(*) filter (where state = 'error' and tasker.is_tolerated(definition_id, step_id)) as tolerated,
        count(*) filter (where state = 'cancelled') as cancelled,
        count(*) filter (where state = 'skipped') as skipped,
        count(*) filter (where state not in ('complete', 'resolved_manually', 'cancelled', 'skipped')
            and not (state = 'error' and tasker.is_tolerated(definition_id, step_id))) as remaining
    from tasker.steps group by 1
)
select format('task %s says %s: total %s, remaining %s, active %s, retrying %s, failed %s, cancelled %s, skipped %s; '
    'its steps say %s, %s, %s, %s, %s, %s, %s', t.task_id, t.state, t.total_steps, t.remaining_steps, t.active_steps, t.retrying_steps,
    t.failed_steps, t.cancelled_steps, t.skipped_steps, c.total, c.remaining, c.active, c.retrying, c.failed, c.cancelled,
    c.skipped) as violation
from tasker.tasks t left join counted c using (task_id)
where (t.total_steps, t.remaining_steps, t.active_steps, t.retrying_steps, t.failed_steps, t.cancelled_steps,
        t.skipped_steps, t.tolerated_steps)
        is distinct from (c.total, c.remaining, c.active, c.retrying, c.failed, c.cancelled, c.skipped, c.tolerated)
    or t.state = 'complete' and c.remaining > 0
    or c.remaining = 0 and c.cancelled = 0 and t.state <> 'complete'
    or t.state = 'steps_in_process' and c.active = 0
    or t.state = 'waiting_for_retry' and (c.active > 0 or c.retrying = 0)
    or t.state = 'pending' and (c.active > 0 or c.retrying > 0 or c.failed > 0 or t.started_at is not null)
    or t.state in ('initializing', 'enqueuing_steps', 'evaluating_results')
    or t.state = 'blocked_by_failures' and (not t.blocks_on_failure or c.active + c.retrying > 0 or c.failed = 0)
    or t.state = 'error' and c.failed = 0 and c.cancelled = 0;

-- name: I1_every_failed_step_has_a_dead_letter
-- Nobody has put it back; a batch that goes on without its worker makes none. And one that nobody has dealt with is of a step that has failed, unless somebody wanted it.
select format('step %s failed and has no dead letter; its task is %s', s.step_id, t.state) as violation
from tasker.steps s
join tasker.tasks t on t.task_id = tasker.task_of_step(s.step_id)
join tasker.definitions d using (definition_id)
where s.state = 'error'
    and not (tasker.is_tolerated(s.definition_id, s.step_id) and d.failure_strategy = 'continue_on_failure')
    and not exists (
    select from tasker.dead_letters e where e.step_id = s.step_id and e.state <> 'put_back')
union all
select format('dead letter %s (%s) is %s and its step %s is %s', e.entry_id, e.reason, e.state, e.step_id, s.state)
from tasker.dead_letters e join tasker.steps s on s.step_id = e.step_id
where e.state in ('open', 'investigating') and e.reason <> 'manual' and s.state <> 'error'
union all
select format('dead letter %s is %s and its history ends in %s', e.entry_id, e.state, coalesce(last.state::text, 'nothing'))
from tasker.dead_letters e
left join lateral (
    select c.state from tasker.dead_letter_changes c where c.entry_id = e.entry_id order by c.change_id desc limit 1
) as last on true
where last.state is distinct from e.state;

-- name: I1_a_limited_state_is_timed
-- Exactly while its template limits the state that the run is in, a run has one timer for that.
select format('task %s is %s, for at most %s s, and has %s timers of it', t.task_id, t.state,
    tasker.state_limit(template, t.state), count(x.timer_id)) as violation
from tasker.tasks t
join tasker.templates template using (template_id)
left join tasker.timers x on x.task_id = t.task_id and x.kind = 'state_limit'
group by t.task_id, template.template_id
having count(x.timer_id) <> (tasker.state_limit(template, t.state) is not null and t.completed_at is null)::integer;

-- name: I1_a_step_waits_for_as_many_as_are_not_done
-- The counts on a step are those of its parents that are not done and of those that do not want it, and only a step with
-- the first is pending, or one of a run that waits for its place. One that was ended by hand may have been so before its
-- parents.
select format('step %s is %s with %s unmet dependencies, %s void; %s of its parents are not done, %s are void', s.step_id,
    s.state, s.open_edges, s.void_edges, parents.open, parents.void) as violation
from tasker.steps s
cross join lateral (
    select count(*) filter (where arrow.is_open) as open, count(*) filter (where arrow.is_void and not arrow.is_open) as void
    from (
        select p.state not in ('complete', 'resolved_manually', 'skipped') or d.type = 'batch_worker' and batches.open > 0
                as is_open,
            p.state = 'skipped' or d.type = 'batch_worker' and batches.every = 0 or e.kind = 'choice'
                and tasker.place_of(s.step_id) <> all (coalesce(p.chosen, '{}')) as is_void
        from tasker.definition_edges e
        join tasker.definitions d on d.definition_id = e.from_definition_id
        left join tasker.definition_edges b on b.to_definition_id = e.from_definition_id and b.kind = 'batch'
        join tasker.steps p on p.step_id = tasker.first_step_id(tasker.task_of_step(s.step_id))
            + tasker.place_of(case when d.type = 'batch_worker' then b.from_definition_id else e.from_definition_id end)
        cross join lateral (
            select count(*) as every, coalesce(sum(x.open), 0) as open from tasker.step_batches x
            where x.task_id = tasker.task_of_step(s.step_id) and x.definition_id = d.definition_id
        ) as batches
        where e.to_definition_id = s.definition_id and e.kind in ('plain', 'choice')
    ) as arrow
) as parents
cross join lateral (
    select coalesce((
        select x.metadata ->> 'action' in ('resolve', 'complete', 'skip') from tasker.step_log x
        where x.step_id = s.step_id order by x.log_id desc limit 1
    ), false) as by_hand
) as last
where s.state <> 'cancelled' and not tasker.is_of_batch(s.definition_id, s.step_id) and case
    when last.by_hand and s.state in ('complete', 'resolved_manually', 'skipped') then s.open_edges <> 0
    else s.open_edges <> parents.open or s.void_edges <> parents.void
        or (s.state = 'pending') <> (parents.open > 0 or exists (
            select from tasker.tasks t where t.task_id = tasker.task_of_step(s.step_id) and t.state = 'pending')) end;

-- name: I8_no_run_was_admitted_beyond_the_places_of_its_template
-- At each admission, as many of those that had been admitted before were under way as were allowed then. Not
-- asked of are runs from before there was a limit, and those that somebody took up again after their end.
select format('task %s was admitted with %s runs of %s under way; %s were allowed', t.task_id, under_way.runs, t.limited_as,
    admission.metadata ->> 'max_tasks') as violation
from tasker.task_log admission
join tasker.tasks t on t.task_id = admission.task_id
cross join lateral (
    select count(*) as runs from tasker.tasks other
    where other.namespace = t.namespace and other.limited_as = t.limited_as
        and (other.completed_at is null or other.completed_at > admission.at)
        and exists (
            select from tasker.task_log x
            where x.task_id = other.task_id and x.passage = 'admitted' and x.log_id <= admission.log_id)
        and not exists (
            select from tasker.task_log x where x.task_id = other.task_id and (
                x.passage = 'taken_up' or x.passage::text like 'run_again%'))
) as under_way
where admission.passage = 'admitted' and under_way.runs > (admission.metadata ->> 'max_tasks')::integer;

-- name: I8_a_run_of_a_limited_template_was_admitted_before_it_began
-- Once; or it was there before the limit was, or ended while it waited, by hand or by its deadline, and was taken up again.
select format('task %s is %s, was admitted %s times and began at %s', t.task_id, t.state, log.beginnings, t.started_at)
    as violation
from tasker.tasks t
cross join lateral (
    select count(*) filter (where x.passage in ('admitted', 'submitted')) as beginnings,
        count(*) filter (where x.passage in ('run_again_cancelled', 'run_again_error', 'taken_up')) as runs_again
    from tasker.task_log x where x.task_id = t.task_id
) as log
where log.beginnings > 1 or (log.beginnings + log.runs_again > 0) <> (t.started_at is not null);

-- name: I8_the_runs_of_limited_templates_are_noted_beside
-- Exactly those that are open, as admitted when they are not pending.
select format('run %s, %s, of limited template %s is noted as admitted: %s', coalesce(t.task_id, n.task_id), t.state,
    t.limited_as, coalesce(n.admitted::text, 'not at all')) as violation
from (select * from tasker.tasks where limited_as is not null and completed_at is null) t
full join tasker.limited_tasks n using (task_id)
where (t.namespace, t.limited_as, t.state <> 'pending') is distinct from (n.namespace, n.template_name, n.admitted);

-- name: I8_a_key_is_held_by_a_run
-- One whose row is there, unless the key is held for a time.
select format('key %s of template %s is held by run %s, which does not exist', i.key, i.template_name, i.task_uuid)
    as violation
from tasker.identities i left join tasker.tasks t on t.task_id = i.task_id and t.task_uuid = i.task_uuid
where t.task_id is null and i.until is null;

-- name: I1_a_batch_counts_its_workers
-- Those queued or held, no more than its parallelism; those open; those failed; retries that wait for a place; and what was
-- never in the queue is what lies at the end. A place that is free is wanted by nobody.
select format('batch %s of task %s (%s places from %s on, %s at once of %s, due %s, open %s, failed %s, next %s) has %s at '
    'once, due %s, open %s, failed %s, %s never queued', b.definition_id, b.task_id, b.size, b.first_place, b.at_once,
    b.parallelism, b.due, b.open, b.failed, b.next_place, c.at_once, c.due, c.open, c.failed, c.fresh) as violation
from tasker.step_batches b
join tasker.tasks t using (task_id)
cross join lateral (
    select count(*) as size, count(*) filter (where s.state in ('enqueued', 'in_progress')) as at_once,
        count(*) filter (where s.state = 'error') as failed,
        count(*) filter (where s.state = 'pending') as fresh,
        count(*) filter (where s.state = 'waiting_for_retry' and not exists (
            select from tasker.timers x where x.step_id = s.step_id and x.kind = 'retry')) as due,
        count(*) filter (where s.state not in ('complete', 'skipped', 'cancelled', 'resolved_manually')
            and not (s.state = 'error' and b.strategy <> 'fail_fast')) as open
    from tasker.steps s
    where s.step_id >= tasker.first_step_id(b.task_id) + b.first_place
        and s.step_id < tasker.first_step_id(b.task_id) + b.first_place + b.size
        and s.definition_id = b.definition_id
) as c
where c.size <> b.size or t.completed_at is null and (
    (b.at_once, b.due, b.open, b.failed, b.first_place + b.size - b.next_place)
        is distinct from (c.at_once, c.due, c.open, c.failed, c.fresh)
    or b.at_once > b.parallelism or b.at_once < b.parallelism and (b.due > 0 or c.fresh > 0));

-- name: I3_a_step_runs_or_is_skipped_as_its_arrows_say
-- Once all it depends on has ended: a standard step runs when no arrow is void, a deferred convergence when one is
-- satisfied; one that was skipped while it waited was not to run. People may end a step as they like.
select format('step %s, %s, is %s with %s of %s arrows void', s.step_id, d.type, s.state, s.void_edges, d.dependency_count)
    as violation
from tasker.steps s join tasker.definitions d
    on d.definition_id = s.definition_id and not tasker.is_of_batch(s.definition_id, s.step_id)
cross join lateral (
    select s.void_edges = 0 or d.type = 'deferred_convergence' and s.void_edges < d.dependency_count as runs
) as rule
left join lateral (
    select x.passage, coalesce(x.metadata ->> 'action' in ('resolve', 'complete', 'skip'), false) as by_hand
    from tasker.step_log x where x.step_id = s.step_id order by x.log_id desc limit 1
) as last on true
where s.void_edges > d.dependency_count
    or s.attempts > 0 and not rule.runs and not exists (
        select from tasker.step_transitions x where x.step_id = s.step_id and x.event in ('rerun', 'revive'))
    or s.state in ('enqueued', 'in_progress', 'waiting_for_retry', 'error') and not rule.runs
    or not coalesce(last.by_hand, false) and (
        s.state = 'complete' and not rule.runs
        or coalesce(last.passage = 'skipped_pending', false) <> (s.state = 'skipped' and not rule.runs));

-- name: I2_an_attempt_has_one_outcome
-- Between two starts of a step exactly one thing ends the attempt; the last may be open. After a result that was recorded
-- there is another only when people wanted it.
select format('step %s: after %s at %s comes %s', step_id, event, transition_id, next_event) as violation
from (
    select step_id, event, transition_id,
        lead(event) over w as next_event, lead(transition_id) over w as next_id
    from tasker.step_transitions
    where event = 'start' or from_state = 'in_progress'
    window w as (partition by step_id order by transition_id)
) as hops
where (event = 'start') = (next_event = 'start')
    or event = 'submit_result' and next_event is not null and not exists (
        select from tasker.step_transitions x
        where x.step_id = hops.step_id and x.event in ('rerun', 'reset_for_retry')
            and x.transition_id between hops.transition_id and hops.next_id);

-- name: I2_a_result_is_recorded_once_and_a_failure_once_an_attempt
-- A step is complete, or failed for good, as often as it left that again, and once more when it is so now; one row of
-- step_failures for each failed attempt, all of them from the first on unless it ran again for another reason.
select format('step %s is %s with %s completions, %s failed attempts, %s of them final, and failures of attempts %s, %s of '
    'them final', s.step_id, s.state, done.completions, done.failures, done.finals, failed.attempts, failed.final) as violation
from tasker.steps s
cross join lateral (
    select count(*) filter (where x.to_state = 'complete') - count(*) filter (where x.from_state = 'complete') as completions,
        count(*) filter (where x.to_state = 'error') - count(*) filter (where x.from_state = 'error') as errors,
        count(*) filter (where x.event in ('submit_error', 'lease_expired')) as failures,
        count(*) filter (where x.to_state = 'error') as finals,
        coalesce(bool_or(x.event in ('rerun', 'revive')), false) as sent_back
    from tasker.step_transitions x where x.step_id = s.step_id
) as done
cross join lateral (
    select coalesce(array_agg(f.attempt order by f.failure_id), '{}') as attempts,
        count(*) filter (where f.final) as final
    from tasker.step_failures f where f.step_id = s.step_id
) as failed
where done.completions <> (s.state = 'complete')::integer
    or done.errors <> (s.state = 'error')::integer
    or failed.final <> done.finals
    or cardinality(failed.attempts) <> done.failures
    or failed.attempts <> case
        when done.sent_back then array(select distinct a from unnest(failed.attempts) as each(a) order by a)
        else array(select generate_series(1, done.failures)::integer) end;

-- name: I3_no_step_starts_before_its_dependencies_allow
-- Whenever a step starts, every parent is done.
with hops as materialized (
    select step_id, transition_id, event, to_state, lead(transition_id) over (
        partition by step_id order by transition_id) as until
    from tasker.step_transitions
)
select format('step %s has %s at %s, its parent %s is %s then', starts.step_id, starts.event, starts.transition_id,
    tasker.first_step_id(t.task_id) + tasker.place_of(e.from_definition_id), coalesce(parent.to_state, 'pending')) as violation
from hops starts
join tasker.tasks t on t.task_id = tasker.task_of_step(starts.step_id)
join tasker.definition_edges e on e.to_definition_id = tasker.first_definition_id(t.template_id)
    + tasker.place_of(starts.step_id) and e.kind in ('plain', 'choice')
join tasker.definitions d on d.definition_id = e.from_definition_id and d.type <> 'batch_worker'
left join hops parent on parent.step_id = tasker.first_step_id(t.task_id) + tasker.place_of(e.from_definition_id)
    and parent.transition_id < starts.transition_id
    and (parent.until is null or starts.transition_id < parent.until)
where starts.event in ('enqueue', 'start')
    and coalesce(parent.to_state, 'pending') not in ('complete', 'resolved_manually', 'skipped');

-- name: I4_attempts_are_starts_less_releases_and_never_over_the_maximum
-- One that its worker skipped counts like one that was released; one that people skipped meanwhile may have done something.
select format('step %s counts %s attempts of at most %s; its log %s starts and %s releases', s.step_id, s.attempts,
    s.attempts_allowed, coalesce(log.starts, 0), coalesce(log.releases, 0)) as violation
from tasker.steps s
left join lateral (
    select count(*) filter (where x.event = 'start') as starts,
        count(*) filter (where x.event = 'released'
            or x.event = 'skip' and x.from_state = 'in_progress' and x.metadata is null) as releases
    from tasker.step_transitions x where x.step_id = s.step_id
) as log on true
where s.attempts <> log.starts - log.releases or s.attempts > s.attempts_allowed;

-- name: I5_a_lease_is_the_latest_and_its_workers
-- Of the attempt that the step counts, held by a worker that exists, with a fence that no other lease has.
select format('the lease of step %s (attempt %s, fence %s, worker %s) is not its step''s or has no worker', l.step_id,
    l.attempt, l.fence, l.worker_id) as violation
from tasker.leases l
left join tasker.steps s on s.step_id = l.step_id
left join tasker.workers w on w.worker_id = l.worker_id
where s.attempts is distinct from l.attempt or w.worker_id is null
    or exists (select from tasker.leases other where other.fence = l.fence and other.step_id <> l.step_id);

-- name: I12_the_log_of_every_task_is_a_chain
-- It begins in pending, each hop where the one before ended, and it ends in the state of the row.
select format('task %s: hop %s is %s -%s-> %s after %s', task_id, transition_id, from_state, event, to_state,
    coalesce(before::text, 'nothing')) as violation
from (
    select *, lag(to_state) over (partition by task_id order by transition_id) as before from tasker.task_transitions
) as hops
where from_state <> coalesce(before, 'pending')
union all
select format('task %s is %s and its log ends in %s', t.task_id, t.state, coalesce(last.to_state::text, 'nothing'))
from tasker.tasks t
left join lateral (
    select x.to_state from tasker.task_transitions x where x.task_id = t.task_id order by x.transition_id desc limit 1
) as last on true
where coalesce(last.to_state, 'pending') <> t.state;

-- name: I12_the_log_of_every_step_is_a_chain
-- The same for steps.
select format('step %s: hop %s is %s -%s-> %s after %s', step_id, transition_id, from_state, event, to_state,
    coalesce(before::text, 'nothing')) as violation
from (
    select *, lag(to_state) over (partition by step_id order by transition_id) as before from tasker.step_transitions
) as hops
where from_state <> coalesce(before, 'pending')
union all
select format('step %s is %s and its log ends in %s', s.step_id, s.state, coalesce(last.to_state::text, 'nothing'))
from tasker.steps s
left join (
    select distinct on (step_id) step_id, to_state from tasker.step_transitions order by step_id, transition_id desc
) as last on last.step_id = s.step_id
where coalesce(last.to_state, 'pending') <> s.state;

-- name: I12_open_runs_are_noted
-- All that have not ended, in their namespace, and no other.
select format('task %s of namespace %s ended at %s and is noted as open in %s', coalesce(t.task_id, o.task_id), t.namespace,
    t.completed_at, o.namespace) as violation
from tasker.tasks t full join tasker.open_tasks o using (task_id)
where (t.completed_at is null) <> (o.task_id is not null) or t.task_id is null or o.namespace <> t.namespace;

-- name: I12_every_row_belongs_to_a_run
-- A run has the steps of its template; nothing is queued, held or timed for a run that has ended or never was.
select format('task %s has %s steps, its template %s', t.task_id, t.total_steps, p.step_count) as violation
from tasker.tasks t join tasker.templates p using (template_id)
where t.total_steps <> p.step_count - p.batch_worker_count + coalesce((
    select sum(b.size) from tasker.step_batches b where b.task_id = t.task_id), 0)
union all
select format('a row of %s for step %s, whose task has ended or does not exist', stray.source, stray.step_id)
from (
    select 'ready_steps' as source, step_id, tasker.task_of_step(step_id) as task_id from tasker.ready_steps
    union all select 'leases', step_id, tasker.task_of_step(step_id) from tasker.leases
    union all select 'timers of ' || kind, step_id, task_id from tasker.timers
) as stray
left join tasker.tasks t on t.task_id = stray.task_id
where t.task_id is null or t.completed_at is not null;
