"""Where things lie in a GGUF file, so that tests can patch and damage them at known places."""

import dataclasses
import struct

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING = 8
ARRAY = 9

TENSOR_COUNT_OFFSET = 8
KEY_COUNT_OFFSET = 16
TYPE_BYTES = {0: (1, 4), 1: (1, 2), 8: (32, 34)}  # F32, F16, Q8_0: elements and bytes of a block


@dataclasses.dataclass
class Layout:
    """Offsets in bytes from the start of the file."""

    values: dict  # key -> where its value begins, for arrays behind type and count
    array_counts: dict  # key -> where the array's 64-bit count is
    table_begin: int = 0
    table_end: int = 0
    tensor_types: list = dataclasses.field(default_factory=list)
    tensor_dimensions: list = dataclasses.field(default_factory=list)  # of the first dimension of each
    data_end: int = 0  # behind the last byte of the last tensor


class _Cursor:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def number(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        length = self.number("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def skip_value(self, kind):
        if kind == STRING:
            self.string()
        else:
            self.at += SCALAR_BYTES[kind]


def read_layout(data):
    """The layout of an undamaged GGUF file whose tensors are F32 or F16."""
    cursor = _Cursor(data)
    cursor.at = TENSOR_COUNT_OFFSET
    n_tensors = cursor.number("Q")
    n_keys = cursor.number("Q")
    layout = Layout(values={}, array_counts={})
    for _ in range(n_keys):
        key = cursor.string().decode()
        kind = cursor.number("I")
        if kind != ARRAY:
            layout.values[key] = cursor.at
            cursor.skip_value(kind)
            continue
        element_kind = cursor.number("I")
        layout.array_counts[key] = cursor.at
        count = cursor.number("Q")
        layout.values[key] = cursor.at
        for _ in range(count):
            cursor.skip_value(element_kind)
    layout.table_begin = cursor.at
    ends = []
    for _ in range(n_tensors):
        cursor.string()
        n_dims = cursor.number("I")
        layout.tensor_dimensions.append(cursor.at)
        elements = 1
        for _ in range(n_dims):
            elements *= cursor.number("Q")
        layout.tensor_types.append(cursor.at)
        per_block, block_bytes = TYPE_BYTES[cursor.number("I")]
        ends.append(cursor.number("Q") + elements // per_block * block_bytes)
    layout.table_end = cursor.at
    layout.data_end = (layout.table_end + 31) // 32 * 32 + max(ends)
    return layout


def nth_string(data, layout, key, index):
    """Offset and length of the bytes of element `index` of an array of strings."""
    cursor = _Cursor(data)
    cursor.at = layout.values[key]
    for _ in range(index):
        cursor.string()
    length = cursor.number("Q")
    return cursor.at, length
