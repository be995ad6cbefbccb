"""Mutation testing: plants small faults in the product's source one at a time and reports which no test notices.

``make mutants SEED=7 COUNT=200``; README.md in this folder explains what is planted, what is not, and how to read the
report. ``__main__`` is the command; the other modules, in the order in which it uses them:

``sources``         which files are mutated
``python_sites``    where a fault can be planted in Python, with cosmic-ray's operators and three of our own
``sql_sites``       the same for SQL
``sampling``        the seeded sample, as `Mutant` values
``scratch``         copies of the tree, each with its own import path
``coverage_map``    which test runs which line and which function of the database; recorded by ``plugin``
``suites``          the tests that judge mutants
``selection``       of them those that can see a mutant, quick ones first
``runs``            plants and tests, on two copies at once
``results``         the resumable file of verdicts, the reasons of survivors, the report
"""
