-- How long a failed step waits: min(max, base * f(n)) for the n-th failure, then jitter of +/- that share.
-- f is 0 (none), n (linear), 2^(n-1) (exponential) or the n-th Fibonacci number 1, 1, 2, 3, 5 (fibonacci).
-- A server's Retry-After takes the place of all that, up to the setting retry_after_cap_ms (an hour).
-- `tasker.model.retry` computes the same without jitter; a test compares them.

create or replace function tasker.retry_delay(
    p_backoff tasker.backoff, p_base_ms integer, p_max_ms integer, p_jitter double precision, p_failures integer,
    p_retry_after_ms numeric
) returns interval language sql volatile as $$
    select case
        when p_retry_after_ms is not null
            then greatest(0, least(p_retry_after_ms, tasker.setting('retry_after_cap_ms', 3600000)))::double precision
        else least(p_max_ms, p_base_ms * case p_backoff
                when 'none' then 0
                when 'linear' then p_failures
                when 'exponential' then power(2::double precision, p_failures - 1)
                -- Binet's formula: exact after rounding up to n = 70, and far past any maximum from there on.
                when 'fibonacci' then round(power((1 + sqrt(5::double precision)) / 2, p_failures) / sqrt(5::double precision))
            end) * (1 - p_jitter + 2 * p_jitter * random())
    end * interval '1 millisecond'
$$;

-- How long a step waits that failed for the n-th time.
create or replace function tasker.step_retry_delay(p_definition_id bigint, p_failures integer, p_retry_after_ms bigint)
returns interval language plpgsql volatile as $$
begin
    return (
        select tasker.retry_delay(d.backoff, d.base_ms, d.max_ms, d.jitter, p_failures, p_retry_after_ms)
        from tasker.definitions d where d.definition_id = p_definition_id
    );
end $$;
