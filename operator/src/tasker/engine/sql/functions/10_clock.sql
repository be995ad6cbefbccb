-- The clock. Every function reads it once and works with that value, so that tests can move time without sleeping.
-- The setting `test_clock` = {"now": "..."} replaces the real time; only the owner of the schema may write settings.

create or replace function tasker.now() returns timestamptz language plpgsql volatile as $$
declare
    v_test_clock jsonb;
begin
    select value into v_test_clock from tasker.settings where key = 'test_clock';
    return coalesce((v_test_clock ->> 'now')::timestamptz, clock_timestamp());
end $$;

-- A number from the settings, or its default.
create or replace function tasker.setting(p_key text, p_default numeric) returns numeric language sql stable as $$
    select coalesce((select (value #>> '{}')::numeric from tasker.settings where key = p_key), p_default)
$$;

-- Which server this is: each promotion of a standby begins another timeline. Null where a service does not tell.
create or replace function tasker.server_timeline() returns integer language plpgsql stable as $$
begin
    return ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer;
exception when others then
    return null;
end $$;
