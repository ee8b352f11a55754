"""Scoring beyond one process, on engines that exist: RayEngine Data, and accelerate's processes."""
