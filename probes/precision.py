"""Double precision in JAX, for one block and not for the whole process."""

from __future__ import annotations

from typing import Any


def double() -> Any:
    """A context in which JAX computes in f64, under whichever name this version has it."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax import experimental

    return getattr(experimental, "enable_x64")()  # noqa: B009 (newer versions lack the name)
