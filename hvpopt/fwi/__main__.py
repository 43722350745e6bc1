"""``python -m hvpopt.fwi info file.sgy``: what a file holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hvpopt.fwi.io.segy_info import segy_info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 where the file could not be read."""
    parser = argparse.ArgumentParser(prog="python -m hvpopt.fwi")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print what a SEG-Y file holds")
    info.add_argument("file", help="a .sgy or .segy file")
    info.add_argument("--byte-order", choices=["big", "little"], help="of the file")
    info.add_argument(
        "--shot-key", help="trace header, by segyio's name, that tells the shots apart"
    )
    given = parser.parse_args(arguments)
    try:
        print(segy_info(given.file, byte_order=given.byte_order, shot_key=given.shot_key))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
