-- name: register_template
-- Stores a template revision, or activates it again.
select template_id, created
from tasker.register_template(%(namespace)s, %(name)s, %(version)s, %(revision)s, %(spec)s, %(steps)s, %(edges)s,
    %(lifecycle)s);

-- name: current_templates
-- Which revisions new runs get that ask for these names and versions, in their order, and how these tell runs apart;
-- nulls where there is none.
select current.template_id,
    (select t.revision from tasker.templates t where t.template_id = current.template_id) as revision,
    (select t.identity_strategy from tasker.templates t where t.template_id = current.template_id) as identity_strategy
from (
    select given.place, tasker.current_template(%(namespace)s, given.name, given.version) as template_id
    from unnest(%(names)s::text[], %(versions)s::text[]) with ordinality as given(name, version, place) offset 0
) as current
order by current.place;

-- name: input_rules
-- What revisions ask of the contexts of their runs.
select revision, spec -> 'input_schema' as input_schema, spec ->> 'schema_enforcement' as enforcement
from tasker.templates where template_id = any (%(template_ids)s);

-- name: template_counts
-- How many runs of a template are in which kind of state.
select
    count(*) filter (where state in ('initializing', 'enqueuing_steps', 'steps_in_process', 'evaluating_results')
        and not suspended) as running,
    count(*) filter (where state in ('pending', 'waiting_for_dependencies', 'waiting_for_retry', 'blocked_by_failures')
        or suspended and completed_at is null) as waiting,
    count(*) filter (where state in ('complete', 'resolved_manually')) as complete,
    count(*) filter (where state in ('error', 'cancelled')) as error
from tasker.tasks
where template_id in (select template_id from tasker.templates where namespace = %(namespace)s and name = %(name)s);
