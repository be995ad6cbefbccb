-- The embedded API server's database: the newest state of every object, and the resourceVersion counter.
--
-- Reads never come here: the server keeps all objects in memory and loads them once. The counter has a row of its own
-- because the newest object may be deleted, and a resourceVersion must never be given twice.

-- name: schema
create table if not exists objects (
    resource         text    not null, -- plural and group, as in tasks.tasker.dev
    namespace        text    not null, -- empty for what has no namespace
    name             text    not null,
    resource_version integer not null,
    data             blob    not null, -- JSON in the version that the resource is stored in
    primary key (resource, namespace, name)
) without rowid;
create table if not exists counter (
    id    integer primary key check (id = 1),
    value integer not null
);
insert or ignore into counter (id, value) values (1, 1);

-- name: load
-- Every object, once at start.
select resource, namespace, name, resource_version, data from objects;

-- name: counter
select value from counter;

-- name: advance
update counter set value = ?;

-- name: put
insert into objects (resource, namespace, name, resource_version, data) values (?, ?, ?, ?, ?)
on conflict (resource, namespace, name)
do update set resource_version = excluded.resource_version, data = excluded.data;

-- name: delete
delete from objects where resource = ? and namespace = ? and name = ?;
