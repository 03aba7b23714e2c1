"""Operator contracts: one file per operation with checks, schema, fake kernel, autograd and docstring."""
