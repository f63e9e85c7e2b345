"""Hugging Face folders, `config.json` beside `model.safetensors`, as timm and transformers do."""

from convert.folders.model_folder import (
    PACKAGES,
    RECORDED,
    is_model_folder,
    layout_of,
    network_beside,
    read_folder,
    write_folder,
)

__all__ = [
    "PACKAGES",
    "RECORDED",
    "is_model_folder",
    "layout_of",
    "network_beside",
    "read_folder",
    "write_folder",
]
