-- name: lock_migrations
-- One migration run at a time; held to the end of the session.
select pg_advisory_lock(hashtext('tasker.migrations'));

-- name: unlock_migrations
-- Lets the next one in.
select pg_advisory_unlock(hashtext('tasker.migrations'));

-- name: has_migrations_table
-- Whether anything was ever applied.
select where to_regclass('tasker.migrations') is not null;

-- name: migration_names
-- What was applied, as every edition of the schema tells it.
select name from tasker.migrations;

-- name: applied_migrations
-- What was applied, with checksums and by which releases.
select name, checksum, release from tasker.migrations;

-- name: record_migration
-- Notes what was applied; the functions are noted anew each time they change.
insert into tasker.migrations (name, checksum, release) values (%(name)s, %(checksum)s, %(release)s)
on conflict (name) do update
    set checksum = excluded.checksum, release = excluded.release, applied_at = clock_timestamp();

-- name: contract
-- Which contracts the functions serve.
select oldest, current from tasker.contract();

-- name: ensure_partitions
-- History partitions for the days ahead.
select tasker.ensure_partitions();
