"""Streamlit's own command, with what the pages read and draw with loaded before it listens.

Loaded by the first visitor's session instead, they would be most of what that visitor waits for.
"""

from __future__ import annotations

import gc
import importlib
import sys

#: What the pages that only read need. None of them loads torch.
BEFORE = ("altair", "pyarrow.parquet", "experiments.figures", "experiments.runner")

if __name__ == "__main__":
    for name in BEFORE:
        importlib.import_module(name)
    from streamlit.web.cli import main

    # Streamlit collects garbage after each run of a page; it need not look through all of these.
    gc.collect()
    gc.freeze()

    sys.exit(main(prog_name="streamlit"))
