-- name: lock_migrations
-- One migration run at a time; held to the end of the session.
select pg_advisory_lock(hashtext('tasker.migrations'));

-- name: unlock_migrations
-- Lets the next one in.
select pg_advisory_unlock(hashtext('tasker.migrations'));

-- name: has_migrations_table
-- Whether anything was ever applied.
select where to_regclass('tasker.migrations') is not null;

-- name: applied_migrations
-- What was applied, with checksums.
select name, checksum from tasker.migrations;

-- name: record_migration
-- Notes what was applied; the functions are noted anew each time they change.
insert into tasker.migrations (name, checksum) values (%(name)s, %(checksum)s)
on conflict (name) do update set checksum = excluded.checksum, applied_at = clock_timestamp();

-- name: ensure_partitions
-- History partitions for the days ahead.
select tasker.ensure_partitions();
