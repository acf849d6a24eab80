"""Reading EDM's network pickles without running them.

Such a pickle carries the source text of its classes and asks for its execution. Here every name that it mentions is answered by
an inert stand-in that keeps plain values and tensors, and every other name is refused. Loading can't call anything but what
this file defines.
"""

import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade.stages.published import pickle_scan

_MAGIC = 0x1950A86A20F9469CFC6C
_NUMBER_TYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
}  # fmt: skip
_DAMAGED = (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError, MemoryError)
"""What an unpickler raises for a file that is damaged, or was made to look so."""


class Module:
    """Stand-in for a pickled object: its class name, and its attributes as plain values."""

    class_name = "ModuleDict"
    state: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _persistent(meta: Any) -> Module:
    """Stand-in for an object whose class the file brings along as source text, which is dropped unread."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("it holds a persistent object that is not a class")
    module = Module()
    module.class_name = str(meta.get("class_name"))
    module.__setstate__(meta.get("state"))
    return module


class _Unread:
    """Stand-in for a number of NumPy's or its type: training's bookkeeping, which says nothing about the network."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _storage(data: Any) -> Tensor:
    """Numbers of a file in torch's legacy format, 1-D, not copied: behind four pickles of plain values, keys and a count."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("it holds a tensor without data")
    file = io.BytesIO(data)
    magic, _, info, (name, count), _ = (_Reader(file, _STORAGE_NAMES).load() for _ in range(5))
    if magic != _MAGIC:
        raise pickle.UnpicklingError("it holds a tensor in an unknown format")
    if not isinstance(info, dict) or not info.get("little_endian", True):
        raise pickle.UnpicklingError("its tensors are big-endian")
    dtype, offset = _NUMBER_TYPES[name], file.tell() + 8
    left = len(data) - offset
    if count < 0 or left < count * dtype.itemsize:
        raise pickle.UnpicklingError(f"a tensor of {count} numbers has {max(0, left)} bytes of data, the file is damaged")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the bytes are read-only; nothing here writes to tensors of a file
        return torch.frombuffer(data, dtype=dtype, count=count, offset=offset)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("it holds a tensor without storage")
    return torch.as_strided(storage, size, stride, offset)


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("torch.nn.modules.container", "ModuleDict"): Module,
    ("numpy.core.multiarray", "scalar"): _Unread,
    ("numpy._core.multiarray", "scalar"): _Unread,
    ("numpy", "dtype"): _Unread,
}
_STORAGE_NAMES: dict[tuple[str, str], Any] = {("torch", name): name for name in _NUMBER_TYPES}


class _Reader(pickle.Unpickler):
    """An unpickler that knows a few names and no others."""

    def __init__(self, file: Any, names: Mapping[tuple[str, str], Any]) -> None:
        place = file.tell()
        pickle_scan.check(file)
        file.seek(place)
        super().__init__(file)
        self.names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a network's pickle has no business with")
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self.names is not _STORAGE_NAMES or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to data outside of itself")
        return pid[1], pid[4]


def read(path: Path) -> Module:
    """The network `ema` of a pickle as an inert record; nothing of the file is run.

    ValueError if it is damaged, holds no network, or asks for anything that a network doesn't need.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, _NAMES).load()
    except _DAMAGED as error:
        raise ValueError(f"{path.name} was refused: {str(error) or 'it ends too early'}") from error
    except RuntimeError as error:
        raise ValueError(f"{path.name} was refused: a tensor's shape doesn't fit its data") from error
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, Module):
        raise ValueError(f"{path.name} holds no network: expected a dict with 'ema', as EDM and EDM2 write it")
    return network


def tensors_of(module: Module, known: frozenset[str], prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a record under its flat name; ValueError if it holds an object of a class that is not `known`."""
    if module.class_name not in known:
        raise ValueError(f"the network holds a {module.class_name!r}, expected {', '.join(sorted(known))}; it is of another type")
    parameters, buffers, children = (
        values if isinstance(values := module.state.get(name), dict) else {} for name in ("_parameters", "_buffers", "_modules")
    )
    tensors = {prefix + name: value for name, value in {**parameters, **buffers}.items() if value is not None}
    if strange := [key for key, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"the network's {strange[0]} is not a tensor")
    for name, child in children.items():
        if child is not None:
            if not isinstance(child, Module):
                raise ValueError(f"the network's {prefix}{name} is not a module")
            tensors.update(tensors_of(child, known, f"{prefix}{name}."))
    return tensors
