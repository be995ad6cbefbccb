"""What is planted in SQL: single edits that the rules name, in code and not in comments or literals."""

from __future__ import annotations

import pytest

from mutants.sql_sites import enclosing_name, plant_sql, sql_sites, tokens


def planted(source: str, operator: str | None = None) -> list[str]:
    """All mutants of a text, or those of one rule."""
    sites = sql_sites("x.sql", source)
    return [plant_sql(source, site) for site in sites if operator in (None, site.operator)]


@pytest.mark.parametrize(
    ("source", "mutant"),
    [
        ("select a where b < c;", "select a where b <= c;"),
        ("select a where b = c;", "select a where b <> c;"),
        ("select a where b and c;", "select a where b or c;"),
        ("select a where b and c;", "select a where b ;"),
        ("select a where b and c;", "select a where  c;"),
        ("select a where b;", "select a where true;"),
        (
            "select a where b = any (select c from d where e) and f;",
            "select a where b = any (select c from d where e) ;",
        ),
        ("select a from b order by c, d limit 5;", "select a from b  limit 5;"),
        ("select a from b order by c limit 5;", "select a from b order by c limit 4;"),
        ("select a from b order by c desc;", "select a from b order by c ;"),
        ("select a from b for update skip locked;", "select a from b for update ;"),
        ("select a from b for update of b skip locked;", "select a from b ;"),
        ("select a from b for no key update;", "select a from b ;"),
        ("select array_agg(a order by b) from c;", "select array_agg(a ) from c;"),
        ("select coalesce(a, 0);", "select coalesce(a);"),
        ("select coalesce((a), f(b, c));", "select coalesce((a));"),
        ("select a is not null;", "select a is null;"),
        ("select a is null;", "select a is not null;"),
        ("select not a;", "select  a;"),
        ("select least(a, b);", "select greatest(a, b);"),
        ("select a from b left join c using (d);", "select a from b inner join c using (d);"),
        ("begin set local lock_timeout = '2s'; end", "begin null; end"),
        ("begin raise exception 'x' using errcode = 'TK001'; end", "begin null; end"),
        ("begin perform f(a); end", "begin null; end"),
        ("begin delete from a where b; end", "begin null; end"),
        ("if a > 0 and b then x; end if;", "if  b then x; end if;"),
        ("if a > 0 then x; end if;", "if a >= 0 then x; end if;"),
        ("create function f() set lock_timeout = '2s' as $$ $$", "create function f()  as $$ $$"),
    ],
)
def test_a_fault_of_each_sort_is_planted(source: str, mutant: str) -> None:
    assert mutant in planted(source)


@pytest.mark.parametrize(
    "source",
    [
        "-- where a = 1 and b\n",
        "/* limit 5 */",
        "select 'a = 1 and b';",
        'select "a = 1";',
        "create or replace function f() returns void language sql as $$ $$",
        "create function f() set plan_cache_mode = force_generic_plan set jit = off as $$ $$",
        "perform 1 from a;",
        "create table a (b integer not null);",
        "select a, b from c;",
        "select a from (values (1, b), (2, c)) as hop(place, a);",
    ],
)
def test_what_cannot_matter_is_left_alone(source: str) -> None:
    assert planted(source) == []


def test_an_assignment_is_no_comparison() -> None:
    source = "update a set b = 1, c = case when d = e then f end where g = h;"
    assert planted(source, "swap =") == [source.replace("d =", "d <>"), source.replace("g =", "g <>")]


def test_the_numbers_that_steer_the_storage_are_left_alone() -> None:
    source = "create table a (b integer check (b < 5)) with (fillfactor = 70, autovacuum_vacuum_cost_delay = 0);"
    numbers = planted(source, "number +1") + planted(source, "number -1")
    assert numbers == [source.replace("5", "6"), source.replace("5", "4")]


def test_only_the_ranks_of_a_list_are_no_numbers() -> None:
    assert len(planted("select a from (values (1, 5), (2, c)) as hop(place, a);")) == 2
    assert len(planted("select a from (values (1, b), (2, c)) as hop(size, a);")) == 4
    assert len(planted("select f(1, b), (2, c);")) == 4


def test_the_and_of_a_between_stays() -> None:
    source = "select a where b between c and d and e;"
    assert planted(source, "swap and") == ["select a where b between c and d or e;"]
    assert planted(source, "drop condition") == [
        "select a where  e;",
        "select a where b between c and d ;",
    ]


def test_a_condition_reaches_over_is_distinct_from() -> None:
    assert planted("select a where b is distinct from c and d;", "drop condition") == [
        "select a where  d;",
        "select a where b is distinct from c ;",
    ]


def test_the_body_between_dollar_signs_is_code() -> None:
    source = "create function f() as $$ begin if a = 1 then b := 2; end if; end $$;"
    assert source.replace("a = 1", "a <> 1") in planted(source)
    assert [token.text for token in tokens(source)].count("$$") == 2


def test_a_line_belongs_to_the_function_or_the_query_above_it() -> None:
    functions = """create or replace function tasker.f() as $$
a
$$;
create table t ();
create function tasker.g() as $$
b
$$;
"""
    assert [enclosing_name(functions, line) for line in range(1, 8)] == ["f", "f", "f", None, "g", "g", "g"]
    queries = "-- name: one\n-- It counts.\nselect 1;\n\n-- name: two\nselect 2;\n"
    assert [enclosing_name(queries, line) for line in (3, 6)] == ["one", "two"]
    assert enclosing_name("create table a ();", 1) is None
