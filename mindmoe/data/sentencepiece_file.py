"""SentencePiece models. With the identity normalisation that ours are trained with, any text survives."""

from functools import cached_property

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from mindmoe.data.vocabulary import EOD_NAMES, ByteTable

_SPACE = "\u2581"  # SentencePiece writes a space as this character


class SentencePieceVocabulary:
    """A SentencePiece model; see Vocabulary.

    Args:
        content: of the file.
    """

    def __init__(self, content: bytes):
        if not content:  # the library would take this for "load no model yet"
            raise ValueError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.eod_id: int = model.eos_id()
        if self.eod_id < 0:
            pieces = {name: model.piece_to_id(name) for name in EOD_NAMES}
            # The library answers an unknown name with the id of <unk>, so the piece is asked for its name again.
            self.eod_id = next((i for name, i in pieces.items() if model.id_to_piece(i) == name), -1)
        if self.eod_id >= 0 and not model.is_control(self.eod_id):
            model = sentencepiece.SentencePieceProcessor(model_proto=_with_control_piece(content, self.eod_id))
        self._model = model
        self.has_piece = np.ones(model.get_piece_size(), np.bool_)
        # The character that stands for a space would come back as one, so it goes through its bytes where text
        # is otherwise kept as it is: pieces then concatenate, and the text may be cut around it.
        names = [f"<0x{byte:02X}>" for byte in _SPACE.encode()]
        ids = [model.piece_to_id(name) for name in names]
        verbatim = model.normalize(" a  b\t") == " a  b\t".replace(" ", _SPACE)
        self._space_bytes = ids if verbatim and [model.id_to_piece(i) for i in ids] == names else []

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        if not self._space_bytes or _SPACE not in text:
            return self._model.encode(text)
        parts = self._model.encode(text.split(_SPACE))
        ids = parts[0]
        # Between two parts stood one of these characters.
        for part in parts[1:]:
            ids += self._space_bytes
            ids += part
        return ids

    def decode(self, ids: list[int]) -> str:
        """See Vocabulary."""
        return self._model.decode(ids)

    def count_bytes(self, ids: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
        """See Vocabulary."""
        return self._table.count(ids, starts)

    @cached_property
    def _table(self) -> ByteTable:
        model = self._model
        ids = list(range(len(self.has_piece)))
        pieces = model.id_to_piece(ids)
        sizes = [len(piece.replace(_SPACE, " ").encode()) for piece in pieces]
        for i, (control, byte, unknown) in enumerate(
            zip(model.is_control(ids), model.is_byte(ids), model.is_unknown(ids), strict=True)
        ):
            # Byte pieces are spelled <0x41> and stand for one byte; control pieces are no text.
            if control or byte:
                sizes[i] = 1 if byte else 0
            # What the library writes in the place of something unknown.
            elif unknown:
                sizes[i] = len(model.decode([i]).encode())
        spaced = [i for i, piece in enumerate(pieces) if sizes[i] and piece.startswith(_SPACE)]
        # At the beginning of a document such a model takes back the space that it has added before the text.
        first = list(sizes)
        if spaced and not model.decode(spaced[:1]).startswith(" "):  # it adds a space to texts, and takes it away
            for i in spaced:
                first[i] -= 1
        return ByteTable(sizes, first)


def _with_control_piece(model: bytes, piece_id: int) -> bytes:
    """The model with one of its pieces made a control piece: no text becomes it.

    Source: sentencepiece_model.proto. Field 1 of a model, repeated, holds its pieces; field 3 of a piece is its type,
    of which the last one given counts, and 3 is CONTROL.
    """
    at = number = 0
    while at < len(model):
        begin = at
        # A protobuf field: its number and wire type (0 varint, 1 eight bytes, 2 with a length, 5 four bytes), its
        # value.
        tag, at = _varint(model, at)
        match tag & 7:
            case 0:
                _, at = _varint(model, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(model, at)
                at += size
                if tag == 1 << 3 | 2:
                    if number == piece_id:
                        # Appended: where a field comes twice, the last one counts.
                        piece = model[at - size : at] + bytes([3 << 3, 3])
                        return b"".join([model[:begin], bytes([tag]), _as_varint(len(piece)), piece, model[at:]])
                    number += 1
    raise ValueError(f"it has no piece {piece_id}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf, 7 bits a byte from the lowest on, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
