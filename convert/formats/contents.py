"""What a file is by its first bytes, whatever it is called."""

import re

from convert.formats import flax_msgpack, hdf5, npz, pytorch, safetensors
from convert.formats.form import Reader

_ZIP = b"PK\x03\x04"
_NAME = 30  # where the name of a zip archive's first member begins; its length is four bytes before
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
# A map of msgpack (of up to 15, 65,535 or more entries) and the text of its first key.
_MSGPACK = re.compile(
    rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.|\xda..)[\w.]", re.DOTALL
)
_TAR = slice(257, 262)  # where a tar archive says that it is one
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer: `git lfs pull` fetches the file itself",
    b"<!doctype html": "is a web page: download the file itself, by the page's download link",
    b"<html": "is a web page: download the file itself, by the page's download link",
    b"<?xml": "is XML, such as a server's message: download the file again",
    b"{": "is JSON text, a configuration or an index: name the file of weights beside it",
    b"\x93numpy": "is a single array, an .npy file, and no file of weights by their names",
    b"7z\xbc\xaf": "is a 7z archive: unpack it, and name the file in it",
    b"rar!": "is a RAR archive: unpack it, and name the file in it",
}


def form_of(first: bytes) -> Reader | None:
    """The form of a file that begins with these bytes; None where they do not show it."""
    if first.startswith(_ZIP):
        length = int.from_bytes(first[_NAME - 4 : _NAME - 2], "little")
        name = first[_NAME : _NAME + length]
        return npz if name.endswith(b".npy") else pytorch if b"/" in name else None
    if _PICKLE.match(first):
        return pytorch
    if first.startswith(hdf5.SIGNATURE):
        return hdf5
    if _MSGPACK.match(first):
        return flax_msgpack
    has_length = first[5:9] == b"\0\0\0{"  # of a header, in eight bytes, and its beginning
    return safetensors if has_length else None


def no_weights(first: bytes) -> str:
    """What a file with these first bytes is, and what to do; empty where it may hold weights."""
    for beginning, program in _COMPRESSED.items():
        if first.startswith(beginning):
            return f"is compressed: {program} < FILE > NEW makes a file to read"
    if first[_TAR] == b"ustar":
        return "is a tar archive: unpack it, and name the file in it"
    if form_of(first) is not None:
        return ""
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in _BEGINNINGS.items():
        if text.startswith(beginning):
            return what
    return ""
