"""Which files are opened as pictures."""

import io

import pytest
from PIL import Image, UnidentifiedImageError

from cascade.eval.pictures import FORMATS, open_no_other_formats


def test_what_another_library_opens_is_of_our_formats_alone(monkeypatch):
    """An EPS is what Pillow starts Ghostscript for, whatever the file is called."""
    Image.init()
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    files = {}
    for kind in (*FORMATS, "EPS", "TGA"):
        Image.new("RGB", (8, 8)).save(file := io.BytesIO(), kind)
        files[kind] = file
        with Image.open(io.BytesIO(file.getvalue())) as image:
            assert image.format == kind
    open_no_other_formats()
    for kind, file in files.items():
        if kind in FORMATS:
            Image.open(io.BytesIO(file.getvalue())).load()
        else:
            with pytest.raises(UnidentifiedImageError):
                Image.open(io.BytesIO(file.getvalue()))
