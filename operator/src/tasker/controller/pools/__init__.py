"""WorkerPools: scaling, manifests, status."""
