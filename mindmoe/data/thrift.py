"""Reads structs of thrift's compact protocol, in which Parquet describes itself, whoever wrote them.

Source: apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from typing import Any, BinaryIO

_MAX_DEPTH = 16
_MAX_VALUES = 1 << 21  # of a struct with all that is in it
_MAX_BINARY = 1 << 24  # [bytes]


class ThriftReader:
    """Reads structs from where a file stands.

    Args:
        file: every method leaves it behind what it has read, and raises OSError where that is no struct.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = 0

    def struct(self) -> dict[int, Any]:
        """The fields of a struct by their numbers: numbers, bytes, lists and structs; floats as bytes."""
        self._left = _MAX_VALUES
        return self._struct(0)

    def _struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        # A byte for each field: the step from the number before in the upper half, the type in the lower; 0 ends a
        # struct. A step of 0 says that the number follows.
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            kind = head & 15
            self._count(depth)
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)  # a boolean field is its type
        return fields

    def _count(self, depth: int) -> None:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise OSError("its description of itself is damaged: it is too large")

    def _value(self, kind: int, depth: int) -> Any:
        self._count(depth)
        match kind:
            # Booleans of a list take a byte each, as i8 does.
            case 1 | 2 | 3:
                return self._byte()
            # i16, i32, i64; then double, binary, list and set, struct. A map, 11, occurs in no struct that is read
            # here.
            case 4 | 5 | 6:
                return self._number()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                head = self._byte()
                # Up to 14 elements are counted in the byte of their type; 15 says that the count follows.
                length = head >> 4 if head < 0xF0 else self._varint()
                return [self._value(head & 15, depth + 1) for _ in range(length)]
            case 12:
                return self._struct(depth + 1)
        raise OSError("its description of itself is damaged: it has a value of no known kind")

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)  # zigzag

    def _varint(self) -> int:
        value = 0
        # Ten bytes of 7 bits hold any 64-bit number.
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise OSError("its description of itself is damaged: a number does not end")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if count <= _MAX_BINARY else b""
        if len(data) < count:
            raise OSError("its description of itself is damaged: it ends too early")
        return data
