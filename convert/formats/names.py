"""Names that a file of torch may hold: the kinds of its memory, and what is beside its tensors."""

_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexDouble ComplexFloat"
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64"
STORAGES = {
    **{f"torch.{k}Storage": d for k, d in zip(_KINDS.split(), _DTYPES.split(), strict=True)},
    "torch.storage.UntypedStorage": "uint8",
}

_NUMPY = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
HARMLESS = {
    "_codecs.encode",  # bytes, before protocol 3
    "argparse.Namespace",
    *(f"builtins.{n}" for n in ("bool", "bytearray", "complex", "dict", "float", "frozenset")),
    *(f"builtins.{n}" for n in ("int", "list", "range", "set", "slice", "str", "tuple", "xrange")),
    "collections.defaultdict",
    "collections.deque",
    *(f"datetime.{n}" for n in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    "torch.torch_version.TorchVersion",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.storage.TypedStorage",
    *(f"torch.{dtype}" for dtype in _DTYPES.split()),
}
"""Well-known values without effect on the tensors: a file may name them beside its weights.

None is made: each stays an `Unknown`, and where a tensor should be, it is refused.
"""
