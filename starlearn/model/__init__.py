"""The 4-bit base model, its adapter, and computations with both."""

import logging

# On import bitsandbytes looks for an optional CPU kernel on the hub and warns when it finds none.
# That kernel is the packed product without gradients, which backbone.py switches off, so the
# package that the warning recommends would change nothing.
_logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    import bitsandbytes  # noqa: F401
finally:
    _logger.setLevel(_level)
