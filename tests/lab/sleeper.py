"""`mlx-stack` on a Mac that can be sent to sleep: its sleep-proof clock is ahead by the seconds in the file `slept`
of its home, as after a night. The event loop's clock knows nothing of it, as on macOS."""

import os
from pathlib import Path

from mesh import clock
from mesh.cli import main

_file = Path(os.environ["MLX_STACK_HOME"]) / "slept"
_awake = clock.now


def _now() -> float:
    try:
        return _awake() + float(_file.read_text())
    except (OSError, ValueError):
        return _awake()


clock.now = _now
main()
