"""The version of starlearn, and of the libraries that results depend on."""

__version__ = "0.1.0"

LIBRARIES = (
    "starlearn",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "scikit-learn",
    "numpy",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
