"""Groups of rows that show the same image, for `medmoco split --merge-duplicates`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.manifest import Split

Codes = NDArray[np.int64]


class Groups:
    """A partition of rows; at first, every row is a group of its own.

    Attributes:
        of: (R,) int64, the group of each row.
    """

    def __init__(self, count: int) -> None:
        self.of: Codes = np.arange(count)

    def join(self, one: Codes, other: Codes) -> None:
        """Join the groups of `one` and `other`, (M,) positions each, pair by pair."""
        from scipy.sparse import coo_array  # not at the top: SciPy takes long to import
        from scipy.sparse.csgraph import connected_components

        size = len(self.of)
        pairs = coo_array((np.ones(len(one), bool), (self.of[one], self.of[other])), shape=(size, size))
        self.of = connected_components(pairs, directed=False)[1].astype(np.int64)[self.of]

    def join_equal(self, codes: Codes, among: NDArray[np.bool_]) -> None:
        """Join the rows within a mask that have equal codes; -1 equals nothing."""
        usable = np.flatnonzero(among & (codes >= 0))
        _, first, inverse = np.unique(codes[usable], return_index=True, return_inverse=True)
        self.join(usable, usable[first[inverse]])

    def table(self, splits: Sequence[Split]) -> pd.DataFrame:
        """Return the rows of groups with several rows: group, split, row and Path; `splits` have the first rows."""
        parts = [pd.DataFrame({"split": part.name, "row": part.rows, "Path": part.table["Path"]}) for part in splits]
        rows = pd.concat(parts, ignore_index=True)
        rows.insert(0, "group", self.of[: len(rows)])
        several = rows[rows.duplicated("group", keep=False)]
        return several.assign(group=pd.factorize(several["group"])[0]).sort_values("group", kind="stable")
