-- What servers and workers may rely on: names, parameters and rows of the functions they call. A change to any of these
-- raises `current`, and the functions go on serving what `oldest` did for at least a release. A process that speaks a
-- number outside of this range waits, and says so.
create or replace function tasker.contract() returns table (oldest integer, current integer) language sql immutable as $$
    select 2, 2
$$;
