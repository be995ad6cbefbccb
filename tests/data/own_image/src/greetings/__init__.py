"""Handlers delivered as a package in an image of their own."""
