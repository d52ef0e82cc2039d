"""How NumPy arrays and torch tensors are pickled: their items go to `Memory`, the rest into the envelope.

The functions named `make_*` are what an envelope calls to build the object again.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nbflow.core.loaded import loaded
from nbflow.values import links
from nbflow.values.leaf import LEAF_MINIMUM

if TYPE_CHECKING:
    from nbflow.values.pickling import EnvelopePickler


def reduce_array(pickler: EnvelopePickler, array: Any) -> Any:
    """Reduce an exact `numpy.ndarray`."""
    import numpy as np

    root = _root(array)
    # NumPy's own pickle turns dates of foreign byte order into native ones.
    foreign = array.dtype.kind in "mM" and not array.dtype.isnative
    if array.nbytes == 0:
        return (np.empty, (array.shape, array.dtype)) if foreign else NotImplemented
    if array.dtype.hasobject or (root.nbytes < LEAF_MINIMUM and not foreign):
        # Small, or full of objects: NumPy's own pickle; a view as its base and where it lies in it.
        if root is array:
            if array.dtype.hasobject:
                pickler.object_roots.add(id(array))
            return NotImplemented
        if not _rebuildable(root, array) or not _worth(pickler, root, array):
            return NotImplemented
        offset = _address(array) - _address(root)
        return make_view, (root, offset, array.dtype, array.shape, array.strides, array.flags.writeable)
    return links.view, (pickler.memory.add(array), array.dtype, array.flags.writeable)


def reduce_owned_array(
    pickler: EnvelopePickler, array: Any, owner: int, *, lane: bool
) -> tuple[Any, int | None]:
    """Reduce an array of a pandas object; also return its view's number if it has one."""
    import numpy as np

    if array.nbytes == 0 or array.dtype.hasobject:
        return np.array(array, order="K").__reduce_ex__(4), None
    if type(array) is not np.ndarray:
        array = array.view(np.ndarray)
    # A small array of a pandas object is noted as well: under pandas 2 a column and its frame share memory.
    number = pickler.memory.add(array, owner=owner, lane=lane)
    return (links.view, (number, array.dtype, array.flags.writeable)), number


def reduce_subclass(_: EnvelopePickler, array: Any) -> Any:
    """Reduce memmap, matrix, recarray and the like; a class with a pickle of its own keeps it."""
    import numpy as np

    cls = type(array)
    if issubclass(cls, np.ma.MaskedArray):
        return _reduce_masked(array)
    for name in ("__reduce__", "__reduce_ex__", "__setstate__"):
        if getattr(cls, name) is not getattr(np.ndarray, name):
            return NotImplemented
    if array.dtype.hasobject:
        return NotImplemented
    state = dict(getattr(array, "__dict__", {}))
    if issubclass(cls, np.memmap):
        # The numbers come back in memory; the file they came from may be another one by then.
        state = {
            key: value for key, value in state.items() if key not in ("_mmap", "filename", "offset", "mode")
        }
    return make_subclass, (cls, array.view(np.ndarray), array.dtype, state)


def _reduce_masked(array: Any) -> Any:
    import numpy as np

    if type(array) is not np.ma.MaskedArray or array.dtype.hasobject:
        return NotImplemented
    own = vars(array)["_mask"]
    mask = None if own is np.ma.nomask else np.asarray(own)
    facts = {
        name: array.__dict__.get(name) for name in ("_fill_value", "_hardmask", "_sharedmask", "_optinfo")
    }
    return make_masked, (np.asarray(array.data), mask, facts)


