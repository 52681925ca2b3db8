"""Has a released transformers the option `qkv_mode`? Counts the modules that have the words.

Run     python benchmarks/upstream_mode.py [VERSION]
Takes   a few seconds and 10 MB: the wheel is downloaded and read, neither installed nor imported
"""

import argparse
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

WORDS = b"qkv_mode"


def main() -> None:
    """Download the wheel of this version and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?", default="4.45.0")
    version = parser.parse_args().version
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, f"transformers=={version}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            modules = [name for name in archive.namelist() if name.endswith(".py")]
            having = sum(WORDS in archive.read(name) for name in modules)
        print(f"{wheel.name}, sha256 {sha256(wheel.read_bytes()).hexdigest()}")
        print(f"{having} of {len(modules):,} modules have the words {WORDS.decode()}")


if __name__ == "__main__":
    main()
