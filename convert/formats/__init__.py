"""The forms that a file of weights can have, one module each.

A form is a module with two functions. `write(path, arrays, metadata)` stores arrays, whatever
their strides are, and a mapping of text to text, and returns the CRC-32 of each in C order.
`read(path, visit)` hands each array in turn to `visit` and returns the `Contents`. A new form is a
module and its suffix in `FORMS`. Reading never runs what a file holds, takes no more memory than
three times the file and 200 MB, and raises a ConversionError.
"""

from convert.formats import flax_msgpack, hdf5, npz, numpy_pickle, pytorch, safetensors
from convert.formats.form import Form, Reader

FORMS: dict[str, Form] = {
    ".safetensors": safetensors,
    ".pt": pytorch,
    ".pth": pytorch,
    ".th": pytorch,
    ".npz": npz,
}
# Read, but not written: other people's names for what `torch.save` writes, Keras and Flax write.
READ_ONLY_FORMS: dict[str, Reader] = {
    **dict.fromkeys((".bin", ".ckpt", ".tar"), pytorch),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), hdf5),
    ".msgpack": flax_msgpack,
    **dict.fromkeys((".pkl", ".pdparams"), numpy_pickle),
}
