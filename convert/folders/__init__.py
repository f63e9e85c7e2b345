"""Hugging Face folders, `config.json` beside `model.safetensors`, as timm and transformers do."""

from convert.folders.model_folder import (
    PACKAGES,
    RECORDED,
    is_model_folder,
    is_of_folder,
    layout_of,
    network_beside,
    read_folder,
    write_folder,
)
from convert.folders.transformers_config import WITHOUT_TIMM

__all__ = [
    "PACKAGES",
    "RECORDED",
    "WITHOUT_TIMM",
    "is_model_folder",
    "is_of_folder",
    "layout_of",
    "network_beside",
    "read_folder",
    "write_folder",
]
