"""Hostile input of every kind, made from a seed, and an oracle that looks at what the program does with it.

Runs as a program, `hostile.py FOLDER SEED COUNT [KIND ...]`, which prints a line of JSON per case: kind, number, failure or null.
XDG_CACHE_HOME must be a folder that may be filled.
"""

import contextlib
import importlib
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

for _folder in (Path(__file__).parent, Path(__file__).parents[1] / "cascade"):
    sys.path.insert(0, str(_folder))
importlib.import_module("cascade")  # first: it makes torchvision importable beside a CPU torch

import numpy as np  # noqa: E402
from odd_files import chunk, encoded, forms, photo  # noqa: E402
from tiny import cascade as tiny  # noqa: E402

from cascade.cli import main as commands  # noqa: E402
from cascade.cli.errors import guarded  # noqa: E402
from cascade.cli.generate import main as generate  # noqa: E402
from cascade.cli.terminal import put  # noqa: E402
from cascade.cli.upscale import read_square  # noqa: E402
from cascade.data import open_pictures  # noqa: E402
from cascade.data.checking import check  # noqa: E402
from cascade.eval.images import image_folder  # noqa: E402
from cascade.measure.named import image_source, reference_source  # noqa: E402
from cascade.models import resolve  # noqa: E402
from cascade.pipeline import CascadePipeline  # noqa: E402
from cascade.stages.cpu_memory import kept_memory  # noqa: E402
from cascade.stages.published import convert  # noqa: E402
from cascade.stages.training import Data  # noqa: E402
from cascade.training.recipes import load_recipe  # noqa: E402
from cascade.training.stage import summary  # noqa: E402

SECONDS, BYTES, CHARACTERS = 10, 2 * 2**30, 500
"""Of the processor, of memory above the start, and of a sentence: more is a failure."""

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, -0.0, 10**9, 10**18, 2**63, 1e308, float("nan"), float("inf"), "", "x", "\x1b[2J\x1b]0;owned\x07",
    "../../x", "/etc/passwd", "a" * 100_000, [], [[]], {}, {"a": 1}, [1000000000, 1], "__import__('os').system('touch canary')",
    "\u202egnp.exe", "\ud800",
)  # fmt: skip
RECIPE = """name: attack
data: {source: drawings}
network: {sample_size: 16, channels: [8, 16], blocks: [1, 1], attention_sizes: [], head_channels: 8}
phases: [{size: 16, images: 64, batch_size: 4}]
optimization: {learning_rate: 1e-4, warmup: 10, clip_norm: 1.0}
"""
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile showpage\n"


class Payload:
    """A pickle that makes a file when it is read by pickle's own reader."""

    def __reduce__(self) -> Any:
        return open, ("canary", "w")


def nested(value: Any, rng: random.Random) -> Any:
    """The value with one inner value exchanged for a hostile one, added or left out."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = nested(value[key], rng)
        return value
    return rng.choice(VALUES)


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """The bytes cut, changed here and there, doubled, or with large numbers in them."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(out)) if out else 0
        match rng.randrange(5):
            case 0:
                del out[place:]
            case 1 if out:
                out[place] ^= 1 << rng.randrange(8)
            case 2:
                out[place : place + 8] = struct.pack("<Q", rng.choice((2**31, 2**40, 2**63, 2**64 - 1, 0)))
            case 3:
                out[place:place] = out[place : place + 64]
            case _:
                out[place : place + 4] = rng.randbytes(4)
    return bytes(out)


