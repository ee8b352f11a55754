"""Pools of items, and their tokens."""
