"""Which token of one text stands for which token of another."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np


def align_tokens(base_ids: Sequence[int], source_ids: Sequence[int]) -> np.ndarray:
    """For each base position the source position that stands for it, or -1.

    Blocks of equal tokens (`difflib.SequenceMatcher`, no junk) map one to one. Where a block was
    replaced by another, the two are aligned at their *ends*, since the last token of a word or
    phrase has read all of it; what the longer one has in front is left over. Inserted and left
    over tokens have no counterpart. The map is increasing, so no source position serves twice.

    Returns:
        `[len(base_ids)]` integers.
    """
    base, source = list(base_ids), list(source_ids)
    aligned = np.full(len(base), -1, dtype=np.int64)
    blocks = SequenceMatcher(None, base, source, autojunk=False).get_opcodes()
    for kind, start, end, source_start, source_end in blocks:
        if kind in ("equal", "replace"):
            n = min(end - start, source_end - source_start)
            aligned[end - n : end] = np.arange(source_end - n, source_end)
    return aligned
