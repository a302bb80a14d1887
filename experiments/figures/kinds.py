"""Kinds of site, such as `resid_post` and `mlp_out`, each with its own curve over depth."""

from __future__ import annotations

import pandas as pd

from experiments.figures.look import EMBEDDING_SITE

#: Within a block, in the order in which a model computes them.
_ORDER = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


def kinds_of(frame: pd.DataFrame) -> list[str]:
    """The kinds of site inside blocks that a results frame has, in the order of computation.

    The embedding, where the residual stream begins, is none of its own beside others.
    """
    sites = set(frame["site"]) - {""}
    found = {_kind(site) for site in sites - {EMBEDDING_SITE}} or {_kind(site) for site in sites}
    return sorted(found, key=lambda kind: (_ORDER.index(kind) if kind in _ORDER else 99, kind))


def of_kind(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows at sites of one kind, and those that name no site; all rows where no kind is named.

    The embedding belongs to every kind that is the residual stream's. Rows between a site of this
    kind and one of another go, too.
    """
    if not kind:
        return frame
    sites = set(frame["site"]) - {""}
    others = {site for site in sites if not _is(site, kind)}
    return frame[~frame["site"].isin(others) & ~frame["reference"].isin(others)]


def _kind(site: str) -> str:
    return site.rsplit(".", 1)[-1].removeprefix("hook_")


def _is(site: str, kind: str) -> bool:
    return _kind(site) == kind or (site == EMBEDDING_SITE and kind.startswith("resid"))
