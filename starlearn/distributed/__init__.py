"""Scoring beyond one process, on engines that exist: Ray Data, and accelerate's processes."""
