-- Whose runs these are. One installation's operator cancels runs whose resources it does not find in its cluster, so two
-- of them must never work on one database. The owner is a row of tasker.settings: the first who asks, until told otherwise.

-- Makes an installation the owner unless there is one. Returns the owner and since when it has been.
create or replace function tasker.take_installation(p_id text) returns table (id text, since timestamptz)
language plpgsql as $$
begin
    insert into tasker.settings (key, value)
    values ('installation', jsonb_build_object('id', p_id, 'since', tasker.now()))
    on conflict (key) do nothing;
    return query select * from tasker.installation();
end $$;

-- Makes an installation the owner, whoever was.
create or replace function tasker.adopt_installation(p_id text) returns void language sql as $$
    insert into tasker.settings (key, value)
    values ('installation', jsonb_build_object('id', p_id, 'since', tasker.now()))
    on conflict (key) do update set value = excluded.value;
$$;

create or replace function tasker.installation() returns table (id text, since timestamptz) language sql stable as $$
    select value ->> 'id', (value ->> 'since')::timestamptz from tasker.settings where key = 'installation'
$$;

-- Whether the installation is the owner; null is a caller that is none, which nothing is asked of.
create or replace function tasker.is_owner(p_id text) returns boolean language sql stable as $$
    select p_id is null or coalesce((select owner.id = p_id from tasker.installation() owner), false)
$$;
