"""A run that does what writes files, watched: ``python watched_run.py FOLDER`` tells what the package itself wrote.

The last line that it prints is ``[files, connections]`` as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType
from typing import Any

STANDARD = (f"{sysconfig.get_path('stdlib')}{os.sep}", "<frozen ")
INSTALLED = (f"{sysconfig.get_path('purelib')}{os.sep}", f"{sysconfig.get_path('platlib')}{os.sep}")
PACKAGE = tuple(f"{Path(__file__).resolve().parents[1] / name}{os.sep}" for name in ("skiplora_fx", "passes"))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

written: list[str] = []
talked: list[str] = []


def is_own(frame: FrameType | None) -> bool:
    """Return whether the package called what Python's own library does in ``frame``."""
    while frame is not None and _is_standard(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


def _is_standard(file: str) -> bool:
    return file.startswith(STANDARD) and not file.startswith(INSTALLED)


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith("socket."):
        talked.extend([event] if event in ("socket.connect", "socket.getaddrinfo", "socket.bind") else [])
        return
    if event == "open":
        path, _, flags = arguments
        touched = [path] if flags & WRITING and not isinstance(path, int) else []
    else:
        touched = {"os.mkdir": arguments[:1], "os.remove": arguments[:1], "os.rename": arguments[:2]}.get(event, ())
    if touched and is_own(sys._getframe(1)):
        written.extend(os.path.abspath(os.fsdecode(path)) for path in touched)


def run(named: Path) -> None:
    """Train with a log, explain, compare, and draw, with everything that is written named in ``named``."""
    import two_layers
    from lora_modules import batch

    import skiplora_fx
    from skiplora_fx.cli import main

    log, snapshot = named / "log.jsonl", named / "snapshot.json"
    model = two_layers.compiled(policy="freeze", warmup_steps=1)
    optimizer = two_layers.sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=log)
    for _ in range(3):
        two_layers.step(model)
        optimizer.step()
        attachment.note(loss=1.0)
    skiplora_fx.report(model)
    attachment.remove()
    str(skiplora_fx.explain(two_layers.Two(), batch()))
    found = skiplora_fx.diff(two_layers.Two(), batch())
    snapshot.write_text(found.to_json())
    found.to_html(named / "page.html", log=log)
    main(["diff", str(snapshot), "--html", str(named / "again.html")])
    main(["diff", str(snapshot), "--json", str(named / "again.json")])
    main(["plot", str(log), "--out", str(named / "picture.png")])
    main(["env"])
    main(["passes"])


if __name__ == "__main__":
    sys.addaudithook(watch)
    run(Path(sys.argv[1]))
    print("\n" + json.dumps([written, talked]))
