-- Removes what a run of the cluster suite left in a database that is not its own: the rows of its namespaces, whose
-- names begin with %(prefix)s. History is append-only for everybody else, so its triggers rest meanwhile.

create temporary table going on commit drop as
    select task_id from tasker.tasks where starts_with(namespace, %(prefix)s);

alter table tasker.task_log disable trigger user;
alter table tasker.step_log disable trigger user;
delete from tasker.task_log where task_id in (select task_id from going);
delete from tasker.step_log where tasker.task_of_step(step_id) in (select task_id from going);
alter table tasker.task_log enable trigger user;
alter table tasker.step_log enable trigger user;

delete from tasker.dead_letters where starts_with(namespace, %(prefix)s);
delete from tasker.step_failures where task_id in (select task_id from going);
delete from tasker.timers where task_id in (select task_id from going);
delete from tasker.leases where tasker.task_of_step(step_id) in (select task_id from going);
delete from tasker.ready_steps where starts_with(namespace, %(prefix)s);
delete from tasker.steps where tasker.task_of_step(step_id) in (select task_id from going);
delete from tasker.tasks where task_id in (select task_id from going);
delete from tasker.open_tasks where starts_with(namespace, %(prefix)s);
delete from tasker.limited_tasks where starts_with(namespace, %(prefix)s);
delete from tasker.identities where starts_with(namespace, %(prefix)s);
delete from tasker.concurrency_limits where starts_with(namespace, %(prefix)s);
delete from tasker.templates where starts_with(namespace, %(prefix)s);
delete from tasker.workers where starts_with(namespace, %(prefix)s);
delete from tasker.pool_callables where starts_with(namespace, %(prefix)s);
