"""`tasker dev`: the product on an embedded cluster of this machine, with examples to run and progress to see.

command           the command's options; found by `tasker` through an entry point
dev               what the command does
session           database, API server, node and operator, started in order and stopped together
operator_process  the operator as a process that is kept alive
example           a folder of manifests that says what its Tasks should end as
example_run       one run of it, followed with kubectl
run_state         what is known of a run; no I/O
progress, tables  what is printed
"""
