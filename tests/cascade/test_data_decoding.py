"""What becomes of odd files: the kind that each is taken for, and the pixels where a rule says what they are."""

import io
import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
from odd_files import chunk, encoded, forms, photo, png
from PIL import Image

from cascade.data.checking import uncropped
from cascade.data.crops import crop_adm
from cascade.data.decoding import MAX_BYTES, decode, read_file
from cascade.eval.pictures import MAX_PIXELS
from cascade.stages.training.odd_pictures import ODDITIES, DamagedPicture, Oddity

SIZE = 16


def whole(image: Image.Image, size: int) -> np.ndarray:
    """No crop: the decoded picture itself."""
    return np.asarray(image)


def kinds_of(path) -> tuple[Oddity, ...]:
    try:
        return decode(read_file(path), SIZE, crop_adm, path.name).oddities
    except DamagedPicture as error:
        return (error.oddity,)


CASES = [(kind, place) for kind, written in forms().items() for place in range(len(written))]


@pytest.mark.parametrize(("kind", "place"), CASES, ids=lambda value: getattr(value, "title", value))
def test_every_form_of_every_kind_is_taken_for_what_it_is(tmp_path, kind, place):
    ending, write = forms()[kind][place]
    path = tmp_path / f"odd{ending}"
    write(path)
    found = kinds_of(path)
    assert kind in found and (kind.usable or len(found) == 1)
    assert set(found) - {kind} <= ({Oddity.PALETTE, Oddity.TRANSPARENT} if kind is Oddity.ANIMATED else set())


def test_ordinary_pictures_have_no_oddity():
    for form, ending in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tiff"), ("PPM", "ppm")):
        assert decode(encoded(photo(0), form), SIZE, crop_adm, f"a.{ending}").oddities == ()
        assert decode(encoded(photo(0), form), SIZE, crop_adm, f"a.{ending.upper()}").oddities == ()


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "Input/output error")])
def test_what_may_not_be_read_is_unreadable(tmp_path, monkeypatch, error):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def fails(self):
        raise error

    monkeypatch.setattr(type(path), "read_bytes", fails)
    assert kinds_of(path) == (Oddity.UNREADABLE,)


def test_cut_anywhere_a_file_is_never_taken_for_another_and_never_crashes():
    """Only the checksum of a PNG's last, empty chunk may be missing."""
    for form, spare in (("PNG", 4), ("JPEG", 0), ("WEBP", 0), ("TIFF", 0), ("BMP", 0)):
        data = encoded(photo(3), form)
        for length in range(len(data) - spare - 1, 0, -13):
            with pytest.raises(DamagedPicture) as caught:
                decode(data[:length], SIZE, crop_adm)
            assert caught.value.oddity in (Oddity.TRUNCATED, Oddity.CORRUPT, Oddity.NOT_A_PICTURE)


def test_no_flip_of_bytes_crashes():
    """Whatever a file holds, it gives a picture of the right shape or a kind of damage."""
    rng = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        data = np.frombuffer(encoded(photo(4), form), np.uint8)
        for _ in range(40):
            spoiled = data.copy()
            spoiled[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            try:
                assert decode(spoiled.tobytes(), SIZE, crop_adm).pixels.shape == (SIZE, SIZE, 3)
            except DamagedPicture as error:
                assert not error.oddity.usable


def test_transparent_pixels_lie_on_white():
    colour, alpha = np.array([10, 100, 250]), np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.dstack([np.broadcast_to(colour, (16, 16, 3)).astype(np.uint8), alpha])
    got = decode(encoded(Image.fromarray(rgba), "PNG"), 16, whole).pixels
    share = alpha[..., None] / 255
    assert np.abs(got - (colour * share + 255 * (1 - share))).max() <= 1
    assert (got[0, 0] == 255).all() and (got[-1, -1] == colour).all()


def test_sixteen_bits_are_scaled_to_eight_and_rounded():
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    values[-1, -1] = 65535
    want = np.floor(values / 257 + 0.5)
    for form in ("PNG", "TIFF"):
        got = decode(encoded(Image.fromarray(values), form), 64, whole).pixels
        assert np.array_equal(got, np.broadcast_to(want[..., None], (64, 64, 3)))
    data = b"P5 64 64 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(decode(data, 64, whole).pixels[..., 0], want)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_whatever_its_exif_says(orientation):
    """Turned by hand: rows and columns of EXIF's table (JEITA CP-3451, tag 0x0112) name the side where row and column 0 are."""
    upright = np.arange(20 * 24 * 3, dtype=np.uint32).reshape(20, 24, 3).astype(np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif), 20, whole)
    assert np.array_equal(got.pixels, upright)
    assert got.oddities == (() if orientation == 1 else (Oddity.ROTATED,))


