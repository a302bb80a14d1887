"""Answers in context as a page: each token coloured by the rank that base gives it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np
import pandas as pd

from experiments.settings import ConfigError

_COLUMNS = ("text", "request", "position", "piece", "rank", "shift", "log_probability", "top")

# Okabe and Ito's blue and vermilion, told apart under every common colour blindness; lines below
# say the same without colour.
_STYLE = """
.token-shift{--ink:#1a1a1a;--quiet:#5f6368;--ground:#fff;--line:#e6e6e6;--marginal:#cfe5f5;
--marginal-line:#0072b2;--shifted:#ffd3b0;--shifted-line:#d55e00;color:var(--ink);
background:var(--ground);font:15px/1.9 system-ui,sans-serif;padding:12px 16px}
@media (prefers-color-scheme:dark){.token-shift:not(.light){--ink:#f2f2f2;--quiet:#a9afb8;
--ground:#0e1117;--line:#2a303a;--marginal:#12384f;--marginal-line:#56b4e9;--shifted:#5a2c0c;
--shifted-line:#f0803c}}
.token-shift.dark{--ink:#f2f2f2;--quiet:#a9afb8;--ground:#0e1117;--line:#2a303a;--marginal:#12384f;
--marginal-line:#56b4e9;--shifted:#5a2c0c;--shifted-line:#f0803c}
.token-shift .legend{color:var(--quiet);font-size:13px;margin:0 0 10px}
.token-shift .legend span{color:var(--ink);margin-right:.3em}
.token-shift .answer{border-top:1px solid var(--line);padding:8px 0;margin:0}
.token-shift .request{color:var(--quiet);white-space:pre-wrap;margin:0 0 2px}
.token-shift .said{white-space:pre-wrap;margin:0;overflow-wrap:anywhere}
.token-shift .marginal{background:var(--marginal);border-bottom:2px dotted var(--marginal-line)}
.token-shift .shifted{background:var(--shifted);border-bottom:2px solid var(--shifted-line)}
.token-shift .end{color:var(--quiet)}
"""
_RANKS = {"unshifted": "rank 1", "marginal": "rank 2 or 3", "shifted": "rank 4 and beyond"}


def token_shift_html(
    frame: pd.DataFrame,
    *,
    most: int | None = None,
    theme: str = "auto",
    model: str = "the aligned model",
    base: str = "base",
) -> str:
    """Answers in context, as HTML that needs nothing else, for a notebook or a page.

    Each token has the colour of its rank in base, and below it a dotted or a solid line; rank,
    probability and what base would have said appear on hover. Everything from the frame is escaped.

    Args:
        frame: tokens as in a run's `tokens.parquet`; one row for each, in any order.
        most: how many answers, of each behaviour, from the first; all if None.
        theme: `light`, `dark`, or `auto` for what the reader's system says.

    Raises:
        ConfigError: a column that is not there, or an unknown theme.
    """
    missing = [name for name in _COLUMNS if name not in frame]
    if missing:
        raise ConfigError(
            f"The frame has no column {missing[0]!r}: give tokens as a run's tokens.parquet has "
            "them."
        )
    if theme not in ("auto", "light", "dark"):
        raise ConfigError(f"The theme is {theme!r}: choose auto, light or dark.")
    legend = " · ".join(
        f'<span class="{kind}">{kind}</span>({_RANKS[kind]} in {escape(base)})' for kind in _RANKS
    )
    parts = [
        f"<style>{_STYLE}</style>",
        f'<div class="token-shift {theme}" lang="">',
        f'<p class="legend">Answers of {escape(model)}. {legend}. '
        "Hover over a token for its rank and probability there.</p>",
        *_answers(frame, most, base),
        "</div>",
    ]
    return "\n".join(parts)


def token_shift_page(frame: pd.DataFrame, *, title: str, most: int, model: str, base: str) -> str:
    """The same as a whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        'content="light dark"><style>body{margin:0}'
        "@media (prefers-color-scheme:dark){body{background:#0e1117}}</style></head><body>\n"
        f"{token_shift_html(frame, most=most, model=model, base=base)}\n</body></html>\n"
    )


def _answers(frame: pd.DataFrame, most: int | None, base: str) -> Iterator[str]:
    behaviour = frame["behaviour"] if "behaviour" in frame else pd.Series("", index=frame.index)
    for _, own in frame.groupby(behaviour, sort=True):
        numbers = own["text"].drop_duplicates().to_numpy()
        for number in numbers[: len(numbers) if most is None else most]:
            tokens = own[own["text"] == number].sort_values("position")
            request = escape(str(tokens["request"].iloc[0]))
            said = "".join(_token(token, base) for _, token in tokens.iterrows())
            yield (
                f'<section class="answer"><p class="request">{request}</p>'
                f'<p class="said">{said}</p></section>'
            )


def _token(token: pd.Series, base: str) -> str:
    chance = float(np.exp(token["log_probability"]))
    told = f"rank {int(token['rank'])} in {base}, probability {chance:.2g}"
    if token["rank"] > 1:
        told += f"; {base} would say {str(token['top']).strip()!r}"
    text = escape(str(token["piece"])).replace("\n", '<span class="end">⏎</span>\n')
    return f'<span class="{escape(str(token["shift"]))}" title="{escape(told)}">{text}</span>'