def reduce_tensor(_: EnvelopePickler, tensor: Any) -> Any:
    """Reduce a plain torch tensor in main memory through NumPy; others keep torch's own pickle."""
    torch = sys.modules["torch"]
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if (
        not plain
        or tensor.device.type != "cpu"
        or tensor.layout is not torch.strided
        or tensor.grad_fn is not None
    ):
        return NotImplemented
    if (
        tensor.is_conj()
        or tensor.is_neg()
        or tensor.is_quantized
        or tensor.__dict__
        or tensor.grad is not None
    ):
        return NotImplemented
    data, kind = tensor.detach(), ""
    if data.dtype is torch.bfloat16:
        data, kind = data.view(torch.int16), "bfloat16"
    try:
        array = data.numpy()
    except (TypeError, RuntimeError):
        return NotImplemented
    return make_tensor, (type(tensor), array, kind, tensor.requires_grad)


def _root(array: Any) -> Any:
    import numpy as np

    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return root


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _rebuildable(root: Any, array: Any) -> bool:
    """Tell whether `make_view` can find the array's items in the root's memory."""
    import numpy as np

    if type(root) is not np.ndarray:
        return False
    if not (root.flags.c_contiguous or root.flags.f_contiguous):
        return False
    if root.dtype.hasobject or array.dtype.hasobject:
        distance = _address(array) - _address(root)
        return root.dtype == array.dtype and root.dtype == np.dtype(object) and distance % root.itemsize == 0
    return True


def _worth(pickler: EnvelopePickler, root: Any, array: Any) -> bool:
    """Tell whether a view should bring its base along: that is small, mostly the view, or there anyway."""
    return root.nbytes < LEAF_MINIMUM or array.nbytes * 4 >= root.nbytes or id(root) in pickler.object_roots


def holds_objects(value: Any) -> bool:
    """Tell whether a value is an array of objects that owns its memory."""
    numpy = loaded("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.hasobject and value.base is None


def make_view(root: Any, offset: int, dtype: Any, shape: Any, strides: Any, writeable: bool) -> Any:
    """Build a view `offset` bytes into the memory of `root`."""
    import numpy as np

    flat = root.reshape(-1, order="A")
    if dtype.hasobject:
        start = offset // dtype.itemsize
        found = np.lib.stride_tricks.as_strided(flat[start:], shape, strides)
    else:
        found = np.ndarray(shape, dtype, buffer=flat.view(np.uint8), offset=offset, strides=strides)
    if not writeable:
        found.flags.writeable = False
    return found


def make_subclass(cls: type, array: Any, dtype: Any, state: dict[str, Any]) -> Any:
    """Build an instance of a subclass of ndarray over the memory of `array`."""
    found = array.view(cls)
    if found.dtype != dtype or type(found.dtype) is not type(dtype) or found.dtype.type is not dtype.type:
        found.dtype = dtype
    if state:
        found.__dict__.update(state)
    return found


def make_masked(data: Any, mask: Any, facts: dict[str, Any]) -> Any:
    """Build a masked array over `data`; `mask` None is no mask at all."""
    import numpy as np

    found = data.view(np.ma.MaskedArray)
    found.__dict__.update(facts, _mask=np.ma.nomask if mask is None else mask)
    return found


def make_tensor(cls: type, array: Any, kind: str, requires_grad: bool) -> Any:
    """Build a tensor over the memory of `array`."""
    import torch  # type: ignore[import-not-found, unused-ignore]

    data = torch.from_numpy(array)
    if kind:
        data = data.view(getattr(torch, kind))
    if cls is torch.Tensor:
        return data.requires_grad_(requires_grad)
    return cls(data, requires_grad=requires_grad)


def reduce_bit_generator(generator: Any) -> Any:
    """Return how to build what a random generator draws from, with the seed that its `spawn` goes by.

    NumPy before 2 leaves the seed out, and a restored generator would spawn another child each time.
    """
    reduced = generator.__reduce__()
    state = reduced[2]
    if isinstance(state, tuple):
        return reduced
    return type(generator), (generator.seed_seq,), state


def reduce_generator(generator: Any) -> Any:
    """Return how to build a random generator from what it draws from; NumPy before 2 records its state alone."""
    reduced = generator.__reduce__()
    if len(reduced) == 3 and isinstance(reduced[2], dict):
        return type(generator), (generator.bit_generator,)
    return reduced
