"""The operator: the only package that knows Kubernetes."""
