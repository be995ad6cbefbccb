"""Postgres: connections, the SQL, migrations. The only package that imports psycopg."""
