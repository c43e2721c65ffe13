"""The dtypes that a checkpoint can hold, by the names that safetensors gives them."""

import numpy as np

# NumPy has no bfloat16, so BF16 is stored and returned as its 16 bits in uint16. Plain uint16 arrays are
# refused: after loading they could not be told from BF16.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


def numpy_dtype(tag: str) -> np.dtype:
    """The NumPy dtype that holds values of a safetensors dtype; BF16 comes as its bits in uint16."""
    return np.dtype(DTYPES[tag])
