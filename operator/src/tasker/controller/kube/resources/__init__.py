"""Kubernetes objects as typed values: one module a kind.

Task, TaskTemplate and WorkerPool are models of their CRDs, held equal to them field by field by a test. Of the kinds
that the operator does not own there is a view of what it reads.
"""
