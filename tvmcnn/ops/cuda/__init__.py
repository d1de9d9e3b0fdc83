"""Expressions that only rules for GPUs schedule."""
