"""Two prompts of one's own: which states carry the difference, and what one patch changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from experiments.settings import ConfigError

if TYPE_CHECKING:
    from activations import Model

#: Tokens of a prompt, at most: a wider map can be read by nobody.
MOST_TOKENS = 64
_STRIDE = 4


def token_columns(model: Model, base: str, source: str) -> pd.DataFrame:
    """Tokens of the base prompt and those of the source prompt that stand for them.

    Returns:
        One row a base token, in order: `position` (from the end, 0 the last), `base`, `source`
        (empty where it has no counterpart), `source_index` (-1 there).

    Raises:
        ConfigError: an empty prompt, two equal prompts, or one of more than 64 tokens.
        CaptureError: a prompt longer than the model's context.
    """
    from interventions import align_tokens

    if not (base.strip() and source.strip()):
        raise ConfigError("A prompt is empty: write both.")
    ids = [model.encode(text) for text in (base, source)]
    if ids[0] == ids[1]:
        raise ConfigError("The two prompts are the same to the model: change a word in one.")
    longest = max(map(len, ids))
    if longest > MOST_TOKENS:
        raise ConfigError(
            f"A prompt has {longest} tokens; the map shows {MOST_TOKENS} at most: shorten it."
        )
    aligned = align_tokens(*ids)
    words = [[model.tokenizer.decode([token]) for token in one] for one in ids]
    return pd.DataFrame(
        {
            "position": range(len(ids[0]) - 1, -1, -1),
            "base": words[0],
            "source": [words[1][i] if i >= 0 else "" for i in aligned],
            "source_index": aligned,
        }
    )


def coarse_to_fine(sites: Sequence[str]) -> list[str]:
    """Every fourth site first, so that the shape of a map is seen early; then the others."""
    first = list(sites)[::_STRIDE]
    return [*first, *(site for site in sites if site not in first)]


def pair_map(model: Model, base: str, source: str, sites: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The sweep of `patch_sweep` over one pair, a site at a time, the sites in the order given.

    Yields:
        Rows of `PatchSweep.frame`, one for each base token.

    Raises:
        as `token_columns`.
    """
    from interventions import patch_sweep

    token_columns(model, base, source)
    for site in sites:
        yield patch_sweep(model, [(base, source)], sites=[site], max_positions=MOST_TOKENS).frame


def changed_words(
    model: Model, base: str, source: str, site: str, position: int, *, most: int = 10
) -> pd.DataFrame:
    """What one patch changes in the distribution of the next token.

    Args:
        position: from the end of the base prompt, 0 its last token.
        most: words of each of the three runs, base, source and patched, that are listed.

    Returns:
        `token`; its probability in the three runs, and its ranks there (1 the likeliest), the
        patched run's likeliest first.

    Raises:
        ConfigError: as `token_columns`, or a position that has no counterpart.
    """
    import torch

    from interventions import replace

    columns = token_columns(model, base, source)
    row = columns[columns["position"] == position]
    if row.empty or int(row["source_index"].iloc[0]) < 0:
        raise ConfigError("No token of the source stands for this one, so nothing is patched.")
    one, other = (torch.tensor([model.encode(text)]) for text in (base, source))
    held = model.activations(other, None, [site])[site][0, int(row["source_index"].iloc[0])]
    edit = replace(site, held.reshape(-1), [one.shape[1] - 1 - position])
    with model.edited(edit):
        patched = model.logits(one)[0, -1]
    runs = {"base": model.logits(one)[0, -1], "source": model.logits(other)[0, -1]}
    chances = {
        name: logits.double().softmax(-1).cpu()
        for name, logits in (runs | {"patched": patched}).items()
    }
    kept = dict.fromkeys(
        int(token) for p in reversed(chances.values()) for token in p.topk(most).indices
    )
    table = pd.DataFrame({"token": [model.tokenizer.decode([token]) for token in kept]})
    for name, p in chances.items():
        table[name] = [float(p[token]) for token in kept]
        table[f"{name} rank"] = [int((p > p[token]).sum()) + 1 for token in kept]
    return table.sort_values("patched", ascending=False, ignore_index=True)
