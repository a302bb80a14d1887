"""Varieties: what their subspaces share at one depth, and one pair's over all of them."""

from __future__ import annotations

import streamlit as st

from apps import session
from apps.charts import kept
from apps.showing import numbers, share_run, show, table, theme
from experiments import figures


def take_pair() -> None:
    """A clicked cell of the matrix chooses the pair, and the choice the page's address."""
    hits = st.session_state["matrix"]["selection"].get("cell") or []
    if hits and hits[0]["variety"] != hits[0]["reference"]:
        pair = sorted((hits[0]["variety"], hits[0]["reference"]))
        st.session_state["pair"] = " and ".join(pair)


def main() -> None:
    """The matrix with its pair, then the tree and the angles."""
    opened = session.opened()
    st.header("Varieties")
    share_run(opened.run, "chart_overlap_matrix")
    frame, site = opened.frame, opened.site
    pairs = figures.pairs_of(frame)
    chart = kept(
        opened.table,
        figures.chart_overlap_matrix,
        theme(),
        site=site,
        pick="cell" if pairs else None,
    )
    if pairs:
        show(chart, "matrix", on_select=take_pair)
        pair = st.selectbox(
            "Pair", list(pairs), key="pair", bind="query-params", help="Or click a cell above."
        )
        show(
            kept(opened.table, figures.chart_pair_by_layer, pairs[pair], theme(), at=opened.depth),
            "pair_curve",
        )
        one, other = pairs[pair]
        own = frame["variety"].eq(one) & frame["reference"].eq(other)
        turned = frame["variety"].eq(other) & frame["reference"].eq(one)
        numbers(frame[own | turned], "pair_rows", label="All of this pair")
    else:
        show(chart, "matrix")
    show(
        kept(opened.table, figures.chart_overlap_by_layer, theme(), at=opened.depth),
        "overlap_by_layer",
    )
    table(frame, "subspace_overlap")
    show(kept(opened.table, figures.chart_dendrogram, theme(), site=site), "dendrogram")
    table(frame, "variety_distance", "clade_support", "tree_plan_correlation")
    show(kept(opened.table, figures.chart_angle_spectrum, theme(), site=site), "angles")
    table(frame, "principal_angle")


if __name__ == "__main__":
    main()
