-- Written by `make passages` from tasker.model.transitions: edit that, not this.
--
-- What each passage of the logs is made of, and the logs unfolded into single moves. A row's transition_id orders the
-- moves of one task or step.

create or replace view tasker.task_hops as select * from (values
    ('submitted'::tasker.task_passage, 1, 'pending'::tasker.task_state,
        'start'::tasker.task_event, 'initializing'::tasker.task_state),
    ('submitted', 2, 'initializing', 'ready_steps_found', 'enqueuing_steps'),
    ('submitted', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('submitted_empty', 1, 'pending', 'start', 'initializing'),
    ('submitted_empty', 2, 'initializing', 'no_steps_found', 'complete'),
    ('submitted_waiting', 1, 'pending', 'start', 'initializing'),
    ('submitted_waiting', 2, 'initializing', 'no_dependencies_ready', 'waiting_for_dependencies'),
    ('admitted', 1, 'pending', 'start', 'initializing'),
    ('admitted', 2, 'initializing', 'ready_steps_found', 'enqueuing_steps'),
    ('admitted', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('moved_on', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('moved_on', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('moved_on', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('kept_running', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('kept_running', 2, 'evaluating_results', 'steps_running', 'steps_in_process'),
    ('completed', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('completed', 2, 'evaluating_results', 'all_steps_successful', 'complete'),
    ('left_to_retries', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('left_to_retries', 2, 'evaluating_results', 'retry_pending', 'waiting_for_retry'),
    ('left_waiting', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('left_waiting', 2, 'evaluating_results', 'no_dependencies_ready', 'waiting_for_dependencies'),
    ('blocked', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('blocked', 2, 'evaluating_results', 'permanent_failure', 'blocked_by_failures'),
    ('failed', 1, 'steps_in_process', 'step_settled', 'evaluating_results'),
    ('failed', 2, 'evaluating_results', 'permanent_failure', 'blocked_by_failures'),
    ('failed', 3, 'blocked_by_failures', 'give_up', 'error'),
    ('retried', 1, 'waiting_for_retry', 'retry_ready', 'enqueuing_steps'),
    ('retried', 2, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('failed_pending', 1, 'pending', 'start', 'initializing'),
    ('failed_pending', 2, 'initializing', 'ready_steps_found', 'enqueuing_steps'),
    ('failed_pending', 3, 'enqueuing_steps', 'enqueue_failed', 'error'),
    ('failed_retrying', 1, 'waiting_for_retry', 'retry_ready', 'enqueuing_steps'),
    ('failed_retrying', 2, 'enqueuing_steps', 'enqueue_failed', 'error'),
    ('failed_waiting', 1, 'waiting_for_dependencies', 'dependencies_ready', 'evaluating_results'),
    ('failed_waiting', 2, 'evaluating_results', 'permanent_failure', 'blocked_by_failures'),
    ('failed_waiting', 3, 'blocked_by_failures', 'give_up', 'error'),
    ('failed_blocked', 1, 'blocked_by_failures', 'give_up', 'error'),
    ('freed', 1, 'blocked_by_failures', 'step_resolved', 'evaluating_results'),
    ('freed', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('freed', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('taken_up', 1, 'error', 'step_resolved', 'evaluating_results'),
    ('taken_up', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('taken_up', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('run_again_cancelled', 1, 'cancelled', 'rerun', 'evaluating_results'),
    ('run_again_cancelled', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('run_again_cancelled', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('run_again_complete', 1, 'complete', 'rerun', 'evaluating_results'),
    ('run_again_complete', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('run_again_complete', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('run_again_error', 1, 'error', 'rerun', 'evaluating_results'),
    ('run_again_error', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('run_again_error', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('woken', 1, 'waiting_for_dependencies', 'dependencies_ready', 'evaluating_results'),
    ('woken', 2, 'evaluating_results', 'ready_steps_found', 'enqueuing_steps'),
    ('woken', 3, 'enqueuing_steps', 'steps_enqueued', 'steps_in_process'),
    ('cancelled_blocked_by_failures', 1, 'blocked_by_failures', 'cancel', 'cancelled'),
    ('cancelled_enqueuing_steps', 1, 'enqueuing_steps', 'cancel', 'cancelled'),
    ('cancelled_evaluating_results', 1, 'evaluating_results', 'cancel', 'cancelled'),
    ('cancelled_initializing', 1, 'initializing', 'cancel', 'cancelled'),
    ('cancelled_pending', 1, 'pending', 'cancel', 'cancelled'),
    ('cancelled_steps_in_process', 1, 'steps_in_process', 'cancel', 'cancelled'),
    ('cancelled_waiting_for_dependencies', 1, 'waiting_for_dependencies', 'cancel', 'cancelled'),
    ('cancelled_waiting_for_retry', 1, 'waiting_for_retry', 'cancel', 'cancelled'),
    ('resolved_blocked_by_failures', 1, 'blocked_by_failures', 'manual_resolution', 'resolved_manually'),
    ('resolved_enqueuing_steps', 1, 'enqueuing_steps', 'manual_resolution', 'resolved_manually'),
    ('resolved_error', 1, 'error', 'manual_resolution', 'resolved_manually'),
    ('resolved_evaluating_results', 1, 'evaluating_results', 'manual_resolution', 'resolved_manually'),
    ('resolved_initializing', 1, 'initializing', 'manual_resolution', 'resolved_manually'),
    ('resolved_pending', 1, 'pending', 'manual_resolution', 'resolved_manually'),
    ('resolved_steps_in_process', 1, 'steps_in_process', 'manual_resolution', 'resolved_manually'),
    ('resolved_waiting_for_dependencies', 1, 'waiting_for_dependencies', 'manual_resolution', 'resolved_manually'),
    ('resolved_waiting_for_retry', 1, 'waiting_for_retry', 'manual_resolution', 'resolved_manually')
) as hop(passage, place, from_state, event, to_state);

create or replace view tasker.step_hops as select * from (values
    ('queued'::tasker.step_passage, 1, 'pending'::tasker.step_state,
        'enqueue'::tasker.step_event, 'enqueued'::tasker.step_state),
    ('completed', 1, 'in_progress', 'submit_result', 'enqueued_for_orchestration'),
    ('completed', 2, 'enqueued_for_orchestration', 'complete', 'complete'),
    ('refused', 1, 'in_progress', 'submit_result', 'enqueued_for_orchestration'),
    ('refused', 2, 'enqueued_for_orchestration', 'fail', 'error'),
    ('released', 1, 'in_progress', 'released', 'enqueued'),
    ('lost', 1, 'in_progress', 'lease_expired', 'waiting_for_retry'),
    ('failed_to_retry', 1, 'in_progress', 'submit_error', 'enqueued_as_error_for_orchestration'),
    ('failed_to_retry', 2, 'enqueued_as_error_for_orchestration', 'wait_for_retry', 'waiting_for_retry'),
    ('failed', 1, 'in_progress', 'submit_error', 'enqueued_as_error_for_orchestration'),
    ('failed', 2, 'enqueued_as_error_for_orchestration', 'fail', 'error'),
    ('retried', 1, 'waiting_for_retry', 'retry', 'enqueued'),
    ('reset', 1, 'error', 'reset_for_retry', 'enqueued'),
    ('cancelled_enqueued', 1, 'enqueued', 'cancel', 'cancelled'),
    ('cancelled_enqueued_as_error_for_orchestration', 1, 'enqueued_as_error_for_orchestration', 'cancel', 'cancelled'),
    ('cancelled_enqueued_for_orchestration', 1, 'enqueued_for_orchestration', 'cancel', 'cancelled'),
    ('cancelled_error', 1, 'error', 'cancel', 'cancelled'),
    ('cancelled_in_progress', 1, 'in_progress', 'cancel', 'cancelled'),
    ('cancelled_pending', 1, 'pending', 'cancel', 'cancelled'),
    ('cancelled_waiting_for_retry', 1, 'waiting_for_retry', 'cancel', 'cancelled'),
    ('resolved_enqueued', 1, 'enqueued', 'resolve_manually', 'resolved_manually'),
    ('resolved_enqueued_as_error_for_orchestration', 1, 'enqueued_as_error_for_orchestration', 'resolve_manually', 'resolved_manually'),
    ('resolved_enqueued_for_orchestration', 1, 'enqueued_for_orchestration', 'resolve_manually', 'resolved_manually'),
    ('resolved_error', 1, 'error', 'resolve_manually', 'resolved_manually'),
    ('resolved_in_progress', 1, 'in_progress', 'resolve_manually', 'resolved_manually'),
    ('resolved_pending', 1, 'pending', 'resolve_manually', 'resolved_manually'),
    ('resolved_waiting_for_retry', 1, 'waiting_for_retry', 'resolve_manually', 'resolved_manually'),
    ('completed_by_hand_enqueued', 1, 'enqueued', 'complete_manually', 'complete'),
    ('completed_by_hand_enqueued_as_error_for_orchestration', 1, 'enqueued_as_error_for_orchestration', 'complete_manually', 'complete'),
    ('completed_by_hand_enqueued_for_orchestration', 1, 'enqueued_for_orchestration', 'complete_manually', 'complete'),
    ('completed_by_hand_error', 1, 'error', 'complete_manually', 'complete'),
    ('completed_by_hand_in_progress', 1, 'in_progress', 'complete_manually', 'complete'),
    ('completed_by_hand_pending', 1, 'pending', 'complete_manually', 'complete'),
    ('completed_by_hand_waiting_for_retry', 1, 'waiting_for_retry', 'complete_manually', 'complete'),
    ('skipped_enqueued', 1, 'enqueued', 'skip', 'skipped'),
    ('skipped_error', 1, 'error', 'skip', 'skipped'),
    ('skipped_in_progress', 1, 'in_progress', 'skip', 'skipped'),
    ('skipped_pending', 1, 'pending', 'skip', 'skipped'),
    ('skipped_waiting_for_retry', 1, 'waiting_for_retry', 'skip', 'skipped'),
    ('rerun_cancelled', 1, 'cancelled', 'rerun', 'pending'),
    ('rerun_complete', 1, 'complete', 'rerun', 'pending'),
    ('rerun_error', 1, 'error', 'rerun', 'pending'),
    ('rerun_resolved_manually', 1, 'resolved_manually', 'rerun', 'pending'),
    ('rerun_skipped', 1, 'skipped', 'rerun', 'pending'),
    ('revived_cancelled', 1, 'cancelled', 'revive', 'pending')
) as hop(passage, place, from_state, event, to_state);

create or replace view tasker.step_beginning_hops as select * from (values
    ('claimed'::tasker.step_beginning, 1, 'enqueued'::tasker.step_state,
        'start'::tasker.step_event, 'in_progress'::tasker.step_state),
    ('handed_out', 1, 'pending', 'enqueue', 'enqueued'),
    ('handed_out', 2, 'enqueued', 'start', 'in_progress')
) as hop(passage, place, from_state, event, to_state);

create or replace view tasker.task_transitions as
    select log.log_id * 8 + hop.place as transition_id, log.task_id, hop.from_state, hop.event, hop.to_state,
        actor.name as actor, log.at, log.metadata, log.transaction_id
    from tasker.task_log log
    join tasker.task_hops hop on hop.passage = log.passage
    left join tasker.actors actor on actor.actor_id = log.actor_id;

-- An attempt's beginning is told by the passage that ends it, and by its lease until then.
create or replace view tasker.step_transitions as
    select log.log_id * 8 + 2 + hop.place as transition_id, log.step_id, hop.from_state, hop.event, hop.to_state,
        actor.name as actor, log.at, log.metadata, log.attempt
    from tasker.step_log log
    join tasker.step_hops hop on hop.passage = log.passage
    left join tasker.actors actor on actor.actor_id = log.actor_id
    union all
    select began.log_id * 8 + hop.place, began.step_id, hop.from_state, hop.event, hop.to_state, actor.name, began.at,
        null, began.attempt
    from (
        select log_id, step_id, beginning, began_at, coalesce(began_by, actor_id), attempt
        from tasker.step_log where beginning is not null
        union all
        select log_id, step_id, beginning, started_at, actor_id, attempt from tasker.leases
    ) as began(log_id, step_id, beginning, at, actor_id, attempt)
    join tasker.step_beginning_hops hop on hop.passage = began.beginning
    left join tasker.actors actor on actor.actor_id = began.actor_id;