def test_the_first_frame_is_taken():
    first, second = photo(1), photo(2)
    for form in ("PNG", "WEBP"):
        data = encoded(first, form, save_all=True, append_images=[second], **({"lossless": True} if form == "WEBP" else {}))
        got = decode(data, 20, whole)
        assert np.array_equal(got.pixels, np.asarray(first)) and got.oddities == (Oddity.ANIMATED,)


def test_grey_is_in_all_channels_and_cmyk_black_is_black():
    got = decode(encoded(photo(5).convert("L"), "PNG"), 20, whole).pixels
    assert (got == got[..., :1]).all() and np.array_equal(got[..., 0], np.asarray(photo(5).convert("L")))
    ink = Image.new("CMYK", (20, 20), (0, 0, 0, 255))
    assert decode(encoded(ink, "TIFF"), 20, whole).pixels.max() == 0
    assert decode(encoded(Image.new("CMYK", (20, 20), (0, 0, 0, 0)), "JPEG", quality=95), 20, whole).pixels.min() == 255


def test_one_pixel_too_small_is_skipped_and_the_size_itself_is_not():
    assert decode(encoded(photo(6, 30, 16), "PNG"), 16, crop_adm).pixels.shape == (16, 16, 3)
    with pytest.raises(DamagedPicture) as caught:
        decode(encoded(photo(6, 30, 15), "PNG"), 16, crop_adm)
    assert caught.value.oddity is Oddity.TOO_SMALL


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    def never(*args, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    for side in (9460, 20_000, 65_500):
        assert side**2 > MAX_PIXELS
        with pytest.raises(DamagedPicture) as caught:
            decode(png(side, side, 8, 2, zlib.compress(b"")), 16, crop_adm)
        assert caught.value.oddity is Oddity.TOO_LARGE
    assert f"{MAX_PIXELS:,} pixels or {MAX_BYTES // 2**20} MiB" in Oddity.TOO_LARGE.rule


def test_formats_that_run_programs_are_not_opened(monkeypatch):
    from PIL import EpsImagePlugin

    def never(*args, **options):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(data)).format == "EPS"  # Pillow itself would
    with pytest.raises(DamagedPicture) as caught:
        decode(data, 16, crop_adm, "a.jpg")
    assert caught.value.oddity is Oddity.NOT_A_PICTURE


def test_running_out_of_memory_is_not_the_pictures_fault(monkeypatch):
    def fails(*args, **options):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(MemoryError):
        decode(encoded(photo(0).convert("L"), "PNG"), 16, crop_adm)


def test_a_text_that_unpacks_to_a_bomb_is_corrupt():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**7)))
    data = encoded(photo(0), "PNG")
    with pytest.raises(DamagedPicture) as caught:
        decode(data[:33] + bomb * 8 + data[33:], 16, uncropped)
    assert caught.value.oddity is Oddity.CORRUPT


def test_the_documented_rules_are_the_rules():
    """The table in the documentation is the enumeration, and codes are places in it."""
    assert [o.code for o in ODDITIES] == list(range(len(ODDITIES)))
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    table = page[page.index("| Kind | Rule |") :].partition("\n\n")[0].splitlines()[2:]
    assert table == [f"| {o.title} | {o.rule} |" for o in ODDITIES]
    assert all(a.title != b.title for a, b in itertools.combinations(ODDITIES, 2))
