"""What a file is by its first bytes, whatever it is called."""

import re

from convert.formats import flax_msgpack, hdf5, npz, numpy_pickle, pytorch, safetensors
from convert.formats.form import Reader

_ZIP = b"PK\x03\x04"
_NAME = 30  # where the name of a zip archive's first member begins; its length is four bytes before
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
# The number with which torch's files before 1.6 begin, in a frame or not.
_TORCHS = re.compile(rb"\x80.(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", re.DOTALL)
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


# TensorFlow's checkpoints are tables, which end so, or have these names.
_TABLES_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
TENSORFLOWS = re.compile(r"\.data-\d+-of-\d+$|\.pb$|\.meta$|^checkpoint$")
TENSORFLOW_ADVICE = (
    "is of TensorFlow: there, r = tf.train.load_checkpoint(PATH) and numpy.savez('weights.npz', "
    "**{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()}) make a file to read"
)
_MXNET = b"\x12\x01\0\0\0\0\0\0"
_MXNET_ADVICE = (
    "is of MXNet: there, numpy.savez('weights.npz', **{n: a.asnumpy() for n, a in "
    "mxnet.nd.load(FILE).items()}) makes a file to read (the networks resnet*_v1 of Gluon have "
    "the stride in the first 1x1: --bottleneck-stride 1x1)"
)
_MINDSPORE = re.compile(
    rb"\n[\x80-\xff]*[\0-\x7f]\n.[\w.]+\x12.{1,40}?\x12.(?:Float|Int)", re.DOTALL
)
_MINDSPORE_ADVICE = (
    "is of MindSpore: there, numpy.savez('weights.npz', **{n: p.asnumpy() for n, p in "
    "mindspore.load_checkpoint(FILE).items()}) makes a file to read"
)


def form_of(first: bytes) -> Reader | None:
    """The form of a file that begins with these bytes; None where they do not show it."""
    if first[5:9] == b"\0\0\0{":  # safetensors: eight bytes of its header's length, and the header
        return safetensors  # before all others, because a length may begin as they do
    if first.startswith(_ZIP):
        length = int.from_bytes(first[_NAME - 4 : _NAME - 2], "little")
        name = first[_NAME : _NAME + length]
        return npz if name.endswith(b".npy") else pytorch if b"/" in name else None
    if _PICKLE.match(first):
        return pytorch if _TORCHS.match(first) else numpy_pickle
    if first.startswith(hdf5.SIGNATURE):
        return hdf5
    return flax_msgpack if _MSGPACK.match(first) else None


def no_weights(first: bytes, last: bytes = b"", name: str = "") -> str:
    """What a file is, and what to do; empty where it may hold weights.

    Args:
        first: its first bytes.
        last: its last ones.
        name: what it is called, which counts where no bytes show what it is.
    """
    if form_of(first) is not None:
        return ""
    for beginning, program in _COMPRESSED.items():
        if first.startswith(beginning):
            return f"is compressed: {program} < FILE > NEW makes a file to read"
    if first[_TAR] == b"ustar":
        return "is a tar archive: unpack it, and name the file in it"
    if first.startswith(_MXNET):
        return _MXNET_ADVICE
    if _MINDSPORE.match(first):
        return _MINDSPORE_ADVICE
    if last.endswith(_TABLES_END) or TENSORFLOWS.search(name):
        return TENSORFLOW_ADVICE
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in _BEGINNINGS.items():
        if text.startswith(beginning):
            return what
    return ""
