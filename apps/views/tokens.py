"""Tokens: an aligned model's answers, each token coloured by the rank that its base gives it."""

from __future__ import annotations

import streamlit as st

from apps import session
from apps.charts import kept
from apps.showing import numbers, share, show, table, theme
from experiments import figures
from experiments.token_shift import token_shift_html

#: As `isogloss run token-shift` calls it; its own module would load torch.
_TOKENS = "tokens.parquet"
_SHOWN = 8


def main() -> None:
    """The open run's answers; where it has none, the run that would make them."""
    opened = session.opened()
    st.header("Tokens")
    path = opened.run / _TOKENS
    if not path.is_file():
        st.info(
            f"The run `{opened.name}` compared no answers token by token; `isogloss run "
            "token-shift` makes a run that did, which can then be chosen at the left."
        )
        return
    told = session.config(opened.run)
    share(
        "import pandas as pd\nfrom experiments.token_shift import token_shift_html\n\n"
        f"token_shift_html(pd.read_parquet({str(path)!r}))",
        f"isogloss run token-shift --config {opened.run / 'config.toml'}",
    )
    try:
        frame = session.read_table(path)
    except (OSError, ValueError):
        st.error(f"`{path}` cannot be read; run the experiment again.")
        return
    most = st.slider("Answers of each behaviour", 1, 40, _SHOWN, key="answers", bind="query-params")
    names = {"model": str(told.get("model", "")), "base": str(told.get("base") or "its base")}
    answers = token_shift_html(frame, most=most, theme=theme(), **names)
    st.html(f"{answers}\n<style>.token-shift.{theme()} {{background: none}}</style>")
    numbers(frame, "tokens", label="All tokens")
    show(kept(opened.table, figures.chart_shift_positions, theme()), "shift_positions")
    show(kept(opened.table, figures.chart_shift_layers, theme()), "shift_layers")
    table(opened.frame, *dict.fromkeys(opened.frame["measure"]))


if __name__ == "__main__":
    main()
