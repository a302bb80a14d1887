"""The explorer: pages on what a run found, and on what a model does with a prompt of one's own.

Run by `apps.launch.explore`. Pages that only read open no model and load no torch.
"""

from __future__ import annotations

import streamlit as st

from apps import session

PAGES = {
    "Read": ("Layers", "Varieties", "Directions"),
    "Ask a model": ("Patch", "Steer", "Tokens"),
    "Keep": ("Runs",),
}

#: In a narrow window a chart that is wider than the page is moved, not the page; margins give way.
_STYLE = """<style>
[data-testid=stFullScreenFrame] > div:has(> .stVegaLiteChart) {overflow-x: auto}
@media (max-width: 1100px) {.stMainBlockContainer {padding-left: 2rem; padding-right: 2rem}}
</style>"""


def main() -> None:
    """Draw the navigation, what all pages share, and the page that is open."""
    st.set_page_config(page_title="Isogloss", page_icon="🗺️", layout="wide")
    pages = {
        heading: [
            st.Page(f"views/{name.lower()}.py", title=name, default=name == "Layers")
            for name in names
        ]
        for heading, names in PAGES.items()
    }
    st.html(_STYLE)
    page = st.navigation(pages, expanded=True)
    session.begin()
    page.run()


if __name__ == "__main__":
    main()
