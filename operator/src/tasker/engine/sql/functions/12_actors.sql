-- Who does things, by number. The first mention of a name writes it down, and another session that mentions it at the same
-- moment waits for that: so a person's is asked for before any other lock is taken, and a worker's is written when it
-- registers, before it holds anything.

create or replace function tasker.actor_id(p_name text) returns integer language plpgsql as $$
declare
    v_actor_id integer;
begin
    select actor_id into v_actor_id from tasker.actors where name = p_name;
    if not found then
        insert into tasker.actors (name) values (p_name) on conflict (name) do nothing;
        select actor_id into v_actor_id from tasker.actors where name = p_name;
    end if;
    return v_actor_id;
end $$;
