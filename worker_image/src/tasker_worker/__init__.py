"""The SDK: write step handlers and run them in a worker."""
