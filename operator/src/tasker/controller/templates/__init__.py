"""TaskTemplates."""
