"""A command that fails when it uses more CPU time than it may.

    python -m tests.timed 4 python -m pytest

The minutes are those of a machine of two cores that does nothing else: 4 are 480 CPU seconds, of all its processes.
"""

import os
import subprocess
import sys

CORES = 2


def main() -> int:
    """The command's exit code; 1 where it was too slow."""
    minutes, command = float(sys.argv[1]), sys.argv[2:]
    code = subprocess.run(command, check=False).returncode
    used = os.times()
    seconds = used.children_user + used.children_system
    took = f"{seconds:.0f} CPU seconds, {seconds / CORES / 60:.1f} minutes on {CORES} cores"
    print(f"{took} (at most {minutes:g})", flush=True)
    return code or int(seconds > minutes * CORES * 60)


if __name__ == "__main__":
    sys.exit(main())
