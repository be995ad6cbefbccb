"""Pure values: templates, graphs, state machines, retry delays. No input or output."""