def place(path: Path, data: bytes, rng: random.Random) -> Path:
    """A file of this content; or, once in a while, something in its place that must not be waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    match rng.randrange(40):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.mkdir()
        case _:
            path.write_bytes(data)
    return path


def model(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    name = rng.choice([one for one in whole if one.endswith((".json", ".safetensors"))])
    for path, data in whole.items():
        (folder / "m" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "m" / path).write_bytes(data)
    data = whole[name]
    if name.endswith(".json") and rng.random() < 0.85:
        data = json.dumps(nested(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    else:
        data = spoiled(data, rng)
    place(folder / "m" / name, data, rng)
    words = rng.choice((["inspect"], ["classes", "--model"], ["load"], ["generate"]))
    if words == ["load"]:
        return lambda: guarded("load", lambda: put(CascadePipeline.from_pretrained(resolve("m"))))
    if words == ["generate"]:
        return lambda: generate(["--class", "cat", "--model", "./m", "--out", "out", "--size", "8", "--device", "cpu"])
    return lambda: commands.main([*words, "./m"])


def pickled(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    import torch

    inner: Any = ()
    for _ in range(rng.choice((1, 3, 40, 80))):
        inner = rng.choice(((inner, inner), [inner, inner], {"a": inner, "b": inner}))
    content = rng.choice((Payload(), {"ema": Payload()}, {"ema": inner}, {"w": torch.zeros(3)}, inner, {"w": rng.choice(VALUES)}))
    form, file = rng.choice((".pkl", ".pt", ".pth")), io.BytesIO()
    with contextlib.suppress(Exception):
        if form == ".pkl" or rng.random() < 0.2:
            file.write(pickle.dumps(content, protocol=rng.randrange(6)))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    data = rng.choice(
        (file.getvalue(), spoiled(file.getvalue(), rng), b"\x80\x02]r\xff\xff\xff\x3f.", b"cposix\nsystem\n(S'touch canary'\ntR.")
    )
    path = place(folder / f"w{form}", data, rng)
    family = "edm2" if form == ".pkl" else rng.choice(("sr3", "guided-diffusion", "jit"))
    return lambda: guarded("convert", lambda: put(convert(family, path, None, folder / "stage")))


@cache
def bomb() -> bytes:
    """An archive of pictures that is small and says it is large, and is."""
    packed, head = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (60_000, 64, 64, 3)})
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out, out.open("arr_0.npy", "w") as member:
        member.write(head.getvalue())
        for _ in range(60_000 * 64 * 64 * 3 // 2**20):
            member.write(bytes(2**20))
    return packed.getvalue()


def archive(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    names = ["arr_0", "arr_1", "mu", "sigma", "mu_s", "sigma_s", "mean", "cov", "count", "provenance"]
    arrays = (
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros(4),
        np.eye(4),
        np.array(9),
        np.array('{"a": 1}'),
        np.array(["\x1b[2J"]),
        np.zeros((0, 3)),
    )
    file = io.BytesIO()
    np.savez(file, **{name: rng.choice(arrays) for name in rng.sample(names, rng.randrange(len(names)))})
    data = file.getvalue() if rng.random() < 0.4 else spoiled(file.getvalue(), rng)
    if rng.random() < 0.15:
        data = bomb()
    path = place(folder / "a.npz", data, rng)
    if rng.random() < 0.5:
        return lambda: guarded("images", lambda: put(len(image_source(str(path))[0])))
    return lambda: guarded("reference", lambda: put(type(reference_source(str(path), image_size=8, extractor="none"))))


def yaml(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    import yaml as library

    def text() -> str:
        match rng.randrange(6):
            case 0:
                return spoiled(RECIPE.encode(), rng).decode("latin-1")
            case 1:
                tags = ("python/object/apply:os.system [touch canary]", "int x", "bool x", "timestamp x", "set {}")
                return f"{RECIPE}seed: !!{rng.choice(tags)}\n"
            case 2:
                return RECIPE + "".join(f"k{n}: {n}\n" for n in range(30_000))
            case 3:
                return "a: &a [x,x]\n" + "".join(
                    f"b{n}: &b{n} [*{'a' if not n else f'b{n - 1}'}, *{'a' if not n else f'b{n - 1}'}]\n" for n in range(40)
                )
            case 4:
                return "[" * 100_000
            case _:
                return str(library.safe_dump(json.loads(json.dumps(nested(library.safe_load(RECIPE), rng), skipkeys=True))))

    with contextlib.suppress(Exception):
        data = text().encode("utf-8", "surrogatepass")
        path = place(folder / "r.yaml", data, rng)

    def read() -> None:
        recipe = load_recipe(path)
        put(summary(recipe, 3))

    return lambda: guarded("train", read)


def picture(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    kinds = list(forms(0).items())
    name = rng.choice(("p.png", "p.jpg", "p.webp", "p.gif", "p.tif", "p.bmp", "p.ppm"))
    path = folder / "pictures" / "c" / name
    path.parent.mkdir(parents=True)
    match rng.randrange(5):
        case 0:
            place(path, EPS, rng)
        case 1:
            rng.choice(rng.choice(kinds)[1])[1](path)
        case 2:
            head = struct.pack(">IIBBBBB", rng.choice((60_000, 2**31 - 1)), 60_000, 8, 2, 0, 0, 0)
            text = chunk(b"tEXt", b"Software\0cascade-diffusion \x1b[2J") + chunk(b"tEXt", b"a" * 70 + b"\0" + b"b" * 1000)
            place(path, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + text + chunk(b"IDAT", bytes(9)) + chunk(b"IEND", b""), rng)
        case _:
            place(path, spoiled(encoded(photo(1), rng.choice(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"))), rng), rng)
    match rng.randrange(4):
        case 0:
            return lambda: commands.main(["inspect", str(path)])
        case 1:
            return lambda: guarded("upscale", lambda: put(read_square(path, 64).size))
        case 2:
            return lambda: guarded("images", lambda: put(len(list(image_folder(folder / "pictures").batches()))))
        case _:
            return lambda: guarded("data check", lambda: checked(str(folder / "pictures")))


def shard(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(3):
            for ending, data in (
                ("png", encoded(photo(number), "PNG")),
                ("cls", str(rng.choice((0, 1, -1, 10**8, 2**62, "\x1b[2J", "a" * 5000))).encode()),
            ):
                entry = tarfile.TarInfo(f"{rng.choice(('../', '/', '', 'a' * 90 + '/'))}{number}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    data = file.getvalue() if rng.random() < 0.5 else spoiled(file.getvalue(), rng)
    path = place(folder / "s.tar", data, rng)
    return lambda: guarded("data check", lambda: checked(str(path)))


def parquet(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    rows, large = rng.choice((0, 1, 3, 8)), rng.random() < 0.15
    if large:
        rows = rng.choice((30, 300_000))
    pictures = [encoded(photo(number), rng.choice(("PNG", "JPEG"))) for number in range(3)]
    blob = rng.choice((pictures[0], b"", None, bytes(2**25) if rows < 100 else None, EPS, b"\x1b[2J.png"))
    bytes_of = arrow.array([blob] * rows if large else [rng.choice((*pictures, blob)) for _ in range(rows)], arrow.binary())
    names = arrow.array([rng.choice(("a.png", "/etc/passwd", "../../x.png", "\x1b[2J.png"))] * rows, arrow.string())
    values = rng.choice(
        ([0, 1], [-1, 10**8], [2**62, None], [0.5, 1e308], ["a", "\x1b[2J"], ["a" * 5000, ""], [[0], []], [True, None])
    )
    kind = rng.choice((None, None, None, arrow.uint64(), arrow.large_string(), arrow.binary(), arrow.timestamp("us")))
    try:
        labels = arrow.array((values * rows)[:rows], kind)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError):
        labels = arrow.array((values * rows)[:rows])
    image = rng.choice((bytes_of, names, arrow.StructArray.from_arrays([bytes_of, names], ["bytes", "path"])))
    columns = {
        "image": image,
        rng.choice(("label", "label", "\x1b[2J", "class")): labels,
        rng.choice(("x", "fine_label")): labels,
    }
    said = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = arrow.table(columns)
    if rng.random() < 0.5:
        told = nested(said, rng) if rng.random() < 0.7 else said
        text = json.dumps(told).encode("utf-8", "surrogatepass") if rng.random() < 0.9 else b"[" * 100_000
        table = table.replace_schema_metadata({"huggingface": text})
    file = io.BytesIO()
    write_table(
        table,
        file,
        compression=rng.choice(("none", "zstd", "gzip")),
        row_group_size=rng.choice((1, 2**20)) if rows < 100 else None,
    )
    data = file.getvalue() if large or rng.random() < 0.5 else spoiled(file.getvalue(), rng)
    path = place(folder / "s.parquet", data, rng)
    return lambda: guarded("data check", lambda: checked(str(path)))


def checked(source: str) -> None:
    pictures = open_pictures(Data(source=source), 8)
    put(*check(pictures, 0, lambda done, total: None).table().split("\n"))


def arguments(folder: Path, rng: random.Random, whole: dict[str, bytes]) -> Callable[[], int]:
    values = ["", "-1", "0", "1e9", "1" * 30, "nan", "x\x1b[2J", "a" * 5000, "/dev/zero", "..", "base=1,sr16=2", "1,2,3", "cat"]
    for path, data in whole.items():
        (folder / "m" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "m" / path).write_bytes(data)
    options = [
        "--steps",
        "--guidance-scale",
        "--size",
        "--seed",
        "-n",
        "--class",
        "--scheduler",
        "--aug-level",
        "--batch-size",
        "--dtype",
    ]
    words = ["--class", "cat", "--model", "./m", "--out", "out", "--device", "cpu", "--size", "8"]
    for option in rng.sample(options, rng.randrange(1, 4)):
        words += [option, rng.choice(values)]
    return lambda: generate(words)


KINDS = {f.__name__: f for f in (model, pickled, archive, yaml, picture, shard, parquet, arguments)}


class Watch:
    """What the process does that nothing of ours has any business with, told by Python's audit hook."""

    def __init__(self) -> None:
        self.on, self.seen, self.root = False, set[str](), ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, details: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "ctypes.dlopen"):
            self.seen.add(event)
        elif event == "open" and isinstance(details[0], str) and isinstance(details[1], str) and set(details[1]) & set("wax+"):
            path = os.path.abspath(details[0])
            if not path.startswith((self.root, os.path.realpath("/tmp"), os.devnull)):
                self.seen.add(f"writes {path}")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judged(action: Callable[[], int], watch: Watch, folder: Path) -> str | None:
    """What is wrong with what the program did; None = nothing."""
    out, begun, before = io.StringIO(), time.process_time(), peak()
    watch.on, watch.root = True, str(folder)
    signal.alarm(600)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = action()
    except BaseException as error:  # noqa: BLE001
        return f"{type(error).__name__} got out: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        watch.on = False
    seconds, said = time.process_time() - begun, out.getvalue()
    last = said.strip().split("\n")[-1]
    if watch.seen:
        found, watch.seen = sorted(watch.seen), set()
        return f"it did: {found}"
    if (folder / "canary").exists():
        return "code of a file was executed"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "internal error" in said or "Traceback" in said:
        return f"internal error: {last[:300]}"
    if code and not 0 < len(last) <= CHARACTERS:
        return f"a sentence of {len(last)} characters"
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said):
        return f"raw characters: {said[:200]!r}"
    if seconds > SECONDS:
        return f"{seconds:.0f} s"
    if (grown := peak() - max(before, 0)) > BYTES:
        return f"{grown / 2**30:.1f} GB"
    return None


def cases(root: Path, seed: str, count: int, kinds: list[str]) -> Iterator[tuple[str, int, str | None]]:
    """So many cases of the kinds in turn, the same ones for a seed."""
    tiny().save_pretrained(root / "whole")
    whole = {p.relative_to(root / "whole").as_posix(): p.read_bytes() for p in (root / "whole").rglob("*") if p.is_file()}
    with kept_memory():
        pass  # asks for the process's own C library, once: later calls of that kind are a file's
    watch = Watch()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        rng = random.Random(f"{seed}/{number}")
        folder = root / f"case-{number}"
        folder.mkdir(parents=True)
        os.chdir(folder)
        try:
            action = KINDS[kind](folder, rng, whole)
        except (ValueError, OSError, UnboundLocalError):  # a case that can't even be written down
            continue
        yield kind, number, judged(action, watch, folder)
        os.chdir(root)


if __name__ == "__main__":
    root, seed, count, *kinds = sys.argv[1:]
    for one in cases(Path(root).absolute(), seed, int(count), kinds or list(KINDS)):
        print(json.dumps(one), flush=True)
