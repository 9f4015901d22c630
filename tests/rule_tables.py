"""The contract of rule tables, which plug-ins inherit too."""

from warmstart.testing import InMemory, assert_returns, random_arrays, written

__all__ = ["InMemory", "assert_returns", "random_arrays", "written"]
