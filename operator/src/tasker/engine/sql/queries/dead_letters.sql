-- name: dead_letters
-- Entries, newest first, from a place on; a filter that is null lets all through.
select e.entry_id, e.entry_uuid, e.namespace, t.task_uuid, template.name as template_name,
    template.version as template_version,
    case when e.step_id is not null then tasker.step_name(d.name, d.definition_id, s.step_id) end as step,
    e.reason::text as reason, e.state::text as state, e.created_at, e.updated_at
from tasker.dead_letters e
join tasker.tasks t on t.task_id = e.task_id
join tasker.templates template on template.template_id = t.template_id
left join tasker.steps s on s.step_id = e.step_id
left join tasker.definitions d on d.definition_id = s.definition_id
where (%(namespace)s::text is null or e.namespace = %(namespace)s)
    and (%(states)s::tasker.dead_letter_state[] is null or e.state = any (%(states)s::tasker.dead_letter_state[]))
    and (%(reason)s::tasker.dead_letter_reason is null or e.reason = %(reason)s::tasker.dead_letter_reason)
    and (%(task_id)s::bigint is null or e.task_id = %(task_id)s)
    and (%(entry_uuid)s::uuid is null or e.entry_uuid = %(entry_uuid)s)
    and (%(before)s::bigint is null or e.entry_id < %(before)s)
order by e.entry_id desc limit %(limit)s;

-- name: dead_letter_snapshot
-- What was to be seen when an entry was made.
select snapshot from tasker.dead_letters where entry_uuid = %(entry_uuid)s;

-- name: dead_letter_changes
-- The history of an entry.
select c.at, a.name as actor, c.state::text as state, c.notes
from tasker.dead_letters e
join tasker.dead_letter_changes c on c.entry_id = e.entry_id
join tasker.actors a on a.actor_id = c.actor_id
where e.entry_uuid = %(entry_uuid)s order by c.change_id;

-- name: dead_letter_counts
-- How many entries there are of each state and reason, counted up to a limit, and the oldest of them.
select s.state::text as state, r.reason::text as reason, counted.entries, counted.oldest
from unnest(enum_range(null::tasker.dead_letter_state)) as s(state)
cross join unnest(enum_range(null::tasker.dead_letter_reason)) as r(reason)
cross join lateral (
    select count(*) as entries, min(found.created_at) as oldest
    from (
        select e.created_at from tasker.dead_letters e
        where e.state = s.state and e.reason = r.reason
            and (%(namespace)s::text is null or e.namespace = %(namespace)s)
        limit %(limit)s
    ) as found
) as counted
where counted.entries > 0
order by s.state, r.reason;

-- name: change_dead_letter
-- What a person makes of an entry.
select tasker.change_dead_letter(%(entry_uuid)s, %(state)s::tasker.dead_letter_state, %(actor)s, %(notes)s);

-- name: put_back_dead_letter
-- The step of an entry runs again.
select tasker.put_back_dead_letter(%(entry_uuid)s, %(actor)s, %(notes)s);

-- name: add_dead_letter
-- An entry that a person wants.
select tasker.add_dead_letter(%(task_id)s, %(step)s, %(actor)s, %(notes)s);
