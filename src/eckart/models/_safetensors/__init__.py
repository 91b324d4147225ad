"""Safetensors files, read and written without torch. Every length, offset and path is checked before it is used."""

from __future__ import annotations

from eckart.models._safetensors._header import array_dtype, numpy_dtype, read_array, read_header, stored_dtype
from eckart.models._safetensors._shards import Checkpoint, open_checkpoint
from eckart.models._safetensors._write import PendingTensor, predict_bytes, write_sharded
from eckart.models._sizes import format_size, parse_size
from eckart.models._untrusted import TensorInfo

__all__ = [
    "Checkpoint",
    "PendingTensor",
    "TensorInfo",
    "array_dtype",
    "format_size",
    "numpy_dtype",
    "open_checkpoint",
    "parse_size",
    "predict_bytes",
    "read_array",
    "read_header",
    "stored_dtype",
    "write_sharded",
]
