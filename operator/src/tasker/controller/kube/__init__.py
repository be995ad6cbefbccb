"""The Kubernetes API: client, caches, status writes, Events, conditions."""
