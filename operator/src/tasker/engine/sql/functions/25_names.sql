-- Names of steps. A batch's worker is called like its node, with its number behind; 000 is none.

create or replace function tasker.batch_worker_name(p_name text, p_step_id bigint) returns text language plpgsql stable as $$
declare
    v_number text;
begin
    select case when b.is_no_op then '0' else (tasker.place_of(p_step_id) - b.first_place + 1)::text end into v_number
    from tasker.step_batches b
    where b.task_id = tasker.task_of_step(p_step_id) and b.first_place <= tasker.place_of(p_step_id)
    order by b.first_place desc limit 1;
    return p_name || '_' || lpad(v_number, greatest(3, length(v_number)), '0');
end $$;

create or replace function tasker.step_name(p_name text, p_definition_id bigint, p_step_id bigint) returns text
language sql stable as $$
    select case when tasker.place_of(p_step_id) = tasker.place_of(p_definition_id) then p_name
        else tasker.batch_worker_name(p_name, p_step_id) end
$$;
