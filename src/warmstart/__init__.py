"""warmstart: start training from models that already exist."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The public verbs (``warmstart.convert``, ``warmstart.contains_model`` …), loaded when first used."""
    from importlib import import_module

    if name == "converters":
        return import_module("warmstart.converters")
    api = import_module("warmstart.api") if not name.startswith("_") else None
    if api is None or name not in api.__all__:
        raise AttributeError(f"module 'warmstart' has no attribute {name!r}")
    verb: object = getattr(api, name)
    return verb
