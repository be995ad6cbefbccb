"""The server: engine, operator, command line and the embedded cluster."""
