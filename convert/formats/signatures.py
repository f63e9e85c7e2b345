"""What the first bytes of a file say that it is, where its suffix says something else."""

from convert.formats import Form, pytorch, safetensors

LONGEST = 262  # bytes into a tar archive, where it says that it is one

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\x0a"  # a pickle of protocol 2 that begins with a long number


def name_form(first: bytes, form: Form) -> str:
    """What a file with these first bytes is, and what to do; empty where it may be of this form."""
    if form is not safetensors and first[8:9] == b"{":
        return "begins as a safetensors file: rename it to .safetensors"
    if form is safetensors and first.startswith(_ZIP):
        return "begins as what torch.save or numpy.savez writes: rename it to .pt or .npz"
    if form is not pytorch and first.startswith(_OLD_TORCH):
        return "begins as what torch.save writes: rename it to .pt"
    if first[257:] == b"ustar":
        return "is an archive of tar: unpack it, and name the file in it"
    if first.startswith(b"\x1f\x8b"):
        return "is compressed: gunzip < FILE > NEW makes a file to read"
    if first.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes them, whose names no layout here has"
    if first.startswith(b"\x93NUMPY"):
        return "is a single array, an .npy file"
    return ""
