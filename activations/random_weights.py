"""A model that has learned nothing: the configuration and the words of one that has, and weights
drawn afresh. What a probe reads there comes from the text and the architecture alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from activations.engines.passes import first_line
from activations.errors import ModelError


def fresh_model(
    build: Callable[..., Any], config: Any, dtype: torch.dtype | str, seed: int, name: str
) -> Any:
    """A Hugging Face model as its own code initialises it, on the CPU, in `dtype`.

    The draws are the CPU's whatever device the model goes to later, so one seed gives the same
    bits everywhere; torch's own stream of random numbers goes on as if nothing had been drawn.

    Args:
        build: from a configuration and `dtype` to a model, as `PreTrainedModel._from_config`.
        dtype: `auto` is the one that the configuration names.

    Raises:
        ModelError: a seed that is none, a quantised model, or a model that cannot be built.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**63:
        raise ModelError(f"The seed of random weights is {seed!r}; give a whole number from 0 on.")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{name} is quantised, and random weights have no such form; give the model that it "
            "was quantised from."
        )
    own = copy.deepcopy(config)  # the libraries write into it
    kind = (getattr(own, "dtype", None) or torch.float32) if dtype == "auto" else dtype
    draws = torch.default_generator
    before = draws.get_state()
    draws.manual_seed(int(seed))
    try:
        return build(own, dtype=kind)
    except Exception as error:  # configurations check themselves in many ways
        raise ModelError(
            f"A model like {name} with random weights cannot be built: {first_line(error)}."
        ) from error
    finally:
        draws.set_state(before)


def builder_of(model: Any, name: str) -> Callable[..., Any]:
    """What builds the like of a Hugging Face model in memory, without a pooler if it has none.

    Raises:
        ModelError: it is no `PreTrainedModel`, so nothing says how its weights are drawn.
    """
    build = getattr(type(model), "_from_config", None)
    if build is None:
        raise ModelError(
            f"{name} ({type(model).__name__}) is no PreTrainedModel, so nothing says how its "
            "weights are drawn; random weights are for models of Hugging Face's form."
        )
    own: dict[str, Any] = {}
    if getattr(model, "pooler", 0) is None:
        own["add_pooling_layer"] = False
    attention = getattr(model.config, "_attn_implementation", None)
    if attention is not None:
        own["attn_implementation"] = attention

    def built(config: Any, *, dtype: Any) -> Any:
        return build(config, dtype=dtype, **own)

    return built


def random_name(name: str, seed: int) -> str:
    """How a model with random weights is called."""
    return f"{name} with random weights (seed {seed})"
