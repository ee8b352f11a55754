"""The 4-bit base model, its adapter, and what is computed with both."""

import logging

# On import bitsandbytes looks for an optional CPU kernel on the hub and warns when it has none.
# That kernel is the packed product without gradients, which is switched off here in any case
# (see backbone.py), so the warning would only send people after a package that changes nothing.
_logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    import bitsandbytes  # noqa: F401
finally:
    _logger.setLevel(_level)
