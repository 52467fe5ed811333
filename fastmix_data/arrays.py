"""Names of the array types that everything else speaks of. Shapes are in the names of variables: `weights_K`, `tokens_BT`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Tokens = npt.NDArray[np.unsignedinteger]  # uint16 or uint32, by the size of the vocabulary
Mask = npt.NDArray[np.uint8]  # 1 where a token carries loss
Starts = npt.NDArray[np.uint8]  # 1 where an example begins, 2 where padding does, else 0
