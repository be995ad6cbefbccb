"""The server: engine, operator and command line."""
