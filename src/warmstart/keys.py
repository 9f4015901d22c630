"""What a change of a configuration key means for a run that has begun.

Every key of a configuration is declared :data:`Identity` (another value would be another run) or :data:`Adjustable`
(taken when the run goes on, and written down at its step), by itself or through the key that holds it.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

T = TypeVar("T")

IDENTITY, ADJUSTABLE = "identity", "adjustable"
Identity = Annotated[T, IDENTITY]
Adjustable = Annotated[T, ADJUSTABLE]
